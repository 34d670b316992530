"""The report of a run: in a terminal, as JSON and as a page."""
