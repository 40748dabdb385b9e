"""DICOM series, segmentations and structure sets: found, checked, sorted by geometry and decoded."""
