"""Judging images by one pass or by a vote."""

from __future__ import annotations

import math

import numpy as np
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from scipy.special import softmax
from torch import Tensor, nn

from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.evaluation.suite.predictions import Prediction, nb_labels, predict
from art_defenses_ext.evaluation.suite.vote import predict_by_votes
from art_defenses_ext.zoo.datasets import Dataset


class Scripted(nn.Module):
    """Says one class after the other, pass by pass, to the image whose first value is its number."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__()
        self.script = script
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        classes = torch.tensor(self.script[self.passes % len(self.script)])[x[:, 0].long()]
        self.passes += 1
        return nn.functional.one_hot(classes, 4).float()


FOUR = np.stack([np.arange(4), np.zeros(4)], axis=1).astype(np.float32)
"""Four images by their numbers."""


def make_scripted(script: list[list[int]]) -> PyTorchClassifier:
    return PyTorchClassifier(Scripted(script), nn.CrossEntropyLoss(), (2,), 4, device_type="cpu")


def test_a_single_pass_counts_no_misses(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    prediction = predict_by_votes(digits_classifier, digits.test.x[:20], digits.test.y[:20], 1, 0)
    np.testing.assert_array_equal(prediction.classes, digits_classifier.predict(digits.test.x[:20]).argmax(axis=1))
    assert prediction.misses is None
    np.testing.assert_allclose(
        prediction.softmax, softmax(digits_classifier.predict(digits.test.x[:20]).astype(np.float64), axis=1), atol=1e-6
    )


def test_the_likeliest_class_is_judged_and_a_tie_goes_against_the_label() -> None:
    """Four images of class 0: always right, right in two of three, right as often as class 2, mostly 3."""
    classifier = make_scripted([[0, 0, 0, 3], [0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 2, 3], [0, 1, 0, 3], [0, 0, 2, 0]])
    prediction = predict_by_votes(classifier, FOUR, np.zeros(4, np.int64), 6, 0)
    assert prediction.classes.tolist() == [0, 0, 2, 3]
    assert prediction.misses is not None
    assert prediction.misses.tolist() == [0, 2, 3, 4]
    assert prediction.first_misses is not None
    assert prediction.first_misses.tolist() == [0, 2, 3, 4]
    high, low = math.e / (math.e + 3), 1 / (math.e + 3)  # of the predicted class, and of any other
    assert prediction.softmax.dtype == np.float64
    np.testing.assert_allclose(prediction.softmax[0], [high, low, low, low])
    np.testing.assert_allclose(prediction.softmax[1], [(2 * high + low) / 3, (high + 2 * low) / 3, low, low])
    np.testing.assert_allclose(prediction.softmax.sum(axis=1), 1)


def test_an_undecided_attacked_image_is_no_success() -> None:
    """Right always, half of the time, in three of ten, never."""
    script = [[0, i % 2, min(i % 10 // 3, 1), 2] for i in range(10)]
    prediction = predict_by_votes(make_scripted(script), FOUR, np.zeros(4, np.int64), 10, 0, attacks=50)
    assert prediction.classes.tolist() == [0, 0, 1, 2]
    assert prediction.undecided is not None
    assert prediction.undecided.tolist() == [False, True, False, False]
    assert prediction.passes is not None
    assert (prediction.passes[0], prediction.passes[1]) == (10, 1024)
    assert 10 < prediction.passes[3] <= prediction.passes[2] < 1024


def test_votes_are_drawn_from_the_seed_alone() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 4)

    classifier = PyTorchClassifier(Noisy(), nn.CrossEntropyLoss(), (2,), 4, device_type="cpu")
    x, y = np.zeros((30, 2), np.float32), np.zeros(30, np.int64)
    first, again, other = (predict_by_votes(classifier, x, y, 5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.misses, again.misses)
    np.testing.assert_array_equal(first.softmax, again.softmax)
    assert not np.array_equal(first.misses, other.misses)


def test_classes_are_predicted_batch_by_batch(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x = digits.test.x[:30]
    np.testing.assert_array_equal(
        predict(digits_classifier, x, batch_size=7).classes, predict(digits_classifier, x).classes
    )
    prediction = predict(digits_classifier, x, batch_size=7)
    np.testing.assert_array_equal(prediction.classes, predict(digits_classifier, x).classes)
    np.testing.assert_allclose(prediction.softmax, predict(digits_classifier, x).softmax, atol=1e-6)


# With a detector


class Read(nn.Module):
    """What an image holds from one of its values on, as logits."""

    def __init__(self, start: int, count: int) -> None:
        super().__init__()
        self.start, self.count = start, count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.start + self.count]


class ScriptedMargins(nn.Module):
    """A detector that says one margin after the other, pass by pass."""

    def __init__(self, script: list[list[float]]) -> None:
        super().__init__()
        self.script = script
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        margin = torch.tensor(self.script[self.passes % len(self.script)])[x[:, 0].long()]
        self.passes += 1
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def add_detector(classifier: PyTorchClassifier, detector: nn.Module) -> PyTorchClassifier:
    binary_classifier = PyTorchClassifier(detector, nn.CrossEntropyLoss(), classifier.input_shape, 2, device_type="cpu")
    return rejecting(classifier, BinaryInputDetector(binary_classifier))


def make_reading_classifier() -> PyTorchClassifier:
    """Images of five values: three logits, then what the detector weighs against each other."""
    classifier = PyTorchClassifier(Read(0, 3), nn.CrossEntropyLoss(), (5,), 3, device_type="cpu")
    return add_detector(classifier, Read(3, 2))


def test_a_rejected_image_keeps_the_class_and_the_probabilities_that_the_classifier_gives_it() -> None:
    classifier = make_reading_classifier()
    assert (classifier.nb_classes, nb_labels(classifier)) == (4, 3)
    x = np.array([[5, 1, 0, 2, 1.5], [5, 1, 0, 2, 2], [5, 1, 0, 2, 2.5], [0, 1, 0, 0, 3]], np.float32)
    single_pass = predict(classifier, x, batch_size=3)
    assert single_pass.classes.tolist() == [0, 0, 0, 1]
    assert single_pass.rejected is not None
    assert single_pass.rejected.tolist() == [False, False, True, True]  # on the threshold itself an image is accepted
    assert single_pass.detection_margin is not None
    assert single_pass.detection_margin.tolist() == [-0.5, 0, 0.5, 3]
    np.testing.assert_allclose(single_pass.softmax, softmax(x[:, :3].astype(np.float64), axis=1))
    np.testing.assert_array_equal(single_pass.rejected, classifier.predict(x).argmax(axis=1) == 3)
    prediction = predict_by_votes(classifier, x, np.array([0, 1, 1, 1]), 1, 0)
    assert (prediction.misses, prediction.rejections) == (None, None)
    assert prediction.broken(np.array([0, 1, 1, 1])).tolist() == [False, True, False, False]


def test_a_margin_that_is_no_number_rejects() -> None:
    x = np.array([[5, 1, 0, 0, np.nan]], np.float32)
    prediction = predict(make_reading_classifier(), x)
    assert prediction.rejected is not None
    assert prediction.rejected.all()
    assert make_reading_classifier().predict(x).argmax() == 3


def test_preprocessing_before_a_rejecting_network_reaches_both_of_its_parts() -> None:
    """A mean and deviation, here of all five values."""
    classifier = make_reading_classifier()
    standardised = PyTorchClassifier(
        classifier.model, nn.CrossEntropyLoss(), (5,), 4, preprocessing=(0.5, 2.0), device_type="cpu"
    )
    x = np.array([[5, 1, 0, 2, 2.5], [0, 1, 0, 3, 0]], np.float32)
    prediction, expected = predict(standardised, x), predict(classifier, (x - np.float32(0.5)) / 2)
    np.testing.assert_allclose(prediction.softmax, expected.softmax)
    np.testing.assert_allclose(prediction.detection_margin, expected.detection_margin)  # type: ignore[arg-type]


def test_an_attacked_image_succeeds_only_if_it_is_shown_to_be_accepted() -> None:
    """Four images of class 0: rejected, wrong and accepted, wrong and rejected half of the time, mostly right."""
    classes = [[0, 1, 2, 0], [0, 1, 2, 0], [1, 1, 2, 0], [1, 1, 2, 3]]
    margins = [[1.0, -1, -1, -1], [1, -1, 1, -1], [1, -1, -1, -1], [1, -1, 1, -1]]
    classifier = add_detector(make_scripted(classes), ScriptedMargins(margins))
    labels = np.zeros(4, np.int64)
    prediction = predict_by_votes(classifier, FOUR, labels, 8, 0, attacks=20)
    assert isinstance(prediction, Prediction)
    assert prediction.rejected is not None
    assert prediction.rejections is not None
    assert prediction.misses is not None
    assert prediction.broken(labels).tolist() == [False, True, False, False]
    assert prediction.rejected.tolist() == [True, False, True, False]
    assert prediction.classes.tolist() == [0, 1, 2, 0]
    assert prediction.rejections.tolist() == [8, 0, 4, 0]
    assert prediction.misses.tolist() == [0, 8, 4, 2]  # neither the label nor rejected
    np.testing.assert_allclose(prediction.detection_margin, np.mean(margins, axis=0))  # type: ignore[arg-type]


def test_a_clean_image_is_rejected_if_that_is_the_likeliest() -> None:
    """Mostly rejected; as often as right; less often than right; as often as wrong."""
    classes = [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    margins = [[1.0, 1, 1, 1], [1, 1, -1, 1], [1, -1, -1, -1], [-1, -1, -1, -1]]
    classifier = add_detector(make_scripted(classes), ScriptedMargins(margins))
    prediction = predict_by_votes(classifier, FOUR, np.zeros(4, np.int64), 8, 0)
    assert prediction.rejected is not None
    assert prediction.rejected.tolist() == [True, True, False, False]
    assert prediction.classes.tolist() == [0, 0, 0, 1]


# Logits that are not finite


def test_logits_that_are_not_finite_name_no_class() -> None:
    x = np.array([[np.nan, 1, 0], [np.inf, 1, 0], [-np.inf, 1, 2], [-np.inf] * 3, [np.nan] * 3, [3, 1, 0]], np.float32)
    classifier = PyTorchClassifier(Read(0, 3), nn.CrossEntropyLoss(), (3,), 3, device_type="cpu")
    assert predict(classifier, x).classes.tolist() == [-1, -1, 2, -1, -1, 0]
    prediction = predict_by_votes(classifier, x, np.zeros(6, np.int64), 1, 0)
    assert prediction.broken(np.zeros(6, np.int64)).tolist() == [True, True, True, True, True, False]
    attacked = predict_by_votes(classifier, x, np.zeros(6, np.int64), 32, 0, attacks=9)
    assert attacked.classes.tolist() == [-1, -1, 2, -1, -1, 0]
