"""Exam classifiers: an encoder of clips and one linear layer, scored with intervals, predicted, compared, explained."""
