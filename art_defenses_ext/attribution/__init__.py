"""Explanations of a classifier, as functions that can be differentiated twice."""
