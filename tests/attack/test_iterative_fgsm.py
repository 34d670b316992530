"""IterativeFGSM on linear classifiers, where the number of steps that an image needs has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch.nn import functional as F

from art_defenses_ext import as_module
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.zoo.datasets import Dataset

SHAPES = [(8,), (4, 6), (3, 8, 8)]
Build = Callable[..., PyTorchClassifier]


def two_classes(build: Build, shape: tuple[int, ...]) -> tuple[PyTorchClassifier, Any, Any]:
    """A classifier, images around the middle of the clip range, and each image's linf distance to the boundary."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(2, int(np.prod(shape)))).astype(np.float32)
    x = (0.5 + 0.1 * random.uniform(-1, 1, size=(20, *shape))).astype(np.float32)
    direction = weight[0] - weight[1]
    bias = np.array([0, direction.sum() / 2], np.float32)  # the boundary passes through the middle of the cube
    gap = (x.reshape(20, -1) - 0.5) @ direction
    return build(weight, bias, shape), x, np.abs(gap) / np.abs(direction).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_takes_as_many_steps_as_its_distance_holds(shape: tuple[int, ...], linear_classifier: Build) -> None:
    """Every step has linf size eps_step and points straight at the boundary; the last one crosses it."""
    classifier, x, distance = two_classes(linear_classifier, shape)
    size = float(np.median(distance)) / 3.3
    steps = np.floor(distance / size) + 1
    assert len(set(steps)) > 2  # or the test would show little
    assert (np.abs(distance / size - np.round(distance / size)) > 1e-3).all()  # no image on the edge of a step
    x_adv = IterativeFGSM(classifier, eps_step=size, max_iter=100).generate(x)
    perturbation = np.abs(x_adv - x).reshape(20, -1)
    np.testing.assert_allclose(perturbation.max(axis=1), steps * size, rtol=1e-3)
    np.testing.assert_allclose(perturbation.min(axis=1), steps * size, rtol=1e-3)  # each pixel moves in each step
    assert (classifier.predict(x_adv).argmax(axis=1) != classifier.predict(x).argmax(axis=1)).all()


@pytest.mark.parametrize("max_iter", [1, 5, 6])
def test_no_image_takes_more_steps_than_allowed(max_iter: int, linear_classifier: Build) -> None:
    classifier, x, distance = two_classes(linear_classifier, (3, 8, 8))
    size = float(distance.max()) / 9.5
    x_adv = IterativeFGSM(classifier, eps_step=size, max_iter=max_iter).generate(x)
    expected = np.minimum(np.floor(distance / size) + 1, max_iter) * size
    np.testing.assert_allclose(np.abs(x_adv - x).reshape(20, -1).max(axis=1), expected, rtol=1e-3)
    broken = classifier.predict(x_adv).argmax(axis=1) != classifier.predict(x).argmax(axis=1)
    np.testing.assert_array_equal(broken, distance < max_iter * size)


@pytest.mark.parametrize("scale", [0.5, np.array([0.1, 0.3, 0.2], np.float32).reshape(3, 1, 1)])
def test_the_scale_turns_normalised_steps_into_pixels(scale: Any, linear_classifier: Build) -> None:
    classifier, x, _ = two_classes(linear_classifier, (3, 8, 8))
    x_adv = IterativeFGSM(classifier, eps_step=0.01, max_iter=1, scale=scale).generate(x)
    np.testing.assert_allclose(np.abs(x_adv - x), np.broadcast_to(0.01 * scale, x.shape), rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_l2_each_step_points_straight_at_the_boundary_and_has_the_size_asked_for(
    shape: tuple[int, ...], linear_classifier: Build
) -> None:
    classifier, x, y, direction = two_classes_in_l2(linear_classifier, shape)
    distance = np.abs((x.reshape(20, -1) - 0.5) @ direction) / np.linalg.norm(direction)
    size = float(np.median(distance)) / 3.3
    steps = np.floor(distance / size) + 1
    assert len(set(steps)) > 2  # or the test would show little
    x_adv = IterativeFGSM(classifier, eps_step=size, max_iter=100, norm=2).generate(x, y)
    perturbation = (x_adv - x).reshape(20, -1)
    np.testing.assert_allclose(np.linalg.norm(perturbation, axis=1), steps * size, rtol=1e-3)
    cosine = np.abs(perturbation @ direction) / np.linalg.norm(perturbation, axis=1) / np.linalg.norm(direction)
    np.testing.assert_allclose(cosine, 1, rtol=1e-4)
    assert (classifier.predict(x_adv).argmax(axis=1) != y).all()


def two_classes_in_l2(build: Build, shape: tuple[int, ...]) -> tuple[PyTorchClassifier, Any, Any, Any]:
    """As :func:`two_classes`, with the labels and the direction across the boundary."""
    classifier, x, _ = two_classes(build, shape)
    weight = classifier.model[1].weight.detach().numpy()
    return classifier, x, classifier.predict(x).argmax(axis=1), weight[0] - weight[1]


def test_each_step_follows_the_sign_of_the_cross_entropy_s_gradient(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The algorithm of the paper, one image at a time."""
    x, y = digits.test.x[:12], digits.test.y[:12]
    expected = []
    module = as_module(digits_classifier)
    for image, label in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
        for _ in range(9):
            image = image.detach().requires_grad_()
            logits = module(image[None])
            if logits.argmax() != label:
                break
            F.cross_entropy(logits, label[None]).backward()
            image = (image + 0.03 * image.grad.sign()).clamp(0, 1)
        expected.append(image.detach().numpy())
    digits_classifier.model.zero_grad()
    x_adv = IterativeFGSM(digits_classifier, eps_step=0.03, max_iter=9).generate(x, y)
    # A gradient of zero but for rounding has no sign worth comparing.
    assert np.mean(np.abs(x_adv - np.stack(expected)) > 1e-5) < 0.01
