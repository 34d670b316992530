"""The undefended model under the same suite: whether the defence helps, image by image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import JumpReLU, Linf, evaluate
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.verdict import conclusion, verdict
from art_defenses_ext.evaluation.results.summary import AgainstUndefended
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.suite import suites
from art_defenses_ext.zoo.datasets import Dataset

from ..conftest import FEW_STEPS, FinishedRun

OPTIONS: dict[str, Any] = {"block_size": 6, "curve_samples": 0, "check_samples": 4, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _a_short_suite() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suites.SUITES, "standard", tuple(FEW_STEPS))
        yield


@pytest.fixture(scope="module")
def call(digits: Dataset, digits_classifier: PyTorchClassifier) -> tuple[Any, ...]:
    return JumpReLU(digits_classifier, 1.0)(), (digits.test.x[:12], digits.test.y[:12]), Linf(0.1), "standard"


@pytest.fixture(scope="module")
def folder(call: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read."""
    folder = tmp_path_factory.mktemp("undefended") / "run"
    evaluate(*call, out=folder, **OPTIONS)
    return folder


def test_it_is_evaluated_as_it_would_be_alone_and_paired_image_by_image(
    call: tuple[Any, ...], digits_classifier: PyTorchClassifier, folder: Path
) -> None:
    report = Report.load(folder)
    alone = evaluate(digits_classifier, *call[1:], **OPTIONS)
    beside = report.summary.against_undefended
    assert beside is not None
    assert Report.load(folder / "undefended").records == alone.records
    assert (beside.worst_case, beside.standing) == (alone.summary.worst_case, alone.summary.standing)
    assert beside.paired == Paired.of(*([each.robust() for each in run.records] for run in (alone, report)))
    assert beside.cost.backward == alone.summary.total.backward
    held = json.loads((folder / "report.json").read_text())["against_undefended"]
    assert held["paired"]["difference"] == beside.paired.difference
    assert "undefended under the same suite" in (folder / "report.html").read_text()


def test_parts_are_merged_with_their_undefended_parts(call: tuple[Any, ...], folder: Path, tmp_path: Path) -> None:
    whole = Report.load(folder)
    for number in (1, 2):
        evaluate_shard(*call, shard=Shard(number, 2), out=tmp_path, **OPTIONS)
    merged = merge([tmp_path], tmp_path)
    assert merged.records == whole.records
    assert merged.summary.against_undefended is not None
    assert whole.summary.against_undefended is not None
    assert merged.summary.against_undefended.paired == whole.summary.against_undefended.paired


def test_it_is_left_out_where_it_is_not_wanted_or_not_known(
    call: tuple[Any, ...], digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    for other, options in (
        (call, {"undefended_suite": "papers"}),
        ((*call[:3], FEW_STEPS), {}),
        ((*call[:3], "papers"), {}),
    ):
        report = evaluate(*other, out=tmp_path / "run", overwrite=True, **(OPTIONS | options))
        assert report.summary.against_undefended is None
        assert not (tmp_path / "run" / "undefended").exists()
    assert evaluate(digits_classifier, *call[1:], **OPTIONS).summary.against_undefended is None


def test_overwriting_removes_it(call: tuple[Any, ...], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    report = evaluate(*call[:3], "papers", out=tmp_path / "run", overwrite=True, **OPTIONS)
    assert report.summary.against_undefended is None
    assert not (tmp_path / "run" / "undefended" / "manifest.json").exists()


def test_examples_made_elsewhere_are_not_held_against_the_defence_alone(finished_run: FinishedRun) -> None:
    """The undefended model was not attacked with them, so that no difference is told."""
    summary = finished_run.report.summary
    beside = AgainstUndefended(SHARES["high"], "established", Paired(10, 0, 13, 0), summary.total)
    text = verdict(replace(summary, against_undefended=beside, own_worst_case=SHARES["low"]))
    assert "helps" not in text
    assert "examples made elsewhere" in text
    assert "Under the run's own attacks alone it is 20.0" in text


def test_the_run_of_another_model_beside_it_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("undefended"))
    shutil.copytree(folder, tmp_path / "run" / "undefended", ignore=shutil.ignore_patterns("undefended"))
    with pytest.raises(InputError, match="does not belong to the run that contains it"):
        Report.load(tmp_path / "run")


SHARES = {"low": Proportion(40, 200), "high": Proportion(120, 200)}
CASES = [
    # defended, undefended, is each established, the conclusion
    ("high", "low", (True, True), "The defence helps: robust accuracy 60.0 % against 20.0 %"),
    ("low", "high", (True, True), "The defence does not help: robust accuracy 20.0 % against 60.0 %"),
    ("low", "low", (True, True), "The defence makes no significant difference"),
    ("high", "low", (False, True), "Whether the defence helps is not established: robust accuracy at most 60.0 %"),
    ("low", "high", (False, True), "The defence does not help: robust accuracy at most 20.0 % against 60.0 %"),
    ("low", "high", (True, False), "Whether the defence helps is not established"),
    ("low", "low", (False, True), "Whether the defence helps is not established"),
]


@pytest.mark.parametrize(("defended", "undefended", "established", "sentence"), CASES)
def test_the_conclusion_says_whether_the_defence_helps(
    defended: str, undefended: str, established: tuple[bool, bool], sentence: str, finished_run: FinishedRun
) -> None:
    """An upper bound shows that a defence does not help, and never that it helps."""
    summary = finished_run.report.summary
    own, other = SHARES[defended], SHARES[undefended]
    both = min(own.count, other.count)
    pair = Paired(both, own.count - both, other.count - both, own.total - max(own.count, other.count))
    passed, failed = (replace(summary.checks[0], verdict=verdict) for verdict in ("passed", "failed"))
    checks = [replace(check, verdict="passed") for check in summary.checks]
    summary = replace(
        summary,
        worst_case=own,
        checks=checks if established[0] else [*checks, failed],
        against_undefended=AgainstUndefended(
            other, "established" if established[1] else "not established", pair, summary.total
        ),
    )
    assert passed in checks
    assert conclusion(summary).text.replace("\N{NO-BREAK SPACE}", " ").startswith(sentence)
