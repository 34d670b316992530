"""What is written down of a run: per-sample records, costs, the run's description, proportions."""
