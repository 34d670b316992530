"""Relevance is that of zennit, to 1e-10 of the largest value: rule by rule, on networks people use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_1
from zennit import composites, rules, types
from zennit.attribution import Gradient
from zennit.torchvision import ResNetCanonizer

from art_defenses_ext.attribution.relevance import (
    Composite,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    relevance,
    uniform,
)
from art_defenses_ext.attribution.rules import Z_PLUS, AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox

LOW, HIGH = -4.0, 4.0
NB_CLASSES = 7


def plain_cnn() -> nn.Module:
    """Strides, paddings, dilations, groups and every pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2, 1, 1),
        nn.Conv2d(12, 6, 3, padding=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d((8, 9)),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.Flatten(),
        nn.Linear(72, 20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, NB_CLASSES),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # Name -> (network, height and width of an image).
    "plain CNN": (plain_cnn, 33),
    "SqueezeNet 1.1": (lambda: squeezenet1_1(weights=None, num_classes=NB_CLASSES), 48),
    "ResNet-18": (lambda: resnet18(weights=None, num_classes=NB_CLASSES), 40),
}


def everywhere(rule: rules.BasicHook) -> Callable[[Any], Any]:
    layers = [*composites.layer_map_base(), (types.Linear, rule)]
    return lambda canonizers: composites.LayerMapComposite(layers, canonizers=canonizers)


def first(rule: rules.BasicHook) -> Callable[[Any], Any]:
    """z+ on all others."""
    layers = [*composites.layer_map_base(), (types.Linear, rules.ZPlus())]
    return lambda canonizers: composites.SpecialFirstLayerMapComposite(
        layers, [(types.Linear, rule)], canonizers=canonizers
    )


def _first(rule: Rule) -> Composite:
    return Composite(Z_PLUS, Z_PLUS, rule)


ENDS = tuple(torch.full((1, 3, 1, 1), end, dtype=torch.float64) for end in (LOW, HIGH))
CASES: dict[str, tuple[Composite, Callable[[Any], Any]]] = {
    # Name -> (ours, zennit's for given canonizers).
    "epsilon": (uniform(Epsilon()), everywhere(rules.Epsilon())),
    "epsilon .1": (uniform(Epsilon(0.1)), everywhere(rules.Epsilon(0.1))),
    "gamma": (uniform(Gamma()), everywhere(rules.Gamma())),
    "z+": (uniform(Z_PLUS), everywhere(rules.ZPlus())),
    "alpha 2, beta 1": (uniform(AlphaBeta(2, 1)), everywhere(rules.AlphaBeta(2, 1))),
    # As rules of the first layer, which they are made for: on all layers of a deep network they divide by what is zero
    # but for rounding.
    "z-box": (_first(ZBox(LOW, HIGH)), first(rules.ZBox(torch.tensor(LOW), torch.tensor(HIGH)))),
    "w-square": (_first(WSquare()), first(rules.WSquare())),
    "flat": (_first(Flat()), first(rules.Flat())),
    "EpsilonPlus": (epsilon_plus(), lambda canonizers: composites.EpsilonPlus(canonizers=canonizers)),
    "EpsilonAlpha2Beta1": (
        epsilon_alpha2_beta1(),
        lambda canonizers: composites.EpsilonAlpha2Beta1(canonizers=canonizers),
    ),
    "EpsilonAlpha2Beta1Flat": (
        Composite(AlphaBeta(2, 1), Epsilon(), Flat()),
        lambda canonizers: composites.EpsilonAlpha2Beta1Flat(canonizers=canonizers),
    ),
    "EpsilonPlusFlat": (epsilon_plus_flat(), lambda canonizers: composites.EpsilonPlusFlat(canonizers=canonizers)),
    "EpsilonGammaBox": (
        epsilon_gamma_box(LOW, HIGH),
        lambda canonizers: composites.EpsilonGammaBox(*ENDS, canonizers=canonizers),
    ),
}


def zennit_relevance(model: nn.Module, x: Tensor, composite: Any, start: Tensor) -> Tensor:
    with Gradient(model=model, composite=composite) as attributor:
        attribution: Tensor = attributor(x.clone(), start)[1]
    return attribution.detach()


AGREEING = [
    *(("plain CNN", case) for case in CASES),
    *(("ResNet-18", case) for case in ("epsilon", "EpsilonAlpha2Beta1", "EpsilonGammaBox")),
    *((name, "EpsilonPlusFlat") for name in NETWORKS if name != "plain CNN"),
]


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, list[Any]]:
    """A network in float64 with random batch norms, images, and zennit's canonisers for it."""
    build, size = NETWORKS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.eps = 0.0  # zennit's canoniser leaves a batch norm behind that still divides by 1 + eps
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        x = torch.randn(2, 3, size, size, dtype=torch.float64).clamp(LOW, HIGH)
    return model, x, [ResNetCanonizer()] if request.param == "ResNet-18" else []


@pytest.mark.parametrize(("network", "case"), AGREEING, indirect=["network"])
def test_zennit_agrees(network: tuple[nn.Module, Tensor, list[Any]], case: str) -> None:
    model, x, canonizers = network
    ours, theirs = CASES[case]
    with torch.no_grad():
        logits = model(x)
    start = nn.functional.one_hot(logits.argmax(dim=1), NB_CLASSES) * logits
    expected = zennit_relevance(model, x, theirs(canonizers), start)
    actual = relevance(model, x, "predicted", ours)
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(("ours", "theirs"), [(WSquare(), rules.WSquare()), (Flat(), rules.Flat())])
def test_zennit_agrees_on_rules_of_the_first_layer_everywhere(ours: Rule, theirs: rules.BasicHook) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = plain_cnn().double().eval(), torch.randn(2, 3, 33, 33, dtype=torch.float64)
    start = torch.zeros(2, NB_CLASSES, dtype=torch.float64)
    start[:, 3] = model(x)[:, 3].detach()
    expected = zennit_relevance(model, x, everywhere(theirs)([]), start)
    assert (relevance(model, x, 3, uniform(ours)) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_zennit_agrees_in_one_and_three_dimensions() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        line = nn.Sequential(
            *(nn.Conv1d(2, 6, 5, 2, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 6, 3, groups=3), nn.ReLU()),
            *(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(42, NB_CLASSES)),
        )
        block = nn.Sequential(
            *(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 6, 2), nn.ReLU()),
            *(nn.AvgPool3d((1, 2, 1)), nn.Flatten(), nn.Linear(18, NB_CLASSES)),
        )
        inputs = torch.randn(2, 2, 64, dtype=torch.float64), torch.randn(2, 2, 4, 6, 8, dtype=torch.float64)
    for model, x in zip((line.double().eval(), block.double().eval()), inputs, strict=True):
        start = model(x).detach().clamp(min=0)
        for case in ("epsilon", "gamma", "z+", "alpha 2, beta 1", "w-square", "flat", "EpsilonPlus"):
            ours, theirs = CASES[case]
            expected = zennit_relevance(model, x, theirs([]), start)
            assert expected.abs().max() > 0
            actual = relevance(model, x, "positive", ours)
            assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()
