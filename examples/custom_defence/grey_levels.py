"""A defence of one's own, from scratch and in a package of its own: rounding to a few grey levels.

    pip install examples/custom_defence
    art-defenses evaluate --dataset digits --defence grey_levels -o levels=3 --eps 0.1

Rounding has a derivative of zero, so an attacker who follows it finds nothing. The defence names a second backward
pass, and the suite tries both; with --naive the attacker gets the first alone.
"""

from __future__ import annotations

from typing import Annotated

import torch

from art_defenses_ext.base.declared import integer
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.preprocessor.base import RestoringPreprocessor


class GreyLevels(RestoringPreprocessor):
    """Pixels rounded to ``levels`` values."""

    name = "grey_levels"
    title = "Grey levels: pixels rounded to a few values"
    gradient_modes = ("exact", "identity")
    levels: Annotated[int, integer(2)] = 4

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.clip_values
        return ((x - low) / (high - low) * (self.levels - 1)).round() / (self.levels - 1) * (high - low) + low

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        return (PaperAttack("PGD-10, gray-box", "pgd", {"max_iter": 10, "eps_step": 0.25}),)
