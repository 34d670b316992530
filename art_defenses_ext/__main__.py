"""``python -m art_defenses_ext``: the same as the command ``art-defenses``."""

from art_defenses_ext.cli.app import main

main()
