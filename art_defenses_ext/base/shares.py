"""Pixels as fractions of the clip range, from 0 to 1: the unit of training and of restorers."""

from __future__ import annotations

from torch import Tensor

Range = tuple[float, float]
"""Minimum and maximum pixel value."""


def as_shares(x: Tensor, clip_values: Range) -> Tensor:
    """Return pixels (N, ...) as fractions of the clip range; for [0, 1] the pixels themselves."""
    low, high = clip_values
    return x if (low, high) == (0, 1) else (x - low) / (high - low)


def from_shares(shares: Tensor, clip_values: Range) -> Tensor:
    """Return pixels from fractions (N, ...) of the clip range; for [0, 1] the fractions themselves."""
    low, high = clip_values
    return shares if (low, high) == (0, 1) else low + (high - low) * shares
