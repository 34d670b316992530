"""TwoStreamRestoration: the gradient map against gradients taken class by class, and what can be differentiated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import TwoStreamRestoration, gradient_mode
from art_defenses_ext.attribution.gradient import weighted_loss_gradient
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import surrogate_width
from art_defenses_ext.preprocessor.two_stream_restoration import MAPS, SCALES, WEIGHTS, TwoStreamNetwork

MODES = ("exact", "frozen", "smooth", "identity")
MEAN, STD = (0.3, 0.4), (0.5, 0.8)

# Each option by name: the defaults are chosen by an ablation and no business of these tests.
OPTIONS: dict[str, Any] = {
    "map": "stacked",
    "top_k": 3,
    "weights": "uniform",
    "scale": "image",
    "gradient_stream": "estimated",
    "width": 4,
    "blocks": 1,
    "stem": 2,
}
READINGS = [dict(zip(("map", "weights", "scale"), values, strict=True)) for values in product(MAPS, WEIGHTS, SCALES)]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def network_with(activation: Callable[[], nn.Module], classes: int = 6) -> nn.Module:
    """Two channels of 7x9 pixels, in float64; the same weights whatever the activation."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            activation(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(80, classes),
        )
    ).double()


@pytest.fixture
def smooth_network() -> nn.Module:
    return network_with(nn.Softplus)


@pytest.fixture
def relu_network() -> nn.Module:
    return network_with(nn.ReLU)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 2, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def with_weights(model: nn.Module, spread: float = 0.2, **options: Any) -> TwoStreamRestoration:
    """As if it had been trained: random weights, biases included, all over."""
    settings: dict[str, Any] = {"channels": 2, "nb_classes": 6, "mean": MEAN, "std": STD} | OPTIONS | options
    defence = TwoStreamRestoration(model, **settings).double()
    generator = torch.Generator().manual_seed(1)
    state = {
        name: spread * torch.randn(tensor.shape, generator=generator) for name, tensor in defence.state_dict().items()
    }
    defence.load_state_dict(state)
    return defence


def normalised(x: Tensor) -> Tensor:
    return (x - x.new_tensor(MEAN).reshape(-1, 1, 1)) / x.new_tensor(STD).reshape(-1, 1, 1)


# The gradient map


def map_by_hand(model: nn.Module, x: Tensor, map: str, weights: str, scale: str, top_k: int) -> Tensor:
    """Image by image and class by class."""
    rows = []
    for image in normalised(x):
        points = image[None].clone().requires_grad_()
        logits = model(points)
        classes = logits[0].argsort(descending=True)[: 1 if map == "predicted" else top_k]
        gradients = []
        for label in classes:
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), points, retain_graph=True)
            weight = logits.softmax(dim=1)[0, label].item() if weights == "softmax" and map != "predicted" else 1
            gradients.append(weight * gradient)
        rows.append(torch.cat(gradients, dim=1) if map == "stacked" else sum(gradients) / len(gradients))
    gradient_maps = torch.cat(rows)
    return gradient_maps / gradient_maps.abs().amax(dim=(2, 3) if scale == "channel" else (1, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("reading", "top_k"), [(reading, 3) for reading in READINGS] + [(READINGS[0], 1), (READINGS[0], 5)]
)
def test_the_map_is_the_scaled_gradients_from_the_likeliest_class_on(
    relu_network: nn.Module, x: Tensor, reading: dict[str, str], top_k: int
) -> None:
    defence = with_weights(relu_network, **reading, top_k=top_k)
    actual = defence.gradient_map(x)
    torch.testing.assert_close(actual, map_by_hand(relu_network, x, **reading, top_k=top_k))
    assert actual.shape == (4, 2 * (top_k if reading["map"] == "stacked" else 1), 7, 9)
    largest = actual.abs().amax(dim=(2, 3) if reading["scale"] == "channel" else (1, 2, 3))
    torch.testing.assert_close(largest, torch.ones_like(largest))


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_the_map_of_a_very_confident_prediction_reaches_one_too(
    relu_network: nn.Module, x: Tensor, reading: dict[str, str]
) -> None:
    """Its gradients are of the size of one minus its probability, 1e-13 and less."""
    with torch.no_grad():
        relu_network[-1].bias[2] += 30  # type: ignore[index]
    largest = with_weights(relu_network, **reading, top_k=3).gradient_map(x).abs()
    largest = largest.amax(dim=(2, 3) if reading["scale"] == "channel" else (1, 2, 3))
    torch.testing.assert_close(largest, torch.ones_like(largest))


@pytest.mark.parametrize(("classes", "counted"), [(2, 2), (6, 3)])
def test_the_likeliest_three_count_where_nothing_else_is_said(x: Tensor, classes: int, counted: int) -> None:
    model = network_with(nn.ReLU, classes)
    defence = with_weights(model, top_k=None, nb_classes=classes)
    assert defence.gradient_map(x).shape[1] == 2 * counted
    expected = with_weights(model, top_k=counted, nb_classes=classes)
    assert torch.equal(defence(x)[0], expected(x)[0])


def test_the_network_is_given_the_image_and_the_map(relu_network: nn.Module, x: Tensor) -> None:
    for stream, expected in (
        ("estimated", map_by_hand(relu_network, x, "stacked", "uniform", "image", 3)),
        ("zero", torch.zeros(4, 6, 7, 9, dtype=torch.float64)),
        ("shuffled", map_by_hand(relu_network, x, "stacked", "uniform", "image", 3)[[3, 0, 1, 2]]),
    ):
        defence = with_weights(relu_network, gradient_stream=stream)
        torch.testing.assert_close(defence.gradient_map(x), expected)
        torch.testing.assert_close(defence(x)[0], bent(x + defence.network(x, expected)))


def test_a_stream_of_zeros_runs_no_classifier(relu_network: nn.Module, x: Tensor) -> None:
    relu_network.register_forward_hook(lambda *_: pytest.fail("the classifier ran"))
    defence = with_weights(relu_network, gradient_stream="zero")
    for mode in MODES:
        with gradient_mode(defence, mode):
            defence(x.clone().requires_grad_())


@pytest.mark.parametrize("map", MAPS)
def test_a_map_costs_one_backward_pass_however_many_classes_it_has(
    relu_network: nn.Module, x: Tensor, map: str
) -> None:
    """A stacked one a vectorised pass; passes of the network forwards: one."""
    forwards, backwards = [], []

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        forwards.append(1)
        output.register_hook(lambda gradient: backwards.append(1))

    relu_network.get_submodule("0").register_forward_hook(count)
    defence = with_weights(relu_network, map=map, top_k=5)
    for context in (torch.no_grad, torch.enable_grad):
        forwards.clear()
        backwards.clear()
        with context():
            defence(x)
        assert (len(forwards), len(backwards)) == (1, 1)


def test_a_classifier_without_the_faintest_doubt_gives_no_nan(relu_network: nn.Module, x: Tensor) -> None:
    """Where the softmax is 1 to the last bit, the gradient is 0, and so is the map."""
    with torch.no_grad():
        relu_network.get_submodule("5").weight.mul_(1e6)  # type: ignore[operator]
    defence = with_weights(relu_network, map="predicted")
    assert bool((defence.gradient_map(x) == 0).all())
    for mode in MODES:
        with gradient_mode(defence, mode):
            points = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(defence(points)[0].square().sum(), points)
            assert bool(gradient.isfinite().all())


def test_the_sum_that_is_refused_is_zero_whatever_the_image(relu_network: nn.Module, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"map is 'sum' with weights 'softmax' over all 6 classes, which is zero for "):
        with_weights(relu_network, map="sum", weights="softmax", top_k=6)
    zero = weighted_loss_gradient(relu_network, normalised(x), lambda logits: logits.softmax(dim=1)[:, None])
    assert zero.abs().max() < 1e-15
    assert with_weights(relu_network, map="sum", weights="softmax", top_k=5).gradient_map(x).abs().max() > 0.99


# Derivatives


def assert_derivative(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> None:
    """Along random directions, to a millionth."""
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(points), points)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        with torch.no_grad():
            slope = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("reading", READINGS)
def test_the_exact_derivative_is_the_numerical_one(x: Tensor, reading: dict[str, str]) -> None:
    """Of restored pixels and of defended logits, through the map, its weights, and its scale."""
    model = network_with(nn.Softplus)
    defence = with_weights(model, **reading)
    assert_derivative(lambda x: defence(x)[0].sin().sum(), x)
    assert_derivative(lambda x: model(normalised(defence(x)[0])).square().sum(), x)
    assert_derivative(lambda x: defence.gradient_map(x).square().sum(), x)


def bent(x: Tensor) -> Tensor:
    """Beyond [0, 1] with a slope of a twentieth."""
    return torch.where(x < 0, 0.05 * x, torch.where(x > 1, 1 + 0.05 * (x - 1), x))


def gradient_in(mode: str, defence: TwoStreamRestoration, x: Tensor, weights: Tensor) -> Tensor:
    with gradient_mode(defence, mode):
        points = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((weights * defence(points)[0]).sum(), points)
    return gradient


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(4, 2, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("reading", READINGS)
def test_frozen_holds_the_map_constant(
    smooth_network: nn.Module, x: Tensor, weights: Tensor, reading: dict[str, str]
) -> None:
    defence = with_weights(smooth_network, **reading)
    points, constant = x.clone().requires_grad_(), defence.gradient_map(x)
    (expected,) = torch.autograd.grad((weights * bent(points + defence.network(points, constant))).sum(), points)
    torch.testing.assert_close(gradient_in("frozen", defence, x, weights), expected)
    assert not torch.allclose(gradient_in("exact", defence, x, weights), expected, rtol=0.01)


@pytest.mark.parametrize(("reading", "width"), [(reading, 1.0) for reading in READINGS] + [(READINGS[0], 0.25)])
def test_smooth_has_the_map_of_a_softplus_network(
    relu_network: nn.Module, x: Tensor, weights: Tensor, reading: dict[str, str], width: float
) -> None:
    """The derivative alone: at the exact map, and narrower where an attacker anneals it."""
    defence = with_weights(relu_network, **reading)
    softplus_restorer = with_weights(network_with(lambda: nn.Softplus(beta=10 / width)), **reading)
    points = x.clone().requires_grad_()
    exact = defence.gradient_map(x).requires_grad_()
    restored = bent(points + defence.network(points, exact))
    by_image, by_map = torch.autograd.grad((weights * restored).sum(), (points, exact))
    classes = defence._likeliest(relu_network(normalised(x)))  # the exact network's
    (through_map,) = torch.autograd.grad((by_map * softplus_restorer._map(points, lambda _: classes)).sum(), points)
    with surrogate_width(defence, width):
        torch.testing.assert_close(gradient_in("smooth", defence, x, weights), by_image + through_map)


def test_the_smooth_map_leaves_the_restorer_s_own_relus_alone(
    smooth_network: nn.Module, x: Tensor, weights: Tensor
) -> None:
    """Before a classifier without ReLU there is nothing to smooth, and the two modes are one."""
    defence = with_weights(smooth_network)
    torch.testing.assert_close(gradient_in("smooth", defence, x, weights), gradient_in("exact", defence, x, weights))


def test_the_identity_passes_the_gradient_through(relu_network: nn.Module, x: Tensor, weights: Tensor) -> None:
    assert torch.equal(gradient_in("identity", with_weights(relu_network), x, weights), weights)


@pytest.mark.parametrize(
    ("reading", "stream"),
    [(reading, "estimated") for reading in READINGS] + [(READINGS[0], "zero"), (READINGS[0], "shuffled")],
)
def test_the_modes_differ_backwards_alone(
    relu_network: nn.Module, x: Tensor, reading: dict[str, str], stream: str
) -> None:
    """To the last bit, with gradients and without, in float32 and in float64."""
    for dtype in (torch.float64, torch.float32):
        defence = with_weights(copy.deepcopy(relu_network).to(dtype), **reading, gradient_stream=stream).to(dtype)
        with torch.no_grad():
            expected = defence(x)[0]
        assert expected.dtype == dtype
        for mode in MODES:
            with gradient_mode(defence, mode):
                assert torch.equal(defence(x.clone().requires_grad_())[0].detach(), expected)


# The network


@pytest.mark.parametrize(("size", "stem"), [((8, 8), 1), ((9, 11), 2), ((3, 3), 4), ((50, 3), 2)])
def test_images_of_any_size_are_corrected(size: tuple[int, int], stem: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TwoStreamNetwork(channels=2, map_channels=4, width=3, blocks=2, stem=stem)
        nn.init.normal_(network.correction.weight)
        x, maps = torch.rand(2, 2, *size), torch.rand(2, 4, *size)
    correction = network(x, maps)
    assert correction.shape == x.shape
    one_by_one = torch.cat([network(x[i : i + 1], maps[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(correction, one_by_one)


def test_both_streams_and_every_part_have_a_say(relu_network: nn.Module, x: Tensor) -> None:
    defence = with_weights(relu_network, blocks=2)
    network = defence.network.requires_grad_(True)
    loss = network(x, defence.gradient_map(x)).square().sum()
    for gradient in torch.autograd.grad(loss, list(network.parameters())):
        assert bool((gradient != 0).any())
    network.requires_grad_(False)


# What cannot be used


def test_more_classes_than_there_are_are_refused(relu_network: nn.Module) -> None:
    with pytest.raises(InputError, match="top_k is 7; at most nb_classes, 6, was expected"):
        with_weights(relu_network, top_k=7)


@pytest.mark.parametrize(("map", "classes"), [("stacked", 5), ("sum", 12)])
def test_another_number_of_logits_is_refused(relu_network: nn.Module, x: Tensor, map: str, classes: int) -> None:
    defence = with_weights(relu_network, map=map, nb_classes=classes, top_k=classes)
    with pytest.raises(InputError, match=f"(?m)^model gives 6 logits; nb_classes, {classes}, were expected$"):
        defence(x)


# Reports


@pytest.mark.parametrize("map", MAPS)
def test_a_report_pictures_the_restored_image_and_the_size_of_the_map(
    relu_network: nn.Module, x: Tensor, map: str
) -> None:
    defence = with_weights(relu_network, map=map)
    views = defence.views(x)
    assert list(views) == ["restored", "gradient map"]
    assert torch.equal(views["restored"], defence(x)[0].clamp(0, 1))
    size = defence.gradient_map(x).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(views["gradient map"], size / size.amax(dim=(1, 2, 3), keepdim=True))
