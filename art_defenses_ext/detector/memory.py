"""The memory of a detector's weights, estimated before allocation."""

from __future__ import annotations

import torch

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.memory import available_memory, in_words
from art_defenses_ext.detector.reconstructors import RECONSTRUCTORS, make_reconstructors

TRAINING_COPIES = 4
"""Copies of the weights in training: the weights, their gradients and Adam's two moments."""

DENSE_LIMIT = 4 * 2**30
"""Maximum number of bytes in training for which the dense autoencoders are the default."""


def usual_reconstructor(nb_classes: int, map_shape: tuple[int, int, int], hidden: int) -> str:
    """Return the default: the authors' dense autoencoders, or a convolutional one if they are too large.

    **Convention**: the limit is a constant, not the memory of the machine, so that a call makes the same detector on
    every machine. A thousand classes fit at 32 pixels, ten at 224.
    """
    dense = TRAINING_COPIES * weight_bytes("autoencoder", nb_classes, map_shape, hidden)
    return "autoencoder" if dense <= DENSE_LIMIT else "convolutional"


def weight_bytes(reconstructor: str, nb_classes: int, map_shape: tuple[int, int, int], hidden: int) -> int:
    """Return the bytes of the weights of a reconstructor for maps (M, H, W), without allocating them."""
    with torch.device("meta"):
        weights = make_reconstructors(reconstructor, nb_classes, map_shape, hidden).state_dict()
    return sum(tensor.nbytes for tensor in weights.values())


def check_memory(
    reconstructor: str,
    nb_classes: int,
    map_shape: tuple[int, int, int],
    hidden: int,
    device: torch.device,
    copies: int = 1,
) -> None:
    """Refuse weights of which ``copies`` copies do not fit into the memory of a device.

    Raises:
        InputError: that names a smaller reconstructor, if there is one.
    """
    options = nb_classes, map_shape, hidden
    weights, available = weight_bytes(reconstructor, *options), available_memory(device)
    if available is None or copies * weights <= available:
        return
    training = "" if copies == 1 else f", and {in_words(copies * weights)} while they are trained"
    others = [kind for kind in RECONSTRUCTORS if copies * weight_bytes(kind, *options) <= available]
    smaller = " or ".join(f"reconstructor={kind!r}" for kind in others) or "a smaller hidden"
    raise InputError(
        f"reconstructor is {reconstructor!r}, whose weights for {nb_classes} classes take "
        f"{in_words(weights)}{training}, of {in_words(available)} available on {device}; {smaller} was expected"
    )
