"""HeatAndBlur: each step against a formula written again, each backward pass against what it claims to be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    CarliniL2Method,
    DeepFool,
    HopSkipJump,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import HeatAndBlur, JumpReLU, Linf, as_module, defend, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attribution import relevance as lrp
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.gradients.modes import annealable_modes, gradient_mode, surrogate_width
from art_defenses_ext.preprocessor.heat_and_blur import MIXES, RULES, SCALES, STARTS, blurred
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.models import build_model

MODES = ("exact", "frozen", "smooth", "identity")

# Each option by name: the defaults are chosen by an ablation and no business of these tests.
OPTIONS: dict[str, Any] = {
    "start": "last_conv",
    "top_k": 3,
    "rules": "epsilon_plus_box",
    "scale": "percentile",
    "heat_sigma": 0.0,
    "floor": 0.0,
    "mix": "blend",
    "sigma": 0.8,
    "sharp_sigma": 0.3,
    "gain": 0.5,
    "passes": 1,
}
MEAN, STD = 0.3, 0.4


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def images(nb: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images with structure, which noise has not: smooth blobs in [0, 1]."""
    noise = np.random.default_rng(0).random((nb, *shape))
    smooth = gaussian_filter(noise, sigma=(0, 0, 1.5, 1.5))
    low, high = smooth.min(axis=(1, 2, 3), keepdims=True), smooth.max(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy((smooth - low) / (high - low)).to(dtype)


def softplus_network() -> nn.Module:
    """Differentiable without end, in float64."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Softplus(beta=3),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Softplus(beta=3),
            nn.Flatten(),
            nn.Linear(96, 10),
        )
    ).double()


def relu_network() -> nn.Module:
    """The same with kinks."""
    model = softplus_network()
    model[1], model[3] = nn.ReLU(), nn.ReLU()
    return model


def wrap(model: nn.Module, shape: tuple[int, ...] = (1, 8, 8), **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "preprocessing": (MEAN, STD), "device_type": "cpu"}
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **(settings | arguments))


def with_options(classifier: PyTorchClassifier, **options: Any) -> PyTorchClassifier:
    return defend(classifier, HeatAndBlur.for_classifier(classifier, **(OPTIONS | options)))


def the_defence(classifier: PyTorchClassifier) -> HeatAndBlur:
    (defence,) = classifier.preprocessing_defences
    assert isinstance(defence, HeatAndBlur)
    return defence


@pytest.fixture
def x(digits: Dataset) -> FloatArray:
    return digits.test.x[:12].copy()


@pytest.fixture
def y(digits: Dataset) -> IntArray:
    return digits.test.y[:12].copy()


@pytest.fixture
def one_hot(y: IntArray) -> FloatArray:
    return np.eye(10, dtype=np.float32)[y]


# The blur


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.3])
def test_the_blur_is_scipy_s(sigma: float) -> None:
    x = torch.rand(2, 3, 17, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = int(np.ceil(3 * sigma))
    expected = gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
    np.testing.assert_allclose(blurred(x, sigma), expected, atol=1e-12)
    np.testing.assert_allclose(blurred(x.float(), sigma), expected, atol=1e-6)


# The heat


def composite(rules: str, low: float, high: float) -> lrp.Composite:
    """The rules by name, for normalised pixels from ``low`` to ``high``."""
    return {
        "epsilon_plus": lrp.epsilon_plus(),
        "epsilon_plus_box": lrp.epsilon_plus_box(low, high),
        "epsilon_plus_flat": lrp.epsilon_plus_flat(),
        "epsilon_alpha2_beta1": lrp.epsilon_alpha2_beta1(),
        "epsilon_gamma_box": lrp.epsilon_gamma_box(low, high),
    }[rules]


def heat_by_hand(model: nn.Module, x: Any, options: dict[str, Any]) -> Any:
    """The heat of float64 images, in numpy but for the relevance itself."""
    start = lrp.TopK(options["top_k"]) if options["start"] == "top_k" else options["start"]
    rules = composite(options["rules"], (0 - MEAN) / STD, (1 - MEAN) / STD)
    relevance = lrp.relevance(model, torch.from_numpy((x - MEAN) / STD), start, rules).numpy()
    heat = np.clip(relevance, 0, None).sum(axis=1, keepdims=True)

    def scaled(heat: Any) -> Any:
        flat = heat.reshape(len(heat), -1)
        # The value that at most one pixel in a hundred exceeds.
        top = flat.max(1) if options["scale"] == "max" else np.percentile(flat, 99, axis=1, method="higher")
        return np.clip(heat / top[:, None, None, None], 0, 1)

    heat = scaled(heat)
    if options["heat_sigma"]:
        heat = scaled(blur(heat, options["heat_sigma"]))
    return options["floor"] + (1 - options["floor"]) * heat


def blur(x: Any, sigma: float) -> Any:
    radius = int(np.ceil(3 * sigma))
    return gaussian_filter(x, (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))


@pytest.mark.parametrize(
    ("scale", "heat_sigma", "floor", "start"),
    [*((SCALES[0], 0.0, 0.3, start) for start in STARTS), *((scale, 0.8, 0.0, "predicted") for scale in SCALES)],
)
def test_the_heat_is_relevance_cut_summed_and_scaled(scale: str, heat_sigma: float, floor: float, start: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1456, 10))).double()
    x = images(3, 3, 16, 28, dtype=torch.float64)
    options = OPTIONS | {"scale": scale, "heat_sigma": heat_sigma, "floor": floor, "start": start}
    heat = HeatAndBlur(model, mean=MEAN, std=STD, **options).heatmap(x)
    assert heat.shape == (3, 1, 16, 28)
    assert heat.min() >= floor
    assert heat.max() <= 1
    np.testing.assert_allclose(heat, heat_by_hand(model, x.numpy(), options), atol=1e-6)
    assert heat.std() > 0.01


@pytest.mark.parametrize("rules", RULES)
def test_the_box_of_a_rule_is_the_clip_range_normalised(rules: str) -> None:
    model, x = relu_network(), images(2, 1, 8, 8, dtype=torch.float64)
    options = OPTIONS | {"rules": rules, "start": "predicted"}
    expected = heat_by_hand(model, x.numpy(), options)
    np.testing.assert_allclose(HeatAndBlur(model, mean=MEAN, std=STD, **options).heatmap(x), expected, atol=1e-6)
    settings = OPTIONS | {"rules": composite(rules, -MEAN / STD, (1 - MEAN) / STD), "start": "predicted"}
    np.testing.assert_allclose(HeatAndBlur(model, mean=MEAN, std=STD, **settings).heatmap(x), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(10, 10), (10, 70), (29, 100), (8, 8)])
def test_at_most_one_pixel_in_a_hundred_lies_above_the_99th_percentile(height: int, width: int) -> None:
    """And as many as that: at any size, whatever a product of floats rounds to."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    pixels = torch.randperm(height * width, generator=torch.Generator().manual_seed(0)) + 1.0
    x = (pixels / (height * width)).reshape(1, 1, height, width)
    heat = HeatAndBlur(model, **(OPTIONS | {"rules": "epsilon_plus", "scale": "percentile"})).heatmap(x)
    assert int((heat > 1 - 1e-6).sum()) == max(1, -(-height * width // 100))


@pytest.mark.parametrize("start", ["last_conv", "top_k"])
def test_an_image_s_heat_does_not_depend_on_its_neighbours(
    digits_classifier: PyTorchClassifier, x: FloatArray, start: str
) -> None:
    defence = HeatAndBlur.for_classifier(digits_classifier, **(OPTIONS | {"start": start, "heat_sigma": 0.5}))
    together = defence.heatmap(torch.from_numpy(x))
    for i in range(len(x)):
        torch.testing.assert_close(
            defence.heatmap(torch.from_numpy(x[i : i + 1])), together[i : i + 1], atol=1e-6, rtol=0
        )
    backwards = defence.heatmap(torch.from_numpy(x[::-1].copy()))
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-6, rtol=0)


def test_an_image_of_nan_is_seen_and_harms_no_other(digits_classifier: PyTorchClassifier, x: FloatArray) -> None:
    defence = HeatAndBlur.for_classifier(digits_classifier, **OPTIONS)
    expected, _ = defence(x)
    x[3] = np.nan
    restored = defence.forward(torch.tensor(x))[0].numpy()  # as in an attack, where nobody looks
    assert np.isnan(restored[3]).any()
    finite = np.arange(len(x)) != 3
    np.testing.assert_allclose(restored[finite], expected[finite], atol=1e-6)


# How heat and image meet


def mixed_by_hand(mix: str, x: Any, h: Any, mean: Any, options: dict[str, Any]) -> Any:
    b = blur(x, options["sigma"])
    if mix == "blend":
        return h * x + (1 - h) * b
    if mix == "heat_then_blur":
        return blur(h * x + (1 - h) * mean, options["sigma"])
    if mix == "soft_mask":
        mask = blur(h, options["sigma"])
        return mask * b + (1 - mask) * mean
    if mix == "strength":
        return h * blur(x, options["sharp_sigma"]) + (1 - h) * b
    if mix == "gain":
        return np.clip(mean + (1 + options["gain"] * h) * (b - mean), 0, 1)
    return {"blur": b, "heat": h * x + (1 - h) * mean}[mix]


@pytest.mark.parametrize("mix", MIXES)
def test_each_mix_is_its_formula(mix: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))).double()
    mean = np.array([0.2, 0.4, 1.3])  # the last is brought into the clip range
    x = images(3, 3, 8, 8, dtype=torch.float64)
    options = OPTIONS | {"mix": mix, "floor": 0.1, "gain": 2.0}
    defence = HeatAndBlur(model, mean=mean, std=[0.5, 0.6, 0.7], **options)
    heat = defence.heatmap(x).numpy()
    expected = mixed_by_hand(mix, x.numpy(), heat, np.minimum(mean, 1)[:, None, None], options)
    np.testing.assert_allclose(defence(x)[0], expected, atol=1e-6)
    np.testing.assert_allclose(defence.mixed(x, torch.from_numpy(heat)), expected, atol=1e-6)
    assert np.abs(expected - x.numpy()).max() > 0.01


@pytest.mark.parametrize("mix", ["blend", "soft_mask", "gain"])
def test_a_second_pass_averages_the_heat_of_what_the_first_restored(mix: str) -> None:
    model, x = relu_network(), images(3, 1, 8, 8, dtype=torch.float64)
    options = OPTIONS | {"mix": mix, "floor": 0.1}
    defence = HeatAndBlur(model, mean=MEAN, std=STD, **options)
    first = defence.heatmap(x).numpy()
    between = mixed_by_hand(mix, x.numpy(), first, MEAN, options)
    second = defence.heatmap(torch.from_numpy(between)).numpy()
    expected = mixed_by_hand(mix, x.numpy(), (first + second) / 2, MEAN, options)
    defence.set_params(passes=2)
    np.testing.assert_allclose(defence(x)[0], expected, atol=1e-6)
    assert np.abs(expected - between).max() > 1e-3


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches that ``model`` is given meanwhile."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def test_blur_alone_never_runs_the_network(digits_classifier: PyTorchClassifier, x: FloatArray) -> None:
    for mode in MODES:
        for mix, passes, runs in (("blur", 3, 0), ("blend", 1, 1), ("blend", 3, 3)):
            defence = HeatAndBlur.for_classifier(digits_classifier, **(OPTIONS | {"mix": mix, "passes": passes}))
            defence.gradient_mode = mode
            with counted(defence.model) as sizes:
                defence(x)
            assert sizes == [len(x)] * runs


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_what_is_restored_lies_in_the_clip_range(
    digits_classifier: PyTorchClassifier, x: FloatArray, mix: str, contrast: float
) -> None:
    """Of images from even grey to black and white."""
    hardened = np.where(x > 0.5, 0.5 + contrast / 2, 0.5 - contrast / 2).astype(np.float32)
    options = OPTIONS | {"mix": mix, "passes": 2, "gain": 5.0}
    restored, _ = HeatAndBlur.for_classifier(digits_classifier, **options)(hardened)
    assert restored.min() >= -1e-6
    assert restored.max() <= 1 + 1e-6


# Networks


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20"])
def test_every_start_and_rule_runs(name: str) -> None:
    spec, model = MODELS[name], seeded(lambda: build_model(name)).eval()
    x = images(1, *spec.input_shape)
    for options in (*({"start": start} for start in STARTS), *({"rules": rules} for rules in RULES)):
        defence = HeatAndBlur(model, mean=spec.mean, std=spec.std, **(OPTIONS | options))
        points = x.clone().requires_grad_()
        restored, _ = defence(points)
        (gradient,) = torch.autograd.grad(restored.square().sum(), points)
        assert restored.shape == gradient.shape == x.shape
        assert restored.isfinite().all()
        assert gradient.isfinite().all()
        assert not torch.equal(restored, x)


def test_without_positive_logits_there_is_no_heat() -> None:
    """All is blurred, and no gradient is lost to a division by nothing."""
    model = relu_network()
    with torch.no_grad():
        model[-1].bias.fill_(-100.0)
    defence = HeatAndBlur(model, mean=MEAN, std=STD, **(OPTIONS | {"start": "positive"}))
    x = images(2, 1, 8, 8, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(blurred(x, OPTIONS["sigma"]).square().sum(), x)
    for mode in ("exact", "frozen", "smooth"):
        defence.gradient_mode = mode
        restored, _ = defence(x)
        torch.testing.assert_close(restored, blurred(x, OPTIONS["sigma"]))
        torch.testing.assert_close(torch.autograd.grad(restored.square().sum(), x)[0], expected)


# The backward passes

COMBINATIONS: list[dict[str, Any]] = [
    *({"mix": mix} for mix in MIXES),
    *({"start": start} for start in STARTS),
    *({"rules": rules, "start": "predicted"} for rules in RULES),
    {"scale": "max", "heat_sigma": 0.5, "floor": 0.2},
    {"passes": 2, "mix": "soft_mask"},
    {"passes": 2, "mix": "gain", "start": "top_k"},
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_the_exact_gradient_is_the_numerical_one(options: dict[str, Any]) -> None:
    """Of the loss of the whole defended network, in each pixel, by central differences."""
    module = as_module(with_options(wrap(softplus_network()), **options))
    x = images(2, 1, 8, 8, dtype=torch.float64) * 0.9 + 0.05
    labels = torch.tensor([3, 7])

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(module(x), labels, reduction="none")

    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(points, labels).sum(), points)
    steps = 1e-5 * torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    with torch.no_grad():
        for i in range(len(x)):
            label = labels[i].expand(64)
            numerical = (loss(x[i] + steps, label) - loss(x[i] - steps, label)).reshape(1, 8, 8) / 2e-5
            assert (gradient[i] - numerical).abs().max() <= 1e-6 * numerical.abs().max()


@pytest.mark.parametrize(("mix", "passes"), [*((mix, 1) for mix in MIXES), ("soft_mask", 2)])
def test_the_frozen_gradient_is_that_of_a_constant_heat(mix: str, passes: int) -> None:
    model, x = relu_network(), images(3, 1, 8, 8, dtype=torch.float64)
    options = OPTIONS | {"mix": mix, "floor": 0.1, "passes": passes}
    defence = HeatAndBlur(model, mean=MEAN, std=STD, **options)
    heats, restored = [], x
    for _ in range(passes):
        heats.append(defence.heatmap(restored))
        heat = torch.stack(heats).mean(dim=0)
        restored = mixed(x, heat, options)
    points, weights = x.clone().requires_grad_(), torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((mixed(points, heat.detach(), options) * weights).sum(), points)
    defence.gradient_mode = "frozen"
    (gradient,) = torch.autograd.grad((defence(points)[0] * weights).sum(), points)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def mixed(x: Tensor, h: Tensor, options: dict[str, Any]) -> Tensor:
    """The formulas once more, for autograd."""
    b = blurred(x, options["sigma"])
    mask = blurred(h, options["sigma"])
    return {
        "blend": h * x + (1 - h) * b,
        "heat_then_blur": blurred(h * x + (1 - h) * MEAN, options["sigma"]),
        "soft_mask": mask * b + (1 - mask) * MEAN,
        "strength": h * blurred(x, options["sharp_sigma"]) + (1 - h) * b,
        "gain": (MEAN + (1 + options["gain"] * h) * (b - MEAN)).clamp(0, 1),
        "blur": b,
        "heat": h * x + (1 - h) * MEAN,
    }[options["mix"]]


@pytest.mark.parametrize("start", ["last_conv", "top_k"])
def test_the_smooth_gradient_tends_to_the_exact_one(start: str) -> None:
    defended = with_options(wrap(relu_network()), start=start)
    assert annealable_modes(defended) == ("smooth",)
    x, y = images(2, 1, 8, 8, dtype=torch.float64).numpy(), np.eye(10)[[1, 2]]
    exact = defended.loss_gradient(x, y)
    distances = []
    with gradient_mode(defended, "smooth"):
        for factor in (1.0, 0.1, 0.01, 0.001):
            with surrogate_width(defended, factor):
                distances.append(np.abs(defended.loss_gradient(x, y) - exact).max() / np.abs(exact).max())
    assert distances[0] > 0.01
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


# What cannot be used


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"sigma": 1.4}, 11),
        ({"mix": "heat", "heat_sigma": 1.2}, 9),
        ({"mix": "strength", "sharp_sigma": 3.0}, 19),
    ],
)
def test_images_smaller_than_the_kernel_are_refused(
    digits_classifier: PyTorchClassifier, x: FloatArray, options: dict[str, Any], kernel: int
) -> None:
    defence = HeatAndBlur.for_classifier(digits_classifier, **(OPTIONS | options))
    with pytest.raises(InputError, match=f"8 x 8 pixels and a blur of sigma .* has a kernel of {kernel};"):
        defence(x)


@pytest.mark.parametrize(
    "options", [{"mix": "heat", "sigma": 5.0}, {"mix": "blur", "heat_sigma": 5.0}, {"sharp_sigma": 5.0}]
)
def test_a_blur_that_is_not_used_may_be_of_any_size(
    digits_classifier: PyTorchClassifier, x: FloatArray, options: dict[str, Any]
) -> None:
    assert np.isfinite(HeatAndBlur.for_classifier(digits_classifier, **(OPTIONS | options))(x)[0]).all()


def test_a_compiled_network_is_refused_where_relevance_is_asked_of_it() -> None:
    compiled = torch.compile(relu_network().float(), backend="eager")
    with pytest.raises(InputError, match=r"^the model is compiled by torch.compile, .*; pass it uncompiled"):
        HeatAndBlur(compiled, **OPTIONS)
    HeatAndBlur(compiled, **(OPTIONS | {"mix": "blur"}))


def test_a_layer_that_relevance_cannot_pass_is_named() -> None:
    model = relu_network().float()
    model[3] = nn.LogSigmoid()
    defence = HeatAndBlur(model, **OPTIONS)
    for context in (torch.no_grad, torch.enable_grad):
        with (
            context(),
            pytest.raises(
                InputError, match=r"layer '3' \(LogSigmoid\) calls log_sigmoid, which relevance cannot be sent"
            ),
        ):
            defence(images(2, 1, 8, 8))


class Rectified(nn.Module):
    """A residual network whose rectifiers are of one form."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.rectifier, self.head = rectifier, nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.rectifier(8 * self.first(x))
        y = self.second(z)
        y += z
        logits: Tensor = self.head(self.rectifier(y).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("rectifier", "plain"),
    [
        (nn.ReLU(inplace=True), nn.ReLU()),
        (nn.ReLU6(), nn.ReLU6()),
        (nn.ReLU6(inplace=True), nn.ReLU6()),
        (nn.Hardtanh(0.0, 2.0, inplace=True), nn.Hardtanh(0.0, 2.0)),
        (nn.LeakyReLU(inplace=True), nn.LeakyReLU()),
        (nn.SiLU(inplace=True), nn.SiLU()),
    ],
    ids=str,
)
def test_a_jump_of_any_rectifier_has_a_heat(rectifier: nn.Module, plain: nn.Module) -> None:
    """At a jump below every pre-activation of the ReLU it is that of the network without a jump."""
    x = images(2, 1, 8, 8)
    networks = [seeded(lambda form=form: Rectified(form)).eval() for form in (rectifier, plain)]
    jumping, reference = (JumpReLU(wrap(network), 0.2)() for network in networks)
    assert torch.equal(jumping.model(x), reference.model(x))
    heats = [HeatAndBlur.for_classifier(one, **OPTIONS).heatmap(x) for one in (jumping, reference)]
    assert heats[0].max() > 0
    torch.testing.assert_close(*heats)
    if isinstance(plain, nn.ReLU6 | nn.Hardtanh):  # without a jump the limit is the rectifier's own
        unmoved = [JumpReLU(wrap(networks[0]), 0.0)(), wrap(networks[1])]
        torch.testing.assert_close(*(HeatAndBlur.for_classifier(one, **OPTIONS).heatmap(x) for one in unmoved))


def test_heat_of_tokens_does_not_depend_on_the_number_of_images() -> None:
    class Sequence(nn.Module):
        """A transformer of torch's default layout (L, N, E), with 16 tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.block = nn.Conv2d(1, 8, 2, 2), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.block(self.patches(x).flatten(2).permute(2, 0, 1)).mean(dim=0))
            return logits

    defence = HeatAndBlur.for_classifier(wrap(seeded(Sequence).eval()), **(OPTIONS | {"start": "last_conv"}))
    x = images(16, 1, 8, 8)
    torch.testing.assert_close(defence(x)[0], torch.cat([defence(x[:5])[0], defence(x[5:])[0]]))


# Reports and files


def test_it_is_saved_and_loaded(digits_classifier: PyTorchClassifier, x: FloatArray, tmp_path: Path) -> None:
    options = OPTIONS | {"mix": "gain", "start": "top_k", "passes": 2, "chunk_size": 5, "apply_fit": True}
    defence = HeatAndBlur.for_classifier(digits_classifier, **options)
    defence.save(tmp_path / "defence.safetensors")
    loaded = HeatAndBlur.load(tmp_path / "defence.safetensors", classifier=digits_classifier)
    assert {name: getattr(loaded, name) for name in loaded.params} == options | {"apply_predict": True}
    np.testing.assert_array_equal(loaded(x)[0], defence(x)[0])


# Attacks


def by_hand(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Without our helpers, as an ART user writes it."""
    mean, std = classifier.preprocessing.mean, classifier.preprocessing.std
    return PyTorchClassifier(
        classifier.model,
        nn.CrossEntropyLoss(),
        classifier.input_shape,
        classifier.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing_defences=[HeatAndBlur(classifier.model, mean=mean, std=std, **OPTIONS)],
        preprocessing=(mean, std),
        device_type="cpu",
    )


AUTO_PGD = {"eps": 0.2, "eps_step": 0.1, "max_iter": 8, "nb_random_init": 1}
ATTACKS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "PGD": (ProjectedGradientDescent, 12, {"eps": 0.2, "eps_step": 0.05, "max_iter": 8}),
    "Auto-PGD, DLR": (AutoProjectedGradientDescent, 12, AUTO_PGD | {"loss_type": "difference_logits_ratio"}),
    "Square": (SquareAttack, 4, {"eps": 0.3, "max_iter": 10}),
    "DeepFool": (DeepFool, 2, {"max_iter": 4}),
    "C&W": (CarliniL2Method, 2, {"max_iter": 4, "binary_search_steps": 1, "learning_rate": 0.1, "initial_const": 10}),
    "HopSkipJump": (HopSkipJump, 3, {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 10}),
}
"""Attack, number of images, options."""


@pytest.mark.parametrize(("name", "build"), [("PGD", by_hand), *((name, with_options) for name in ATTACKS)])
def test_art_s_attacks_run(
    digits_classifier: PyTorchClassifier,
    x: FloatArray,
    one_hot: FloatArray,
    name: str,
    build: Any,
    assert_attack_of_art_runs: Callable[..., None],
) -> None:
    attack, nb, options = ATTACKS[name]
    assert_attack_of_art_runs(attack, build(digits_classifier), x[:nb], one_hot[:nb], name == "PGD", **options)


# Devices


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["last_conv", "predicted"])
def test_a_cuda_device_agrees_with_the_cpu(
    cuda: torch.device, digits_classifier: PyTorchClassifier, digits: Dataset, mode: str, start: str
) -> None:
    """Of a few images rounding may decide which pixel is the hottest or which unit is on; in float64 of none."""
    x, y = digits.test.x[:50], np.eye(10, dtype=np.float32)[digits.test.y[:50]]
    assert_devices_agree(cuda, digits_classifier, mode, start, x, y, share=0.9)
    double = rebuild(digits_classifier, model=copy.deepcopy(digits_classifier.model).double())
    assert_devices_agree(cuda, double, mode, start, x, y)
    spec = MODELS["resnet20"]
    residual = wrap(
        seeded(spec.build).double(), spec.input_shape, preprocessing=(np.array(spec.mean), np.array(spec.std))
    )
    assert_devices_agree(cuda, residual, mode, start, images(8, *spec.input_shape).numpy(), y[:8])


def assert_devices_agree(
    device: torch.device, classifier: PyTorchClassifier, mode: str, start: str, x: Any, y: Any, share: float = 1.0
) -> None:
    """To 1e-4 of the largest value, in restored images, logits and gradients."""
    on_device = PyTorchClassifier(
        copy.deepcopy(classifier.model).to(device),
        nn.CrossEntropyLoss(),
        classifier.input_shape,
        10,
        clip_values=(0.0, 1.0),
        preprocessing=(classifier.preprocessing.mean, classifier.preprocessing.std),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )
    results = []
    for victim in (classifier, on_device):
        defended = with_options(victim, start=start)
        restored, _ = the_defence(defended)(x)
        with gradient_mode(defended, mode):
            gradients = defended.loss_gradient(x, y), defended.class_gradient(x, label=3)
        results.append((restored, defended.predict(x), *gradients))
    for expected, actual in zip(*results, strict=True):
        far = np.abs(actual - expected) > 1e-4 * np.abs(expected).max()
        assert (~far).reshape(len(far), -1).all(axis=1).mean() >= share


@pytest.mark.gpu
def test_everything_stays_on_the_device(
    cuda: torch.device, digits_classifier: PyTorchClassifier, x: FloatArray
) -> None:
    model = copy.deepcopy(digits_classifier.model).to(cuda)
    defence = HeatAndBlur(model, mean=MEAN, std=STD, **OPTIONS)
    restored, _ = defence(torch.from_numpy(x).to(cuda))
    assert defence.device == restored.device == cuda
    with pytest.raises(InputError, match="x is on cpu and the defence's network on cuda"):
        defence(torch.from_numpy(x))
    assert isinstance(defence(x)[0], np.ndarray)


def test_a_report_pictures_what_the_network_is_shown(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Of the clean and of the attacked image, as an independent pass gives them; a blur alone has no heat."""
    x, y = digits.test.x[:12], digits.test.y[:12]
    attack = AttackSpec("PGD", lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=8, seed=seed), "white-box")
    for mix, names in (("strength", ["heat", "what the network is shown"]), ("blur", ["what the network is shown"])):
        face = HeatAndBlur.for_classifier(digits_classifier, **OPTIONS | {"mix": mix})
        defended = defend(digits_classifier, face)
        report = evaluate(defended, (x, y), Linf(0.3), [attack], curve_samples=0, check_samples=0, progress=False)
        example = report.examples[0]
        assert list(example.views) == names
        for image, view in zip((example.clean, example.adversarial), example.views[names[-1]], strict=True):
            assert np.allclose(view, face(image[None])[0][0], atol=1e-6)


def test_the_blur_follows_the_size_of_the_image_unless_told() -> None:
    """Two pixels at 224, less on small images, so that its kernel always fits."""
    network = nn.Conv2d(1, 2, 3)
    for side, sigma in ((8, 1 / 3), (28, 28 / 24), (48, 2.0), (224, 2.0)):
        x = images(1, 1, side, side + 5)
        expected = HeatAndBlur(network, mix="blur", sigma=sigma)(x)[0]
        assert torch.equal(HeatAndBlur(network, mix="blur", sigma=None)(x)[0], expected)
