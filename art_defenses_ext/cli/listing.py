"""``art-defenses list``: names of defences, data sets, networks and attack suites."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import click

from art_defenses_ext.base.declared import one_of
from art_defenses_ext.base.entry_points import installed
from art_defenses_ext.evaluation.config import SETS
from art_defenses_ext.zoo.catalogue import DATASETS, MODELS

Line = tuple[str, str, str]
"""The kind of an item, its name, and a description."""


@click.command("list")
@click.argument("names", nargs=-1)
def list_command(names: tuple[str, ...]) -> None:
    """List defences, data sets, networks and attack suites.

    For each of NAMES: the options and the paper's attacks of a defence, the attacks of a suite, or the purpose of an
    attack of another package.
    """
    from rich.console import Console
    from rich.table import Table

    known = one_of(*installed("defence"), *list(SETS)[1:], *installed("attack"))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for line in [line for name in names for line in _details(known.checked("name", name))] if names else _overview():
        table.add_row(*line)
    Console().print(table)


def _overview() -> Iterator[Line]:
    for name, point in installed("defence").items():
        yield "defence", name, _title(point)
    yield "defence", "none", "the undefended model"
    for name in DATASETS:
        yield "data set", name, ""
    for name, spec in MODELS.items():
        yield "network", name, f"for {spec.dataset}, {' x '.join(map(str, spec.input_shape))}"
    for name, description in SETS.items():
        yield "attacks", name, description
    for name, point in installed("attack").items():
        yield "attack", name, point.value


def _title(point: EntryPoint) -> str:
    """Return the title that the class of a defence declares, from its source, since an import would take seconds."""
    try:
        source = find_spec(point.module)
        nodes = ast.walk(ast.parse(Path(source.origin).read_bytes())) if source and source.origin else ()
    except (ImportError, OSError, SyntaxError) as error:
        return f"cannot be read ({error})"
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == point.attr:
            for statement in node.body:
                match statement:
                    case ast.Assign(targets=[ast.Name("title")], value=ast.Constant(str(title))):
                        return title
    return ""


def _details(name: str) -> Iterator[Line]:
    from art_defenses_ext.cli.defences import option_names
    from art_defenses_ext.defence.registry import load_face
    from art_defenses_ext.evaluation.suite.papers import paper_specs
    from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, STANDARD, SUITES, load_attack

    if name in installed("attack"):
        yield "attack", name, load_attack(name).purpose
        return
    if name in installed("defence"):
        face = load_face(name)
        yield "defence", name, face.title
        yield "", "", f"options: {', '.join(option_names(name))}"
        for attack in paper_specs(face):
            yield "attacks papers", attack.name, f"{name}: {attack.purpose}"
        return
    for attack in SUITES[name]:
        yield f"attacks {'standard' if attack in STANDARD and name == 'full' else name}", attack.name, attack.purpose
    for attack in DETECTOR_SUITE:
        yield "attacks detector", attack.name, attack.purpose
