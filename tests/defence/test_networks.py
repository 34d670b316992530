"""The architectures of torchvision, in small: relevance is conserved, and every defence has exact derivatives."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import convnext, efficientnet, mobilenetv3, regnet, resnet, swin_transformer

from art_defenses_ext import HeatAndBlur
from art_defenses_ext.attribution.relevance import Layer, epsilon_plus, relevance
from art_defenses_ext.base.errors import InputError

SCRIPT = importlib.util.spec_from_file_location("networks", Path(__file__).parents[1] / "benchmarks" / "networks.py")
assert SCRIPT is not None
assert SCRIPT.loader is not None
benchmark: Any = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(benchmark)

NB_CLASSES = benchmark.NB_CLASSES
CONSERVING = benchmark.CONSERVING
models = torchvision.models


class Network(NamedTuple):
    """One architecture, small.

    Attributes:
        build: the network with random weights.
        size: image size in pixels.
        keeps: whether the rule ``"shared"`` of attention keeps a part of the relevance.
    """

    build: Callable[[], nn.Module]
    size: int = 32
    keeps: bool = False


def swin(**options: Any) -> nn.Module:
    return models.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=NB_CLASSES, **options)


def efficient() -> nn.Module:
    block = efficientnet.MBConvConfig
    settings = [block(1, 3, 1, 8, 8, 1), block(4, 5, 2, 8, 16, 2), block(4, 3, 1, 16, 16, 1)]
    return models.EfficientNet(settings, 0.2, num_classes=NB_CLASSES, last_channel=32)


def mobile() -> nn.Module:
    def block(*sizes: Any) -> mobilenetv3.InvertedResidualConfig:
        return mobilenetv3.InvertedResidualConfig(*sizes, 1, 1)

    settings = [
        block(8, 3, 8, 8, True, "RE", 2),
        block(8, 5, 24, 16, True, "HS", 2),
        block(16, 5, 24, 16, True, "HS", 1),
    ]
    return models.MobileNetV3(settings, 32, num_classes=NB_CLASSES)


def regular() -> nn.Module:
    return models.RegNet(regnet.BlockParams([1, 2], [8, 16], [8, 8], [1.0, 1.0], [2, 2], 0.25), NB_CLASSES, 8)


def next_convolutional() -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 2)]
    return models.ConvNeXt(blocks, layer_scale=0.5, num_classes=NB_CLASSES)


NETWORKS: dict[str, Network] = {
    "ViT": Network(
        lambda: models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=NB_CLASSES),
        16,
        keeps=True,
    ),
    "Swin": Network(swin, keeps=True),
    "Swin V2": Network(
        lambda: swin(block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2),
        keeps=True,
    ),
    "MaxViT": Network(
        lambda: models.MaxVit((56, 56), 8, 7, [8, 8], [1, 1], 8, 0.1, num_classes=NB_CLASSES), 56, keeps=True
    ),
    "ConvNeXt": Network(next_convolutional),
    "EfficientNet": Network(efficient),
    "MobileNetV3": Network(mobile),
    "RegNetY": Network(regular),
    "ShuffleNetV2": Network(lambda: models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 32, 32], NB_CLASSES)),
    "ResNet, bottlenecks": Network(lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], NB_CLASSES)),
    "DenseNet": Network(lambda: models.DenseNet(8, (2, 2), 8, num_classes=NB_CLASSES)),
    "GoogLeNet": Network(lambda: models.GoogLeNet(NB_CLASSES, aux_logits=False, init_weights=False)),
}
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(network: Network) -> tuple[nn.Module, Tensor]:
    model = network.build().double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == NB_CLASSES:
            layer.reset_parameters()  # which a vision transformer sets to zero
    return model, torch.rand(1, 3, network.size, network.size, dtype=torch.float64)


@networks
def test_relevance_is_conserved_by_the_rules_that_conserve(network: Network) -> None:
    model, x = build(network)
    benchmark.zero_constants(model)
    assert benchmark.lost_relevance(model, x, CONSERVING) <= 1e-6
    if network.keeps:
        assert benchmark.lost_relevance(model, x, replace(CONSERVING, attention="shared")) > 1e-3


def layer_norm_held(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    variance = x.detach().var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) * (variance + eps).rsqrt() * weight + bias


def factor_held(activation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, **options: x * (activation(x.detach().clone(), **options) / x.detach())


def attention_held(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1).detach() @ v


def detached(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: function(*args, **options).detach()


HELD: list[tuple[Any, str, Callable[..., Tensor]]] = [
    (F, "layer_norm", layer_norm_held),
    (F, "gelu", factor_held(F.gelu)),
    (F, "silu", factor_held(F.silu)),
    (F, "softmax", detached(F.softmax)),
    (F, "scaled_dot_product_attention", attention_held),
    (torch, "sigmoid", detached(torch.sigmoid)),
]
"""Torch's functions with attention weights, deviations, gates and factors of activations as constants."""


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.keeps])
def test_relevance_through_values_is_gradient_times_input_with_attention_held(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle that uses no rule; it holds with biases, but a position embedding passes its relevance on."""
    model, x = build(NETWORKS[name])
    if name == "ViT":
        nn.init.zeros_(model.encoder.pos_embedding)
    actual, live = relevance(model, x, 2, CONSERVING), x.clone().requires_grad_()
    for owner, function, replacement in HELD:
        monkeypatch.setattr(owner, function, replacement)
    (gradient,) = torch.autograd.grad(model(live)[0, 2], live)
    assert (actual - x * gradient).norm() <= 1e-4 * actual.norm()


RULES = {
    **{name: (network, "shared") for name, network in NETWORKS.items()},
    **{f"{name}, values": (network, "values") for name, network in NETWORKS.items() if network.keeps},
}


@pytest.mark.parametrize(("network", "attention"), RULES.values(), ids=RULES.keys())
def test_the_derivative_of_relevance_is_that_of_finite_differences(network: Network, attention: str) -> None:
    model, x = build(network)
    rules = replace(epsilon_plus(1e-2), attention=attention)
    weight, direction = torch.randn_like(x), nn.functional.normalize(torch.randn_like(x).flatten(), dim=0).view_as(x)

    def heat(x: Tensor) -> Tensor:
        total: Tensor = (weight * relevance(model, x, "predicted", rules)).sum()
        return total

    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(heat(live), live)
    step = 1e-6
    slope = (heat(x + step * direction) - heat(x - step * direction)) / (2 * step)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert ((gradient * direction).sum() - slope).abs() <= 1e-4 * gradient.norm()


@pytest.mark.parametrize("defence", benchmark.DEFENCES)
@pytest.mark.parametrize("name", ["ViT", "ConvNeXt", "MobileNetV3"])  # of the real ones the benchmark makes a table
def test_each_defence_has_the_derivatives_of_finite_differences(name: str, defence: str) -> None:
    """To second order: attention, layer norm, GELU; hard-swish, hard-sigmoid gates, batch norm."""
    network = NETWORKS[name]
    classifier = benchmark.wrapped(network.build().double(), network.size)
    defended = benchmark.DEFENCES[defence](classifier)
    errors = benchmark.derivatives(defended, torch.rand(1, 3, network.size, network.size, dtype=torch.float64), (1e-5,))
    assert max(errors) <= 1e-4


@pytest.mark.parametrize(("name", "layer"), [("ConvNeXt", "features"), ("Swin", "norm"), ("MaxViT", "blocks.1")])
def test_the_last_convolution_of_blocks_is_what_the_last_block_gives(name: str, layer: str) -> None:
    model, x = build(NETWORKS[name])
    torch.testing.assert_close(relevance(model, x, "last_conv"), relevance(model, x, Layer(layer)))


class Tokens(nn.Module):
    """Patches and a class token through a dense layer at each of them and an attention; the class token is read."""

    def __init__(self, shows_patches: bool) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.block, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.shown, self.shows_patches, self.head = nn.Identity(), shows_patches, nn.Linear(8, NB_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.block(tokens)
        if self.shows_patches:
            self.shown(tokens[:, 1:] + 0)
        logits: Tensor = self.head(tokens[:, 0])
        return logits


def test_heat_starts_at_the_last_tokens_of_a_transformer_without_its_class_token() -> None:
    models, x = [Tokens(shows_patches).double().eval() for shows_patches in (False, True)], torch.rand(2, 3, 16, 16)
    models[1].load_state_dict(models[0].state_dict())
    tokens, patches = (
        relevance(model, x.double(), start) for model, start in zip(models, ("last_conv", Layer("shown")), strict=True)
    )
    assert tokens.abs().sum() > 0
    torch.testing.assert_close(tokens, patches)


def test_heat_and_blur_names_what_relevance_cannot_pass_when_it_is_built() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(144, NB_CLASSES))
    with pytest.raises(InputError, match="which relevance cannot be sent through"):
        HeatAndBlur.for_classifier(benchmark.wrapped(network, 8))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a log-softmax on the way": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.LogSoftmax(1)),
        "log_softmax",
    ),
}


@pytest.mark.parametrize(("build", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_named(build: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(InputError, match=f"calls {name}, which relevance cannot be sent through"):
        relevance(build().double(), torch.rand(1, 3, 4, 4, dtype=torch.float64))
