"""AnnealedPGD: runs that begin where the last one ended, under narrower and narrower surrogates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import JumpReLU
from art_defenses_ext.attack import annealed_pgd
from art_defenses_ext.attack.annealed_pgd import FACTORS, AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD, auto_pgd
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.datasets import Dataset


def count_robust(classifier: PyTorchClassifier, attack: AutoPGD | AnnealedPGD, x: Any, y: Any) -> int:
    return int((classifier.predict(attack.generate(x, y)).argmax(axis=1) == y).sum())


def test_it_breaks_what_a_single_width_does_not(digits: Dataset, digits_classifier: PyTorchClassifier) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    x, y = digits.validation.x[:40], digits.validation.y[:40]
    options: dict[str, Any] = {"eps": 0.1, "gradient_mode": "smooth", "max_iter": 40}
    once = count_robust(defended, AutoPGD(defended, nb_runs=len(FACTORS), **options), x, y)
    annealed = count_robust(defended, AnnealedPGD(defended, **options), x, y)
    assert annealed <= once - 2


def test_each_run_has_its_width_and_begins_at_the_best_point_so_far(
    digits: Dataset, digits_classifier: PyTorchClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    (network,) = find_defences(defended)
    runs: list[tuple[float, Tensor | None, Tensor]] = []

    def overheard(*args: Any, start: Tensor | None, **options: Any) -> Tensor:
        points = auto_pgd(*args, start=start, **options)
        runs.append((network.surrogate_width, start, points))
        return points

    monkeypatch.setattr(annealed_pgd, "auto_pgd", overheard)
    AnnealedPGD(defended, eps=0.02, factors=(2.0, 0.5, 0.25), max_iter=10, gradient_mode="smooth").generate(
        digits.test.x[:3], digits.test.y[:3]
    )
    assert [width for width, _, _ in runs] == [2.0, 0.5, 0.25]
    assert network.surrogate_width == 1
    assert runs[0][1] is None
    torch.testing.assert_close(runs[1][1], runs[0][2])
