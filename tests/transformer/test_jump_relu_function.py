"""The function jump_relu: the paper's equation forwards, the closed form of each mode backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.transformer.jump_relu import jump_relu

MODES = ("exact", "relu", "smooth")


def derivative(z: Tensor, jump: float, mode: str, width: float | None = None) -> Tensor:
    """What each mode's backward rule is by definition."""
    if mode == "exact":
        return (z > jump).to(z.dtype)
    if mode == "relu" or jump == 0:
        return (z > 0).to(z.dtype)
    w = jump / 4 if width is None else width
    s = 1 / (1 + torch.exp(-(z - jump) / w))
    return s + z * s * (1 - s) / w


def gradient_of(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(z).sum(), z)
    return gradient


values = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
jumps = st.just(0.0) | st.floats(2**-10, 10, width=32)
widths = st.none() | st.floats(0.03125, 10, width=32)
modes = st.sampled_from(MODES)


@given(values, jumps, modes, widths, st.sampled_from([torch.float32, torch.float64]))
def test_forward_is_the_paper_s_equation_in_every_mode(
    z: list[float], jump: float, mode: str, width: float | None, dtype: torch.dtype
) -> None:
    z = [*z, jump, -jump, np.nextafter(np.float32(jump), np.float32(np.inf))]
    tensor = torch.tensor(z, dtype=dtype)
    expected = np.array(z) * np.heaviside(np.array(z) - jump, 0)  # z * H(z - kappa), nothing at z = kappa
    for requires_grad in (False, True):
        out = jump_relu(tensor.clone().requires_grad_(requires_grad), jump, mode, width)
        np.testing.assert_array_equal(out.detach().double().numpy(), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(jump_relu(tensor, jump, mode, width).double().numpy(), expected)


@given(values, jumps, modes, widths)
def test_backward_is_the_closed_form_of_its_mode(z: list[float], jump: float, mode: str, width: float | None) -> None:
    tensor = torch.tensor(z, dtype=torch.float64)
    gradient = gradient_of(lambda z: jump_relu(z, jump, mode, width), tensor)
    torch.testing.assert_close(gradient, derivative(tensor, jump, mode, width), rtol=1e-9, atol=1e-12)


@given(values, st.floats(1e-3, 10), widths)
def test_smooth_is_what_autograd_finds_for_the_smooth_function(
    z: list[float], jump: float, width: float | None
) -> None:
    tensor = torch.tensor(z, dtype=torch.float64)
    w = jump / 4 if width is None else width
    expected = gradient_of(lambda z: z * torch.sigmoid((z - jump) / w), tensor)
    torch.testing.assert_close(gradient_of(lambda z: jump_relu(z, jump, "smooth", width), tensor), expected)


@given(st.floats(-20, 20), st.floats(1e-3, 10), st.floats(0.03125, 10), st.floats(-5, 5))
def test_the_smooth_rule_can_be_differentiated_again(z: float, jump: float, width: float, weight: float) -> None:
    pre_activation = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(
        weight * jump_relu(pre_activation, jump, "smooth", width).sum(), pre_activation, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), pre_activation)
    # (z s)'' with s' = s (1 - s) / w and s'' = s' (1 - 2 s) / w
    s = 1 / (1 + np.exp(-(z - jump) / width))
    slope = s * (1 - s) / width
    expected = weight * (2 * slope + z * slope * (1 - 2 * s) / width)
    assert second.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mode", ["exact", "relu"])
def test_the_second_derivative_of_a_step_is_zero(mode: str) -> None:
    z = torch.linspace(-2, 4, 24, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(jump_relu(z, 1.0, mode).square().sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    # d/dz (2 J(z) J'(z)) = 2 J'(z)^2, with J' of the mode
    torch.testing.assert_close(second, 2 * derivative(z.detach(), 1.0, mode))


@pytest.mark.parametrize("mode", MODES)
def test_not_a_number_stays_visible_and_infinity_passes(mode: str) -> None:
    z = torch.tensor([torch.nan, torch.inf, -torch.inf], requires_grad=True)
    out = jump_relu(z, 1.0, mode).detach()
    assert out[0].isnan()
    assert out[1:].tolist() == [torch.inf, 0.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(mode: str, dtype: torch.dtype) -> None:
    z = torch.linspace(-3, 3, 13).to(dtype).requires_grad_()
    out = jump_relu(z, 1.0, mode)
    assert out.dtype == dtype
    assert torch.equal(out.detach(), torch.where(z > 1, z, 0).detach())
    (gradient,) = torch.autograd.grad(out.sum(), z)
    expected = derivative(z.detach().double(), 1.0, mode)
    torch.testing.assert_close(gradient.double(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_passes_through_vmap_and_grad_in_either_order(mode: str) -> None:
    """A mode that turns into another one without a word would mislead whoever attacks through torch.func."""
    z = torch.linspace(-2, 3, 11, dtype=torch.float64)
    expected = derivative(z, 1.0, mode)

    def function(z: Tensor) -> Tensor:
        return jump_relu(z, 1.0, mode)

    torch.testing.assert_close(torch.func.vmap(function)(z), function(z))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(function))(z), expected)
    torch.testing.assert_close(torch.func.grad(lambda z: torch.func.vmap(function)(z).sum())(z), expected)
    torch.testing.assert_close(torch.func.jacrev(function)(z), torch.diag(expected))


@pytest.mark.parametrize("mode", ["relu", "smooth"])
def test_a_surrogate_without_a_forward_mode_rule_says_so(mode: str) -> None:
    """Rather than to answer with the derivative of another mode."""
    z = torch.linspace(-2, 3, 11, dtype=torch.float64)
    try:
        _, tangent = torch.func.jvp(lambda z: jump_relu(z, 1.0, mode), (z,), (torch.ones_like(z),))
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(tangent, derivative(z, 1.0, mode))


@pytest.mark.parametrize("width", [None, 0.3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jump", [0.0, 0.4])
@pytest.mark.parametrize(
    "rectifier", [F.gelu, F.silu, F.hardswish, F.leaky_relu, F.elu, F.softplus], ids=lambda function: function.__name__
)
def test_another_rectifier_jumps_and_has_each_mode_s_derivative(
    rectifier: Callable[[Tensor], Tensor], jump: float, mode: str, width: float | None
) -> None:
    z = torch.linspace(-4, 4, 82, dtype=torch.float64)
    effective_width = jump / 4 if width is None else width

    def surrogate(z: Tensor) -> Tensor:
        if mode == "exact":
            return rectifier(z) * (z > jump)
        return rectifier(z) * (1 if mode == "relu" or jump == 0 else 1 / (1 + torch.exp((jump - z) / effective_width)))

    def jumped(z: Tensor) -> Tensor:
        return jump_relu(z, jump, mode, width, rectifier)

    assert torch.equal(jumped(z.clone().requires_grad_()).detach(), rectifier(z) * (z > jump))
    torch.testing.assert_close(gradient_of(jumped, z), gradient_of(surrogate, z))

    def squared_slope(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda z: torch.autograd.grad(function(z).sum(), z, create_graph=True)[0].square()

    torch.testing.assert_close(gradient_of(squared_slope(jumped), z), gradient_of(squared_slope(surrogate), z))
