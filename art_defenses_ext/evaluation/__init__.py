"""From a defended classifier to a report that says what survives."""
