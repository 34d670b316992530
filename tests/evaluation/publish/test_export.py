"""What a forge shows of a run: the same statements in JUnit XML and SARIF, in the form that their readers demand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.checks.checks import Check
from art_defenses_ext.evaluation.publish.export import BOUND, Statement, as_junit, as_sarif, export, statements_of

STATEMENTS = [
    Statement("transfer", "passed", "no image", "docs/checks.md#transfer"),
    Statement("larger eps", "failed", "3 of 20 <images> & \x1b[31m more\ud800", "docs/checks.md#larger-eps"),
    Statement("queries", "not run", "no attack by queries", "docs/checks.md#queries"),
]
"""A statement with each verdict; one holds characters that neither XML nor a terminal may be given."""


def test_the_statements_are_the_checks_of_the_run(finished_run: Any) -> None:
    checks = finished_run.report.summary.checks
    assert checks
    statements = statements_of(finished_run.report)
    assert [(statement.name, statement.verdict, statement.finding, statement.page) for statement in statements] == [
        (check.name, check.verdict, check.finding, check.link) for check in checks
    ]


@pytest.mark.parametrize(
    ("changes", "distance", "words"),
    [
        ({"checks": [Check("larger eps", "passed", "")]}, 0.0, None),
        ({"checks": [Check("larger eps", "passed", "")]}, 0.01, "established, was expected"),
        ({"checks": [Check("larger eps", "failed", "")]}, 0.0, "not established"),
        ({"checks": []}, -0.01, "no checks were made"),
        ({"lacking": "the paper's attacks ran alone"}, -0.01, "no adaptive attack ran: the paper's attacks ran alone"),
    ],
)
def test_only_an_established_accuracy_of_at_least_the_bound_meets_it(
    finished_run: Any, changes: dict[str, Any], distance: float, words: str | None
) -> None:
    report = replace(finished_run.report, summary=replace(finished_run.report.summary, **changes))
    at_least = report.summary.worst_case.rate + distance
    assert 0 < at_least < 1
    bound = statements_of(report, at_least)[0]
    assert (bound.name, bound.verdict) == (BOUND, "passed" if words is None else "failed")
    assert f"at least {100 * at_least:g} %" in bound.finding
    assert words is None or words in bound.finding


def test_junit_counts_its_statements_and_names_failures() -> None:
    root = ElementTree.fromstring(as_junit(STATEMENTS, "a \x00 run", 1.5).encode())
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert root.tag == "testsuites"
    for counted in (root, suite):
        assert [int(counted.attrib[name]) for name in ("tests", "failures", "errors", "skipped")] == [3, 1, 0, 1]
        assert float(counted.attrib["time"]) == 1.5
    assert [(case.attrib["name"], [child.tag for child in case]) for case in cases] == [
        ("transfer", []),
        ("larger eps", ["failure"]),
        ("queries", ["skipped"]),
    ]
    assert all(float(case.attrib["time"]) == 0 and case.attrib["classname"] == suite.attrib["name"] for case in cases)
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("3 of 20 <images> & \\x1b")
    assert "docs/checks.md#larger-eps" in str(failure.text)


def test_sarif_has_the_required_fields_and_a_result_for_each_failure() -> None:
    log = json.loads(as_sarif(STATEMENTS, Path("runs/a/manifest.json")))
    assert log["version"] == "2.1.0"
    assert log["$schema"].startswith("https://")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"]
    rules = driver["rules"]
    assert [rule["id"] for rule in rules] == ["transfer", "larger-eps", "queries"]
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    (result,) = run["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "larger-eps"
    assert result["level"] in {"none", "note", "warning", "error"}
    assert result["message"]["text"] == "3 of 20 <images> & \x1b[31m more\ud800"
    place = result["locations"][0]["physicalLocation"]
    assert re.fullmatch(r"[\w./%-]+", place["artifactLocation"]["uri"])
    assert place["region"]["startLine"] >= 1


@pytest.mark.parametrize("form", ["junit", "sarif"])
def test_a_run_is_exported_with_its_failures(finished_run: Any, tmp_path: Path, form: str) -> None:
    statements = export(finished_run.folder, form, tmp_path / "new" / "file", at_least=1.0)
    failed = [statement.name for statement in statements if statement.verdict == "failed"]
    text = (tmp_path / "new" / "file").read_text()
    if form == "junit":
        cases = ElementTree.fromstring(text.encode()).iter("testcase")
        shown = [case.attrib["name"] for case in cases if case.find("failure") is not None]
    else:
        run = json.loads(text)["runs"][0]
        shown = [run["tool"]["driver"]["rules"][result["ruleIndex"]]["name"] for result in run["results"]]
    assert shown == failed
    assert BOUND in failed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "html"}, "format is 'html'; one of junit, sarif was expected"),
        ({"at_least": 40}, "at_least is 40"),
        ({"run": "none"}, "cannot be read"),
    ],
)
def test_bad_arguments_of_an_export_are_refused_in_a_sentence(
    finished_run: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        export(**({"run": finished_run.folder, "format": "junit", "out": tmp_path / "file"} | change))
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("my run \u00fc/manifest.json", "my%20run%20%C3%BC/manifest.json"),
        ("a:b#c?d%/manifest.json", "a%3Ab%23c%3Fd%25/manifest.json"),
        ("\udcff/manifest.json", "%FF/manifest.json"),
        ("/my run/manifest.json", "file:///my%20run/manifest.json"),
    ],
)
def test_the_place_of_a_result_is_a_uri(file: str, uri: str) -> None:
    (result,) = json.loads(as_sarif(STATEMENTS, Path(file)))["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri
