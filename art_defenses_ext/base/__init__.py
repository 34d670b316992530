"""Common foundations: validation, arrays, text, files, progress."""
