"""Comparison and publication of runs."""
