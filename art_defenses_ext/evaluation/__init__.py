"""From a defended classifier to a report of its robust accuracy."""
