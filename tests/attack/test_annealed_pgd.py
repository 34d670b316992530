"""AnnealedPGD: runs that begin where the last one ended, under narrower and narrower surrogates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import JumpReLU
from art_defenses_ext.attack.annealed_pgd import FACTORS, AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.datasets import Dataset

Problem = Callable[..., tuple[PyTorchClassifier, Any, Any, Any]]


def left(classifier: PyTorchClassifier, attack: AutoPGD | AnnealedPGD, x: Any, y: Any) -> int:
    return int((classifier.predict(attack.generate(x, y)).argmax(axis=1) == y).sum())


@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("shape", [(8,), (4, 6), (3, 8, 8)])
def test_one_per_cent_around_the_closed_form_distance_decides(
    norm: float, shape: tuple[int, ...], at_distance: Problem
) -> None:
    distance = 0.2 if norm == 2 else 0.03
    classifier, x, y, _ = at_distance(shape, norm, distance)
    assert left(classifier, AnnealedPGD(classifier, norm, 1.01 * distance), x, y) == 0
    assert left(classifier, AnnealedPGD(classifier, norm, 0.99 * distance), x, y) == 16


def test_it_breaks_what_a_single_width_does_not(digits: Dataset, digits_classifier: PyTorchClassifier) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    x, y = digits.validation.x[:60], digits.validation.y[:60]
    options: dict[str, Any] = {"eps": 0.1, "gradient_mode": "smooth"}
    once = left(defended, AutoPGD(defended, nb_runs=len(FACTORS), **options), x, y)
    annealed = left(defended, AnnealedPGD(defended, **options), x, y)
    assert annealed <= once - 2


def test_each_run_has_its_width_and_begins_at_the_best_point_so_far(
    digits: Dataset, digits_classifier: PyTorchClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    (network,) = find_defences(defended)
    seen: list[tuple[float, Tensor | None, Tensor]] = []
    perturb = AutoPGD.perturb

    def overheard(self: AutoPGD, module: Any, x: Tensor, y: Tensor, generator: Any, start: Any = None) -> Tensor:
        found = perturb(self, module, x, y, generator, start)
        seen.append((network.surrogate_width, start, found))
        return found

    monkeypatch.setattr(AutoPGD, "perturb", overheard)
    AnnealedPGD(defended, eps=0.02, factors=(2.0, 0.5, 0.25), max_iter=10, gradient_mode="smooth").generate(
        digits.test.x[:3], digits.test.y[:3]
    )
    assert [width for width, _, _ in seen] == [2.0, 0.5, 0.25]
    assert network.surrogate_width == 1
    assert seen[0][1] is None
    torch.testing.assert_close(seen[1][1], seen[0][2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factors": ()}, "factors is"),
        ({"factors": (1.0, 0.0)}, r"factors is \(1.0, 0.0\)"),
        ({"factors": 2.0}, "factors is 2.0"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"eps": -1}, "eps is -1"),
        ({"norm": 1}, "norm is 1"),
    ],
)
def test_a_bad_setting_is_refused(options: dict[str, Any], said: str, digits_classifier: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match=said):
        AnnealedPGD(digits_classifier, **options)
