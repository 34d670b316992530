"""Defences and attacks of other packages are found by their entry points alone, without an edit here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds both packages, installed into a folder of their own."""
    folder = tmp_path_factory.mktemp("outside")
    names = ("custom_defence", "custom_attack")
    sources = [shutil.copytree(EXAMPLES / name, folder / name) for name in names]  # a build writes beside its source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "installed")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, sources)], check=True)
    paths = [str(folder / "installed"), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}


def command(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "art_defenses_ext", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_listed_with_options_and_attacks(environment: dict[str, str]) -> None:
    lines = [" ".join(line.split()) for line in command(environment, "list", "grey_levels", "simba").splitlines()]
    place = lines.index("defence grey_levels Grey levels: pixels rounded to a few values")
    assert lines[place + 1] == "options: chunk_size, levels"
    assert any(line.startswith("attacks papers PGD-10, gray-box grey_levels:") for line in lines)
    assert "attack simba black-box: single pixel values, 1,000 queries" in lines


def test_the_defence_is_evaluated_with_its_attacks_and_the_outside_one(
    environment: dict[str, str], tmp_path: Path
) -> None:
    options = (
        "--defence",
        "grey_levels",
        "-o",
        "levels=3",
        "--attacks",
        "papers+simba",
        "--out",
        str(tmp_path / "run"),
    )
    brief = ("--epochs", "1", "--samples", "4", "--check-samples", "0", "--curve-samples", "0")
    command(environment, "evaluate", *options, *brief)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (defence,) = report["run"]["defences"]
    assert (defence["name"], defence["levels"]) == ("grey_levels", 3)
    assert report["run"]["modes"] == ["exact", "identity"]
    assert [row["key"] for row in report["rows"]] == ["SimBA", "PGD-10, gray-box"]
