"""What only says how the command is used waits for nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import art_defenses_ext
from art_defenses_ext.cli.app import app

HEAVY = ("torch", "art", "numpy", "scipy", "sklearn", "matplotlib", "jinja2", "pydantic", "rich")

NOT_NEEDED = ("matplotlib", "jinja2", "typer", "click")
"""What a defence does without: pictures, pages and the command."""

SCRIPT = f"""
import json, os, sys
from art_defenses_ext.cli.app import main
for arguments, environment in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    os.environ.update(environment)
    try:
        main()
    except SystemExit as left:
        print("left", left.code, *(name for name in {HEAVY} if name in sys.modules))
"""

SAYING = (
    [],
    ["--help"],
    ["--version"],
    ["--unknown"],
    ["unknown"],
    *([name, "--help"] for name in app.commands),
    *([name, "--unknown"] for name in app.commands),
    ["docs"],
    ["docs", "checks#more-effort"],
    ["docs", "unknown"],
    ["evaluate", "--print-config", "--samples", "3"],
)

COMPLETED = {"eval": "evaluate", "evaluate --curve": "--curve-samples", "evaluate --dataset fa": "fashion_mnist"}


def completion_environment(typed: str) -> dict[str, str]:
    """The environment in which a shell asks how to go on."""
    words = f"art-defenses {typed}"
    place = str(len(words.split()) - 1)
    return {"_ART_DEFENSES_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": place}


Calls = dict[str, tuple[str, list[str]]]


@pytest.fixture(scope="module")
def calls() -> Calls:
    """What each call prints, its exit status and what heavy has been imported by then; all in one new process."""
    wanted = [(arguments, {}) for arguments in SAYING] + [([], completion_environment(typed)) for typed in COMPLETED]
    line = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    process = subprocess.run(line, capture_output=True, text=True, timeout=60)
    printed: list[str] = []
    results = []
    for text in process.stdout.splitlines():
        if text.startswith("left "):
            results.append(("\n".join(printed), text.split()[1:]))
            printed = []
        else:
            printed.append(text)
    return dict(zip([*map(" ".join, SAYING), *COMPLETED], results, strict=True))


@pytest.mark.parametrize("arguments", SAYING, ids=" ".join)
def test_nothing_heavy_is_imported(arguments: list[str], calls: Calls) -> None:
    _, status_and_modules = calls[" ".join(arguments)]
    assert status_and_modules == ["2" if any("unknown" in word for word in arguments) else "0"]


def test_the_version_is_that_of_what_is_installed(calls: Calls) -> None:
    assert calls["--version"][0] == version("art-defenses-ext") == art_defenses_ext.__version__


@pytest.mark.parametrize("typed", COMPLETED)
def test_a_shell_completes_commands_options_and_names(typed: str, calls: Calls) -> None:
    out, status_and_modules = calls[typed]
    assert f"plain,{COMPLETED[typed]}" in out.splitlines()
    assert status_and_modules == ["0"]


def test_a_defence_needs_no_library_for_pictures_pages_or_commands() -> None:
    script = f"""
import sys
from importlib.metadata import entry_points
for point in entry_points(group="art_defenses_ext.defences"):
    point.load()
print(*(name for name in {NOT_NEEDED} if name in sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert process.stdout.split() == []
