"""Judging images by one pass or by a vote."""

from __future__ import annotations

import math

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.special import softmax
from torch import Tensor, nn

from art_defenses_ext.datasets import Dataset
from art_defenses_ext.evaluation.judge import classes, judge, predict


class Scripted(nn.Module):
    """Says one class after the other, pass by pass, whatever it sees."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__()
        self.script = script
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        said = torch.tensor(self.script[self.passes % len(self.script)])
        self.passes += 1
        return nn.functional.one_hot(said, 4).float()


def scripted(script: list[list[int]]) -> PyTorchClassifier:
    return PyTorchClassifier(Scripted(script), nn.CrossEntropyLoss(), (2,), 4, device_type="cpu")


def test_a_single_pass_counts_no_misses(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    judged = judge(digits_classifier, digits.test.x[:20], digits.test.y[:20], 1, 0)
    np.testing.assert_array_equal(judged.classes, digits_classifier.predict(digits.test.x[:20]).argmax(axis=1))
    assert judged.misses is None
    np.testing.assert_allclose(
        judged.softmax, softmax(digits_classifier.predict(digits.test.x[:20]).astype(np.float64), axis=1), atol=1e-6
    )


def test_the_majority_decides_and_a_tie_goes_against_the_label() -> None:
    """Four images of class 0: always right, right in two of three, right as often as class 2, mostly 3."""
    classifier = scripted([[0, 0, 0, 3], [0, 1, 2, 3], [0, 0, 1, 0]])
    judged = judge(classifier, np.zeros((4, 2), np.float32), np.zeros(4, np.int64), 3, 0)
    assert judged.classes.tolist() == [0, 0, 1, 3]
    assert judged.misses is not None
    assert judged.misses.tolist() == [0, 1, 2, 2]
    high, low = math.e / (math.e + 3), 1 / (math.e + 3)  # of a class that was said, and of one that was not
    assert judged.softmax.dtype == np.float64
    np.testing.assert_allclose(judged.softmax[0], [high, low, low, low])
    np.testing.assert_allclose(judged.softmax[1], [(2 * high + low) / 3, (high + 2 * low) / 3, low, low])
    np.testing.assert_allclose(judged.softmax.sum(axis=1), 1)


def test_votes_are_drawn_from_the_seed_alone() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 4)

    classifier = PyTorchClassifier(Noisy(), nn.CrossEntropyLoss(), (2,), 4, device_type="cpu")
    x, y = np.zeros((30, 2), np.float32), np.zeros(30, np.int64)
    first, again, other = (judge(classifier, x, y, 5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.misses, again.misses)
    np.testing.assert_array_equal(first.softmax, again.softmax)
    assert not np.array_equal(first.misses, other.misses)


def test_classes_are_predicted_batch_by_batch(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x = digits.test.x[:30]
    np.testing.assert_array_equal(classes(digits_classifier, x, batch_size=7), classes(digits_classifier, x))
    said = predict(digits_classifier, x, batch_size=7)
    np.testing.assert_array_equal(said.classes, classes(digits_classifier, x))
    np.testing.assert_allclose(said.softmax, predict(digits_classifier, x).softmax, atol=1e-6)


def test_unlikely_classes_keep_their_order() -> None:
    """In float32 the softmax of both last logits would be zero."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, -200.0, -150.0]]).expand(len(x), 3)

    classifier = PyTorchClassifier(Sure(), nn.CrossEntropyLoss(), (2,), 3, device_type="cpu")
    (found,) = predict(classifier, np.zeros((1, 2), np.float32)).softmax
    assert found[0] > found[2] > found[1] > 0
