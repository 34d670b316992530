"""The command ``art-defenses``."""
