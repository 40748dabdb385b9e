"""What to annotate first, what next, and how corrected masks come back into the data set."""
