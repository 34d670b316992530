"""No step of an attack waits for the device: run on tensors without values, where reading one is an error."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from itertools import cycle

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    TwoStreamRestoration,
    as_module,
    defend,
    gradient_mode,
    gradient_modes,
)
from art_defenses_ext.attribution.gradient import input_gradient
from art_defenses_ext.attribution.relevance import relevance
from art_defenses_ext.attribution.rules import ZBox
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector.explanations import EXPLANATIONS
from art_defenses_ext.preprocessor.heat_and_blur import RULES, STARTS
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.zoo.datasets import Dataset


def assert_waits_for_nothing(network: nn.Module) -> None:
    """Forwards and backwards in every gradient mode."""
    without_values = deepcopy(network).to("meta").requires_grad_(False)
    for mode in gradient_modes(without_values):
        x = torch.empty(2, 1, 8, 8, device="meta", requires_grad=True)
        with gradient_mode(without_values, mode):
            logits = without_values(x)
            (gradient,) = torch.autograd.grad(logits.sum(), x)
        assert gradient.shape == x.shape, mode


@pytest.mark.parametrize(
    "options",
    [
        *({"rules": rules, "start": start} for rules, start in zip(RULES, cycle(STARTS), strict=False)),
        {"mix": "soft_mask", "scale": "percentile", "passes": 2, "heat_sigma": 1.0},
    ],
    ids=str,
)
def test_heat_and_blur(digits_classifier: PyTorchClassifier, options: dict[str, object]) -> None:
    restorer = HeatAndBlur.for_classifier(digits_classifier, **options)
    assert_waits_for_nothing(as_module(defend(digits_classifier, restorer)))


@pytest.mark.parametrize(
    ("face", "options"),
    [
        (FeatureAutoencoder, {}),
        *((TwoStreamRestoration, {"map": name, "top_k": 3}) for name in ("stacked", "sum", "predicted")),
    ],
)
def test_the_restorers(
    digits_classifier: PyTorchClassifier,
    digits: Dataset,
    face: type[TrainedRestorer],
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restorer = face.for_classifier(digits_classifier, **options)
    few = slice(0, 64)
    restorer.fit(digits.train.x[few], digits.train.y[few], nb_epochs=1, validation_split=0.0, progress=False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no device without values
    assert_waits_for_nothing(as_module(defend(digits_classifier, restorer)))


def test_jump_relu(digits_classifier: PyTorchClassifier) -> None:
    assert_waits_for_nothing(as_module(JumpReLU(digits_classifier, jump=0.5)()))


@pytest.mark.parametrize(
    "options",
    [
        {"explanation": [name for name in EXPLANATIONS if name != "integrated_gradients"]},  # SmoothGrad's loop
        {"reconstructor": "statistics", "explanation": ["input_gradient", "loss_gradient"]},
    ],
    ids=str,
)
def test_the_detector(digits_classifier: PyTorchClassifier, digits: Dataset, options: dict[str, object]) -> None:
    detector = ExplanationReconstructor(digits_classifier, **options)
    detector.fit(digits.train.x, nb_epochs=1, validation_split=0.25, progress=False)
    assert_waits_for_nothing(as_module(digits_classifier, detector))


def test_what_is_not_read_on_a_device_is_checked_on_the_cpu(digits_classifier: PyTorchClassifier) -> None:
    model, x = digits_classifier.model, torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match="class indices from 0 to 9"):
        input_gradient(model, x, torch.tensor([3, 10]))
    with pytest.raises(InputError, match="classes from 0 to 9"):
        relevance(model, x, torch.tensor([3, 10]))
    with pytest.raises(InputError, match="low < high"):
        ZBox(torch.zeros(1), torch.zeros(1))
