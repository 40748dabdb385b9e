"""Synthetic data sets in the file layouts of real ones, reproducible by seed."""
