"""Proportions and means over samples with confidence intervals, of which the figures of an evaluation consist."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from scipy.stats import binomtest

from art_defenses_ext.evaluation.records import bounded_mean


def plain(value: Any) -> Any:
    """Return a figure as plain data for JSON: a dataclass's fields, and the properties that it lists as ``DERIVED``."""
    if is_dataclass(value):
        names = [*(each.name for each in fields(value)), *getattr(value, "DERIVED", ())]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@lru_cache(maxsize=10_000)
def _wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval, kept, since scipy also computes a p-value, which takes a millisecond."""
    low, high = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Proportion:
    """A proportion of samples.

    Attributes:
        count: number of samples with the property.
        total: number of all samples, at least one.
    """

    DERIVED = ("rate", "interval")

    count: int
    total: int

    @property
    def rate(self) -> float:
        """The share, from 0 to 1."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the share."""
        return _wilson(self.count, self.total)

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Proportion:
        """Return the proportion of true values."""
        listed = list(verdicts)
        return cls(sum(listed), len(listed))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class Mean:
    """The mean over samples of values between 0 and 1.

    Attributes:
        mean: the mean.
        deviation: the standard deviation over the samples.
        total: number of samples, at least one.
        interval: 95 % confidence interval of the mean (``bounded_mean.py``), from 0 to 1. It has a width even if all
            samples are equal.
    """

    mean: float
    deviation: float
    total: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Return the mean of values from 0 to 1, at least one."""
        listed = list(values)
        return cls(fmean(listed), pstdev(listed), len(listed), bounded_mean.interval(np.array(listed, dtype=float)))
