"""Runs beside each other, and results for others."""
