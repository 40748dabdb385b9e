"""The study of class imbalance: configuration and running."""
