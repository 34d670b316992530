"""The schemas describe what is written, and nothing else passes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from art_defenses_ext.cli.app import app
from art_defenses_ext.evaluation.publish.schemas import entry_schema, report_schema

RESULTS = Path(__file__).parents[3] / "docs" / "results"
SCHEMAS = {"report": report_schema(), "entry": entry_schema()}


@pytest.fixture(scope="module")
def written(finished_run: Any) -> dict[str, Any]:
    """A report and an entry, as they lie in files."""
    report = json.loads((finished_run.folder / "report.json").read_text())
    return {"report": report, "entry": json.loads(next(RESULTS.rglob("*.json")).read_text())}


def list_errors(name: str, document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMAS[name]).iter_errors(document)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_schema_is_valid_and_the_command_prints_it(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert json.loads(CliRunner().invoke(app, ["schema", name]).output) == SCHEMAS[name]


def test_a_report_passes(written: dict[str, Any]) -> None:
    assert list_errors("report", written["report"]) == []


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_every_entry_passes(path: Path) -> None:
    assert list_errors("entry", json.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        ("report", ["format"], 1),
        ("report", ["clean"], None),
        ("report", ["clean", "count"], 1.5),
        ("report", ["clean", "unknown"], 0),
        ("report", ["reference"], "other"),
        ("report", ["checks", 0, "verdict"], "perhaps"),
        ("report", ["rows", 0, "attacked"], "all"),
        ("report", ["run", "settings", "eps"], "0.1"),
        ("entry", ["format"], "another"),
        ("entry", ["robust_interval"], [1.0]),
        ("entry", ["robust_acc"], None),
        ("entry", ["autoattack_acc"], 1.0),
    ],
)
def test_a_changed_value_fails(name: str, where: list[Any], value: Any, written: dict[str, Any]) -> None:
    document = node = deepcopy(written[name])
    for step in where[:-1]:
        node = node[step]
    node[where[-1]] = value
    assert len(list_errors(name, document)) == 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_required_field_may_not_be_missing(name: str, written: dict[str, Any]) -> None:
    for field in SCHEMAS[name]["required"]:
        incomplete = {key: value for key, value in written[name].items() if key != field}
        assert list_errors(name, incomplete) == [f"{field!r} is a required property"]
