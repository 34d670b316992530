"""Figures shown: in a terminal, as JSON and as a page."""
