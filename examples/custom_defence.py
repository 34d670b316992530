"""A defence of one's own, from scratch, attacked: rounding to a few grey levels on scikit-learn's digits.

    python examples/custom_defence.py

Rounding has a derivative of zero, so an attacker who follows it finds nothing. It names a second backward pass, and the
ladder tries both: the first report is the naive attacker's, the second what survives.
"""

from __future__ import annotations

import torch

from art_defenses_ext import Linf, defend, evaluate
from art_defenses_ext.preprocessor.base import RestoringPreprocessor
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset


class GreyLevels(RestoringPreprocessor):
    """Pixels rounded to ``levels`` values."""

    name = "grey_levels"
    gradient_modes = ("exact", "identity")
    params = ["levels", *RestoringPreprocessor.params]  # noqa: RUF012 (as ART's preprocessors name their own)

    def __init__(self, model: torch.nn.Module, *, levels: int = 4, **options: object) -> None:
        self.levels = levels
        super().__init__(model, **options)  # type: ignore[arg-type]

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.clip_values
        return ((x - low) / (high - low) * (self.levels - 1)).round() / (self.levels - 1) * (high - low) + low


if __name__ == "__main__":
    digits = load_dataset("digits")
    classifier = load_classifier(digits)
    defended = defend(classifier, GreyLevels.for_classifier(classifier))
    for adaptive in (False, True):
        print(evaluate(defended, digits.test.x[:100], digits.test.y[:100], Linf(0.1), adaptive=adaptive), "\n")
