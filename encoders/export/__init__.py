"""Export trained networks for other software, each checked by that software before the command ends."""
