"""Uniform noise in the ball: a control. What noise breaks, no gradient was needed for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import NormName
from art_defenses_ext.attack.base import BestPoints, TensorAttack
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.base.declared import Count, Positive


@dataclass(eq=False, repr=False)
class RandomNoise(TensorAttack):
    """The best of many uniform draws from the ball, judged by the margin.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2.
        eps: radius of the ball, in pixel values.
        nb_draws: draws per image.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705), section 4.3: gradient
    attacks must beat random noise.
    """

    norm: NormName = "linf"
    eps: Positive = 0.3
    nb_draws: Count = 100

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        best = BestPoints(x)
        for _ in range(self.nb_draws):
            drawn = self.clip(x + self.geometry(self.eps).random_inside(x, generator))
            with torch.no_grad():
                best.offer(drawn, margin(self.logits(module, drawn, y), y))
        return best.points
