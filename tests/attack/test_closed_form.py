"""On linear classifiers, where the least radius that breaks an image is known, one per cent around it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.staged_pgd import StagedPGD
from art_defenses_ext.attack.warm_start import CrossedPGD

ATTACKS: dict[str, tuple[type[TensorAttack], dict[str, Any]]] = {
    "one step": (IterativeFGSM, {"max_iter": 1}),
    "margin": (MarginPGD, {}),
    "margin, on and on": (MarginPGD, {"stop_when_broken": False}),
    "annealed": (AnnealedPGD, {"max_iter": 40, "factors": (1.0, 0.2)}),
    "staged": (StagedPGD, {}),
    "auto, cross-entropy": (AutoPGD, {"loss": "cross_entropy", "batch_size": 3}),
    "auto, margin": (AutoPGD, {"loss": "margin"}),
    "auto, probability margin": (AutoPGD, {"loss": "probability_margin"}),
    "auto, one class at a time": (AutoPGD, {"loss": "margin_targeted"}),
    "crossed": (CrossedPGD, {}),
}


CASES = [(name, norm, shape) for name in ATTACKS for norm, shape in ((2, (3, 8, 8)), (np.inf, (4, 6)))]
CASES += [(name, 1, (3, 8, 8)) for name, (kind, _) in ATTACKS.items() if kind in (AutoPGD, AnnealedPGD)]
DISTANCES = {1: 0.3, 2: 0.2, np.inf: 0.03}


@pytest.mark.parametrize(("name", "norm", "shape"), CASES)
def test_one_per_cent_around_the_closed_form_distance_decides(
    name: str,
    norm: float,
    shape: tuple[int, ...],
    at_distance: Callable[..., tuple[PyTorchClassifier, Any, Any, Any]],
) -> None:
    kind, options = ATTACKS[name]
    distance = DISTANCES[norm]
    classifier, x, y, _ = at_distance(shape, norm, distance)
    np.testing.assert_array_equal(classifier.predict(x).argmax(axis=1), y)
    x, y = x[:5], y[:5]  # a batch of three is refilled
    for eps, broken in ((1.01 * distance, True), (0.99 * distance, False)):
        radius = {"eps_step" if kind is IterativeFGSM else "eps": eps}
        adversarial = kind(classifier, norm=norm, **radius, **options).generate(x, y)
        assert ((classifier.predict(adversarial).argmax(axis=1) != y) == broken).all()
        sizes = np.linalg.norm((adversarial - x).reshape(5, -1), ord=norm, axis=1)
        assert (sizes <= eps * (1 + 1e-5)).all()
        if kind is IterativeFGSM:
            np.testing.assert_allclose(sizes, eps, rtol=1e-3)
