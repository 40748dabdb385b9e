"""The report of a study, built from the files in its folder."""
