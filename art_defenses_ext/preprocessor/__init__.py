"""Defences that restore an image before the classifier sees it."""
