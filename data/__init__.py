"""Data: readers, splits, the packed slice store, preprocessing, augmentation and synthetic phantoms."""
