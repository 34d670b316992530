"""Classifiers put together of a network, defences and detectors."""
