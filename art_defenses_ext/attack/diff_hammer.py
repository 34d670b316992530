"""DiffHammer: descent along the gradient of those draws of a random defence that one step can break together.

A mean of gradients (EOT) vanishes where draws pull in opposite directions, although each direction breaks some of them.

Source: Wang, Fu, Han, Xiang 2024, "DiffHammer: Rethinking the Robustness of Diffusion-Based Adversarial Purification"
(NeurIPS 2024), the selective attack; constants and the choice of the first direction as in the authors' program.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attack.ball import Ball, ClipValues, into_range
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, gradient_of, margin
from art_defenses_ext.base.declared import Count, Positive

SHARPNESS = 5.0
"""The factor on a loss in a draw's weight, the authors' lambda."""

ROUNDS = 5
"""The number of alternations between weights and direction."""

DECAY = 0.5
"""The exponent of the weight of a new direction, 1 / step^DECAY, against the directions of the steps before."""


def diff_hammer(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    generator: torch.Generator,
    draws: int = 10,
    eps_step: float | None = None,
    max_iter: int = 50,
    clip_values: ClipValues = None,
) -> Tensor:
    """Return the points (N, ...) at which most draws miss, of descents in the balls around images ``x`` (N, ...).

    **Departure**: the authors descend by Auto-PGD and keep its best point; here the size of a step falls linearly, and
    the point is kept at which the smooth share of draws that name the label is least.

    Args:
        logits: one pass of the random network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to descend around each image.
        generator: source of the random starts.
        draws: passes at each point.
        eps_step: size of the first step in pixel values, from which the size falls linearly to zero; None for a quarter
            of the radius.
        max_iter: number of steps.
        clip_values: lowest and highest pixel value.
    """
    best = BestPoints(x)
    step_size = ball.eps / 4 if eps_step is None else eps_step
    points = into_range(x + ball.random_inside(x, generator), clip_values)
    direction = torch.zeros_like(x)
    for done in range(max_iter):
        losses, gradients = _draw(logits, points, y, draws)
        best.offer(points, _share_that_holds(losses))
        share = (done + 1) ** -DECAY
        direction = share * selective_gradient(losses, gradients, ball) + (1 - share) * direction
        step = step_size * (1 - done / max_iter) * ball.step(direction)
        points = ball.inside(points + step, x, clip_values)
    with torch.no_grad():
        losses = torch.stack([-margin(logits(points, y), y) for _ in range(draws)])
    best.offer(points, _share_that_holds(losses))
    return best.points


def selective_gradient(losses: Tensor, gradients: Tensor, ball: Ball) -> Tensor:
    """Return the gradient (N, ...) of the draws that one step of the ball's radius can break together.

    A direction r predicts the loss l_i + eps s(r) g_i of each draw, where s(r) is the steepest step of size one. Draws
    are weighted by the sigmoid of lambda times this loss, which is above a half for those that the step breaks, and the
    next direction is the weighted mean of the gradients, as in expectation maximisation. The first direction is the
    gradient of the draw whose step has the largest sum of ELU(l_i + eps s(r) g_i): draws that it cannot break cost it
    little.

    Args:
        losses: the negative margin of each draw (D, N), above zero for a draw that misses.
        gradients: its gradients (D, N, ...).
        ball: the ball.

    **Departure**: the authors' program leaves eps out of the weights, and computes each round from the first direction.
    """
    flat = gradients.flatten(2)  # (D, N, d)
    steps = torch.stack([ball.steepest(gradient) for gradient in gradients]).flatten(2)
    predicted = losses + ball.eps * torch.einsum("rnd,and->ran", steps, flat)  # (D directions, D draws, N)
    first = F.elu(predicted).sum(dim=1).argmax(dim=0)  # (N,)
    direction = gradients[first, torch.arange(len(first), device=first.device)]  # (N, ...)
    for _ in range(ROUNDS):
        step = ball.steepest(direction).flatten(1)
        weights = torch.sigmoid(SHARPNESS * (losses + ball.eps * (step * flat).sum(dim=2)))  # (D, N)
        weights = weights / weights.sum(dim=0).clamp_min(torch.finfo(weights.dtype).tiny)
        direction = torch.einsum("dn,dnp->np", weights, flat).reshape(direction.shape)
    return direction


def _draw(logits: Logits, points: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return the losses (D, N) of several passes and their gradients (D, N, ...)."""
    losses, gradients = [], []
    for _ in range(draws):
        live = points.detach().requires_grad_()
        loss = -margin(logits(live, y), y)
        gradients.append(gradient_of(loss, live))
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(gradients)


def _share_that_holds(losses: Tensor) -> Tensor:
    """Return a smooth share (N,) of the draws (D, N) that name the label."""
    return torch.sigmoid(-SHARPNESS * losses).mean(dim=0)


@dataclass(eq=False, repr=False)
class DiffHammer(BallAttack):
    """Descent along the gradient of the draws that one step can break together, for random defences.

    It makes its draws itself, so the network must be one pass: in :func:`evaluate`, which averages passes for all
    attacks, name it by the spec ``evaluation.suite.suites.DIFF_HAMMER``.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        draws: passes at each point.
        eps_step: size of the first step in pixel values; None for eps / 4.
        max_iter: number of steps.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    draws: Count = 10
    eps_step: Positive | None = None
    max_iter: Count = 50

    function = staticmethod(diff_hammer)
