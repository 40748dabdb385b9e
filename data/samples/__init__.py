"""Samples for a network: augmented slices, clips of exams, and slices kept on the device."""
