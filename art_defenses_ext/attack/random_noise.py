"""Uniform noise in the ball, as a control: an image that noise breaks needs no gradient.

Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705), section 4.3: gradient attacks
must beat random noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from art_defenses_ext.attack.ball import Ball, ClipValues, into_range
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, margin
from art_defenses_ext.base.declared import Count


@torch.no_grad()
def random_noise(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    generator: torch.Generator,
    nb_draws: int = 100,
    clip_values: ClipValues = None,
) -> Tensor:
    """Return the points of lowest margin (N, ...) among uniform draws from the balls around images ``x`` (N, ...).

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to draw around each image.
        generator: source of the draws.
        nb_draws: number of draws per image.
        clip_values: lowest and highest pixel value.
    """
    best = BestPoints(x)
    for _ in range(nb_draws):
        points = into_range(x + ball.random_inside(x, generator), clip_values)
        best.offer(points, margin(logits(points, y), y))
    return best.points


@dataclass(eq=False, repr=False)
class RandomNoise(BallAttack):
    """The point of lowest margin among uniform draws from the ball.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        nb_draws: number of draws per image.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    nb_draws: Count = 100

    function = staticmethod(random_noise)
