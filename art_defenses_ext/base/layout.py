"""The channel axis of images: first, as in torch, or last, as with ART's ``channels_first=False``."""

from __future__ import annotations

from collections.abc import Sequence

from art.estimators.classification import PyTorchClassifier
from torch import Tensor

COLOURS = (1, 3, 4)
"""Usual numbers of channels: grey, colours, colours and opacity."""


def channels_to_front(x: Tensor) -> Tensor:
    """Return images (N, H, W, C) as (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def channels_to_back(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def has_channels_behind(classifier: PyTorchClassifier) -> bool:
    """Return whether the images of ``classifier`` are (H, W, C)."""
    return not classifier.channels_first and len(classifier.input_shape) == 3


def shape_with_channels_in_front(classifier: PyTorchClassifier) -> tuple[int, ...]:
    """Return the shape of an image as (C, H, W); unchanged for another number of axes."""
    shape = tuple(classifier.input_shape)
    return (shape[2], *shape[:2]) if has_channels_behind(classifier) else shape


def contradiction(shape: Sequence[int], channels_first: bool) -> str | None:
    """Return an error message if an image's shape contradicts ``channels_first``, else None."""
    if len(shape) != 3:
        return None
    front, back = (_is_of_channels(shape[axis], [*shape[:axis], *shape[axis + 1 :]]) for axis in (0, 2))
    if front in (back, channels_first):
        return None
    right = "first" if front else "last"
    return (
        f"input_shape {tuple(shape)} and channels_first {channels_first}, which contradict each other; "
        f"channels_first={front} was expected for images with the channels {right}"
    )


def _is_of_channels(nb_channels: int, sides: Sequence[int]) -> bool:
    """Return whether an axis of this length beside two ``sides`` can only be the channel axis."""
    return nb_channels in COLOURS and min(sides) > max(COLOURS) and (nb_channels > 1 or sides[0] == sides[1])
