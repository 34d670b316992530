"""An attack of one's own, in a package of its own: SimBA, a random search over single pixel values.

    pip install examples/custom_attack
    art-defenses evaluate --dataset digits --attacks standard+simba --eps 0.1

Source: Guo et al. 2019, "Simple Black-box Adversarial Attacks" (arXiv:1905.07121), algorithm 1 in the pixel basis.
**Departure**: a pixel value may be tried again, and points are projected to the ball of any norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext import AttackSpec
from art_defenses_ext.attack.ball import Ball, ClipValues
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, margin
from art_defenses_ext.base.declared import Count


@torch.no_grad()
def simba(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    max_queries: int,
    clip_values: ClipValues,
    generator: torch.Generator,
) -> Tensor:
    """Images (N, ...) in the balls around ``x`` (N, ...): single pixel values moved by eps where the margin falls."""
    best = BestPoints(x)
    best.offer(x, margin(logits(x, y), y))
    for _ in range(max_queries // 2):
        pixels = torch.randint(x[0].numel(), (len(x),), generator=generator, device=x.device)
        step = ball.eps * F.one_hot(pixels, x[0].numel()).to(x.dtype).reshape(x.shape)
        for moved in (best.points + step, best.points - step):
            points = ball.inside(moved, x, clip_values)
            best.offer(points, margin(logits(points, y), y))
    return best.points


@dataclass(eq=False, repr=False)
class SIMBA(BallAttack):
    """SimBA in ART's interface."""

    max_queries: Count = 1000

    function = staticmethod(simba)


def build(classifier: PyTorchClassifier, threat: Ball, seed: int) -> SIMBA:
    """The attack on a classifier in a threat's ball."""
    return SIMBA(classifier, threat.norm, threat.eps, seed=seed)


SPEC = AttackSpec("SimBA", build, "black-box: single pixel values, 1,000 queries", kind="queries")
