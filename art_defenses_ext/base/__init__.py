"""What everything else stands on: validation, arrays, text, files, progress."""
