"""Data sets, networks, and classifiers made of them."""
