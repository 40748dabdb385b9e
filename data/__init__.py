"""What enters: readers, the packed slice store, subject splits, views and phantoms."""
