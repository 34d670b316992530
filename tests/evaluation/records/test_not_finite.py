"""Logits that are not finite: wrong, counted, named."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from torch import Tensor, nn

from art_defenses_ext import Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rejecting import merge_rejection
from art_defenses_ext.evaluation.report.terminal import render
from art_defenses_ext.evaluation.suite.suites import STANDARD, WHITE_BOX

BRIEF = (WHITE_BOX, *(spec for spec in STANDARD if spec.name == "noise"))


class Overflowing(nn.Module):
    """Class 0 where the first value is small, else 1; not finite where the second is above ``limit``."""

    def __init__(self, limit: float, value: float = np.nan) -> None:
        super().__init__()
        self.limit, self.value = limit, value

    def forward(self, x: Tensor) -> Tensor:
        score = 10 * (x[:, 0] - 0.5) + 5 * x[:, 1] - 5 * self.limit
        logits = torch.stack([-score, score], dim=1)
        return torch.where(x[:, 1:2] > self.limit, self.value, logits)


def make_classifier(limit: float, value: float = np.nan) -> PyTorchClassifier:
    return PyTorchClassifier(
        Overflowing(limit, value), nn.CrossEntropyLoss(), (4,), 2, clip_values=(0, 1), device_type="cpu"
    )


@pytest.fixture
def images() -> tuple[FloatArray, IntArray]:
    """Forty images of class 0, far from the boundary; of four the second value is .9, of the others .4."""
    x = np.full((40, 4), 0.1, np.float32)
    x[:, 1] = np.where(np.arange(40) < 4, 0.9, 0.4)
    return x, np.zeros(40, np.int64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_without_any_finite_logits_is_refused(images: tuple[FloatArray, IntArray], value: float) -> None:
    with pytest.raises(InputError, match="classifier gives NaN or infinite logits for all of the first 40 images"):
        evaluate(make_classifier(-1.0, value), images, Linf(0.1), progress=False)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_clean_images_without_finite_logits_are_misclassified_and_named(
    images: tuple[FloatArray, IntArray], value: float, tmp_path: Path
) -> None:
    report = evaluate(
        make_classifier(0.8, value), images, Linf(0.01), BRIEF, curve_samples=0, progress=False, out=tmp_path
    )
    assert report.summary.clean.count == report.summary.worst_case.count == 36
    assert [record.clean for record in report.records[:5]] == [-1, -1, -1, -1, 0]
    assert report.summary.established is False
    assert report.summary.failed_checks[-1] == "finite logits"
    # The network takes vectors, which are samples rather than images.
    message = "The logits are not finite for 4 of 40 clean samples, which count as misclassified."
    console = Console(file=StringIO(), width=200)
    console.print(render(report.summary))
    assert message in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert message in (tmp_path / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert json.loads((tmp_path / "report.json").read_text())["not_finite"]["clean"]["count"] == 4


def test_images_attacked_to_logits_that_are_not_finite_are_broken_and_named(
    images: tuple[FloatArray, IntArray],
) -> None:
    """Within .15 every image reaches logits that are not finite, and none reaches the other class."""
    x, y = images[0][4:], images[1][4:]
    summary = evaluate(
        make_classifier(0.5), (x, y), Linf(0.15), BRIEF, curve_samples=0, check_samples=4, progress=False
    ).summary
    assert summary.worst_case.count == 0
    broken = summary.not_finite.broken
    assert broken is not None
    assert (broken.count, broken.total, summary.not_finite.clean.count) == (36, 36, 0)
    assert summary.rows[0].note == "36 of its images give logits that are not finite"
    (check,) = [check for check in summary.checks if check.name == "finite logits"]
    assert check.verdict == "passed"
    assert "36 of 36 broken images were broken by such logits alone" in check.finding


@pytest.mark.parametrize(
    "attack",
    [
        lambda c: AutoPGD(c, np.inf, 0.15, max_iter=20),
        lambda c: AutoPGD(c, np.inf, 0.15, max_iter=20, loss="cross_entropy"),
        lambda c: MarginPGD(c, np.inf, 0.15),
        lambda c: IterativeFGSM(c, 0.02, 20),
        lambda c: Square(c, np.inf, 0.15, max_queries=50),
        lambda c: RandomNoise(c, np.inf, 0.15),
    ],
)
def test_attacks_count_logits_that_are_not_finite_as_a_success(
    attack: Any, images: tuple[FloatArray, IntArray]
) -> None:
    x, y = images[0][4:], images[1][4:]
    adversarial = attack(make_classifier(0.5)).generate(x, y)
    assert np.isfinite(adversarial).all()
    assert (adversarial[:, 1] > 0.5).mean() >= 0.9


def test_deep_fool_stops_where_logits_are_not_finite(images: tuple[FloatArray, IntArray]) -> None:
    adversarial = DeepFoolLp(make_classifier(0.8), np.inf, 10).generate(*images)
    assert np.isfinite(adversarial).all()
    np.testing.assert_array_equal(adversarial[:4], images[0][:4])


def test_the_margin_of_logits_that_are_not_finite_is_beyond_the_boundary() -> None:
    logits = torch.tensor([[np.nan, 1, 0], [np.inf, 1, 0], [3, -np.inf, 0], [3, 1, np.nan]])
    assert margin(logits, torch.zeros(4, dtype=torch.long)).tolist() == [-np.inf, -np.inf, 3, -np.inf]
    # A detector that gives no number rejects: nothing is gained by such an image.
    merged = merge_rejection(torch.tensor([[0.0, 5, np.nan], [0, 5, 1]]), torch.zeros(2, dtype=torch.long))
    assert (margin(merged, torch.zeros(2, dtype=torch.long)) > 0).tolist() == [True, False]
