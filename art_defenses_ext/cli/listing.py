"""``art-defenses list``: what can be chosen."""

from __future__ import annotations

import click


@click.command("list")
def list_command() -> None:
    """List defences, data sets, networks and attacks."""
    from rich.console import Console
    from rich.table import Table

    from art_defenses_ext.base.entry_points import installed
    from art_defenses_ext.cli.defences import defence_names, face_of, option_names
    from art_defenses_ext.evaluation.suite.papers import paper_specs
    from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, FULL, STANDARD, load_attack
    from art_defenses_ext.zoo.catalogue import DATASETS, MODELS

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    faces = {name: face_of(name) for name in defence_names()}
    for name, face in faces.items():
        table.add_row("defence", name, "the undefended model" if face is None else face.title)
        if face is not None:
            table.add_row("", "", f"options: {', '.join(option_names(name))}")
    for name in DATASETS:
        table.add_row("data set", name, "")
    for name, spec in MODELS.items():
        table.add_row("network", name, f"for {spec.dataset}, {' x '.join(map(str, spec.input_shape))}")
    for name, face in faces.items():
        for attack in () if face is None else paper_specs(face):
            table.add_row("attacks papers", attack.name, f"{name}: {attack.purpose}")
    for attack in FULL:
        table.add_row(f"attacks {'standard' if attack in STANDARD else 'full'}", attack.name, attack.purpose)
    for attack in DETECTOR_SUITE:
        table.add_row("attacks detector", attack.name, attack.purpose)
    for name in installed("attack"):
        table.add_row("attack", name, load_attack(name).purpose)
    Console().print(table)
