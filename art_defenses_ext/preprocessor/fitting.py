"""The images of a fit: held-out images, batches, and the names of their kinds."""

from __future__ import annotations

import torch
from torch import Tensor

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.training.inputs import TrainingInput
from art_defenses_ext.training.loop import Data


def check_batches(nb_images: int, batch_size: int, nb_kinds: int) -> None:
    """Refuse batches with fewer images than there are kinds of them.

    Raises:
        InputError: for such a batch size.
    """
    nb_least = nb_images // -(-nb_images // batch_size)
    if nb_least < nb_kinds:
        raise InputError(
            f"batch_size is {batch_size}, which makes batches of {nb_least} of {nb_images} images; at least as "
            f"many as the {nb_kinds} kinds of inputs were expected"
        )


def largest_batch(nb_images: int, batch_size: int) -> int:
    """Return the number of images of the largest batch, since the sizes of an epoch's batches are even."""
    return -(-nb_images // -(-nb_images // batch_size))


def name_of(kind: str | TrainingInput) -> str:
    """Return the name of a kind of inputs, without a memory address, so that it is the same in each process."""
    name = str(getattr(kind, "__qualname__", kind))
    return type(kind).__qualname__ if " at 0x" in name else name


def split(images: Tensor, labels: Tensor, share: float, seed: int) -> tuple[Data, Data | None]:
    """Return images and labels to train on, and those held out; None for a share of 0.

    Raises:
        InputError: if the share holds out no image.
    """
    if share == 0:
        return (images, labels), None
    count = int(share * len(images))
    if count == 0:
        raise InputError(
            f"x has {len(images)} images, of which a validation_split of {share:g} holds out none; more images, a "
            "larger share, or 0 for no validation was expected"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[:count].sort().values, order[count:].sort().values
    return (images[kept], labels[kept]), (images[held_out], labels[held_out])
