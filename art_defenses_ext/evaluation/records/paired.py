"""Two models on the same images, image by image: the difference of their accuracies, its interval and its p value."""

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
    """Two runs on the same images, image by image.

    Attributes:
        both: images that are robust in both.
        gained: that are robust in the second alone.
        lost: that are robust in the first alone.
        neither: that are robust in none.
    """

    DERIVED = ("difference", "interval", "p_value")

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Count the verdicts on each image (N,) of both runs.

        Raises:
            InputError: for none, or different numbers of images.
        """
        if len(first) != len(second) or not first:
            raise RunError(f"the runs have {len(first)} and {len(second)} images; equally many were expected")
        counts = Counter(zip(map(bool, first), map(bool, second), strict=True))
        return cls(counts[True, True], counts[False, True], counts[True, False], counts[False, False])

    @property
    def total(self) -> int:
        """All images."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def difference(self) -> float:
        """Robust accuracy of the second minus that of the first, from -1 to 1."""
        return (self.gained - self.lost) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, which lies in [-1, 1].

        Source: Bonett, Price 2012 (Journal of Educational and Behavioral Statistics 37), the Wald interval after one
        image that was gained and one that was lost were added.
        """
        total, gained, lost = self.total + 2, self.gained + 1, self.lost + 1
        middle = (gained - lost) / total
        half = NORMAL * ((gained + lost) - (gained - lost) ** 2 / total) ** 0.5 / total
        return max(middle - half, -1.0), min(middle + half, 1.0)

    @property
    def p_value(self) -> float:
        """The p value of McNemar's exact test: the chance of so uneven a difference, were the runs equally good."""
        differing = self.gained + self.lost
        return float(binomtest(self.gained, differing).pvalue) if differing else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
