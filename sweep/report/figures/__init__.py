"""Figures of a study, one file per figure; sizes are in CSS pixels.

Their common arguments are `styles` (of each pipeline), `score` (name of the score), `unit` (what the labels are, in the
plural) and `width` (in pixels: `WIDE` for a screen and the saved files, `NARROW` for a phone).
"""
