"""Feature maps are what a network makes on its way, taken without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1, vgg16
from torchvision.models.feature_extraction import create_feature_extractor

import art_defenses_ext.preprocessor.feature_maps as features
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.preprocessor.feature_maps import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VGG16_TAPS,
    VGG16Features,
    feature_maps,
    usual_taps,
)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def chain(inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(4, 3, 3),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_feature_map_is_what_a_layer_gives_before_the_next_one_touches_it(inplace: bool) -> None:
    network, x = chain(inplace), torch.randn(3, 2, 8, 8)
    layers = ["4", "0", "7", "2", "0"]
    maps, output = feature_maps(network, x, layers)
    plain = chain().eval()
    plain.load_state_dict(network.state_dict())
    for name, feature_map in zip(layers, maps, strict=True):
        assert torch.equal(feature_map, plain[: int(name) + 1](x))
    assert torch.equal(output, plain(x))
    assert maps[1].min() < 0 <= maps[3].min()


def test_torchvision_finds_the_same_features_of_squeezenet() -> None:
    network, x = squeezenet1_1(), torch.rand(2, 3, 64, 64)
    layers = ["features.0", "features.1", "features.4.expand3x3", "features.7", "classifier.1", "classifier.2"]
    assert network.features[1].inplace
    maps, output = feature_maps(network, x, layers)
    plain = squeezenet1_1()
    plain.load_state_dict(network.state_dict())
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = create_feature_extractor(plain.eval(), return_nodes=layers)(x)
    for name, feature_map in zip(layers, maps, strict=True):
        torch.testing.assert_close(feature_map, expected[name])
    torch.testing.assert_close(output, plain(x))


def test_a_pass_leaves_no_trace(only_read: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
    network, x = chain().train(), torch.randn(3, 2, 8, 8)
    network[1].eval()
    calls: list[int] = []
    network[0].register_forward_hook(lambda *_: calls.append(1))  # somebody else's
    with only_read(network):
        feature_maps(network, x, ["0", "2"])
    assert len(calls) == 1


@pytest.mark.parametrize("layers", [["0", "2"], ["0", "nowhere"]])
def test_no_hook_stays_where_the_network_or_a_name_fails(layers: list[str]) -> None:
    network = chain().train()
    with pytest.raises((RuntimeError, InputError)):
        feature_maps(network, torch.randn(3, 7, 8, 8), layers)
    assert hooks(network) == 0
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_feature_maps_can_be_differentiated(inplace: bool) -> None:
    network = chain(inplace).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = {name: torch.randn_like(network.eval()[: int(name) + 1](x.detach())) for name in ("0", "2", "3")}

    def weighted(x: Tensor) -> Tensor:
        maps, output = feature_maps(network, x, list(weights))
        return sum((w * f).sum() for w, f in zip(weights.values(), maps, strict=True)) + output.square().sum()

    assert torch.autograd.gradcheck(weighted, (x,))
    maps, _ = feature_maps(network, x, ["2"])
    (actual,) = torch.autograd.grad(maps[0].sum(), network[0].weight)
    (expected,) = torch.autograd.grad(F.relu(network[1](network[0](x))).sum(), network[0].weight)
    torch.testing.assert_close(actual, expected)


class Odd(nn.Module):
    """With a layer that gives two tensors, and one that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.idle = nn.GRU(3, 4, batch_first=True), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("rnn", "taps names 'rnn', which gave no tensor in a forward pass; another layer was expected"),
        ("idle", "taps names 'idle', which gave no tensor in a forward pass"),
        ("none", "taps names 'none', which Odd does not have: one of rnn, idle was expected"),
    ],
)
def test_a_layer_without_a_feature_map_is_refused(layer: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        feature_maps(Odd(), torch.randn(2, 5, 3), [layer])


# Which layers


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 3]), (6, [1, 3, 5]), (19, [5, 11, 18])],
)
def test_the_usual_taps_are_the_last_convolution_of_each_third(count: int, expected: list[int]) -> None:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(1, 1, 1), nn.ReLU()]
    assert usual_taps(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))) == tuple(str(2 * k) for k in expected)


def test_a_network_without_convolution_has_no_usual_taps() -> None:
    with pytest.raises(InputError, match="taps is None and Sequential has no convolution; names of layers were exp"):
        usual_taps(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


# VGG16


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """In place of the published ones, with which the signal neither dies nor explodes."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = vgg16(init_weights=False).features.state_dict()
    state = {}
    for name, tensor in shapes.items():
        spread = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1
        state[f"features.{name}"] = spread * torch.randn(tensor.shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> VGG16Features:
    def load(model: nn.Module, name: str, progress: bool) -> None:
        assert name == "vgg16"
        model.load_state_dict(weights, strict=False)

    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "load_published", load)
        built = VGG16Features(progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    return built


def by_hand(x: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers by the names of the paper (table 1, column D): 2, 2, 3, 3, 3 convolutions, a pool after each block."""
    maps, place = {}, 0
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, count + 1):
            x = F.relu(F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1))
            maps[f"relu{block}_{layer}"] = x
            place += 2
            if (block, layer) == (5, 2):
                return maps
        x = F.max_pool2d(x, 2)
        maps[f"pool{block}"] = x
        place += 1
    return maps


def test_the_taps_of_vgg16_are_relu4_2_pool4_and_relu5_2(network: VGG16Features, weights: dict[str, Tensor]) -> None:
    x = torch.rand(2, 3, 32, 32)
    normalised = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    named = by_hand(normalised, weights)
    maps, output = feature_maps(network, x, VGG16_TAPS)
    for feature_map, name in zip(maps, ("relu4_2", "pool4", "relu5_2"), strict=True):
        torch.testing.assert_close(feature_map, named[name], rtol=1e-4, atol=1e-5)
        assert feature_map.std() > 0.01
    assert torch.equal(output, maps[-1])


def test_vgg16_is_frozen_but_lets_gradients_through(network: VGG16Features) -> None:
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    values = x.detach().clone()
    network(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert torch.equal(x.detach(), values)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
