"""What all other packages build on: errors, atomic files, hashes, locks, progress bars, the cache folder."""
