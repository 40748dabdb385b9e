"""What travels: building encoders, adapting channels, weights in and out."""
