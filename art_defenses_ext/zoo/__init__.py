"""Data sets, networks, and trained classifiers."""
