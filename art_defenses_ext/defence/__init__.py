"""The common interface of all defences, and the installed ones."""
