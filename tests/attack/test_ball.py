"""Balls: sizes, projections, steepest steps and random points against brute force and theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy import optimize, stats
from torch import Tensor

from art_defenses_ext.attack.ball import L1, L2, Ball, Linf, ball_type
from art_defenses_ext.base.errors import InputError

NORMS: tuple[type[Ball], ...] = (Linf, L2, L1)
SHAPES = [(8,), (4, 6), (3, 8, 8)]


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("given_as", "norm"),
    [
        *[(2, L2), (2.0, L2), (np.int64(2), L2), ("2", L2), ("l2", L2), ("L2", L2), (L2, L2)],
        *[(1, L1), (1.0, L1), ("1", L1), ("l1", L1), ("L1", L1), (L1, L1)],
        *[(np.inf, Linf), (np.float32(np.inf), Linf), ("inf", Linf), ("linf", Linf), ("Linf", Linf)],
    ],
)
def test_a_norm_may_be_spelt_as_art_spells_it(given_as: Any, norm: type[Ball]) -> None:
    assert ball_type(given_as) is norm


@pytest.mark.parametrize("norm", [1.5, 0, 0.5, "l0.5", "", None, -np.inf, float("nan"), True, [2], float])
def test_another_norm_is_refused(norm: Any) -> None:
    with pytest.raises(InputError, match=r"norm is .*; linf, l2.* was expected"):
        ball_type(norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_a_sample_is_the_norm_of_its_values(norm: type[Ball], shape: tuple[int, ...]) -> None:
    delta = random_tensor(0, 5, *shape)
    expected = [np.linalg.norm(sample.numpy().ravel(), ord=norm.order) for sample in delta]
    np.testing.assert_allclose(norm.size(delta), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_projection_lies_in_the_ball_and_leaves_its_points_alone(norm: type[Ball], shape: tuple[int, ...]) -> None:
    delta = random_tensor(1, 40, *shape) * torch.logspace(-3, 1, 40).reshape(-1, *[1] * len(shape))
    projected = norm(0.7).project(delta)
    assert (norm.size(projected) <= 0.7 * (1 + 1e-6)).all()
    inside = norm.size(delta) <= 0.7
    assert inside.any()
    assert not inside.all()
    assert torch.equal(projected[inside], delta[inside])
    torch.testing.assert_close(norm(0.7).project(projected), projected)


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 10))
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm: type[Ball], seed: int, scale: float) -> None:
    """The projection is the nearest in the Euclidean sense, for either ball."""
    delta = scale * random_tensor(seed, 1, 3)
    distance = L2.size(delta - norm(0.7).project(delta)).item()
    ball_points = norm(0.7).random_inside(torch.empty(500, 3), torch.Generator().manual_seed(seed))
    assert L2.size(delta - ball_points).min().item() >= distance * (1 - 1e-5)


@given(seed=st.integers(0, 10_000), eps=st.floats(0.05, 3))
def test_the_l1_projection_solves_the_quadratic_program_in_ball_and_clip_range(seed: int, eps: float) -> None:
    """min |z - u|^2 over |z|_1 <= eps and 0 <= clean + z <= 1, as z = p - q with p, q >= 0, by scipy."""
    clean = torch.rand(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    step = random_tensor(seed, 1, 5).double()
    change = (L1(eps).inside(clean + step, clean, (0.0, 1.0)) - clean)[0].numpy()
    target = step[0].numpy()
    program = optimize.minimize(
        lambda parts: ((parts[:5] - parts[5:] - target) ** 2).sum(),
        np.zeros(10),
        jac=lambda parts: 2 * np.outer([1, -1], parts[:5] - parts[5:] - target).ravel(),
        bounds=[*((0, float(1 - value)) for value in clean[0]), *((0, float(value)) for value in clean[0])],
        constraints={"type": "ineq", "fun": lambda parts: eps - parts.sum(), "jac": lambda _: -np.ones(10)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(change, program.x[:5] - program.x[5:], atol=1e-6)
    assert np.abs(change).sum() <= eps * (1 + 1e-12)


def test_a_sparse_step_changes_the_share_of_pixel_values_with_the_largest_slopes() -> None:
    gradient = torch.tensor([[[3.0, -4.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    half = L1.step(gradient, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(half[0], torch.tensor([[0.5, -0.5], [0.0, 0.0]]))
    torch.testing.assert_close(L1.step(gradient, torch.tensor([0.25, 0.25]))[0], L1.steepest(gradient)[0])
    assert not half[1].any()


def test_balls_grow_by_a_factor_for_each_sample() -> None:
    clean, growth = torch.full((2, 6), 0.5), torch.tensor([1.0, 3.0])
    for ball in (Linf(0.02), L2(0.05), L1(0.1)):
        perturbation = ball.inside(clean + random_tensor(0, 2, 6), clean, (0.0, 1.0), growth) - clean
        torch.testing.assert_close(ball.size(perturbation), ball.eps * growth)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_steepest_step_gains_the_dual_norm(norm: type[Ball], shape: tuple[int, ...]) -> None:
    """By Hoelder's inequality no step of size one gains more."""
    gradient = random_tensor(2, 9, *shape)
    step = norm.steepest(gradient)
    torch.testing.assert_close(norm.size(step), torch.ones(9))
    torch.testing.assert_close((gradient * step).flatten(1).sum(dim=1), norm.dual_size(gradient))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-13, 1e6])
def test_the_steepest_step_does_not_depend_on_the_unit_of_pixels(scale: float) -> None:
    """In a range a million times as wide every gradient is a million times as small."""
    gradient = random_tensor(2, 9, 4, 6)
    torch.testing.assert_close(L2.steepest(scale * gradient), L2.steepest(gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_to_follow_means_no_step(norm: type[Ball]) -> None:
    assert (norm.steepest(torch.zeros(2, 5)) == 0).all()
    assert (norm(0.3).project(torch.zeros(2, 5)) == 0).all()


@pytest.mark.parametrize("shape", [(1,), (2,), (4, 6)])
def test_random_points_fill_the_l2_ball_evenly(shape: tuple[int, ...]) -> None:
    """The volume within a radius r grows as r^d, and every direction is as likely as its opposite."""
    points = L2(0.3).random_inside(torch.empty(4_000, *shape), torch.Generator().manual_seed(0)).flatten(1)
    dimensions = points.shape[1]
    shares = (L2.size(points).double() / 0.3) ** dimensions
    assert shares.max() <= 1 + 1e-5
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.001
    # A coordinate of a uniform point has variance eps^2 / (d + 2).
    np.testing.assert_allclose(points.var(dim=0), 0.09 / (dimensions + 2), rtol=0.15)
    np.testing.assert_allclose(points.mean(dim=0), 0, atol=5 * 0.3 / (4_000 * (dimensions + 2)) ** 0.5)


@pytest.mark.parametrize("shape", [(1,), (4, 6)])
def test_random_points_fill_the_linf_ball_evenly(shape: tuple[int, ...]) -> None:
    points = Linf(0.3).random_inside(torch.empty(1_000, *shape), torch.Generator().manual_seed(0)).flatten(1)
    for coordinate in points.T:
        assert stats.kstest((coordinate.double().numpy() / 0.3 + 1) / 2, "uniform").pvalue > 1e-4
    if points.shape[1] > 1:
        correlation = np.corrcoef(points.numpy().T) - np.eye(points.shape[1])
        assert np.abs(correlation).max() < 0.2
