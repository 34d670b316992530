"""What else may be held against benign explanations: a convolutional autoencoder's output, a class's statistics."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.ndimage import correlate1d
from scipy.spatial.distance import mahalanobis
from torch import nn

from art_defenses_ext import ExplanationReconstructor, gradient_mode
from art_defenses_ext.attribution import gradient
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector.explanations import DRAWS, NOISE, STATISTICS, statistics
from art_defenses_ext.detector.reconstructors import ClassGaussians, ConvolutionalAutoencoder
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.zoo.datasets import Dataset

BRIEFLY: dict[str, Any] = {"nb_epochs": 2, "progress": False}
SIZES = [(2, 8, 8), (3, 7, 5), (1, 1, 3)]


class Curved(nn.Module):
    """One convolution with a smooth activation, and one dense layer."""

    def __init__(self, shape: tuple[int, int, int], activation: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(shape[0], 6, 3, padding=1), nn.Linear(6 * shape[1] * shape[2], 3)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.activation(self.conv(x)).flatten(1))
        return logits


def images(shape: tuple[int, ...], count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def curved(shape: tuple[int, int, int], activation: nn.Module | None = None) -> PyTorchClassifier:
    """Predicts each of three classes about as often as any other."""
    model = Curved(shape, nn.Softplus(beta=3) if activation is None else activation).eval()
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 3, clip_values=(0.0, 1.0), device_type="cpu")
    with torch.no_grad():
        model.out.bias.sub_(torch.from_numpy(np.median(classifier.predict(images(shape, 500)), axis=0)))
    return classifier


def fitted(classifier: PyTorchClassifier, **options: Any) -> ExplanationReconstructor:
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.3, **options)
    detector.fit(images(classifier.input_shape, 240), **BRIEFLY)
    return detector


# The convolutional autoencoder


@pytest.mark.parametrize("shape", SIZES)
def test_a_reconstruction_has_the_size_of_its_map_and_lies_between_0_and_1(shape: tuple[int, int, int]) -> None:
    autoencoder = ConvolutionalAutoencoder(4, shape, 64)
    maps = torch.rand(5, int(np.prod(shape)))
    reconstructed = autoencoder(maps, torch.tensor([0, 3, 1, 1, 2]))
    assert reconstructed.shape == maps.shape
    assert bool(((reconstructed > 0) & (reconstructed < 1)).all())


def test_it_learns_where_pixels_lie(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """The same values in another order are reconstructed worse."""
    detector = ExplanationReconstructor(digits_classifier, reconstructor="convolutional", false_positive_rate=0.1)
    detector.fit(digits.train.x, nb_epochs=25, learning_rate=3e-3, progress=False)
    assert detector.training is not None
    losses = [loss for loss, _ in detector.training.losses]
    assert losses[-1] < 0.6 * losses[0]
    network, x = detector.network, torch.from_numpy(digits.test.x[:200])
    with torch.no_grad():
        classes = network.predicted(x)
        maps = network.scaled(network.explained(x, classes))
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        mixed = maps.flatten(2)[:, :, order].reshape(maps.shape)
        worse = network.score_of(mixed, classes) > network.score_of(maps, classes)
    assert worse.float().mean() > 0.9


# Statistics


def size_and_detail(attribution: Any) -> list[float]:
    """Of one attribution (C, H, W), in numpy: logarithms of norm and share of high frequencies."""
    offsets = np.arange(-3, 4)
    weights = np.exp(-(offsets**2) / 2) / np.exp(-(offsets**2) / 2).sum()
    blurred = correlate1d(correlate1d(attribution, weights, axis=1, mode="mirror"), weights, axis=2, mode="mirror")
    size = np.linalg.norm(attribution)
    return [np.log(size), np.log(np.linalg.norm(attribution - blurred) / size)]


@pytest.mark.parametrize("name", ["input_gradient", "gradient_x_input"])
def test_statistics_are_size_and_share_of_high_frequencies(name: str) -> None:
    pipeline = Pipeline(curved((3, 6, 5))).double()
    x, classes = torch.from_numpy(images((3, 6, 5), 4)).double(), torch.tensor([0, 1, 2, 1])
    actual = statistics([name], pipeline, x, classes, None)
    explained = getattr(gradient, name)(pipeline, x, classes).detach().numpy()
    expected = np.array([size_and_detail(attribution) for attribution in explained])
    np.testing.assert_allclose(actual[:, 0, 0].detach().numpy(), expected, rtol=1e-9)


def test_the_answer_to_noise_is_how_logits_change() -> None:
    pipeline = Pipeline(curved((1, 4, 4))).double()
    x, classes = torch.from_numpy(images((1, 4, 4), 5)).double(), torch.tensor([0, 1, 2, 1, 0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(1, 1, 4, 4, generator=generator) for _ in range(DRAWS)]).double()
    responses = statistics(["noise_response"], pipeline, x, classes, None)[:, 0, 0]
    for image, label, response in zip(x, classes, responses, strict=True):
        change = (pipeline(image + NOISE * noise).mean(dim=0) - pipeline(image[None])[0]).detach()
        rival_changes = [change[rival] - change[label] for rival in range(3) if rival != label]
        torch.testing.assert_close(response.detach(), torch.stack([change[label], max(rival_changes)]))


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_a_network_in_training_mode_are_those_in_evaluation_mode(name: str) -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, clip_values=(0, 1), device_type="cpu")
    x, classes = torch.from_numpy(images((1, 4, 4), 5)), torch.tensor([0, 1, 2, 1, 0])
    network.eval()
    expected = statistics([name], Pipeline(classifier), x, classes, None)
    network.train()
    state, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    torch.testing.assert_close(statistics([name], Pipeline(classifier), x, classes, None), expected)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert network.training


def test_a_score_is_the_squared_distance_to_the_class_over_the_number_of_statistics() -> None:
    generator = np.random.default_rng(0)
    points = torch.from_numpy(generator.normal(size=(90, 4)) @ generator.normal(size=(4, 4)) + 3)
    classes = torch.arange(90) % 3
    gaussians = ClassGaussians(3, 4).double()
    gaussians.fit(points, classes)
    distances = gaussians(points, classes).square().sum(dim=1)
    for number in range(3):
        class_points = points[classes == number].numpy()
        covariance = np.cov(class_points.T)
        covariance += 1e-6 * np.diag(covariance).mean() * np.eye(4)
        inverse = np.linalg.inv(covariance)
        expected = [mahalanobis(point, class_points.mean(axis=0), inverse) ** 2 for point in class_points]
        np.testing.assert_allclose(distances[classes == number].numpy(), expected, rtol=1e-8)


def test_too_few_points_or_points_without_spread_are_refused() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 4)))
    with pytest.raises(InputError, match="4 images predicted as class 0 to learn from; more than the 4 statistics"):
        ClassGaussians(2, 4).fit(points, torch.arange(8) % 2)
    with pytest.raises(InputError, match="statistics of class 0 that are all equal"):
        ClassGaussians(1, 4).fit(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))


def test_statistics_make_a_detector() -> None:
    classifier = curved((1, 4, 4))
    detector = fitted(classifier, reconstructor="statistics", explanation=["input_gradient", "noise_response"])
    assert detector.training is not None
    assert detector.training.losses == []
    report, flagged = detector.detect(images((1, 4, 4), 400, seed=1))
    assert 0.1 < flagged.mean() < 0.5
    assert detector.network.describe() == {
        "explanation": "input_gradient + noise_response",
        "reconstructor": "statistics",
    }
    assert detector.network.views(torch.from_numpy(images((1, 4, 4), 2))) == {}
    assert (report["scores"] >= 0).all()


# Gradients


OPTIONS: dict[str, dict[str, Any]] = {
    "convolutional": {"reconstructor": "convolutional", "score": "l2"},
    "statistics": {"reconstructor": "statistics", "explanation": ["input_gradient", "loss_gradient"]},
    "noise": {"reconstructor": "statistics", "explanation": "noise_response"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_exact_gradient_is_that_of_finite_differences(options: dict[str, Any]) -> None:
    detector = fitted(curved((2, 5, 4)), **options)
    network = detector.network.double()
    network.pipeline.double()
    x = torch.from_numpy(images((2, 5, 4), 2, seed=5)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda points: network.scores(points)[0], x, eps=1e-7, atol=1e-5, rtol=1e-3)
    (gradient,) = torch.autograd.grad(network.scores(x)[0].sum(), x)
    assert bool((gradient.flatten(1).abs().amax(dim=1) > 1e-6).all())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_score_is_the_same_in_every_mode_and_the_smooth_gradient_is_not_zero(options: dict[str, Any]) -> None:
    detector = fitted(curved((1, 6, 6), nn.ReLU()), **options)
    x = torch.from_numpy(images((1, 6, 6), 8, seed=2)).requires_grad_()
    scores = {}
    for mode in detector.network.gradient_modes:
        with gradient_mode(detector.detector, mode):
            scores[mode] = detector.network.scores(x)[0]
    torch.testing.assert_close(scores["exact"], scores["smooth"], rtol=0, atol=0)
    (smooth,) = torch.autograd.grad(scores["smooth"].sum(), x)
    assert bool(smooth.isfinite().all())
    assert bool((smooth.flatten(1).norm(dim=1) > 0).all())


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstructor": "pca"}, "reconstructor is 'pca'; one of autoencoder, convolutional, statistics"),
        ({"explanation": "noise_response"}, "explanation is 'noise_response'; one of input_gradient"),
        ({"reconstructor": "statistics", "explanation": "words"}, "explanation is 'words'; one of input_gradient"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ExplanationReconstructor(curved((1, 4, 4)), **options)


@pytest.mark.parametrize("name", STATISTICS)
def test_every_explanation_has_statistics(name: str) -> None:
    detector = fitted(curved((1, 6, 6), nn.ReLU()), reconstructor="statistics", explanation=name)
    assert np.isfinite(detector.scores(images((1, 6, 6), 5, seed=4))).all()
