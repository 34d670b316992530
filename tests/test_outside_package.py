"""Defences and attacks of other packages are found by their entry points alone, without an edit here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from art_defenses_ext.base import entry_points
from art_defenses_ext.cli.app import app
from art_defenses_ext.defence import registry
from art_defenses_ext.evaluation.suite import suites

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGES = {"custom_defence": "grey_levels", "custom_attack": "simba"}
"""Each package, and the module that it installs."""


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both packages are installed, into a folder that only these tests find."""
    folder = tmp_path_factory.mktemp("outside")
    sources = [shutil.copytree(EXAMPLES / name, folder / name) for name in PACKAGES]  # a build writes beside its source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "installed")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, sources)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "installed"))
        forget()
        yield
    forget()


def forget() -> None:
    """What a process reads of its environment once, it reads again."""
    for cached in (entry_points.installed, registry.load_face, suites.load_attack):
        cached.cache_clear()
    for module in PACKAGES.values():
        sys.modules.pop(module, None)


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_they_are_listed_with_options_and_attacks() -> None:
    lines = [" ".join(line.split()) for line in command("list", "grey_levels", "simba").splitlines()]
    place = lines.index("defence grey_levels Grey levels: pixels rounded to a few values")
    assert lines[place + 1] == "options: chunk_size, levels"
    assert any(line.startswith("attacks papers PGD-10, gray-box grey_levels:") for line in lines)
    assert "attack simba black-box: single pixel values, 1,000 queries" in lines


def test_the_defence_is_evaluated_with_its_attacks_and_the_outside_one(tmp_path: Path) -> None:
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
    command("evaluate", *options, *brief)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (defence,) = report["run"]["defences"]
    assert (defence["name"], defence["levels"]) == ("grey_levels", 3)
    assert report["run"]["modes"] == ["exact", "identity"]
    assert [row["key"] for row in report["rows"]] == ["SimBA", "PGD-10, gray-box"]
