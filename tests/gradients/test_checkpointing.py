"""Checkpointed steps are the plain loop: values, gradients, random draws; with less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_defenses_ext import Surrogate, checkpoint_steps, gradient_mode
from art_defenses_ext.base.errors import InputError

Step = Callable[[Tensor, float], Tensor]


class Denoiser(nn.Module):
    """A small network with dropout, which is random in evaluation mode too, and with noise after it."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, hidden, 3, padding=1), nn.Conv2d(hidden, 1, 3, padding=1)

    def forward(self, x: Tensor, time: float) -> Tensor:
        hidden = nn.functional.dropout(torch.tanh(self.first(x) + time), 0.3, training=True)
        return x - 0.2 * self.last(hidden) + 0.1 * time * torch.randn_like(x)


def plain_steps(step: Step, x: Tensor, arguments: Iterable[float]) -> Tensor:
    for argument in arguments:
        x = step(x, argument)
    return x


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser().double()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


TIMES = (1.0, 0.7, 0.5, 0.2)


@pytest.mark.parametrize("passes", [1, 3])
def test_value_gradient_and_draws_are_those_of_the_plain_loop(denoiser: Denoiser, x: Tensor, passes: int) -> None:
    """Over several passes, as in EOT; also the numbers drawn after the backward pass, and parameters' gradients."""
    results = []
    for steps in (plain_steps, checkpoint_steps):
        torch.manual_seed(5)
        value = sum(steps(denoiser, x, TIMES) for _ in range(passes))
        assert isinstance(value, Tensor)
        between = torch.rand(3)
        gradients = torch.autograd.grad((value**2).sum(), [x, *denoiser.parameters()])
        results.append([value, between, *gradients, torch.rand(3)])
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(checkpoint_steps(denoiser, x, TIMES), checkpoint_steps(denoiser, x, TIMES))  # random


def test_second_derivatives_are_those_of_the_plain_loop(denoiser: Denoiser, x: Tensor) -> None:
    products = []
    for steps in (plain_steps, checkpoint_steps):
        torch.manual_seed(5)
        value = steps(denoiser, x, TIMES).square().sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (product,) = torch.autograd.grad(slope.square().sum(), x)
        products.append(product)
    assert torch.allclose(*products, rtol=1e-6)


def peak_bytes(steps: Callable[[Step, Tensor, Iterable[float]], Tensor], step: Step, x: Tensor, count: int) -> int:
    """The bytes that autograd keeps between the passes, each storage once."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = steps(step, x, [0.5] * count)
    assert value.requires_grad
    return sum(sizes.values())


def test_of_each_step_at_most_its_images_are_kept(x: Tensor) -> None:
    wide = Denoiser(hidden=64).double()
    images = x.numel() * x.element_size()
    plain, checkpointed = (
        [peak_bytes(steps, wide, x, count) for count in (2, 12)] for steps in (plain_steps, checkpoint_steps)
    )
    assert plain[1] - plain[0] > 10 * 64 * images
    assert checkpointed[1] - checkpointed[0] <= 10 * images


def test_the_backward_pass_holds_one_step_at_a_time(x: Tensor) -> None:
    """Each step's activations are alive while it is differentiated, and gone when the step before it is run again."""
    alive, most = 0, 0

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            result = x.tanh()
            ctx.save_for_backward(result)
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            nonlocal alive
            (result,) = ctx.saved_tensors
            alive -= 1
            return gradients[0] * (1 - result**2)

    value = checkpoint_steps(lambda x, _: Tanh.apply(x), x, range(6))
    alive = most = 0
    value.sum().backward()
    assert (most, alive) == (1, 0)


def test_without_gradients_nothing_is_kept_or_computed_again(denoiser: Denoiser, x: Tensor) -> None:
    with torch.no_grad():
        torch.manual_seed(5)
        value = checkpoint_steps(denoiser, x, TIMES)
        torch.manual_seed(5)
        assert torch.equal(value, plain_steps(denoiser, x, TIMES))
    assert not value.requires_grad
    assert checkpoint_steps(denoiser, x, []) is x


def test_a_step_may_hold_a_surrogate() -> None:
    """The backward pass runs under the gradient mode of the forward pass."""

    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (4 * x).round() / 4

    step = Surrogate(Rounding())
    x = torch.rand(2, 5).requires_grad_()
    with gradient_mode(step, "surrogate"):
        (slope,) = torch.autograd.grad(checkpoint_steps(lambda x, _: 2 * step(x), x, range(3)).sum(), x)
    assert torch.equal(slope, torch.full_like(x, 8.0))


def test_a_step_that_cannot_be_called_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="step is a Tensor; a function of images and an argument was expected"):
        checkpoint_steps(x, x, [1])  # type: ignore[arg-type]
