"""What only says how the command is used waits for nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import art_defenses_ext
from art_defenses_ext.cli.app import app

HEAVY = ("torch", "art", "numpy", "scipy", "sklearn", "matplotlib", "pydantic", "rich")

SCRIPT = f"""
import sys
from art_defenses_ext.cli.app import main
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
    ["evaluate", "--print-config", "--samples", "3"],
)


def left_of(*arguments: str, **environment: str) -> tuple[str, list[str]]:
    """What a process printed, its exit status and what heavy it had imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=60, env=environment or None
    )
    *lines, last = done.stdout.splitlines()
    assert last.startswith("left "), done.stderr
    return "\n".join(lines), last.split()[1:]


@pytest.mark.parametrize("arguments", SAYING, ids=" ".join)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    _, left = left_of(*arguments)
    assert left == ["2" if any("unknown" in word for word in arguments) else "0"]


def test_the_version_is_that_of_what_is_installed() -> None:
    out, _ = left_of("--version")
    assert out == version("art-defenses-ext") == art_defenses_ext.__version__


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("eval", "evaluate"), ("evaluate --curve", "--curve-samples"), ("evaluate --dataset fa", "fashion_mnist")],
)
def test_a_shell_completes_commands_options_and_names(typed: str, expected: str) -> None:
    words = f"art-defenses {typed}"
    place = str(len(words.split()) - 1)
    out, left = left_of(_ART_DEFENSES_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=place)
    assert f"plain,{expected}" in out.splitlines()
    assert left == ["0"]
