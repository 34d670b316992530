"""Checks of the attacks: whether a robust accuracy is established."""
