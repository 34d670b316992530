"""The records of a run: samples, costs, the run's description, proportions."""
