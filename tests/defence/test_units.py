"""Nothing that is learnt or measured depends on the units of the pixels: [0, 1], [0, 255] or a scanner's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    RestorationLoss,
    TwoStreamRestoration,
    defend,
    evaluate,
)
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.defence.registry import load_face
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.training.inputs import GaussianNoise, Networks, SignedGradient, mim, pgd
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset

RANGES = {"[0, 256]": (0.0, 256.0), "CT": (-1024.0, 3071.0)}
"""In the first one float32 computes as in [0, 1] to the last bit: a power of two moves the exponents alone."""

TOLERANCE = {"[0, 256]": 0.0, "CT": 1e-4}
"""Shares of the range; a loss or noise in pixel values leaves .03 to .16."""

EVERY = ["clean", "noise", "fgsm", "ffgsm", mim(0.1, nb_steps=2), pgd(0.1, nb_steps=2, through="defence")]

INPUTS = {"[0, 256]": EVERY, "CT": ["clean", "noise"]}
"""Attacks step along signs: where rounding differs, a gradient of almost zero has another one, and training goes on
from there. So they are compared where it does not differ."""

KINDS: dict[str, Callable[[PyTorchClassifier], TrainedRestorer]] = {
    "autoencoder": lambda classifier: FeatureAutoencoder.for_classifier(classifier, width=4),
    "two-stream": lambda classifier: TwoStreamRestoration.for_classifier(classifier, width=4, blocks=1),
    "leaking": lambda classifier: FeatureAutoencoder.for_classifier(classifier, width=4, leak=0.7),
}
LOSSES = {
    "l1": RestorationLoss(feature_weight=1.0, class_weight=0.1),
    "l2": RestorationLoss(pixel="l2", pixel_weight=3.0, class_weight=0.1),
}


class Unit:
    """A range of pixel values: the digits and their classifier in it."""

    def __init__(self, model: nn.Module, low: float, high: float) -> None:
        spec, self.low, self.width = MODELS["digits_cnn"], low, high - low
        self.classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            spec.input_shape,
            spec.nb_classes,
            clip_values=(low, high),
            preprocessing=(low + self.width * np.array(spec.mean), self.width * np.array(spec.std)),
            device_type="cpu",
        )

    def pixels(self, x: FloatArray) -> FloatArray:
        """Images of [0, 1] in this range."""
        return (self.low + self.width * x.astype(np.float64)).astype(np.float32)

    def shares(self, pixels: Any) -> Any:
        """Back, in float64."""
        return (np.asarray(pixels, dtype=np.float64) - self.low) / self.width


@pytest.fixture(scope="module")
def plain(digits_classifier: PyTorchClassifier) -> Unit:
    return Unit(digits_classifier.model, 0.0, 1.0)


@pytest.fixture(scope="module", params=RANGES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def rescaled(name: str, digits_classifier: PyTorchClassifier) -> Unit:
    return Unit(digits_classifier.model, *RANGES[name])


@pytest.fixture(scope="module")
def noisy(digits: Dataset) -> FloatArray:
    x = digits.test.x[:40]
    noise = np.random.default_rng(0).normal(scale=0.1, size=x.shape)
    noisy: FloatArray = np.clip(x + noise, 0, 1).astype(np.float32)
    return noisy


@pytest.mark.parametrize(("kind", "loss"), [("autoencoder", "l1"), ("two-stream", "l2"), ("leaking", "l2")])
def test_the_same_fit_makes_the_same_restorer(
    kind: str, loss: str, name: str, plain: Unit, rescaled: Unit, digits: Dataset, noisy: FloatArray
) -> None:
    restored, losses, tolerance = [], [], TOLERANCE[name]
    for unit in (plain, rescaled):
        restorer = KINDS[kind](unit.classifier)
        restorer.fit(
            unit.pixels(digits.train.x[:50]),
            digits.train.y[:50],
            eps=0.1,
            loss=LOSSES[loss],
            inputs=INPUTS[name],
            nb_epochs=1,
            batch_size=20,
            learning_rate=5e-3,
            progress=False,
        )
        restored.append(unit.shares(restorer(unit.pixels(noisy))[0]))
        losses.append([[*epoch.training.values(), *epoch.validation.values()] for epoch in restorer.history])
    assert np.abs(restored[0] - noisy).max() > 1e-3  # something was learnt
    np.testing.assert_allclose(restored[1], restored[0], atol=tolerance, rtol=0)
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


DEFENCES: dict[str, dict[str, Any]] = {"heat and blur": {}, "heat alone": {"mix": "heat"}, "gain": {"mix": "gain"}}


def defended_in(unit: Unit, defence: str, digits: Dataset, noisy: FloatArray) -> tuple[Any, FloatArray]:
    """What a defence shows or chooses, and its logits."""
    if defence == "jump_relu":
        face = JumpReLU(unit.classifier)
        face.fit(unit.pixels(digits.train.x[:200]), digits.train.y[:200])
        return [face.jump, *(point.accuracy for point in face.curve)], face().predict(unit.pixels(noisy))
    preprocessor = HeatAndBlur.for_classifier(unit.classifier, **DEFENCES[defence])
    restored = unit.shares(preprocessor(unit.pixels(noisy))[0])
    return restored, defend(unit.classifier, preprocessor).predict(unit.pixels(noisy))


@pytest.fixture(scope="module")
def plainly_defended(plain: Unit, digits: Dataset, noisy: FloatArray) -> dict[str, tuple[Any, FloatArray]]:
    return {defence: defended_in(plain, defence, digits, noisy) for defence in (*DEFENCES, "jump_relu")}


@pytest.mark.parametrize("defence", [*DEFENCES, "jump_relu"])
def test_a_defence_without_training_does_the_same(
    defence: str, plainly_defended: Any, rescaled: Unit, digits: Dataset, noisy: FloatArray
) -> None:
    first, logits = plainly_defended[defence]
    second, rescaled_logits = defended_in(rescaled, defence, digits, noisy)
    np.testing.assert_allclose(second, first, atol=1e-5)
    np.testing.assert_allclose(rescaled_logits, logits, atol=1e-3)


DETECTORS: dict[str, dict[str, Any]] = {
    "maps": {"explanation": ["smooth_grad", "gradient_x_input", "relevance"], "scaling": "benign"},
    "statistics": {"explanation": ["input_gradient", "noise_response"], "reconstructor": "statistics"},
}


def scores_in(unit: Unit, options: dict[str, Any], digits: Dataset, noisy: FloatArray) -> FloatArray:
    detector = ExplanationReconstructor(unit.classifier, hidden=8, false_positive_rate=0.2, **options)
    detector.fit(unit.pixels(digits.train.x[:250]), nb_epochs=1, validation_split=0.3, progress=False)
    return detector.scores(unit.pixels(noisy))


@pytest.fixture(scope="module")
def plain_scores(plain: Unit, digits: Dataset, noisy: FloatArray) -> dict[str, FloatArray]:
    return {kind: scores_in(plain, options, digits, noisy) for kind, options in DETECTORS.items()}


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_gives_the_same_scores(
    kind: str, plain_scores: dict[str, FloatArray], rescaled: Unit, digits: Dataset, noisy: FloatArray
) -> None:
    assert plain_scores[kind].std() > 0
    rescaled_scores = scores_in(rescaled, DETECTORS[kind], digits, noisy)
    np.testing.assert_allclose(rescaled_scores, plain_scores[kind], rtol=1e-3, atol=1e-5)


def predictions_in(unit: Unit, digits: Dataset) -> list[dict[str, int]]:
    """Of JumpReLU under the attacks of its paper, image by image."""
    report = evaluate(
        JumpReLU(unit.classifier, 0.2)(),
        (unit.pixels(digits.test.x[:8]), digits.test.y[:8]),
        Linf(0.15 * unit.width),
        list(paper_specs(load_face("jump_relu"))),
        undefended=unit.classifier,
        curve_samples=0,
        check_samples=0,
        progress=False,
    )
    return [{key: outcome.prediction for key, outcome in record.attacks.items()} for record in report.records]


@pytest.fixture(scope="module")
def plain_predictions(plain: Unit, digits: Dataset) -> list[dict[str, int]]:
    return predictions_in(plain, digits)


def test_an_evaluation_finds_the_same(plain_predictions: list[dict[str, int]], rescaled: Unit, digits: Dataset) -> None:
    """JumpReLU's attacks step in units of the normalised image."""
    assert predictions_in(rescaled, digits) == plain_predictions
    assert len(plain_predictions[0]) == len(paper_specs(load_face("jump_relu")))


# What a restorer is trained on


def test_noise_and_steps_are_shares_of_the_range() -> None:
    """On a linear network a signed step is known: sign(w) times its size."""
    x = torch.full((50, 1, 20, 20), 512.0)
    clip_values = (-1024.0, 3072.0)  # 4096 wide
    networks = Networks(lambda pixels: pixels.flatten(1)[:, :2], lambda pixels: pixels.flatten(1)[:, :2], clip_values)
    labels = torch.zeros(50, dtype=torch.long)
    noise = torch.Generator().manual_seed(0)
    added = GaussianNoise(0.01)(x, labels, networks, noise) - x
    assert abs(float(added.std()) - 40.96) < 1  # 20,000 values: within 5 standard errors
    change = SignedGradient(0.02, 0.005, nb_steps=3)(x, labels, networks, noise) - x
    assert change[:, 0, 0, 0].tolist() == pytest.approx([-3 * 0.005 * 4096] * 50)
    far = SignedGradient(0.02, 0.05, nb_steps=3)(x, labels, networks, noise) - x
    assert far[:, 0, 0, 1].tolist() == pytest.approx([0.02 * 4096] * 50)


@pytest.mark.parametrize("eps", [8, 1.5])
def test_pixel_values_for_shares_are_refused(eps: float, rescaled: Unit, digits: Dataset) -> None:
    with pytest.raises(InputError, match=rf"eps is {eps}; a share of the clip range, at most 1, was expected"):
        KINDS["autoencoder"](rescaled.classifier).fit(rescaled.pixels(digits.train.x[:50]), eps=eps, progress=False)
    with pytest.raises(InputError, match=rf"eps is {eps}; a share"):
        SignedGradient(eps, 0.1)
