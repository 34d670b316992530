"""Wherever the normalisation is written, in ART, in a module of the network or in its forward: the same defence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchvision.transforms import Normalize

from art_defenses_ext import HeatAndBlur, TwoStreamRestoration
from art_defenses_ext.attribution.relevance import epsilon_gamma_box, epsilon_plus_box, relevance
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector.explanations import EXPLANATIONS, maps
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.evaluation.suite.papers import normalisation_scale
from art_defenses_ext.preprocessor.checks import channel_ends
from art_defenses_ext.preprocessor.heat_and_blur import MIXES, RULES

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
M, S = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))


def body(padding: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(192, 5),
        ).eval()


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", M)
        self.register_buffer("std", S)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Inside(nn.Module):
    def __init__(self, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.normalise = body(), normalise

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.normalise(x))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, affine=False, eps=0.0)
    norm.running_mean, norm.running_var = M.flatten().clone(), S.flatten() ** 2
    return norm


WRITTEN: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: nn.Sequential(Module(), body()),
    "forward": lambda: Inside(lambda x: (x - M) / S),
    "multiplied": lambda: Inside(lambda x: x * (1 / S) - M / S),
    "turned over": lambda: Inside(lambda x: (M - x) / -S),
    "torchvision": lambda: Inside(Normalize(MEAN, STD)),
    "batch norm": lambda: nn.Sequential(batch_norm(), body()).eval(),
    "in place": lambda: Inside(lambda x: x.clone().sub_(M).div_(S)),
}


def wrap(model: nn.Module, **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | arguments
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 16, 16), 5, **settings)


def outside() -> PyTorchClassifier:
    return wrap(body(), preprocessing=(np.array(MEAN, np.float32), np.array(STD, np.float32)))


@pytest.fixture
def x() -> Tensor:
    smooth = gaussian_filter(np.random.default_rng(0).random((4, 3, 16, 16)), sigma=(0, 0, 1.5, 1.5))
    return torch.tensor((smooth - smooth.min()) / np.ptp(smooth), dtype=torch.float32)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("written", "rules"),
    [*((written, "epsilon_gamma_box") for written in WRITTEN), *(("forward", rules) for rules in RULES)],
)
def test_heat_does_not_depend_on_where_the_normalisation_is_written(written: str, rules: str, x: Tensor) -> None:
    inside, reference = (
        HeatAndBlur.for_classifier(classifier, rules=rules, start="predicted")
        for classifier in (wrap(WRITTEN[written]()), outside())
    )
    assert_near(inside.heatmap(x), reference.heatmap(x))


@pytest.mark.parametrize(
    ("written", "mix"), [*((written, "heat") for written in WRITTEN), *(("forward", mix) for mix in MIXES)]
)
def test_the_restored_image_does_not_depend_on_where_the_normalisation_is_written(
    written: str, mix: str, x: Tensor
) -> None:
    """``heat`` and others fill up with the network's mean pixel, which is no longer ART's mean."""
    inside, reference = (
        HeatAndBlur.for_classifier(classifier, mix=mix) for classifier in (wrap(WRITTEN[written]()), outside())
    )
    assert_near(inside(x)[0], reference(x)[0])


def test_a_network_that_divides_by_255_is_the_same_in_those_units(x: Tensor) -> None:
    wide = HeatAndBlur.for_classifier(wrap(Inside(lambda x: (x / 255 - M) / S), clip_values=(0.0, 255.0)), mix="heat")
    reference = HeatAndBlur.for_classifier(outside(), mix="heat")
    assert_near(wide.heatmap(255 * x), reference.heatmap(x))
    assert_near(wide(255 * x)[0], 255 * reference(x)[0])


@pytest.mark.parametrize("mix", MIXES)
def test_images_that_the_caller_normalises_have_a_range_in_each_channel(mix: str, x: Tensor) -> None:
    """A channel's limits are the images of black and white, which the box rule and the clipping of pixels use."""
    black, white = ((np.full((3, 1, 1), end) - np.array(M)) / np.array(S) for end in (0.0, 1.0))
    apart = HeatAndBlur.for_classifier(wrap(body(), clip_values=(black, white)), mix=mix, gain=5.0)
    reference = HeatAndBlur.for_classifier(outside(), mix=mix, gain=5.0)
    assert apart.clip_values == pytest.approx((black.min(), white.max()))
    assert_near(apart.heatmap((x - M) / S), reference.heatmap(x))
    assert_near(apart((x - M) / S)[0], (reference(x)[0] - M) / S)


@pytest.mark.parametrize(("channels_first", "shape"), [(True, (3, 1, 1)), (True, (3, 4, 5)), (False, (4, 5, 3))])
def test_the_ends_of_each_channel_are_those_over_its_pixels(channels_first: bool, shape: tuple[int, ...]) -> None:
    low = -np.random.default_rng(0).random(shape)
    lowest, highest = channel_ends((low, 2.0), channels_first)
    rows = low.reshape(3, -1) if channels_first else low.reshape(-1, 3).T
    assert torch.equal(lowest.flatten(), torch.tensor(rows.min(axis=1)))
    assert (lowest.shape, highest.flatten().tolist()) == ((3, 1, 1), [2.0])


@pytest.mark.parametrize("box", [epsilon_plus_box, epsilon_gamma_box])
def test_a_normalisation_folded_into_a_layer_without_padding_gives_the_same_box(box: Any, x: Tensor) -> None:
    """W (x - m) / s + b = (W / s) x + b - W m / s: there the z-box rule has one answer, by its own formula."""
    plain, folded = body(padding=0), body(padding=0)
    first = folded[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.bias -= (first.weight * (M / S)).sum(dim=(1, 2, 3))
        first.weight /= S
    inside = nn.Sequential(Module(), plain)
    assert_near(relevance(inside, x, 2, box(0.0, 1.0)), relevance(folded, x, 2, box(0.0, 1.0)))


@pytest.mark.parametrize("position", ["first", "behind a pool"])
def test_the_box_of_one_layer_by_hand(position: str) -> None:
    """x' = 2 x - 1 in [-1, 1], one unit of weights 1 and -3: shares (x' + 1) and 3 (1 - x')."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1.0, -3.0]])

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.max_pool1d(x[:, None], 2)[:, 0] if position == "behind a pool" else x
            return self.layer(2 * x - 1)

    image = torch.tensor([[0.75, 0.25]])
    image = image.repeat_interleave(2, dim=1) if position == "behind a pool" else image
    actual = relevance(Doubled(), image, 0, epsilon_plus_box(0.0, 1.0))[:, :: 2 if position == "behind a pool" else 1]
    logit, shares = 0.5 + 3 * 0.5, torch.tensor([[1.5, 3 * 1.5]])
    assert_near(actual, logit * shares / shares.sum())


def test_a_box_that_is_not_known_is_refused(x: Tensor) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.smooth = body(), nn.AvgPool2d(3, stride=1, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x - self.smooth(x))

    with pytest.raises(InputError, match=r"so the range of what enters that is not known; rules without a box"):
        HeatAndBlur.for_classifier(wrap(Centred()))(x)
    HeatAndBlur.for_classifier(wrap(Centred()), rules="epsilon_plus_flat")(x)


@pytest.mark.parametrize(("written", "map"), [*((written, "sum") for written in WRITTEN), ("module", "stacked")])
def test_the_gradient_map_does_not_depend_on_where_the_normalisation_is_written(
    written: str, map: str, x: Tensor
) -> None:
    inside, reference = (
        TwoStreamRestoration.for_classifier(classifier, map=map) for classifier in (wrap(WRITTEN[written]()), outside())
    )
    assert_near(inside.gradient_map(x), reference.gradient_map(x))


@pytest.mark.parametrize("explanation", list(EXPLANATIONS))
@pytest.mark.parametrize("written", ["forward"])
def test_a_detector_s_explanations_do_not_depend_on_where_the_normalisation_is_written(
    written: str, explanation: str, x: Tensor
) -> None:
    classes = torch.tensor([0, 1, 2, 3])
    inside, reference = (
        maps([explanation], Pipeline(classifier), x, classes, None)
        for classifier in (wrap(WRITTEN[written]()), outside())
    )
    assert_near(inside, reference)


@pytest.mark.parametrize("written", list(WRITTEN))
def test_the_scale_of_steps_does_not_depend_on_where_the_normalisation_is_written(written: str) -> None:
    scale = normalisation_scale(wrap(WRITTEN[written]()))
    np.testing.assert_allclose(scale, np.reshape(STD, (3, 1, 1)), rtol=1e-5)
    np.testing.assert_array_equal(normalisation_scale(outside()), np.reshape(np.float32(STD), (3, 1, 1)))
