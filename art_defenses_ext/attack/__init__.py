"""Attacks in ART's interface that differentiate the whole of preprocessing and network."""
