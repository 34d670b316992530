"""FeatureAutoencoder: its two networks, and derivatives through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_defenses_ext import FeatureAutoencoder, gradient_mode
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import surrogate_width
from art_defenses_ext.preprocessor.blocks import from_blocks, to_blocks
from art_defenses_ext.preprocessor.feature_autoencoder import ARCHITECTURES, PaperAutoencoder

MODES = ("exact", "smooth", "identity")
SMALL: dict[str, Any] = {"architecture": "unet", "width": 4, "stem": 2}
PAPER: dict[str, Any] = {"architecture": "paper"}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def softplus_network(height: int = 8, width: int = 8) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(3 * height * width, 10)
        )
    )


def with_weights(model: nn.Module, channels: int = 1, spread: float = 0.2, **options: Any) -> FeatureAutoencoder:
    """As if it had been trained: random weights, biases included, all over."""
    defence = FeatureAutoencoder(model, channels=channels, **options)
    generator = torch.Generator().manual_seed(1)
    state = {
        name: spread * torch.randn(tensor.shape, generator=generator) for name, tensor in defence.state_dict().items()
    }
    defence.load_state_dict(state)
    return defence


# The U-Net


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (1, 1), (3, 50)])
def test_the_u_net_restores_images_of_any_size(channels: int, size: tuple[int, int]) -> None:
    defence = with_weights(nn.Identity(), channels=channels, spread=0.5, **(SMALL | {"width": 2}))
    x = images(2, channels, *size)
    restored, _ = defence(x)
    assert restored.shape == x.shape
    assert bool((restored != x).any())


@pytest.mark.parametrize("stem", [1, 2, 3])
def test_an_untrained_u_net_is_the_identity_and_refuses_to_stand_before_a_classifier(stem: int) -> None:
    defence = FeatureAutoencoder(nn.Identity(), channels=1, **(SMALL | {"stem": stem}))
    x = images(3, 1, 9, 11)
    assert torch.equal(defence.restore(x), x)
    with pytest.raises(InputError, match=r"^FeatureAutoencoder is not trained yet; fit\(\) or load\(\) first was exp"):
        defence(x)


def test_every_part_of_the_u_net_has_a_say() -> None:
    """Each parameter moves the correction, so that training reaches all of them."""
    network = with_weights(nn.Identity(), **SMALL).network.requires_grad_(True)
    loss = network(images(4, 1, 16, 16)).square().sum()
    for gradient in torch.autograd.grad(loss, list(network.parameters())):
        assert bool((gradient != 0).any())


@pytest.mark.parametrize("side", [1, 2, 3])
def test_blocks_of_pixels_become_channels_and_pixels_again(side: int) -> None:
    x = images(2, 3, 9, 11)
    blocks = to_blocks(x, side)
    rows, columns = -(-9 // side), -(-11 // side)
    assert blocks.shape == (2, 3 * side**2, rows, columns)
    assert torch.equal(from_blocks(blocks, side, x), x)
    for channel, row, column in ((0, 0, 0), (1, rows - 1, 0), (2, rows - 1, columns - 1)):
        for i in range(side):
            for j in range(side):
                pixel = x[:, channel, min(row * side + i, 8), min(column * side + j, 10)]
                assert torch.equal(blocks[:, channel * side**2 + i * side + j, row, column], pixel)


# The paper's network


def test_the_paper_s_network_has_the_authors_parameters_and_bottleneck() -> None:
    network = PaperAutoencoder()
    assert sum(parameter.numel() for parameter in network.parameters()) == 5729
    sizes = []
    x = images(2, 1, 28, 28)
    for layer in network:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[5] == (8, 2, 2)
    assert sizes[-1] == (1, 28, 28)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-0.4, 2.8)])
def test_the_paper_s_network_maps_any_range_onto_itself(low: float, high: float) -> None:
    """Which range does not matter: an image in other units is restored to the same one in these units."""
    x = images(3, 1, 28, 28)
    unit = with_weights(nn.Identity(), spread=0.5, **PAPER)
    rescaled = with_weights(nn.Identity(), spread=0.5, **PAPER, clip_values=(low, high))
    restored = rescaled(low + (high - low) * x)[0]
    torch.testing.assert_close(restored, low + (high - low) * unit(x)[0], rtol=1e-4, atol=1e-4 * (high - low))
    loud = with_weights(nn.Identity(), spread=5.0, **PAPER, clip_values=(low, high))(low + (high - low) * x)[0]
    assert (loud.min().item(), loud.max().item()) == pytest.approx((low, high), abs=1e-5 * (high - low))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 1, 28, 27)])
def test_the_paper_s_network_refuses_other_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"x has images \(1, .*; \(1, 28, 28\) was expected by architecture 'paper'"):
        with_weights(nn.Identity(), **PAPER)(images(*shape))


def test_the_paper_s_network_is_for_grey_images() -> None:
    with pytest.raises(InputError, match="channels is 3; 1 was expected by architecture 'paper'"):
        FeatureAutoencoder(nn.Identity(), channels=3, **PAPER)


# Derivatives


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exact_derivative_is_the_numerical_one(architecture: str) -> None:
    """Of a restored pixel and of a defended logit."""
    side = 28 if architecture == "paper" else 9
    defence = with_weights(softplus_network(side, side), **(SMALL | {"architecture": architecture}), mean=0.3, std=0.4)
    defence.model.double()
    defence.double()
    x = images(2, 1, side, side).double()
    assert_derivative(lambda x: defence(x)[0].sin().sum(), x)
    assert_derivative(lambda x: defence.model((defence(x)[0] - 0.3) / 0.4).square().sum(), x)


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


def test_the_identity_passes_the_gradient_through() -> None:
    defence = with_weights(nn.Identity(), spread=0.5, **SMALL)
    x, weights = images(3, 1, 9, 11), torch.randn(3, 1, 9, 11, generator=torch.Generator().manual_seed(2))
    gradients = {}
    for mode in MODES:
        with gradient_mode(defence, mode):
            points = x.clone().requires_grad_()
            (gradients[mode],) = torch.autograd.grad((weights * defence(points)[0]).sum(), points)
    assert torch.equal(gradients["identity"], weights)
    assert not torch.allclose(gradients["exact"], weights, rtol=0.01)


@pytest.mark.parametrize("width", [1.0, 0.1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_smooth_mode_has_the_derivative_of_the_restorer_with_softplus(architecture: str, width: float) -> None:
    """As sharp as an attacker anneals it."""
    side = 28 if architecture == "paper" else 9
    defence = with_weights(nn.Identity(), leak=1.0, **(SMALL | {"architecture": architecture}))
    x, weights = images(2, 1, side, side), torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(2))

    def slope() -> Tensor:
        points = x.clone().requires_grad_()
        return torch.autograd.grad((weights * defence(points)[0]).sum(), points)[0]

    exact = slope()
    with gradient_mode(defence, "smooth"), surrogate_width(defence, width):
        smooth = slope()
    for name, module in list(defence.network.named_modules()):
        if isinstance(module, nn.ReLU):
            parent, _, last = name.rpartition(".")
            setattr(defence.network.get_submodule(parent), last, nn.Softplus(beta=10.0 / width, threshold=20.0))
    torch.testing.assert_close(smooth, slope())
    assert not torch.allclose(smooth, exact, rtol=0.01)
