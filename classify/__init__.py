"""Exam classifiers, an encoder of clips and a linear layer: training, scores with intervals, prediction, Grad-CAM."""
