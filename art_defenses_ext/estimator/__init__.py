"""Classifiers composed of a network, defences and detectors."""
