"""Formats of the numbers in a report."""

from __future__ import annotations

import math
import re

from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.report.sections import NO_BREAK

MISSING = "-"
"""The cell of a missing number."""


def percent(share: Proportion | None) -> str:
    """Return a share in per cent without the unit, ``"26.7"``."""
    return MISSING if share is None else f"{100 * share.rate:.1f}"


def percentage(share: Proportion | None) -> str:
    """Return a share in per cent on one line, ``"26.7 %"``."""
    return MISSING if share is None else f"{percent(share)}{NO_BREAK}%"


def interval(share: Proportion) -> str:
    """Return the 95 % interval of a share in per cent, ``"[22.0, 31.9]"``."""
    low, high = share.interval
    return f"[{100 * low:.1f},{NO_BREAK}{100 * high:.1f}]"


def with_interval(share: Proportion) -> str:
    """Return a share in per cent with its interval, ``"26.7 % [22.0, 31.9]"``."""
    return f"{percentage(share)} {interval(share)}"


def mean_with_interval(mean: Mean) -> str:
    """Return a mean with its interval, ``"0.412 [0.300, 0.530]"``."""
    low, high = mean.interval
    return f"{mean.mean:.3f}{NO_BREAK}[{low:.3f},{NO_BREAK}{high:.3f}]"


def count_of(share: Proportion) -> str:
    """Return a share as counts on one line, ``"52 of 251"``."""
    return f"{share.count}{NO_BREAK}of{NO_BREAK}{share.total}"


def points(gap: float) -> str:
    """Return a difference of two accuracies on one line, ``"62.0 points"``."""
    return f"{100 * gap:.1f}{NO_BREAK}points"


def at_most_points(bound: float) -> str:
    """Return a bound on a difference of two accuracies, rounded upwards."""
    return points(math.ceil(round(1000 * bound, 6)) / 1000)


def images(count: int) -> str:
    """Return a number of images on one line."""
    return f"{count}{NO_BREAK}image{'' if count == 1 else 's'}"


def fraction(value: float | None, digits: int) -> str:
    """Return a number between 0 and 1 with this many digits."""
    return MISSING if value is None else f"{value:.{digits}f}"


def amount(value: float) -> str:
    """Return a number of passes or seconds, rounded for reading."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def size(value: float | None) -> str:
    """Return the size of a perturbation."""
    return MISSING if value is None else f"{value:.3g}"


def unbroken(text: str) -> str:
    """Return a text with ``"3 of 20"`` and ``"90 %"`` kept on one line."""
    return re.sub(r"(?<=\d) of (?=\d)|(?<=\d) (?=%)", lambda match: match[0].replace(" ", NO_BREAK), text)
