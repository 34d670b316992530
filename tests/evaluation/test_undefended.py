"""The undefended model under the same suite: whether the defence helps, image by image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, Linf, add_examples, as_module, evaluate
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation import task
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.verdict import conclusion, verdict
from art_defenses_ext.evaluation.results.summary import AgainstUndefended
from art_defenses_ext.evaluation.run.folder import RECORDS
from art_defenses_ext.evaluation.run.rounds import is_evaluated
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.suite import suites
from art_defenses_ext.zoo.datasets import Dataset

from ..conftest import FEW_STEPS, FinishedRun, omit_pictures
from .test_rounds import few_steps

OPTIONS: dict[str, Any] = {"block_size": 4, "curve_samples": 0, "check_samples": 2, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _a_short_suite() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suites.SUITES, "standard", tuple(FEW_STEPS))
        yield


@pytest.fixture(scope="module")
def arguments(digits: Dataset, digits_classifier: PyTorchClassifier) -> tuple[Any, ...]:
    return JumpReLU(digits_classifier, 1.0)(), (digits.test.x[:8], digits.test.y[:8]), Linf(0.1), "standard"


@pytest.fixture(scope="module")
def folder(arguments: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read."""
    folder = tmp_path_factory.mktemp("undefended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        omit_pictures(patch)
        evaluate(*arguments, out=folder, **OPTIONS)
    return folder


def test_the_undefended_model_is_evaluated_as_alone_and_paired_image_by_image(
    arguments: tuple[Any, ...], digits_classifier: PyTorchClassifier, folder: Path
) -> None:
    report = Report.load(folder)
    undefended_report = evaluate(digits_classifier, *arguments[1:], **OPTIONS)
    comparison = report.summary.against_undefended
    assert comparison is not None
    assert Report.load(folder / "undefended").records == undefended_report.records
    assert (comparison.worst_case, comparison.standing) == (
        undefended_report.summary.worst_case,
        undefended_report.summary.standing,
    )
    assert comparison.paired == Paired.of(
        *([record.robust() for record in run.records] for run in (undefended_report, report))
    )
    assert comparison.cost.backward == undefended_report.summary.total.backward
    saved = json.loads((folder / "report.json").read_text())["against_undefended"]
    assert saved["paired"]["difference"] == comparison.paired.difference
    assert "undefended under the same suite" in (folder / "report.html").read_text()


def test_parts_are_merged_with_their_undefended_parts(
    arguments: tuple[Any, ...], folder: Path, tmp_path: Path, without_pictures: None
) -> None:
    complete = Report.load(folder)
    for number in (1, 2):
        evaluate_shard(*arguments, shard=Shard(number, 2), out=tmp_path, **OPTIONS)
    merged = merge([tmp_path], tmp_path)
    assert merged.records == complete.records
    assert merged.summary.against_undefended is not None
    assert complete.summary.against_undefended is not None
    assert merged.summary.against_undefended.paired == complete.summary.against_undefended.paired


def test_parts_share_the_rounds_of_the_undefended_model_too(
    arguments: tuple[Any, ...], tmp_path: Path, without_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "round_plan", few_steps)
    whole, parts, call = tmp_path / "whole", tmp_path / "parts", OPTIONS | {"effort": "1"}

    def share() -> list[Path]:
        return [evaluate_shard(*arguments, shard=Shard(number, 2), out=parts, **call) for number in (1, 2)]

    complete = evaluate(*arguments, out=whole, **call)
    share()
    with pytest.raises(InputError, match="round 1 of more effort is not finished"):
        merge([parts], parts)
    assert all(map(is_evaluated, share()))
    assert merge([parts], parts).records == complete.records
    shutil.rmtree(parts / "undefended" / "rounds")  # only one of both has a round left
    assert share()[0] == parts / "undefended" / "rounds" / "1" / "shards" / "1-of-2"
    assert merge([parts], parts).records == complete.records
    for name in ("rounds/1", "undefended/rounds/1"):
        assert (parts / name / RECORDS).read_bytes() == (whole / name / RECORDS).read_bytes()


def test_the_undefended_model_is_left_out_if_not_wanted_or_not_known(
    arguments: tuple[Any, ...], digits_classifier: PyTorchClassifier, tmp_path: Path, without_pictures: None
) -> None:
    defended, (x, y), threat, suite = arguments
    data, brief = (x[:2], y[:2]), OPTIONS | {"check_samples": 0}
    for attacks, options in ((suite, {"undefended_suite": "papers"}), (FEW_STEPS, {}), ("papers", {})):
        report = evaluate(defended, data, threat, attacks, out=tmp_path / "run", overwrite=True, **(brief | options))
        assert report.summary.against_undefended is None
        assert not (tmp_path / "run" / "undefended").exists()
    assert evaluate(digits_classifier, data, threat, suite, **brief).summary.against_undefended is None


def test_overwriting_removes_the_undefended_run(
    arguments: tuple[Any, ...], folder: Path, tmp_path: Path, without_pictures: None
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    defended, (x, y), threat, _ = arguments
    brief = OPTIONS | {"check_samples": 0}
    report = evaluate(defended, (x[:2], y[:2]), threat, "papers", out=tmp_path / "run", overwrite=True, **brief)
    assert report.summary.against_undefended is None
    assert not (tmp_path / "run" / "undefended" / "manifest.json").exists()


def test_examples_from_elsewhere_do_not_decide_whether_the_defence_helps(finished_run: FinishedRun) -> None:
    """The undefended model was not attacked with them, so that no difference is reported."""
    summary = finished_run.report.summary
    comparison = AgainstUndefended(SHARES["high"], "established", Paired(10, 0, 13, 0), summary.total)
    text = verdict(replace(summary, against_undefended=comparison, own_worst_case=SHARES["low"]))
    assert "helps" not in text
    assert "examples made elsewhere" in text
    assert "Under the run's own attacks alone it is 20.0" in text


class Needle(nn.Module):
    """A network with another class where the first pixel has one value, which no attack tries."""

    VALUE = 0.0123

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        hit = (x[:, 0, 0, 0] - self.VALUE).abs() < 1e-5
        return torch.where(hit[:, None], logits.roll(1, 1), logits)


def test_examples_from_elsewhere_do_not_count_in_the_comparison(
    digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    network = Needle(as_module(digits_classifier))
    hit = PyTorchClassifier(network, nn.CrossEntropyLoss(), [1, 8, 8], 10, clip_values=(0, 1), device_type="cpu")
    data = digits.test.x[:8], digits.test.y[:8]
    options: Any = {"undefended": digits_classifier}  # its shape is a tuple, that of the other a list
    before = evaluate(hit, data, Linf(0.02), "standard", out=tmp_path, **OPTIONS, **options).summary
    adversarial = data[0].copy()
    adversarial[:, 0, 0, 0] = Needle.VALUE
    after = add_examples(tmp_path, adversarial, hit, data, name="needle", **options).summary
    assert after.worst_case.rate < before.worst_case.rate
    assert before.against_undefended is not None
    assert after.against_undefended is not None
    assert after.against_undefended.paired == before.against_undefended.paired


def test_an_undefended_run_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
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
    defended_share, undefended_share = SHARES[defended], SHARES[undefended]
    robust_under_both = min(defended_share.count, undefended_share.count)
    pair = Paired(
        robust_under_both,
        defended_share.count - robust_under_both,
        undefended_share.count - robust_under_both,
        defended_share.total - max(defended_share.count, undefended_share.count),
    )
    passed, failed = (replace(summary.checks[0], verdict=verdict) for verdict in ("passed", "failed"))
    checks = [replace(check, verdict="passed") for check in summary.checks]
    summary = replace(
        summary,
        worst_case=defended_share,
        checks=checks if established[0] else [*checks, failed],
        against_undefended=AgainstUndefended(
            undefended_share, "established" if established[1] else "not established", pair, summary.total
        ),
    )
    assert passed in checks
    assert conclusion(summary).text.replace("\N{NO-BREAK SPACE}", " ").startswith(sentence)
