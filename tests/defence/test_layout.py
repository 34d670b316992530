"""Twins: one function of images, once with the channels in front and once behind. All that looks at images agrees."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    TwoStreamRestoration,
    as_module,
    defend,
    evaluate,
)
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import contradiction
from art_defenses_ext.cli.traps import examine
from art_defenses_ext.evaluation.suite.papers import normalisation_scale
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.gradients.modes import gradient_mode, gradient_modes
from art_defenses_ext.preprocessor.heat_and_blur import RULES

Images = npt.NDArray[np.float32]

CLASSES, MEAN, STD = 4, (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


class Behind(nn.Module):
    """The same network, of images (N, H, W, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.permute(0, 3, 1, 2))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, CLASSES),
        ).eval()


def wrap(model: nn.Module, shape: tuple[int, ...], **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {
        "clip_values": (0.0, 1.0),
        "preprocessing": (np.array(MEAN, np.float32), np.array(STD, np.float32)),
        "device_type": "cpu",
    }
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, CLASSES, **(settings | arguments))


@pytest.fixture
def x() -> Images:
    """Images that no transposition leaves alone: taller than wide."""
    smooth = gaussian_filter(np.random.default_rng(0).random((40, 3, 14, 10)), sigma=(0, 0, 1.2, 1.2))
    smooth -= smooth.min(axis=(1, 2, 3), keepdims=True)
    images: Images = (smooth / smooth.max(axis=(1, 2, 3), keepdims=True)).astype(np.float32)
    return images


def to_channels_last(x: Images) -> Images:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_channels_first(x: Images) -> Images:
    return x.transpose(0, 3, 1, 2)


@pytest.fixture
def twins() -> tuple[PyTorchClassifier, PyTorchClassifier]:
    model = network()
    turned = Behind(model)
    return wrap(model, (3, 14, 10)), wrap(turned, (14, 10, 3), channels_first=False)


def fitted(kind: type, classifier: PyTorchClassifier, x: Images) -> Any:
    restorer = kind.for_classifier(classifier, width=4)
    restorer.fit(x, eps=0.1, nb_epochs=1, batch_size=8, progress=False)
    return restorer


def assert_close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(np.asarray(second), np.asarray(first), rtol=1e-4, atol=1e-5)


def assert_twins(first: PyTorchClassifier, second: PyTorchClassifier, x: Images) -> None:
    """Logits, and the gradient of their squares in each gradient mode."""
    assert_close(
        as_module(first)(torch.tensor(x)).detach(), as_module(second)(torch.tensor(to_channels_last(x))).detach()
    )
    assert_close(first.predict(x), second.predict(to_channels_last(x)))
    assert gradient_modes(first) == gradient_modes(second)
    for mode in gradient_modes(first):
        with gradient_mode(first, mode), gradient_mode(second, mode):
            gradients = []
            for classifier, images in ((first, x), (second, to_channels_last(x))):
                live = torch.tensor(images, requires_grad=True)
                (gradient,) = torch.autograd.grad(as_module(classifier)(live).square().sum(), live)
                gradients.append(gradient.numpy())
        assert np.abs(gradients[0]).max() > 0
        np.testing.assert_allclose(
            to_channels_first(gradients[1]), gradients[0], rtol=1e-3, atol=1e-4 * np.abs(gradients[0]).max()
        )


@pytest.mark.parametrize("rules", list(RULES))
def test_heat_and_blur(rules: str, twins: tuple[PyTorchClassifier, PyTorchClassifier], x: Images) -> None:
    faces = [HeatAndBlur.for_classifier(classifier, rules=rules, sigma=1.0) for classifier in twins]
    restored = [face(images)[0] for face, images in zip(faces, (x, to_channels_last(x)), strict=True)]
    assert np.abs(restored[0] - x).max() > 0.05
    assert_close(restored[0], to_channels_first(restored[1]))
    assert_close(faces[0].heatmap(torch.tensor(x)), faces[1].heatmap(torch.tensor(to_channels_last(x))))
    assert_twins(*(defend(classifier, face) for classifier, face in zip(twins, faces, strict=True)), x[:6])


@pytest.mark.parametrize("kind", [FeatureAutoencoder, TwoStreamRestoration])
def test_trained_restorers(kind: type, twins: tuple[PyTorchClassifier, PyTorchClassifier], x: Images) -> None:
    restorers = [
        fitted(kind, classifier, images) for classifier, images in zip(twins, (x, to_channels_last(x)), strict=True)
    ]
    restored = [restorer(images)[0] for restorer, images in zip(restorers, (x, to_channels_last(x)), strict=True)]
    assert np.abs(restored[0] - x).max() > 1e-3
    assert_close(restored[0], to_channels_first(restored[1]))
    assert_twins(*(defend(classifier, restorer) for classifier, restorer in zip(twins, restorers, strict=True)), x[:6])


def test_jump_relu(twins: tuple[PyTorchClassifier, PyTorchClassifier], x: Images) -> None:
    assert_twins(*(JumpReLU(classifier, 0.2)() for classifier in twins), x[:6])


@pytest.mark.parametrize(
    ("options", "defended"),
    [
        ({"explanation": "input_gradient"}, True),
        ({"explanation": "smooth_grad", "scaling": "benign"}, False),
        ({"explanation": "relevance", "reconstructor": "convolutional"}, False),
        ({"explanation": ["loss_gradient", "noise_response"], "reconstructor": "statistics"}, False),
    ],
)
def test_explanation_reconstructor(
    options: dict[str, Any], defended: bool, twins: tuple[PyTorchClassifier, PyTorchClassifier], x: Images
) -> None:
    watched = [copy.copy(classifier) for classifier in twins]
    if defended:
        watched = [defend(classifier, HeatAndBlur.for_classifier(classifier, sigma=1.0)) for classifier in watched]
    random = np.random.default_rng(1)
    training_images = random.random((300, 3, 14, 10), dtype=np.float32)
    training_images[:40] = x
    class_counts = np.bincount(watched[0].predict(training_images).argmax(axis=1), minlength=CLASSES)
    detectors = [
        ExplanationReconstructor(classifier, false_positive_rate=0.5, hidden=4, **options) for classifier in watched
    ]
    if class_counts.min() < 20:  # the random network leaves a class out: balance it
        for classifier in twins:
            last = [m for m in classifier.model.modules() if isinstance(m, nn.Linear)][-1]
            logits = torch.tensor(twins[0].predict(training_images))
        with torch.no_grad():
            last.bias -= logits.mean(dim=0)
    for detector, images in zip(detectors, (training_images, to_channels_last(training_images)), strict=True):
        detector.fit(images, nb_epochs=1, batch_size=16, validation_split=0.3, progress=False)
    scores = [detector.scores(images) for detector, images in zip(detectors, (x, to_channels_last(x)), strict=True)]
    assert np.ptp(scores[0]) > 0
    np.testing.assert_allclose(scores[1], scores[0], rtol=2e-3)
    gradients = []
    for detector, images in zip(detectors, (x, to_channels_last(x)), strict=True):
        live = torch.tensor(images[:4], requires_grad=True)
        detector.network.gradient_mode = "smooth"
        (gradient,) = torch.autograd.grad(detector.network.scores(live)[0].sum(), live)
        gradients.append(gradient.numpy())
    largest = np.abs(gradients[0]).max()
    assert largest > 0
    np.testing.assert_allclose(to_channels_first(gradients[1]), gradients[0], atol=2e-3 * largest)


ATTACKS: dict[str, Any] = {
    "square linf": lambda classifier: Square(classifier, np.inf, 0.1, max_queries=60),
    "square l2": lambda classifier: Square(classifier, 2, 1.0, max_queries=60),
    "fgsm": lambda classifier: IterativeFGSM(classifier, 0.01, 5, scale=normalisation_scale(classifier)),
    "deep fool": lambda classifier: DeepFoolLp(classifier, 2, 5, scale=normalisation_scale(classifier)),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks(name: str, twins: tuple[PyTorchClassifier, PyTorchClassifier], x: Images) -> None:
    """Of those that draw, Square draws places and signs of planes: the same for both."""
    adversarial = [
        ATTACKS[name](classifier).generate(images)
        for classifier, images in zip(twins, (x, to_channels_last(x)), strict=True)
    ]
    assert np.abs(adversarial[0] - x).max() > 0.005
    assert_close(adversarial[0], to_channels_first(adversarial[1]))


def test_squares_are_squares(x: Images) -> None:
    """After one query of a network that nothing breaks, the start: stripes that run down the rows."""
    constant = nn.Sequential(nn.Flatten(), nn.Linear(420, CLASSES)).eval()
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias[:] = torch.arange(CLASSES, dtype=torch.float32)
    classifier = wrap(constant, (14, 10, 3), channels_first=False, preprocessing=None)
    grey = np.full((5, 14, 10, 3), 0.5, np.float32)
    change = Square(classifier, np.inf, 0.1, max_queries=1).generate(grey) - grey
    assert (change == change[:, :1]).all()
    assert not (change == change[:, :, :1]).all()


def test_a_report_draws_both_the_same(x: Images) -> None:
    model = network()
    twins = wrap(model, (3, 14, 10)), wrap(Behind(model), (14, 10, 3), channels_first=False)

    def build(classifier: PyTorchClassifier, threat: Any, seed: int) -> IterativeFGSM:
        return IterativeFGSM(classifier, threat.eps, 1, norm=threat.norm)

    spec = AttackSpec("FGSM", build, "a single step", kind="single step")
    reports = []
    for twin, images in zip(twins, (x, to_channels_last(x)), strict=True):
        defended = defend(twin, HeatAndBlur.for_classifier(twin, sigma=1.0))
        labels = defended.predict(images).argmax(axis=1)
        reports.append(evaluate(defended, (images, labels), Linf(0.3), [spec], check_samples=0, progress=False))
    assert reports[0].robust_accuracy == reports[1].robust_accuracy
    assert reports[0].examples
    for first, second in zip(*(report.examples for report in reports), strict=True):
        assert second.clean.shape == (3, 14, 10)
        assert_close(first.clean, second.clean)
        assert_close(first.adversarial, second.adversarial)
        assert first.views.keys() == second.views.keys() == {"heat", "what the network is shown"}
        for name in first.views:
            assert_close(first.views[name], second.views[name])


@pytest.mark.parametrize(
    ("shape", "channels_first", "wrong"),
    [
        ((32, 32, 3), True, True),
        ((32, 32, 3), False, False),
        ((3, 32, 32), True, False),
        ((3, 32, 32), False, True),
        ((480, 640, 3), True, True),
        ((28, 28, 1), True, True),
        ((9, 128, 1), True, False),  # a signal of nine channels
        ((3, 2, 3), True, False),
        ((3, 100), True, False),
        ((10,), False, False),
    ],
)
def test_what_contradicts_itself(shape: tuple[int, ...], channels_first: bool, wrong: bool) -> None:
    assert (contradiction(shape, channels_first) is not None) == wrong


def test_images_that_art_was_not_told_of_are_refused(x: Images) -> None:
    untold = wrap(Behind(network()), (14, 10, 3))
    expected = r"input_shape \(14, 10, 3\) and channels_first True, which .*; channels_first=False was expected"
    labels = np.zeros(len(x), np.int64)
    for build in (
        lambda: HeatAndBlur.for_classifier(untold),
        lambda: FeatureAutoencoder.for_classifier(untold),
        lambda: TwoStreamRestoration.for_classifier(untold),
        lambda: ExplanationReconstructor(untold),
        lambda: JumpReLU(untold),
        lambda: Square(untold),
        lambda: evaluate(untold, (to_channels_last(x), labels), Linf(0.1)),
    ):
        with pytest.raises(InputError, match=expected):
            build()
    assert "channels" in [trap.name for trap in examine(untold)]
    assert "channels" not in [trap.name for trap in examine(wrap(network(), (3, 14, 10)))]
