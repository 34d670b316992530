"""DeepFoolLp on linear classifiers, where the nearest boundary has a closed form, and against ART's DeepFool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.attacks.evasion import DeepFool
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.zoo.datasets import Dataset

NORMS = (2, np.inf)
Build = Callable[..., PyTorchClassifier]


def linear_case(build: Build, shape: tuple[int, ...], nb_classes: int) -> tuple[PyTorchClassifier, Any, Any]:
    """A classifier, images in the middle of the clip range, and W, so that boundaries lie near all images."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(nb_classes, int(np.prod(shape)))).astype(np.float32)
    x = (0.5 + 0.05 * random.uniform(-1, 1, size=(20, *shape))).astype(np.float32)
    return build(weight, (-weight.sum(axis=1) / 2).astype(np.float32), shape), x, weight


def distances(classifier: PyTorchClassifier, weight: Any, x: Any, norm: float) -> Any:
    """min over the rivals k of (z_y - z_k) / ||w_y - w_k|| in the dual norm."""
    dual = 1 if norm == np.inf else 2
    logits = classifier.predict(x).astype(np.float64)
    smallest = []
    for row in logits:
        y = row.argmax()
        rivals = [k for k in range(len(weight)) if k != y]
        smallest.append(min((row[y] - row[k]) / np.linalg.norm(weight[y] - weight[k], ord=dual) for k in rivals))
    return np.array(smallest)


def sizes(delta: Any, norm: float) -> Any:
    return np.linalg.norm(delta.reshape(len(delta), -1).astype(np.float64), ord=norm, axis=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("shape", "nb_classes", "overshoot"), [((8,), 2, 0.02), ((4, 6), 3, 0.5), ((3, 8, 8), 7, 0.02)]
)
def test_the_nearest_boundary_is_crossed_at_its_distance(
    norm: float, shape: tuple[int, ...], nb_classes: int, overshoot: float, linear_classifier: Build
) -> None:
    classifier, x, weight = linear_case(linear_classifier, shape, nb_classes)
    distance = distances(classifier, weight, x, norm)
    x_adv = DeepFoolLp(classifier, norm, overshoot=overshoot).generate(x)
    assert (classifier.predict(x_adv).argmax(axis=1) != classifier.predict(x).argmax(axis=1)).all()
    np.testing.assert_allclose(sizes(x_adv - x, norm), distance * (1 + overshoot), atol=1e-3)
    assert (sizes(x_adv - x, norm) >= distance * (1 - 1e-4)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_measures_distance_in_other_units(norm: float, linear_classifier: Build) -> None:
    """With one number for all pixels the example is the same, but for the push of 1e-4 units."""
    classifier, x, _ = linear_case(linear_classifier, (3, 8, 8), 3)
    plain = DeepFoolLp(classifier, norm).generate(x)
    np.testing.assert_allclose(DeepFoolLp(classifier, norm, scale=0.3).generate(x), plain, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_channels_that_weigh_more_move_more(norm: float, linear_classifier: Build) -> None:
    """The distance is that of normalised images: the closed form with the channel's scale on its weights."""
    classifier, x, weight = linear_case(linear_classifier, (3, 8, 8), 2)
    scale = np.array([0.1, 0.3, 0.2], np.float32).reshape(3, 1, 1)
    scaled = weight * np.broadcast_to(scale, (3, 8, 8)).reshape(-1)
    distance = distances(classifier, scaled, x, norm)
    x_adv = DeepFoolLp(classifier, norm, scale=scale).generate(x)
    np.testing.assert_allclose(sizes((x_adv - x) / scale, norm), distance * 1.02, atol=1e-3)


def test_with_fewer_gradients_only_the_classes_of_the_largest_logits_are_rivals(linear_classifier: Build) -> None:
    classifier, x, weight = linear_case(linear_classifier, (3, 8, 8), 7)
    logits = classifier.predict(x)
    order = logits.argsort(axis=1)[:, ::-1]
    expected = [
        (row[y] - row[k]) / np.linalg.norm(weight[y] - weight[k])
        for row, (y, k) in zip(logits, order[:, :2], strict=True)
    ]
    x_adv = DeepFoolLp(classifier, 2, nb_grads=2, max_iter=1).generate(x)
    np.testing.assert_allclose(sizes(x_adv - x, 2), np.array(expected) * 1.02, atol=1e-3)


def test_l2_examples_are_as_small_as_those_of_art(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x = digits.test.x[:24]
    predicted = digits_classifier.predict(x).argmax(axis=1)
    ours = DeepFoolLp(digits_classifier, 2, max_iter=50).generate(x)
    theirs = DeepFool(digits_classifier, max_iter=50, epsilon=0.02, nb_grads=10, batch_size=24, verbose=False).generate(
        x
    )
    for x_adv in (ours, theirs):
        assert (digits_classifier.predict(x_adv).argmax(axis=1) != predicted).all()
    assert np.median(sizes(ours - x, 2)) == pytest.approx(np.median(sizes(theirs - x, 2)), rel=0.1)
