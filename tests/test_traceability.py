"""docs/traceability.md names what there is: functions that can be imported, tests that are collected."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from art_defenses_ext.defence.registry import installed

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "traceability.md").read_text().splitlines()
    if line.startswith("| ") and "`" in line
]


def resolve(name: str) -> Any:
    """What a dotted name below the package stands for: the longest module first, then its attributes."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            value: Any = importlib.import_module(".".join(["art_defenses_ext", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            value = getattr(value, attribute)
        return value
    raise AssertionError(f"{name} is in no module")


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("function", "test"), [(row[1], row[2]) for row in ROWS])
def test_every_name_exists(function: str, test: str) -> None:
    assert callable(resolve(function.strip("`")))
    file, _, name = test.strip("`").partition("::")
    assert names_in(file)
    assert not name or name in names_in(file)


def test_all_five_methods_are_traced() -> None:
    methods = installed()
    assert len(methods) == 5
    homes = {re.sub(r"^`\w+\.(\w+)\..*", r"\1", row[1]) for row in ROWS}
    assert set(methods) <= homes
    assert len(ROWS) >= 30
