"""Attacks that start where other searches ended."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext.attack.auto_pgd import auto_pgd
from art_defenses_ext.attack.ball import L1, L2, Ball, Linf
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.attack.square import square
from art_defenses_ext.attack.warm_start import CrossedPGD, crossed_pgd, warm_square
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import gradient_mode

BALL = Linf(0.2)


def plateau(x: Tensor, y: Tensor) -> Tensor:
    """Logits (n, 2) that do not change until the mean of an image exceeds one half, and then fall steeply."""
    true = 1 - 20 * (x.flatten(1).mean(dim=1) - 0.5).clamp_min(0)
    return torch.stack([true, torch.zeros_like(true)], dim=1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(*means: float) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.full((1, 8, 8), mean) for mean in means]), torch.zeros(len(means), dtype=torch.long)


def test_an_image_on_a_plateau_is_broken_by_the_perturbation_of_another_one() -> None:
    """Without that its gradient is zero everywhere that a search comes to; the first image has one."""
    x, y = images(0.55, 0.4)
    cold_start = auto_pgd(plateau, x, y, BALL, max_iter=50, generator=generator())
    assert (margin(plateau(cold_start, y), y) < 0).tolist() == [True, False]
    forms = [partial(gradient_mode, torch.nn.Identity(), "exact")]
    crossed = crossed_pgd(plateau, x, y, BALL, forms=forms, max_iter=50, generator=generator())
    assert (margin(plateau(crossed, y), y) < 0).all()
    assert ((crossed - x).abs() <= 0.2 + 1e-6).all()
    no_donor = crossed_pgd(plateau, x[1:], y[1:], BALL, forms=forms, max_iter=50, generator=generator())
    assert (margin(plateau(no_donor, y[1:]), y[1:]) > 0).all()


@pytest.mark.parametrize("ball", [Linf(0.2), L2(1.0), L1(4.0)], ids=str)
def test_square_never_loses_what_it_starts_from(ball: Ball) -> None:
    x, y = images(0.5, 0.45, 0.6)
    start = ball.inside(x + 0.05 * torch.rand(x.shape, generator=generator()), x, (0.0, 1.0))
    adversarial = square(
        plateau, x, y, ball, start=start, max_queries=30, clip_values=(0.0, 1.0), generator=generator()
    )
    assert (margin(plateau(adversarial, y), y) <= margin(plateau(start, y), y) + 1e-6).all()


def test_what_the_descent_before_square_breaks_by_itself_is_no_success_of_queries() -> None:
    """Of one query nothing is left to find; a descent alone breaks the image."""
    x, y = images(0.6)
    assert (margin(plateau(auto_pgd(plateau, x, y, BALL, generator=generator()), y), y) < 0).all()
    assert torch.equal(warm_square(plateau, x, y, BALL, max_queries=1, generator=generator()), x)


def test_modes_that_the_classifier_has_not_are_refused(digits_classifier: PyTorchClassifier) -> None:
    for modes in (("smooth",), ()):
        with pytest.raises(InputError, match=r"^modes is .*; some of exact were expected$"):
            CrossedPGD(digits_classifier, modes=modes)
