"""RandomNoise: the best of many draws, and no better than chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier
from scipy import stats

from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.zoo.datasets import Dataset

NORMS = (2, np.inf)
Build = Callable[..., PyTorchClassifier]


def margins(classifier: PyTorchClassifier, x: Any, y: Any) -> Any:
    logits = classifier.predict(x).astype(np.float64)
    true = logits[np.arange(len(y)), y]
    logits[np.arange(len(y)), y] = -np.inf
    return true - logits.max(axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_more_draws_never_raise_the_margin(norm: float, digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """The draws of a seed come in the same order, so that more of them contain the fewer."""
    x, y = digits.test.x[:20], digits.test.y[:20]
    lowest_margins = [
        margins(digits_classifier, RandomNoise(digits_classifier, norm, 0.5, nb_draws=n).generate(x, y), y)
        for n in (1, 5, 40)
    ]
    assert (lowest_margins[1] <= lowest_margins[0] + 1e-4).all()
    assert (lowest_margins[2] <= lowest_margins[1] + 1e-4).all()
    assert (lowest_margins[2] < lowest_margins[0]).any()


def test_a_single_draw_is_uniform_in_the_ball(linear_classifier: Build) -> None:
    classifier = linear_classifier(np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), (3,))
    x = np.full((1_500, 3), 0.5, np.float32)
    delta = RandomNoise(classifier, 2, 0.25, nb_draws=1, batch_size=1_500).generate(x) - x
    shares = (np.linalg.norm(delta.astype(np.float64), axis=1) / 0.25) ** 3
    assert stats.kstest(np.minimum(shares, 1), "uniform").pvalue > 0.001


def test_an_image_that_half_the_ball_breaks_is_broken_by_half_of_single_draws(linear_classifier: Build) -> None:
    """All images lie on the boundary of the two classes, whose plane halves the ball."""
    classifier = linear_classifier(np.array([[1, 2], [2, 1]], np.float32), np.zeros(2, np.float32), (2,))
    x, y = np.full((2_000, 2), 0.5, np.float32), np.zeros(2_000, int)
    for norm in NORMS:
        x_adv = RandomNoise(classifier, norm, 0.3, nb_draws=1).generate(x, y)
        broken = int((margins(classifier, x_adv, y) < 0).sum())
        assert stats.binomtest(broken, 2_000, 0.5).pvalue > 0.001
        x_adv = RandomNoise(classifier, norm, 0.3, nb_draws=40).generate(x, y)
        assert (margins(classifier, x_adv, y) < 0).all()
