"""What is released: one version, a wheel with the documentation, a description that stands alone."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from setuptools import Distribution

import art_defenses_ext
from art_defenses_ext.base import pages
from art_defenses_ext.base.pages import page_names, read_page

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    """What ``setup.py`` defines."""
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def pages_build(build: dict[str, Any], folder: Path) -> Any:
    """The build of the package without its modules, into a folder."""
    command = build["BuildWithPages"](Distribution({"packages": [], "py_modules": []}))
    command.ensure_finalized()
    command.build_lib = str(folder)
    return command


def test_the_pages_are_built_into_the_package(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {name: read_page(name) for name in page_names()}
    pages_build(build, tmp_path).run()
    monkeypatch.setattr(pages, "FOLDERS", (tmp_path / "art_defenses_ext" / "docs",))
    assert {name: read_page(name) for name in page_names()} == texts


def test_an_editable_installation_copies_nothing(build: dict[str, Any], tmp_path: Path) -> None:
    command = pages_build(build, tmp_path)
    command.editable_mode = True
    command.run()
    assert list(tmp_path.iterdir()) == []


def test_the_description_has_no_link_to_a_file(build: dict[str, Any]) -> None:
    readme = "[a](docs/a.md) ![b](b.svg)\n[c](https://c.org/c.md) ![d](https://d.org/d.svg) [e](#f)"
    shortened = "a [c](https://c.org/c.md) ![d](https://d.org/d.svg) e"
    assert build["description"](readme).removesuffix(build["PAGES"]) == shortened
    text = build["description"]((ROOT / "README.md").read_text())
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", text)
    assert all("".join(target).startswith(("https://", "http://")) for target in targets)


def test_the_version_stands_in_one_place_and_is_cited() -> None:
    assert PROJECT["version"] == version("art-defenses-ext") == art_defenses_ext.__version__
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


MAKING = ("CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml", ".github/PULL_REQUEST_TEMPLATE.md")


@pytest.mark.parametrize("name", MAKING)
def test_what_is_made_can_be_made(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = re.findall(r"^(?:.*`|.*run: )?make ((?:[a-z-]+ ?)+)", (ROOT / name).read_text(), re.MULTILINE)
    made_targets = {target for line in lines for target in line.split()}
    assert made_targets
    assert made_targets <= targets


def test_every_python_that_is_claimed_is_tested() -> None:
    claimed = {text.split(" :: ")[-1] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrices = re.findall(r"(?:python|environment): \[(.*)\]", workflow)
    assert len(matrices) == 2
    assert all(set(re.findall(r'"([^"]*)"', matrix)) == claimed for matrix in matrices)


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog: versions with dates, and in them kinds of changes, bullet by bullet."""
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## Unreleased"
    assert all(re.fullmatch(r"## \d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    kinds = [line.removeprefix("### ") for line in lines if line.startswith("###")]
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    start = lines.index("## Unreleased") + 1
    assert [line for line in lines[start:] if line and not line.startswith(("## ", "### ", "- ", "  "))] == []
