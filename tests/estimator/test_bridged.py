"""Classifiers with ART's numpy preprocessing and postprocessing: what they predict, and what is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import (
    Cutout,
    CutoutPyTorch,
    FeatureSqueezing,
    GaussianAugmentation,
    JpegCompression,
    LabelSmoothing,
    Mixup,
    MixupPyTorch,
    SpatialSmoothing,
    ThermometerEncoding,
)
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from torch import nn

from art_defenses_ext import HeatAndBlur, JumpReLU, as_module, defend, gradient_modes, rejecting
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.bridged import differentiable, logits_behind
from art_defenses_ext.estimator.pipeline import check_runs
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.gradients.numpy_bridge import NumpyBridge, Postprocessed

SHAPE, NB_CLASSES = (1, 8, 8), 3


def wrap(model: nn.Module | None = None, channels: int = 1, **arguments: Any) -> PyTorchClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, NB_CLASSES)]
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | arguments
    return PyTorchClassifier(model or nn.Sequential(*layers), nn.CrossEntropyLoss(), SHAPE, NB_CLASSES, **settings)


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)


@pytest.fixture
def y() -> Any:
    return np.eye(NB_CLASSES, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]


def jpeg() -> JpegCompression:
    return JpegCompression(clip_values=(0, 1), channels_first=True)


def thermometer() -> ThermometerEncoding:
    return ThermometerEncoding(clip_values=(0, 1), channels_first=True)


ALONE: dict[str, tuple[Callable[[], Preprocessor], tuple[str, ...]]] = {
    "JPEG": (jpeg, ("identity",)),
    "squeezing": (lambda: FeatureSqueezing(clip_values=(0, 1), bit_depth=3), ("identity",)),
    "smoothing": (lambda: SpatialSmoothing(channels_first=True), ("identity",)),
    "thermometer": (thermometer, ("own",)),
    "noise": (lambda: GaussianAugmentation(0.1, augmentation=False, apply_predict=True), ("identity",)),
}

ART_FAILS = ("squeezing", "thermometer")
"""Behind these ART's standardisation in torch gets float64, or differentiates an image of another shape."""


@pytest.mark.parametrize(
    ("name", "preprocessing"),
    [
        *((name, StandardisationMeanStd(0.4, 0.5)) for name in ALONE),
        *((name, (0.4, 0.5)) for name in ALONE if name not in ART_FAILS),
    ],
)
def test_predictions_and_gradients_are_art_s(name: str, preprocessing: Any, x: Any, y: Any) -> None:
    """Of a single numpy preprocessor ART itself follows ``estimate_gradient``."""
    build, modes = ALONE[name]
    channels = 10 if name == "thermometer" else 1
    classifier = wrap(channels=channels, preprocessing_defences=build(), preprocessing=preprocessing)
    bridged = differentiable(classifier)
    assert gradient_modes(bridged) == modes
    for ask in (lambda estimator: estimator.predict(x.copy()), lambda estimator: estimator.loss_gradient(x.copy(), y)):
        with seeded(1):
            expected = ask(classifier)
        with seeded(1):
            np.testing.assert_allclose(ask(bridged), expected, rtol=1e-5, atol=1e-6)
    assert classifier.preprocessing_defences[0].__class__ is build().__class__  # the user's own is as it was


def test_what_is_in_torch_is_left_as_it_is() -> None:
    classifier = defend(wrap(), HeatAndBlur.for_classifier(wrap()))
    assert differentiable(classifier) is classifier


def test_numpy_and_torch_stand_in_one_chain_in_their_order(x: Any) -> None:
    """ART refuses them."""
    squeezing, torch_cutout = (
        FeatureSqueezing(clip_values=(0, 1), bit_depth=2),
        CutoutPyTorch(4, True, apply_predict=True),
    )
    chain = [jpeg(), torch_cutout, squeezing]
    mixed = wrap(preprocessing_defences=chain)
    with pytest.raises(NotImplementedError):
        mixed.predict(x)
    for classifier in (
        differentiable(mixed),
        defend(wrap(), *chain),
        defend(wrap(preprocessing_defences=chain[0]), *chain[1:]),
    ):
        with seeded(2):
            expected = chain[0](x)[0]
            expected = squeezing(torch_cutout(expected)[0])[0].astype(np.float32)
        with seeded(2):
            np.testing.assert_allclose(classifier.predict(x), wrap().predict(expected), rtol=1e-5, atol=1e-6)
        with seeded(2), torch.no_grad():
            logits = as_module(classifier)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(logits, wrap().predict(expected), rtol=1e-5, atol=1e-6)
        assert gradient_modes(classifier) == ("identity+identity",)


class Halving(Preprocessor):
    """Rows that no image can stand in for."""

    def __call__(self, x: Any, y: Any = None) -> Any:
        return x.reshape(len(x), -1), y


def test_where_neither_an_estimate_of_its_own_nor_the_identity_fits_the_gradient_is_sampled(x: Any, y: Any) -> None:
    """Flattening is linear, so that the estimate is right but for its noise."""
    linear = nn.Linear(64, NB_CLASSES)
    classifier = wrap(linear, preprocessing_defences=Halving(), clip_values=(0.0, 255.0))
    bridged = differentiable(classifier)
    assert gradient_modes(bridged) == ("estimated",)
    (bridge,) = bridged.preprocessing_defences
    assert bridge.sigma == pytest.approx(8.0)  # 8/255 of the clip range
    bridge.samples = 16_000  # the noise turns it by about sqrt(64 / samples)
    with seeded(0):
        gradient = bridged.class_gradient(x, label=0)[:, 0]
    expected = linear.weight[0].detach().numpy().reshape(SHAPE)
    assert np.corrcoef(gradient[0].ravel(), expected.ravel())[0, 1] > 0.98


def test_another_s_preprocessor_stays_in_the_undefended_classifier(x: Any) -> None:
    classifier = wrap(preprocessing_defences=jpeg())
    assert undefended(differentiable(classifier)) is None
    for defended in (JumpReLU(classifier, 0.01)(), defend(classifier, HeatAndBlur.for_classifier(classifier))):
        plain = undefended(differentiable(defended))
        assert plain is not None
        np.testing.assert_allclose(plain.predict(x), classifier.predict(x), rtol=1e-5, atol=1e-6)
        assert len(gradient_modes(plain)) == 1


def test_what_acts_in_training_alone_acts_there_and_nowhere_else(x: Any, y: Any) -> None:
    def trained(*preprocessors: Preprocessor, transform: Callable[[PyTorchClassifier], PyTorchClassifier]) -> Any:
        classifier = wrap(preprocessing_defences=list(preprocessors))
        classifier = transform(rebuild(classifier, optimizer=torch.optim.SGD(classifier.model.parameters(), lr=0.1)))
        with seeded(4):
            classifier.fit(x, y, batch_size=6, nb_epochs=1)
        return classifier

    smoothing = LabelSmoothing(max_value=0.5)
    unbridged, bridged = (
        trained(smoothing, transform=transform) for transform in (lambda estimator: estimator, differentiable)
    )
    np.testing.assert_allclose(bridged.predict(x), unbridged.predict(x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(unbridged.predict(x), trained(transform=lambda estimator: estimator).predict(x))
    assert gradient_modes(bridged) == gradient_modes(as_module(bridged)) == ("exact",)


NEEDS_LABELS = [
    (LabelSmoothing(apply_predict=True), "LabelSmoothing, which needs labels, which are unknown at prediction"),
    (Mixup(3, apply_predict=True), "Mixup, which needs labels, which are unknown at prediction; apply_predict=False"),
    (MixupPyTorch(3, apply_predict=True), "MixupPyTorch, which needs labels"),
    (GaussianAugmentation(apply_predict=True), r"GaussianAugmentation, which makes \(4, 1, 8, 8\) of \(2, 1, 8, 8\)"),
    (
        SpatialSmoothing(window_size=0.5) if False else Cutout(0.5, apply_predict=True),
        "Cutout, which cannot take images",
    ),
]


@pytest.mark.parametrize(("preprocessor", "message"), NEEDS_LABELS)
def test_what_cannot_act_at_prediction_is_refused_in_a_sentence(preprocessor: Preprocessor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_runs(differentiable(wrap(preprocessing_defences=preprocessor)))
    with pytest.raises(InputError, match=message.replace(", which", "", 1)):
        defend(wrap(), preprocessor)


def test_postprocessors_judge_and_hide_no_gradient(x: Any, y: Any) -> None:
    classifier = wrap(postprocessing_defences=Rounded(1))
    judged = differentiable(classifier)
    assert isinstance(judged.model, Postprocessed)
    np.testing.assert_array_equal(judged.predict(x), classifier.predict(x))
    np.testing.assert_array_equal(as_module(classifier)(torch.from_numpy(x)).detach().numpy(), classifier.predict(x))
    np.testing.assert_array_equal(logits_behind(judged).predict(x), wrap().predict(x))
    adversarial = FastGradientMethod(judged, eps=0.1).generate(x, y)
    assert not np.array_equal(adversarial, x)


def test_postprocessors_beside_a_detector_are_refused() -> None:
    detector = BinaryInputDetector(rebuild(wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))), nb_classes=2))
    with pytest.raises(InputError, match="has postprocessing defences; none were expected beside a detector"):
        rejecting(wrap(postprocessing_defences=Rounded(1)), detector)


def test_a_detector_behind_numpy_preprocessing_is_bridged(x: Any) -> None:
    head = rebuild(wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))), nb_classes=2, preprocessing_defences=[jpeg()])
    rejecting_classifier = rejecting(wrap(preprocessing_defences=jpeg()), BinaryInputDetector(head))
    assert sum(isinstance(module, NumpyBridge) for module in rejecting_classifier.model.modules()) == 2
    assert rejecting_classifier.predict(x).shape == (6, NB_CLASSES + 1)
