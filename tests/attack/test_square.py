"""Square on linear classifiers, where the optimum has a closed form: squares of each image's own, none asked twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square, _Window
from art_defenses_ext.evaluation.records.costs import measured
from art_defenses_ext.zoo.datasets import Dataset

SHAPES = [(8,), (4, 6), (3, 4, 4), (1, 2, 4, 4)]
NORMS = (2, np.inf)
Problem = Callable[..., tuple[PyTorchClassifier, Any, Any, Any]]


def missed(classifier: PyTorchClassifier, x: Any, y: Any) -> Any:
    return classifier.predict(x).argmax(axis=1) != y


@pytest.mark.parametrize(
    ("norm", "shape", "batch_size"), [(2, (8,), 1), (np.inf, (4, 6), 3), (np.inf, (1, 2, 4, 4), 64)]
)
def test_one_per_cent_around_the_closed_form_distance_decides(
    norm: float, shape: tuple[int, ...], batch_size: int, at_distance: Problem
) -> None:
    distance = 0.2 if norm == 2 else 0.03
    classifier, x, y, _ = at_distance(shape, norm, distance)
    subset = slice(min(batch_size + 1, 4))
    for eps, broken in ((1.01 * distance, True), (0.99 * distance, False)):
        queries = 10_000 if broken else 100
        attack = Square(classifier, norm, eps, max_queries=queries, batch_size=batch_size)
        x_adv = attack.generate(x[subset], y[subset])
        assert (missed(classifier, x_adv, y[subset]) == broken).all()
        size = np.linalg.norm((x_adv - x[subset]).reshape(len(x_adv), -1), ord=norm, axis=1)
        assert (size <= eps * (1 + 1e-5)).all()


def queries(classifier: PyTorchClassifier, attack: Square, x: Any, y: Any) -> list[Tensor]:
    """Every batch that the attack sends to the network."""
    points: list[Tensor] = []
    handle = classifier.model.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].clone()))
    attack.generate(x, y)
    handle.remove()
    return points


def test_no_query_repeats_the_point_that_it_starts_from(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Among grey images a square has one sign of two, so that a careless draw would waste every second query."""
    classifier = PyTorchClassifier(
        Hard(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    x = np.full((4, 1, 8, 8), 0.5, np.float32)
    points = queries(classifier, Square(classifier, np.inf, 0.1, max_queries=60), x, np.zeros(4, int))
    assert len(points) == 60
    current = points[0]
    for proposed in points[1:]:
        assert (proposed != current).flatten(1).any(dim=1).all()
        better = Hard.score(proposed) < Hard.score(current)
        current = torch.where(better[:, None, None, None], proposed, current)


class Hard(nn.Module):
    """Never fooled; its margin is 10 plus the mean pixel, so that the search has something to lower."""

    @staticmethod
    def score(x: Tensor) -> Tensor:
        return 10 + x.flatten(1).mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.score(x)[:, None], (0, 9))


def test_each_image_has_squares_of_its_own(digits_classifier: PyTorchClassifier) -> None:
    classifier = PyTorchClassifier(
        Hard(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    x = np.full((16, 1, 8, 8), 0.5, np.float32)
    points = queries(classifier, Square(classifier, np.inf, 0.1, max_queries=3), x, np.zeros(16, int))
    assert len({image.numpy().tobytes() for image in points[-1]}) > 8


@pytest.mark.parametrize("size", [(8, 8), (5, 12), (1, 9), (7, 1)])
@pytest.mark.parametrize("side", [(1, 1), (3, 2), (5, 5), (9, 9)])
def test_windows_have_their_size_and_reach_every_pixel(size: tuple[int, int], side: tuple[int, int]) -> None:
    height, width = (min(length, limit) for length, limit in zip(side, size, strict=True))
    window = _Window.draw(torch.zeros(2000, 1, *size), (height, width), torch.Generator().manual_seed(0))
    assert (window.mask.flatten(1).sum(dim=1) == height * width).all()
    assert window.mask.any(dim=0).all()
    assert ((window.bump > 0) == window.mask).all()
    assert window.bump.max() <= 1


def test_queries_are_counted_and_end_with_success(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x, y = digits.test.x[:32], digits.test.y[:32]
    with measured(digits_classifier) as cost:
        x_adv = Square(digits_classifier, np.inf, 0.2, max_queries=200).generate(x, y)
    assert 32 <= cost.forward < 200 * 32
    assert cost.backward == 0
    noise = RandomNoise(digits_classifier, np.inf, 0.2, nb_draws=200).generate(x, y)
    assert missed(digits_classifier, x_adv, y).sum() > missed(digits_classifier, noise, y).sum()


def test_a_targeted_search_reaches_the_class_asked_for(at_distance: Problem) -> None:
    classifier, x, y, _ = at_distance((4, 6), np.inf, 0.03)
    x_adv = Square(classifier, np.inf, 0.04, max_queries=2000, targeted=True).generate(x, 1 - y)
    assert missed(classifier, x_adv, y).all()
