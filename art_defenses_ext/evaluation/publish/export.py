"""A run's checks, and a bound on its robust accuracy, as files for forges: JUnit XML and SARIF.

Source: SARIF 2.1.0 (OASIS, 2020). JUnit XML has no specification; its readers agree on the counts of a suite, and on
``failure`` and ``skipped`` in a test case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from art_defenses_ext.base.files import write_files
from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.base.validation import check_choice, check_path, check_share
from art_defenses_ext.evaluation.checks.checks import Verdict
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, figure_name
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import MANIFEST
from art_defenses_ext.evaluation.run.manifest import PACKAGE

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

BOUND = "robust accuracy"
"""The name of the statement about the robust accuracy."""


@dataclass(frozen=True)
class Statement:
    """A check, or a bound on the robust accuracy.

    Attributes:
        name: the name of the check.
        verdict: whether it passed.
        finding: the reason in a sentence with its figures.
        page: the paragraph of the documentation that explains it.
    """

    name: str
    verdict: Verdict
    finding: str
    page: str


def statements_of(report: Report, at_least: float | None = None) -> list[Statement]:
    """Return the statements about a run for a forge: its checks, and whether its robust accuracy is large enough.

    Args:
        report: the report of the run.
        at_least: the smallest robust accuracy that passes, from 0 to 1, if it is established; None for no bound.
    """
    summary = report.summary
    statements = [Statement(check.name, check.verdict, check.finding, check.link) for check in summary.checks]
    if at_least is None:
        return statements
    bound = f"at least {100 * check_share('at_least', at_least):g} %"
    holds = summary.worst_case.rate >= at_least and summary.standing == "established"
    reservation = summary.unknown or (NOT_ESTABLISHED if summary.standing != "established" else "")
    threat = f"{summary.run.settings.threat} {summary.run.settings.eps:.4g}"
    finding = f"{figure_name(summary)} is {summary.worst_case} under {threat}; {bound}, established, was expected"
    finding += f" ({reservation})" if reservation else ""
    return [Statement(BOUND, "passed" if holds else "failed", finding, "art-defenses docs testing"), *statements]


def as_junit(statements: Sequence[Statement], name: str, seconds: float) -> str:
    """Return JUnit XML with a test case for each statement; a check that did not run is skipped."""
    verdicts = [statement.verdict for statement in statements]
    counts = {"tests": len(statements), "failures": verdicts.count("failed"), "skipped": verdicts.count("not run")}
    numbers = {key: str(count) for key, count in counts.items()} | {"errors": "0", "time": f"{seconds:.3f}"}
    root = ElementTree.Element("testsuites", {"name": PACKAGE, **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": for_terminal(name), **numbers})
    for statement in statements:
        names = {"classname": for_terminal(name), "name": statement.name, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", names)
        finding = for_terminal(statement.finding)
        if statement.verdict == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": finding, "type": "robustness"})
            failure.text = f"{finding}\nSee {statement.page}"
        elif statement.verdict == "not run":
            ElementTree.SubElement(case, "skipped", {"message": finding})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_sarif(statements: Sequence[Statement], file: Path) -> str:
    """Return SARIF 2.1.0: a rule for each statement, and for each failure a result located in a file of the run."""
    rules = [
        {
            "id": statement.name.replace(" ", "-"),
            "name": statement.name,
            "shortDescription": {"text": f"{statement.name}: did the attacks work?"},
            "help": {"text": f"See {statement.page}"},
        }
        for statement in statements
    ]
    where = {"physicalLocation": {"artifactLocation": {"uri": _uri(file)}, "region": {"startLine": 1}}}
    results = [
        {
            "ruleId": statement.name.replace(" ", "-"),
            "ruleIndex": index,
            "level": "error",
            "message": {"text": statement.finding},
            "locations": [where],
        }
        for index, statement in enumerate(statements)
        if statement.verdict == "failed"
    ]
    driver = {"name": PACKAGE, "version": version(PACKAGE), "rules": rules}
    log: dict[str, Any] = {"$schema": SCHEMA, "version": "2.1.0"}
    log["runs"] = [{"tool": {"driver": driver}, "results": results}]
    return json.dumps(log, indent=1) + "\n"


def _uri(file: Path) -> str:
    """Return the URI of a file: relative, as forges expect it, for a relative path."""
    return file.as_uri() if file.is_absolute() else quote(os.fsencode(file.as_posix()), safe="/-._~")


FORMATS: dict[str, Callable[[Sequence[Statement], Report, Path], str]] = {
    "junit": lambda statements, report, folder: as_junit(
        statements, folder.resolve().name, report.summary.total.seconds
    ),
    "sarif": lambda statements, report, folder: as_sarif(statements, folder / MANIFEST),
}
"""The formats of an export by name."""


def export(run: str | Path, format: str, out: str | Path, *, at_least: float | None = None) -> list[Statement]:
    """Write the checks of a finished run, and a bound on its robust accuracy, as a file for forges.

    Args:
        run: folder of the run.
        format: ``"junit"`` or ``"sarif"``.
        out: file to write.
        at_least: as in :func:`statements_of`.

    Returns:
        The statements, of which some may have failed.

    Raises:
        InputError: for a folder without a finished run, another format, or a file that cannot be written.
    """
    folder, file = check_path("run", run, "the folder of a finished run"), check_path("out", out, "a file")
    check_choice("format", format, list(FORMATS))
    report = Report.load(folder)
    statements = statements_of(report, at_least)
    write_files(file.parent, {file.name: FORMATS[format](statements, report, folder).encode()})
    return statements
