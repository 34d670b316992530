"""Robustness as tests: the pytest plugin and the assertions behind it."""
