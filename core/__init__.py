"""What all other rooms build on: errors, atomic files, hashes, locks, progress bars, the cache folder."""
