"""Pixels as shares of the clip range, from 0 to 1: the unit of all that is learnt or measured."""

from __future__ import annotations

from torch import Tensor

Range = tuple[float, float]
"""Least and largest pixel value."""


def as_shares(x: Tensor, clip_values: Range) -> Tensor:
    """Pixels (N, ...) in the clip range as shares of it; of [0, 1] the pixels themselves."""
    low, high = clip_values
    return x if (low, high) == (0, 1) else (x - low) / (high - low)


def from_shares(shares: Tensor, clip_values: Range) -> Tensor:
    """Pixels in the clip range from shares (N, ...) of it; of [0, 1] the shares themselves."""
    low, high = clip_values
    return shares if (low, high) == (0, 1) else low + (high - low) * shares
