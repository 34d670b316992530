"""What every defence offers, and which are installed."""
