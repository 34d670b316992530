"""The paired comparison of two models on the same images: difference of accuracies, its interval and p value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, norm

from art_defenses_ext.base.errors import RunError

NORMAL = float(norm.ppf(0.975))
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Paired:
    """The paired comparison of two runs on the same images.

    Attributes:
        both: number of images that are robust in both.
        gained: number of images that are robust in the second run only.
        lost: number of images that are robust in the first run only.
        neither: number of images that are robust in neither.
    """

    DERIVED = ("difference", "interval", "p_value")

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Count the images (N,) by whether they are robust in each run.

        Raises:
            InputError: without images, or for different numbers of images.
        """
        if len(first) != len(second) or not first:
            raise RunError(f"the runs have {len(first)} and {len(second)} images; equally many were expected")
        counts = Counter(zip(map(bool, first), map(bool, second), strict=True))
        return cls(counts[True, True], counts[False, True], counts[True, False], counts[False, False])

    @property
    def total(self) -> int:
        """The number of images."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def difference(self) -> float:
        """Robust accuracy of the second minus that of the first, from -1 to 1."""
        return (self.gained - self.lost) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, in [-1, 1].

        Source: Bonett, Price 2012 (Journal of Educational and Behavioral Statistics 37): the Wald interval with one
        gained and one lost image added.
        """
        total, gained, lost = self.total + 2, self.gained + 1, self.lost + 1
        middle = (gained - lost) / total
        half = NORMAL * ((gained + lost) - (gained - lost) ** 2 / total) ** 0.5 / total
        return max(middle - half, -1.0), min(middle + half, 1.0)

    @property
    def p_value(self) -> float:
        """The p value of McNemar's exact test: the probability of at least this difference between equal runs."""
        differing = self.gained + self.lost
        return float(binomtest(self.gained, differing).pvalue) if differing else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
