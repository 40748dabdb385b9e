"""Basis of all other packages: errors, atomic files, hashes, locks, progress bars, the cache folder."""
