"""BYOL and the stages generalist, specialist and hierarchical."""
