"""MarginPGD on linear classifiers, where the smallest radius that breaks an image has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.zoo.datasets import Dataset

NORMS = (2, np.inf)
Problem = Callable[..., tuple[PyTorchClassifier, Any, Any, Any]]


@pytest.mark.parametrize("norm", NORMS)
def test_without_stopping_the_worst_point_of_the_ball_is_reached(norm: float, at_distance: Problem) -> None:
    """The margin of a linear classifier falls by eps times the dual norm, to be met to one part in a thousand."""
    eps = 0.2 if norm == 2 else 0.03
    classifier, x, y, direction = at_distance((3, 8, 8), norm, 0.25 * eps)
    x_adv = MarginPGD(classifier, norm, eps, stop_when_broken=False, max_iter=60).generate(x, y)
    side = np.where(y == 0, 1, -1)
    gap = side * ((x_adv.reshape(16, -1) - 0.5) @ direction)
    dual = np.linalg.norm(direction, ord=1 if norm == np.inf else 2)
    np.testing.assert_allclose(gap, (0.25 - 1) * eps * dual, rtol=2e-3)


def margins(classifier: PyTorchClassifier, x: Any, y: Any) -> Any:
    logits = classifier.predict(x).astype(np.float64)
    true = logits[np.arange(len(y)), y]
    logits[np.arange(len(y)), y] = -np.inf
    return true - logits.max(axis=1)


def test_more_starts_break_no_fewer(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """The first start is the same one; whatever it breaks stays broken."""
    x, y = digits.test.x[:40], digits.test.y[:40]
    one_start, many_starts = (
        margins(digits_classifier, MarginPGD(digits_classifier, eps=0.1, max_iter=3, nb_starts=n).generate(x, y), y)
        <= 0
        for n in (1, 6)
    )
    assert (many_starts >= one_start).all()
