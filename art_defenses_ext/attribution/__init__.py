"""Explanations of a classifier, as twice differentiable functions."""
