"""Readers: data sets and image files on disk, as tables of slices or exams."""
