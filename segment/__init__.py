"""U-Net segmentation with few labels: training, volume-level evaluation, prediction."""
