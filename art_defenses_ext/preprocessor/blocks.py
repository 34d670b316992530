"""Blocks of pixels as channels, which enlarge the receptive field of small networks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def to_blocks(x: Tensor, side: int) -> Tensor:
    """Return (N, C, H, W) as (N, C side^2, ceil(H / side), ceil(W / side)), padded by repeated edge pixels."""
    missing = [-length % side for length in x.shape[2:]]
    padded = functional.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
    return functional.pixel_unshuffle(padded, side)


def from_blocks(x: Tensor, side: int, like: Tensor) -> Tensor:
    """Return images of the size of ``like``, the inverse of :func:`to_blocks`."""
    return functional.pixel_shuffle(x, side)[:, :, : like.shape[2], : like.shape[3]]
