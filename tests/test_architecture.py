"""The package is as docs/architecture.md describes it: each file listed, imports downward, public names explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import art_defenses_ext

PACKAGE = "art_defenses_ext"
ROOT = Path(art_defenses_ext.__file__).parent
PLAN = ROOT.parent / "docs" / "architecture.md"

ROOMS = (
    ("__main__",),
    ("cli", "testing"),
    ("evaluation.publish",),
    ("evaluation",),
    ("evaluation.report",),
    ("evaluation.results",),
    ("evaluation.run",),
    ("evaluation.checks",),
    ("evaluation.suite",),
    ("evaluation.records",),
    ("evaluation.threat", "evaluation.config"),
    ("attack",),
    ("preprocessor", "detector", "transformer"),
    ("defence",),
    ("zoo",),
    ("training",),
    ("attribution",),
    ("estimator",),
    ("gradients",),
    ("base",),
)
"""From the top down: each imports from its own and from what stands below, not from what stands beside it."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = [name for name in PATHS if not name.endswith("__main__")]


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports anywhere, also inside functions and for types alone."""
    modules = set()
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return (modules & set(PATHS)) - {name}


def room_of(name: str) -> str:
    """The room of a module; the evaluation's hall is what lies in its folder itself."""
    parts = name.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if any(inner in rooms for rooms in ROOMS) else parts[0]


def floor_of(name: str) -> int:
    (floor,) = [number for number, rooms in enumerate(ROOMS) if room_of(name) in rooms]
    return floor


def test_there_is_no_import_cycle() -> None:
    below = {name: imported(name) - {PACKAGE} for name in PATHS}
    list(TopologicalSorter(below).static_order())  # a CycleError names the cycle


@pytest.mark.parametrize("name", [name for name in PATHS if "." in name])
def test_imports_go_down_only(name: str) -> None:
    imports = [target for target in imported(name) if "." in target and room_of(target) != room_of(name)]
    assert not [target for target in imports if floor_of(target) <= floor_of(name)]


def test_the_page_draws_the_rooms_in_their_order() -> None:
    text = PLAN.read_text()
    drawing = text[text.index("    cli, testing > ") :].partition("\n\n")[0]
    names = re.findall(r"\w+", drawing)
    rooms = [room.removeprefix("evaluation.") for floor in ROOMS[1:] for room in floor]
    hall = ["evaluate", "merge", "task"]
    assert [name for name in names if name not in ("evaluation", *hall)] == [
        room for room in rooms if room != "evaluation"
    ]


def planned() -> set[str]:
    """The files on the plan, as paths below the package."""
    text = PLAN.read_text()
    tree = text[text.index(f"    {PACKAGE}/") : text.index("Folders import in this order")]
    planned_files, folders = set(), [""]
    for line in tree.splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        if opened := re.match(r"\s+(\w+)/(?:\s|$)", line):
            folders[(indent - 4) // 2 :] = [f"{opened[1]}/"]
        elif named := re.match(r"\s+(\w+\.py)\b", line):
            planned_files.add("".join(folders[: (indent - 4) // 2]) + named[1])
    return planned_files


def test_every_file_is_on_the_plan() -> None:
    existing = {str(path.relative_to(ROOT)) for path in PATHS.values()}
    assert planned() == {name for name in existing if not name.endswith("/__init__.py")}


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions, classes and their methods, where they are defined."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for inner, method in vars(value).items():
                plain = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                if not inner.startswith("_") and inspect.isfunction(plain):
                    yield f"{name}.{inner}", getattr(value, inner)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_explained(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    unexplained = [inner for inner, value in members(module) if not inspect.getdoc(value)]
    assert not unexplained


@pytest.mark.parametrize("name", art_defenses_ext.__all__)
def test_top_level_names_say_what_they_take(name: str) -> None:
    """Every argument of a function, of a class's construction and of its public methods is spoken of.

    A method that a base class has explained needs no second explanation.
    """
    value = getattr(art_defenses_ext, name)
    callables = [(name, value)]
    if inspect.isclass(value):
        inherited = {inner for base in value.__mro__[1:] for inner in vars(base)}
        own_names = [inner for inner in vars(value) if not inner.startswith("_") and inner not in inherited]
        callables += [(f"{name}.{inner}", getattr(value, inner)) for inner in own_names]
    for qualified_name, function in callables:
        if not callable(function):
            continue
        text = inspect.getdoc(function) or ""
        if function is value and inspect.isclass(function):
            text += "\n" + (inspect.getdoc(function.__init__) or "")
        names = [
            argument
            for argument in inspect.signature(function).parameters
            if argument not in ("self", "args", "kwargs")
        ]
        missing = [argument for argument in names if not re.search(rf"\b{argument}\b", text)]
        assert not missing, qualified_name
