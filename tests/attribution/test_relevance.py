"""Relevance through networks: gradient times input, conservation, starts, layers of all kinds, and refusals."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.models import densenet121, googlenet, mobilenet_v2, resnet18

from art_defenses_ext.attribution.gradient import gradient_x_input
from art_defenses_ext.attribution.relevance import (
    Composite,
    Layer,
    Start,
    TopK,
    check_start,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_box,
    epsilon_plus_flat,
    relevance,
    uniform,
)
from art_defenses_ext.attribution.rules import Z_PLUS, AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox
from art_defenses_ext.base.errors import InputError

NB_CLASSES = 6
TINY = 1e-12
UNSTABILISED = Composite(Epsilon(TINY), Epsilon(TINY), scale=Epsilon(TINY), stabilizer=TINY)
"""Nothing but a_j W_jk / z_k: then relevance is gradient times input (Ancona et al. 2018, arXiv:1711.06104)."""


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def with_statistics(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, with random numbers in its batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return model.double().eval()


class Net(nn.Module):
    """A residual connection, a concatenation, both poolings; with or without biases."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(12, 12, 3, padding=1, bias=bias)
        self.third = nn.Conv2d(24, 8, 3, bias=bias)
        self.head = nn.Linear(8, NB_CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.first(x))
        z = F.relu(self.second(z) + z)
        z = torch.cat([F.max_pool2d(z, 2), F.avg_pool2d(z, 2)], dim=1)
        z = F.relu(self.third(z))
        return self.head(z.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def images(count: int = 2, size: int = 10) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


class Written(nn.Module):
    """Some operation, and a dense layer for what comes out of it."""

    def __init__(self, operation: Callable[[Tensor], Tensor], x: Tensor) -> None:
        super().__init__()
        self.operation = operation
        self.head = nn.Linear(operation(x).flatten(1).shape[1], NB_CLASSES, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(x).flatten(1))  # type: ignore[no-any-return]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    """To this share of the largest value."""
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# Without stabilisers, the epsilon rule is gradient times input.

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(2),
    "reshape": lambda x: torch.reshape(x, (len(x), 2, -1)),
    "view": lambda x: x.view(len(x), -1, 2),
    "squeeze": lambda x: torch.squeeze(x.unsqueeze(1), 1),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "transpose": lambda x: torch.transpose(x, 1, 3),
    "items": lambda x: x[:, [2, 0, 0], 1:, ::2],
    "ellipsis": lambda x: x[..., 1:],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "an input twice": lambda x: torch.cat([x, x], dim=1),
    "concatenation": lambda x: torch.concat([x[:, 1:], x, x[:, :1] * 2], dim=1),
    "addition": lambda x: x[:, 1:] + x[:, :-1],
    "weighted addition": lambda x: torch.add(x[:, 1:], x[:, :-1], alpha=0.5),
    "subtraction": lambda x: x[:, 1:] - x[:, :-1],
    "weighted subtraction": lambda x: x[:, 1:].sub(x[:, :-1], alpha=2),
    "scaling": lambda x: 3 * x * torch.tensor(2.0) / 5,
    "ReLU": torch.relu,
    "zero padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflection": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "replication": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "circular padding": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    "expansion": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "stack": lambda x: torch.stack([x, 2 * x], dim=1),
    "a constant beside": lambda x: torch.cat([torch.ones_like(x), x], dim=1),
    "chunks": lambda x: torch.cat(x.chunk(2, dim=2)[::-1], dim=2),
    "split": lambda x: x.split([1, 2], dim=1)[1],
    "unbind": lambda x: torch.stack(torch.unbind(x, 2)[1:], dim=2),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "flip": lambda x: x.flip(3),
    "repetition": lambda x: x.repeat(1, 2, 1, 1),
    "repetition of each": lambda x: torch.repeat_interleave(x, 2, dim=3),
    "selection": lambda x: x.index_select(1, torch.tensor([2, 0, 2])),
    "gather": lambda x: x.gather(3, torch.ones(2, 3, 6, 2, dtype=torch.long)),
    "windows": lambda x: F.unfold(x, 3),
    "windows, put together": lambda x: F.fold(F.unfold(x, 3), (6, 6), 3),
    "pixel shuffle": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "upsampling by copies": nn.Upsample(scale_factor=2),
    "a sum with itself": lambda x: x + x,
    "a sum that repeats": lambda x: x + x.mean(dim=(2, 3), keepdim=True),
    "a matrix": lambda x: x @ torch.linspace(-1, 1, 24, dtype=x.dtype).reshape(6, 4),
    "a sum by letters": lambda x: torch.einsum("nchw->nc", x),
    "softmax": lambda x: x.softmax(dim=1),
    "mean": lambda x: x.mean(dim=(2, 3)),
    "mean, kept": lambda x: torch.mean(x, 1, keepdim=True),
    "sum": lambda x: x.sum(dim=1),
    "average pooling": lambda x: F.avg_pool2d(x, 3, 2),
    "average pooling with borders": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (4, None)),
    "adaptive average, upwards": lambda x: F.adaptive_avg_pool2d(x, 7),
    "identity": nn.Identity(),
    "a cast to what it is": lambda x: x.to(torch.float64).type_as(x),
    "a copy": lambda x: torch.clone(x).clone(),
    "an upper limit, not reached": lambda x: torch.clip(x.clamp(max=9.0), max=9),
    "hard limits, not reached": lambda x: F.hardtanh(F.relu6(x), 0.0, 9.0),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_each_operation_without_weights(operation: Callable[[Tensor], Tensor]) -> None:
    x = images(size=6)
    model = Written(operation, x)
    assert_near(relevance(model, x, 2, UNSTABILISED), gradient_x_input(model, x, 2))


def test_a_cast_on_the_way_changes_the_dtype_alone() -> None:
    """A network of float32 that is handed float64 and casts by itself, as ART under NumPy 2 makes necessary."""
    x = images(size=6)
    plain = Written(torch.relu, x.float()).float()
    casting = Written(lambda x: torch.relu(x.to(torch.float32)), x.float()).float()
    casting.load_state_dict(plain.state_dict())
    actual, expected = relevance(casting, x, 2), relevance(plain, x.float(), 2)
    assert actual.dtype == torch.float64
    assert_near(actual, expected.double(), 1e-6)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Net": Net,
    "ResNet-18": lambda: resnet18(weights=None, num_classes=NB_CLASSES),
    "MobileNetV2": lambda: mobilenet_v2(weights=None, num_classes=NB_CLASSES),
    "DenseNet-121": lambda: densenet121(weights=None, num_classes=NB_CLASSES),
    "GoogLeNet": lambda: googlenet(weights=None, num_classes=NB_CLASSES, init_weights=False, aux_logits=True),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
def test_whole_networks(build: Callable[[], nn.Module]) -> None:
    model, x = with_statistics(build()), images(size=64)
    with torch.no_grad():
        for module in model.modules():  # away from the upper limit of ReLU6, where no gradient passes
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5)
    assert_near(relevance(model, x, "predicted", UNSTABILISED), gradient_x_input(model, x), 1e-5)


def ties(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape).double()


POOLINGS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    # Name -> (pooling, one input).
    "1d": (nn.MaxPool1d(2), (3, 9)),
    "1d, overlapping": (nn.MaxPool1d(3, 1, 1), (3, 9)),
    "2d": (nn.MaxPool2d(2), (3, 6, 6)),
    "2d, overlapping": (nn.MaxPool2d(3, 2), (3, 7, 9)),
    "2d, padding": (nn.MaxPool2d((3, 2), (1, 2), (1, 0)), (3, 5, 6)),
    "2d, ceiling": (nn.MaxPool2d(3, 2, ceil_mode=True), (3, 6, 8)),
    "2d, dilation": (nn.MaxPool2d(2, 1, dilation=2), (3, 6, 6)),
    "2d, by function": (lambda x: F.max_pool2d(x, 2, 1), (3, 5, 5)),
    "2d, by torch": (lambda x: torch.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], True), (3, 6, 6)),
    "3d": (nn.MaxPool3d(2, 1), (2, 3, 4, 3)),
    "3d, padding": (nn.MaxPool3d((3, 2, 2), (2, 1, 1), (1, 1, 0)), (2, 3, 4, 3)),
    "adaptive 1d": (nn.AdaptiveMaxPool1d(4), (3, 9)),
    "adaptive 2d": (nn.AdaptiveMaxPool2d((3, 4)), (3, 7, 6)),
    "adaptive 2d, upwards": (nn.AdaptiveMaxPool2d(7), (3, 5, 5)),
    "adaptive 3d": (nn.AdaptiveMaxPool3d((2, 3, None)), (2, 3, 4, 3)),
}


@pytest.mark.parametrize(("pooling", "shape"), POOLINGS.values(), ids=POOLINGS.keys())
@pytest.mark.parametrize("make", [torch.randn, ties])
def test_max_pooling_sends_relevance_where_autograd_sends_gradients(
    pooling: Callable[[Tensor], Tensor], shape: tuple[int, ...], make: Callable[..., Tensor]
) -> None:
    x = make(2, *shape).double()
    model = Written(pooling, x)
    above = relevance(nn.Sequential(nn.Flatten(), model.head), pooling(x), 2, epsilon_plus())
    assert above.abs().max() > 0
    live = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pooling(live), live, above)
    torch.testing.assert_close(relevance(model, x, 2, epsilon_plus()), expected)


def test_a_shift_takes_no_relevance_and_a_bias_its_share() -> None:
    x = images()
    model = Written(lambda x: x * 2, x)
    shifted = Written(lambda x: (0.5 + x * 2) - 0.5, x)
    shifted.head = model.head
    torch.testing.assert_close(relevance(shifted, x, 2), relevance(model, x, 2))
    z = model(x)[:, 2].detach()
    eps = 0.3
    lost = (model.head.bias[2] + eps * z.sign()) / (z + eps * z.sign()) * z
    total = relevance(model, x, 2, epsilon_plus(eps)).flatten(1).sum(dim=1)
    torch.testing.assert_close(total, (z - lost).detach())


# Averages and sums are layers with fixed weights.


@pytest.mark.parametrize(("eps", "factor"), [(1e-6, 1.0), (0.2, -1.0), (0.2, 0.5)])
def test_a_sum_is_a_convolution_of_what_is_summed(eps: float, factor: float) -> None:
    x = images(size=6)
    added = Written(lambda x: torch.add(x[:, 1:], x[:, :-1], alpha=factor), x)
    convolution = nn.Conv2d(3, 2, 1, bias=False).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[factor, 1, 0], [0, factor, 1]]).reshape(2, 3, 1, 1))
    convolved = nn.Sequential(convolution, nn.Flatten(), added.head)
    expected = relevance(convolved, x, 1, uniform(Epsilon(eps)))
    actual = relevance(added, x, 1, Composite(Z_PLUS, Epsilon(eps), stabilizer=eps))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "area", "bicubic"])
def test_what_an_interpolation_gives_counts_as_nonnegative_only_if_it_is(mode: str) -> None:
    """The rules leave half of their work where a layer's input is nonnegative; the other half is zero there."""

    class Enlarged(nn.Module):
        def __init__(self, enlarge: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.head, self.enlarge = nn.Linear(8, NB_CLASSES), enlarge

        def forward(self, x: Tensor) -> Any:
            return self.head(F.relu(self.second(self.enlarge(F.relu(self.first(x))))).mean(dim=(2, 3)))

    def shifted(x: Tensor) -> Tensor:
        return F.interpolate(x, None, 2, mode) + 0.0  # a sum with a constant is not known to be nonnegative

    models = [
        Enlarged(enlarge).double() for enlarge in (lambda x: F.interpolate(x, scale_factor=2, mode=mode), shifted)
    ]
    models[1].load_state_dict(models[0].state_dict())
    x = images()
    assert bool((models[0].enlarge(F.relu(models[0].first(x))) < 0).any()) == (mode == "bicubic")
    for rules in (epsilon_plus(), epsilon_alpha2_beta1()):
        assert_near(relevance(models[0], x, 1, rules), relevance(models[1], x, 1, rules))


# Batch norm.


def layers_with_norm(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, the batch norm after it, and inputs."""
    if kind == "dense":
        return nn.Linear(8, 20), nn.BatchNorm1d(20), torch.randn(2, 8, dtype=torch.float64)
    if kind == "1d":
        return nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), torch.randn(2, 3, 8, dtype=torch.float64)
    if kind == "3d":
        return nn.Conv3d(3, 6, 2), nn.BatchNorm3d(6), torch.randn(2, 3, 4, 3, 3, dtype=torch.float64)
    layer = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=kind == "2d")
    return layer, nn.BatchNorm2d(6, affine=kind != "2d, not affine"), images(size=5)


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        *((kind, uniform(Gamma())) for kind in ("dense", "1d", "2d", "2d without bias", "2d, not affine", "3d")),
        *(("2d", uniform(rule)) for rule in (Z_PLUS, AlphaBeta())),
    ],
)
def test_batch_norm_counts_as_part_of_the_layer_before(kind: str, rules: Composite) -> None:
    layer, norm, x = layers_with_norm(kind)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.5, 2) if name in ("weight", "running_var") else (-0.5, 0.5)))
    layer, norm = layer.double().eval(), norm.double().eval()
    fuse: Any = fuse_linear_bn_eval if kind == "dense" else fuse_conv_bn_eval
    head = Written(lambda x: F.relu(norm(layer(x))), x)
    for second in (False, True):
        fused = fuse(copy.deepcopy(layer), norm)
        fused = fuse(fused, norm) if second else fused
        parts = [layer, norm, norm] if second else [layer, norm]
        actual = relevance(nn.Sequential(*parts, nn.ReLU(), nn.Flatten(), head.head), x, 1, rules)
        expected = relevance(nn.Sequential(fused, nn.ReLU(), nn.Flatten(), head.head), x, 1, rules)
        assert_near(actual, expected)


class Lone(nn.Module):
    """A convolution or dense layers, a norm that cannot be folded into them, and a head."""

    def __init__(self, layer: nn.Module, norm: nn.Module, pass_on: Callable[[Lone, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.head = layer, norm, nn.Linear(4, NB_CLASSES)
        self.pass_on = pass_on

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pass_on(self, x).flatten(2).mean(dim=2))  # type: ignore[no-any-return]


def what_others_read(net: Lone, x: Tensor) -> Tensor:
    z = net.layer(x)
    return F.relu(net.norm(z)) + F.relu(z)


def after_an_activation(net: Lone, x: Tensor) -> Tensor:
    return F.relu(net.norm(F.relu(net.layer(x))))


def of_each_place(net: Lone, x: Tensor) -> Tensor:
    """The norm's channels are the second dimension, the dense layer's units the last, here as many."""
    return F.relu(net.norm(net.layer(x[:, 0, :4])))


LONE: dict[str, tuple[Callable[[Lone, Tensor], Tensor], Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "of what others read": (what_others_read, lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4)),
    "after an activation": (after_an_activation, lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4)),
    "of each place": (of_each_place, lambda: nn.Linear(10, 4), lambda: nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize(("pass_on", "layer", "norm"), LONE.values(), ids=LONE.keys())
@pytest.mark.parametrize("rule", [Epsilon(0.1), Z_PLUS])
def test_any_other_batch_norm_is_a_layer_of_its_own(
    pass_on: Callable[[Lone, Tensor], Tensor],
    layer: Callable[[], nn.Module],
    norm: Callable[[], nn.Module],
    rule: Rule,
) -> None:
    model, x = with_statistics(Lone(layer(), norm(), pass_on)), images()
    convolved = copy.deepcopy(model)
    convolved.norm = as_convolution(model.norm)
    torch.testing.assert_close(convolved(x), model(x))
    rules = Composite(rule, rule, scale=rule)
    assert_near(relevance(model, x, 1, rules), relevance(convolved, x, 1, rules))


def as_convolution(norm: Any) -> nn.Module:
    """A batch norm as a depthwise convolution."""
    kind = nn.Conv1d if isinstance(norm, nn.BatchNorm1d) else nn.Conv2d
    convolution = kind(norm.num_features, norm.num_features, 1, groups=norm.num_features).double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    with torch.no_grad():
        convolution.weight.copy_(scale.reshape(convolution.weight.shape))
        convolution.bias.copy_(norm.bias - scale * norm.running_mean)  # type: ignore[union-attr]
    return convolution


# Conservation.

KEEPING: dict[str, Composite] = {
    "epsilon": UNSTABILISED,
    "z+": Composite(AlphaBeta(1, 0, TINY), AlphaBeta(1, 0, TINY), stabilizer=TINY),
    "epsilon-plus": Composite(AlphaBeta(1, 0, TINY), Epsilon(TINY), stabilizer=TINY),
    "alpha 2, beta 1": Composite(AlphaBeta(2, 1, TINY), Epsilon(TINY), stabilizer=TINY),
    "gamma": Composite(Gamma(0.25, TINY), Gamma(0.25, TINY), stabilizer=TINY),
    "z-box first": Composite(AlphaBeta(1, 0, TINY), Epsilon(TINY), ZBox(-5.0, 5.0, TINY), stabilizer=TINY),
    "w-square first": Composite(AlphaBeta(1, 0, TINY), Epsilon(TINY), WSquare(TINY), stabilizer=TINY),
    "flat first": Composite(AlphaBeta(1, 0, TINY), Epsilon(TINY), Flat(TINY), stabilizer=TINY),
}
STARTS: dict[str, Start] = {
    "predicted": "predicted",
    "positive": "positive",
    "last convolution": "last_conv",
    "a class": 2,
    "classes": torch.tensor([3, 1, 0]),
    "top 2": TopK(2),
    "a layer": Layer("second"),
}


def begin(model: nn.Module, x: Tensor, start: Start) -> Any:
    """How much relevance there is at the start (N,)."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output.detach()}))
        for name, module in model.named_modules()
    ]
    logits = model(x).detach()
    for handle in handles:
        handle.remove()
    if isinstance(start, Layer) or (isinstance(start, str) and start == "last_conv"):
        return outputs[start.name if isinstance(start, Layer) else "third"].clamp(min=0).flatten(1).sum(dim=1)
    if isinstance(start, TopK):
        return logits.topk(start.k, dim=1).values.sum(dim=1)
    if isinstance(start, str):
        return logits.amax(dim=1) if start == "predicted" else logits.clamp(min=0).sum(dim=1)
    return logits.gather(1, torch.as_tensor(start).expand(len(x))[:, None])[:, 0]


@pytest.mark.parametrize(
    ("rules", "start"),
    [*((rules, "predicted") for rules in KEEPING.values()), *((KEEPING["z+"], start) for start in STARTS.values())],
)
def test_without_biases_and_stabilisers_no_relevance_is_lost(rules: Composite, start: Start) -> None:
    model, x = Net(bias=False).double(), images(3)
    total = relevance(model, x, start, rules).flatten(1).sum(dim=1)
    expected = begin(model, x, start)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["Net", "MobileNetV2"])
def test_every_composite_is_finite_and_single_precision_is_enough(name: str) -> None:
    model, x = with_statistics(NETWORKS[name]()), images(size=32).clamp(-4, 4)
    single = copy.deepcopy(model).float()
    for rules in (
        *(epsilon_plus(), epsilon_plus_flat(), epsilon_plus_box(-4.0, 4.0)),
        *(epsilon_alpha2_beta1(), epsilon_gamma_box(-4.0, 4.0)),
    ):
        expected = relevance(model, x, "last_conv", rules)
        assert expected.isfinite().all()
        # Of the nine inputs of a depthwise convolution it happens that next to nothing speaks against the output.
        tolerance = 1e-2 if name == "MobileNetV2" and rules == epsilon_alpha2_beta1() else 1e-3
        assert_near(relevance(single, x.float(), "last_conv", rules).double(), expected, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("start", ["predicted", "last_conv"])
def test_a_cuda_device_agrees(cuda: torch.device, build: Callable[[], nn.Module], start: Start) -> None:
    model, x = with_statistics(build()), images(size=64).clamp(-4, 4)
    on_device = copy.deepcopy(model).to(cuda)
    for rules in (epsilon_plus(), epsilon_alpha2_beta1(), epsilon_gamma_box(-4.0, 4.0)):
        results = []
        for network, inputs in ((model, x), (on_device, x.to(cuda))):
            live = inputs.clone().requires_grad_()
            heat = relevance(network, live, start, rules)
            assert heat.device == inputs.device
            (gradient,) = torch.autograd.grad(heat.square().sum(), live)
            results.append((heat.detach().cpu(), gradient.cpu()))
        for expected, actual in zip(*results, strict=True):
            assert_near(actual, expected, 1e-4)
    single = relevance(on_device.float(), x.float().to(cuda), start).double().cpu()
    assert_near(single, relevance(model, x, start), 1e-3)


# Where relevance starts.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inside(x)) + x


def named() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(3, 6, 3),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(2),
        block=Block(),
        average=nn.AvgPool2d(2, 1),
        last=nn.Conv2d(6, 8, 2),
        norm=nn.BatchNorm2d(8),
        final=nn.ReLU(inplace=True),
        flat=nn.Flatten(),
        head=nn.Linear(32, NB_CLASSES),
    )
    return with_statistics(nn.Sequential(layers))  # type: ignore[return-value]


def up_to(model: nn.Sequential, name: str) -> nn.Module:
    """The network whose logits are the values of that layer."""
    names = [child for child, _ in model.named_children()]
    return nn.Sequential(*model[: names.index(name) + 1], nn.Flatten())


@pytest.mark.parametrize(
    ("name", "rules"),
    [*((name, epsilon_plus()) for name, _ in named().named_children()), ("block", epsilon_gamma_box(-5.0, 5.0))],
)
def test_a_layer_is_the_head_of_the_network_up_to_it(name: str, rules: Composite) -> None:
    model, x = named(), images()
    expected = relevance(up_to(model, name), x, "positive", rules)
    assert_near(relevance(model, x, Layer(name), rules), expected, 1e-12)


def test_the_last_convolution_includes_its_batch_norm() -> None:
    model, x = named(), images()
    assert_near(relevance(model, x, "last_conv"), relevance(up_to(model, "norm"), x, "positive"), 1e-12)
    assert not torch.allclose(relevance(model, x, "last_conv"), relevance(model, x, Layer("last")))
    without_norm = nn.Sequential(*(layer for layer in model if not isinstance(layer, nn.BatchNorm2d)))
    assert_near(relevance(without_norm, x, "last_conv"), relevance(up_to(model, "last"), x, "positive"), 1e-12)


@pytest.mark.parametrize("rules", [epsilon_plus(), epsilon_alpha2_beta1()])
def test_several_classes_are_the_sum_of_each(rules: Composite) -> None:
    """Relevance is linear in the relevance that it starts from."""
    model, x = Net().double(), images(4)
    logits = model(x).detach()
    per_class = torch.stack([relevance(model, x, k, rules) for k in range(NB_CLASSES)], dim=1)  # (N, K, C, H, W)
    assert logits.min() < 0 < logits.max()

    def summed(chosen: Tensor) -> Tensor:
        return torch.einsum("nk,nkchw->nchw", chosen.double(), per_class)

    def one_hot(classes: Tensor) -> Tensor:
        return F.one_hot(classes, NB_CLASSES)

    assert_near(relevance(model, x, "positive", rules), summed(logits > 0))
    assert_near(relevance(model, x, "predicted", rules), summed(one_hot(logits.argmax(dim=1))))
    for k in (1, 3, NB_CLASSES):
        assert_near(relevance(model, x, TopK(k), rules), summed(one_hot(logits.topk(k).indices).sum(dim=1)))
    classes = torch.tensor([5, 0, 0, 3])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert_near(relevance(model, x, classes.to(dtype), rules), summed(one_hot(classes)))
    assert_near(relevance(model, x, torch.tensor(4), rules), per_class[:, 4])


def test_the_first_layer_is_the_first_that_runs() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4 * 64, NB_CLASSES)
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(self.norm(x))).flatten(1))  # type: ignore[no-any-return]

    model, x = with_statistics(Backwards()), images()
    flat = relevance(model, x, 1, Composite(Z_PLUS, Z_PLUS, Flat(), scale=WSquare(1e-12)))
    expected = relevance(model, x, 1, Composite(Flat(), Z_PLUS, scale=WSquare(1e-12)))
    assert_near(flat, expected, 1e-12)
    by_default = relevance(model, x, 1)
    torch.testing.assert_close(by_default, relevance(model, x, 1, epsilon_plus()))
    assert not torch.allclose(by_default, flat)


# What is known of the first layer's input.

COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "without the mean": lambda x: x - x.mean(dim=(2, 3), keepdim=True),
    "the mean without it": lambda x: x.mean(dim=(2, 3), keepdim=True) - x,
    "rows and columns": lambda x: x.mean(dim=2, keepdim=True) - x.mean(dim=3, keepdim=True),
    "by the mean": lambda x: x / x.mean(dim=(2, 3), keepdim=True),
    "times the mean": lambda x: x.mean(dim=(2, 3), keepdim=True) * x,
    "weighted by itself": lambda x: x * x.sigmoid(),
    "times itself": lambda x: x[:, :, :8].transpose(2, 3) @ x[:, :, :8],
    "by a matrix for each channel": lambda x: x @ torch.linspace(-1, 1, 300, dtype=x.dtype).reshape(3, 10, 10),
    "overshooting": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
}
SEPARATE: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised": lambda x: (x - 0.5) / torch.tensor([[[0.2]], [[-0.3]], [[0.4]]], dtype=x.dtype),
    "with its complement": lambda x: torch.cat([x, 1 - x], dim=1),
    "one channel": lambda x: torch.stack([x[:, 0], x[:, 0]], dim=1),
    "averaged": lambda x: F.avg_pool2d(x, 2) - 0.5,
    "enlarged": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "limited": lambda x: x.clamp(max=0.5),
}
ENTERING = [*((f, True) for f in COMBINED.values()), *((f, False) for f in SEPARATE.values())]


@pytest.mark.parametrize(("operation", "refused"), ENTERING, ids=[*COMBINED, *SEPARATE])
def test_a_box_is_refused_where_values_are_combined_with_each_other(
    operation: Callable[[Tensor], Tensor], refused: bool
) -> None:
    x = images().sigmoid()
    model = Written(operation, x)
    context: Any = pytest.raises(InputError, match="so the range of what enters that is not known")
    with context if refused else nullcontext():
        relevance(model, x, 1, epsilon_plus_box(0.0, 1.0))
    assert relevance(model, x, 1, epsilon_plus()).isfinite().all()


# What is refused.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x[:, 0], x[:, 0], x[:, 0])[0]


class Scripted(nn.Module):
    """Nobody sees that what is added comes from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))

    def forward(self, x: Tensor) -> Any:
        return x + self.inside(x)


class Returning(nn.Module):
    """Returns something else than logits."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make, self.head = make, nn.Linear(300, 3)

    def forward(self, x: Tensor) -> Any:
        return self.make(self.head(x.flatten(1)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # Name -> (network, message).
    "log-softmax": (
        lambda: nn.Sequential(OrderedDict(features=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LogSoftmax(1)))),
        r"layer 'features\.2' \(LogSoftmax\) calls log_softmax, which relevance cannot be sent through; linear layers",
    ),
    "local norm": (lambda: nn.LocalResponseNorm(2), r"the model \(LocalResponseNorm\) calls local_response_norm"),
    "the largest": (lambda: Written(lambda x: x.topk(2)[0], images()), r"the model \(Written\) calls topk"),
    "attention": (Attention, r"layer 'attention' \(MultiheadAttention\) calls multi_head_attention_forward"),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
        r"the model \(BatchNorm2d\) calls batch_norm",
    ),
    "one-sided padding": (lambda: nn.Conv2d(3, 3, 2, padding="same"), r"the model \(Conv2d\) calls conv2d"),
    "padding with a value": (lambda: nn.ConstantPad2d(1, 2.0), r"the model \(ConstantPad2d\) calls pad"),
    "places of a pooling": (
        lambda: nn.MaxPool2d(2, return_indices=True),
        r"the model \(MaxPool2d\) calls .*max_pool2d",
    ),
    "a lower limit": (lambda: Written(lambda x: x.clamp(min=-1.0), images()), r"the model \(Written\) calls clamp"),
    "limits by tensors": (
        lambda: Written(lambda x: x.clip(max=torch.ones(10)), images()),
        r"the model \(Written\) calls clip",
    ),
    "a constant copied over it": (
        lambda: Written(lambda x: (x * 1).copy_(torch.ones(10, dtype=x.dtype)), images()),
        r"the model \(Written\) calls copy_",
    ),
    "hardtanh": (nn.Hardtanh, r"the model \(Hardtanh\) calls hardtanh"),
    "division": (lambda: Written(lambda x: 1 / (x + 9), images()), r"calls (reciprocal|__rtruediv__|__rdiv__|div)"),
    "TorchScript": (
        lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(300, 3))),
        "the model is compiled TorchScript, whose operations cannot be seen; pass it uncompiled",
    ),
    "torch.compile": (
        lambda: torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(300, 3)), backend="eager"),
        "the model is compiled by torch.compile, whose operations cannot be seen; pass it uncompiled",
    ),
    "TorchScript inside": (Scripted, "layer 'inside' is compiled TorchScript, whose operations cannot be seen"),
    "no weights": (nn.Flatten, "the model has no layer with weights that relevance could be sent through"),
    "no logits": (lambda: nn.Conv2d(3, 3, 1), r"the model returns shape \(2, 3, 10, 10\); logits \(N, classes\) were"),
    "a dictionary": (
        lambda: Returning(lambda x: {"logits": x}),
        "the model's output does not come from its input by operations that can be seen",
    ),
    "a constant": (
        lambda: Returning(lambda x: torch.zeros(2, 3)),
        "the model's output does not come from its input by operations that can be seen",
    ),
}


@pytest.mark.parametrize(("build", "message"), LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_layers_that_relevance_cannot_pass_are_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        relevance(build().double(), images())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("top", "start is 'top'; one of predicted, positive, last_conv, classes, TopK or Layer was expected"),
        (None, "start is None; one of predicted, positive, last_conv"),
        ([1, 2], r"start is \[1, 2\]; one of predicted"),
        (Layer("fc"), "start is the layer 'fc', which the model does not have"),
        (Layer("unused"), "start is the layer 'unused', which did not run on the way to the logits, or gave no tensor"),
        *(
            (start, r"start is .*; a class or classes \(2,\), from 0 to 5, were expected")
            for start in (6, torch.tensor([0, 6]), torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0]))
        ),
        (TopK(7), "k is 7; at most the model's 6 classes were expected"),
    ],
    ids=str,
)
def test_starts_that_the_model_does_not_have_are_refused(start: Any, message: str) -> None:
    model = Net().double()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(InputError, match=message):
        relevance(model, images(), start)


def test_a_model_without_convolutions_has_no_last_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 3)).double()
    for refuse in (lambda: relevance(model, images(), "last_conv"), lambda: check_start("last_conv", model)):
        with pytest.raises(
            InputError, match="start is 'last_conv', but the model has no convolution; 'predicted' takes"
        ):
            refuse()
    model.append(nn.Conv2d(3, 3, 1))
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    with pytest.raises(InputError, match="start is 'last_conv', but no convolution ran on the way to the logits"):
        relevance(model, images(), "last_conv")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "k is 0; a whole number of at least 1 was expected"),
        (
            lambda: relevance(Net(), images(), rules=Epsilon()),  # type: ignore[arg-type]
            r"rules is Epsilon\(.*\); a Composite such as epsilon_plus",
        ),
        (lambda: relevance(Net(), images(), rules="epsilon_plus"), "rules is 'epsilon_plus'; a Composite"),  # type: ignore[arg-type]
        (lambda: uniform(Epsilon), "convolution is <class .*Epsilon'>; a rule such as Epsilon.. was expected"),  # type: ignore[arg-type]
        (lambda: Composite(Z_PLUS, 0.1), "linear is 0.1; a rule such as"),  # type: ignore[arg-type]
        (
            lambda: Composite(Z_PLUS, Epsilon(), stabilizer=0.0),
            "stabilizer is 0.0; a finite number > 0 that float32 holds was expected",
        ),
        (lambda: epsilon_plus(0.0), "epsilon is 0.0; a finite number > 0 that float32 holds was expected"),
        (
            lambda: relevance(Net(), images(), softplus=-1.0),
            "softplus is -1.0; a finite number > 0 that float32 holds was expected",
        ),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
