"""``art-defenses doctor``: the installed versions, and ART's traps in a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from art_defenses_ext.base.errors import InputError, shown_by
from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.cli.show import say

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier


@click.command("doctor")
@click.option(
    "--classifier",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="Your own function, which returns the ART PyTorchClassifier to examine.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the data sets. By default ART_DEFENSES_DATA, else a cache.",
)
def doctor_command(classifier: str | None, data: Path | None) -> None:
    """Print versions, devices and data sets, and examine a classifier.

    In a classifier of your own it looks for traps that make ART's attacks fail.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from art_defenses_ext.cli.traps import TRAPS, environment, examine
    from art_defenses_ext.zoo.datasets import data_found

    traps = None if classifier is None else examine(_load_own_classifier(classifier))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, text in environment().items():
        table.add_row(name, Text(for_terminal(text)))
    for name, is_present in data_found(data).items():
        table.add_row(name, "found" if is_present else "not found")
    Console().print(table)
    for trap in traps or ():
        say(f"{trap.name}: {trap.finding}; {trap.advice} ({shown_by('traps')})", fg="red")
    if traps is not None:
        say(f"{len(traps)} of {len(TRAPS)} traps found")


def _load_own_classifier(text: str) -> PyTorchClassifier:
    from art_defenses_ext.zoo.models import call_factory

    module, colon, attribute = text.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"classifier is {text!r}; 'package.module:function' was expected")
    classifier: PyTorchClassifier = call_factory(text, module, attribute, "classifier")
    return classifier
