"""Relevance through the architectures of torchvision, in small: finite, conserved, and exactly differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import convnext, efficientnet, mobilenetv3, regnet, resnet, swin_transformer

from art_defenses_ext.attribution.relevance import Composite, epsilon_plus, relevance
from art_defenses_ext.attribution.rules import Epsilon
from art_defenses_ext.base.errors import InputError

NB_CLASSES = 5
TINY = 1e-30  # activations of untrained networks are small
CONSERVING = Composite(Epsilon(TINY), Epsilon(TINY), scale=Epsilon(TINY), stabilizer=TINY)
models = torchvision.models


class Network(NamedTuple):
    """One architecture, small.

    Attributes:
        build: the network with random weights.
        size: image size in pixels.
        keeps: what keeps a part of the relevance even without biases; empty where nothing does.
    """

    build: Callable[[], nn.Module]
    size: int = 32
    keeps: str = ""


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
        "the class token and the softmax",
    ),
    "Swin": Network(swin, keeps="the softmax"),
    "Swin V2": Network(
        lambda: swin(block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2),
        keeps="the softmax",
    ),
    "MaxViT": Network(
        lambda: models.MaxVit((56, 56), 8, 7, [8, 8], [1, 1], 8, 0.1, num_classes=NB_CLASSES), 56, "the softmax"
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
def test_no_relevance_is_lost_but_to_what_is_named(network: Network) -> None:
    model, x = build(network)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
    logit = model(x).amax().detach()
    lost = (relevance(model, x, "predicted", CONSERVING).sum() - logit).abs() / logit.abs()
    assert lost.isfinite()
    assert (lost > 1e-6) == bool(network.keeps)


@networks
def test_the_derivative_of_relevance_is_that_of_finite_differences(network: Network) -> None:
    model, x = build(network)
    weight, direction = torch.randn_like(x), nn.functional.normalize(torch.randn_like(x).flatten(), dim=0).view_as(x)

    def heat(x: Tensor) -> Tensor:
        total: Tensor = (weight * relevance(model, x, "predicted", epsilon_plus(1e-2))).sum()
        return total

    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(heat(live), live)
    step = 1e-6
    slope = (heat(x + step * direction) - heat(x - step * direction)) / (2 * step)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert ((gradient * direction).sum() - slope).abs() <= 1e-4 * gradient.norm()


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
