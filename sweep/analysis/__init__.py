"""Statistics of a study; imports no stage."""
