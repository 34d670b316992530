"""The bridge: numpy forwards to the last bit, the backward pass that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ClassLabels, GaussianNoise, HighConfidence, ReverseSigmoid, Rounded
from art.defences.preprocessor import (
    Cutout,
    FeatureSqueezing,
    GaussianAugmentation,
    JpegCompression,
    LabelSmoothing,
    SpatialSmoothing,
    ThermometerEncoding,
    TotalVarMin,
)
from art.defences.preprocessor.preprocessor import Preprocessor
from torch import nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.gradients.numpy_bridge import NumpyBridge, Postprocessed

SHAPE = (3, 1, 8, 8)

PREPROCESSORS: dict[str, Callable[[], Preprocessor]] = {
    "JPEG": lambda: JpegCompression(clip_values=(0, 1), channels_first=True),
    "thermometer": lambda: ThermometerEncoding(clip_values=(0, 1), channels_first=True),
    "total variation": lambda: TotalVarMin(max_iter=1),
    "squeezing": lambda: FeatureSqueezing(clip_values=(0, 1), bit_depth=2),
    "smoothing": lambda: SpatialSmoothing(channels_first=True),
    "noise": lambda: GaussianAugmentation(augmentation=False, apply_predict=True),
    "cutout": lambda: Cutout(4, channels_first=True, apply_predict=True),
}


def images(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("mode", ["identity", "estimated"])
def test_the_forward_pass_is_the_preprocessor_s(name: str, mode: str) -> None:
    x, preprocessor = images(), PREPROCESSORS[name]()
    before = x.detach().clone()
    bridge = NumpyBridge(preprocessor, [mode], samples=1)
    grads = [False] if name == "thermometer" and mode == "identity" else [False, True]
    for enabled in grads:
        with seeded(5), torch.set_grad_enabled(enabled):
            restored, labels = bridge.forward(x)
        with seeded(5):
            expected = preprocessor(before.numpy().copy())[0].astype(np.float32)
        np.testing.assert_array_equal(restored.detach().numpy(), expected)
        assert restored.dtype == x.dtype
        assert labels is None
    assert torch.equal(x, before)  # ART's thermometer encoding writes into what it is given


def test_the_identity_hands_the_gradient_on() -> None:
    x, upstream = images(), torch.rand(SHAPE)
    (gradient,) = torch.autograd.grad(NumpyBridge(PREPROCESSORS["JPEG"]()).forward(x)[0], x, upstream)
    assert torch.equal(gradient, upstream)


def test_the_preprocessor_s_own_estimate_is_asked_for() -> None:
    x, upstream = images(), torch.rand(3, 10, 8, 8)
    thermometer = PREPROCESSORS["thermometer"]()
    (gradient,) = torch.autograd.grad(NumpyBridge(thermometer, ["own"]).forward(x)[0], x, upstream)
    levels = torch.arange(10).reshape(1, 10, 1, 1) / 10
    expected = ((x > levels) * upstream).sum(dim=1, keepdim=True)  # g(x)_k = min(max(x - k / 10, 0), 1)
    torch.testing.assert_close(gradient, expected)


class Squares(Preprocessor):
    """A numpy function with a derivative that is known."""

    def __call__(self, x: Any, y: Any = None) -> Any:
        return x**2, y


def test_the_estimate_converges_to_the_derivative() -> None:
    x, upstream = images((2, 3)), torch.rand(2, 3)
    bridge = NumpyBridge(Squares(), ["identity", "estimated"], sigma=0.1, samples=20_000)
    bridge.gradient_mode = "estimated"
    with seeded(0):
        (gradient,) = torch.autograd.grad(bridge.forward(x)[0], x, upstream)
    torch.testing.assert_close(gradient, 2 * x.detach() * upstream, atol=0.05, rtol=0)


def test_images_outside_the_preprocessor_s_range_are_clipped_to_it() -> None:
    """JPEG refuses negative pixels, which gradient estimation draws."""
    x, jpeg = 3 * images().detach() - 1, PREPROCESSORS["JPEG"]()
    expected = jpeg(x.clamp(0, 1).numpy())[0]
    np.testing.assert_array_equal(NumpyBridge(jpeg).forward(x)[0].numpy(), expected)


def test_labels_are_smoothed_in_training() -> None:
    labels = torch.eye(3)
    with torch.no_grad():
        x, smooth = NumpyBridge(LabelSmoothing(max_value=0.8)).forward(images(), labels)
    assert torch.equal(x, images())
    torch.testing.assert_close(smooth, 0.8 * labels + 0.1 * (1 - labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Identity(),), "wrapped is a Identity; an ART Preprocessor that works on numpy arrays was expected"),
        ((Squares(), ()), r"modes is \(\); some of own, identity, estimated were expected"),
        ((Squares(), ["exact"]), r"modes is \['exact'\]; some of own, identity, estimated were expected"),
    ],
)
def test_what_cannot_be_bridged_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NumpyBridge(*arguments)


POSTPROCESSORS = {
    "rounding": [Rounded(1)],
    "reverse sigmoid": [ReverseSigmoid(beta=2.0)],
    "high confidence": [HighConfidence(0.4)],
    "labels": [ClassLabels()],
    "noise": [GaussianNoise(0.3)],
    "two": [Rounded(2), HighConfidence(0.2)],
    "in training": [Rounded(1, apply_fit=True, apply_predict=False)],
}


@pytest.mark.parametrize("name", POSTPROCESSORS)
def test_what_is_judged_is_art_s_output_and_what_is_differentiated_the_logits(name: str) -> None:
    network, x, upstream = nn.Softmax(dim=1), images((5, 4)), torch.rand(5, 4)
    with seeded(3):
        outputs = Postprocessed(network, network, POSTPROCESSORS[name])(x)
    expected = network(x).detach().numpy()
    with seeded(3):
        for step in POSTPROCESSORS[name]:
            expected = step(expected) if step.apply_predict else expected
    np.testing.assert_array_equal(outputs.detach().numpy(), expected.astype(np.float32))
    gradients = [torch.autograd.grad(z, x, upstream)[0] for z in (outputs, network(x))]
    assert torch.equal(*gradients)
