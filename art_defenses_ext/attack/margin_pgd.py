"""Projected gradient descent on the logit margin, with random starts.

Source: Madry et al. 2018 (arXiv:1706.06083) for the descent; Carlini, Wagner 2017 (arXiv:1608.04644), f6, for the
margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from art_defenses_ext.attack.ball import Ball, ClipValues, into_range
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, gradient_of, margin
from art_defenses_ext.base.declared import Count, Flag, Positive

PERIOD = 5  # number of steps between two searches for broken images, which wait for the device


def margin_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    generator: torch.Generator,
    eps_step: float | None = None,
    max_iter: int = 40,
    nb_starts: int = 1,
    stop_when_broken: bool = True,
    clip_values: ClipValues = None,
) -> Tensor:
    """Return the points of lowest margin (N, ...) of descents in the balls around images ``x`` (N, ...).

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to descend around each image.
        generator: source of the random starts.
        eps_step: step size in pixel values; None for a quarter of the radius.
        max_iter: number of steps per start.
        nb_starts: number of random starts, uniform in the ball.
        stop_when_broken: stop at an image once it is misclassified.
        clip_values: lowest and highest pixel value.
    """
    best = BestPoints(x)
    step_size = ball.eps / 4 if eps_step is None else eps_step
    for _ in range(nb_starts):
        rows = torch.arange(len(x), device=x.device)
        if stop_when_broken:
            rows = rows[best.margins >= 0]
        if len(rows) == 0:
            break
        points = into_range(x[rows] + ball.random_inside(x[rows], generator), clip_values)
        for done in range(max_iter):
            points = points.detach().requires_grad_()
            margins = margin(logits(points, y[rows]), y[rows])
            gradient = gradient_of(margins, points)
            points = points.detach()
            best.offer(points, margins.detach(), rows)
            if stop_when_broken and done % PERIOD == PERIOD - 1:
                kept = (best.margins[rows] >= 0).nonzero().squeeze(1)  # the only wait
                rows, points, gradient = rows[kept], points[kept], gradient[kept]
                if len(rows) == 0:
                    return best.points
            points = ball.inside(points - step_size * ball.step(gradient), x[rows], clip_values)
        with torch.no_grad():
            best.offer(points, margin(logits(points, y[rows]), y[rows]), rows)
    return best.points


@dataclass(eq=False, repr=False)
class MarginPGD(BallAttack):
    """Descent of the margin inside a ball from random starts; it returns the point of lowest margin.

    The margin is z_y minus the largest other logit. Unlike the cross-entropy it does not saturate, and it is negative
    exactly if the image is misclassified.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        eps_step: step size in pixel values; None for eps / 4.
        max_iter: number of steps per start.
        nb_starts: number of random starts, uniform in the ball.
        stop_when_broken: stop at an image once it is misclassified. False descends further, for transfer.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    eps_step: Positive | None = None
    max_iter: Count = 40
    nb_starts: Count = 1
    stop_when_broken: Flag = True

    function = staticmethod(margin_pgd)
