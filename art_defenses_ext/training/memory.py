"""The memory of a training step, counted on two images before the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.memory import available_memory, in_words

Loss = Callable[[int], Tensor]
"""Number of images -> the loss to differentiate, of so many."""


def check_step(loss: Loss, count: int, device: torch.device) -> None:
    """Refuse batches whose values for the backward pass do not fit into the memory of a device.

    Args:
        loss: the loss of one and of two images.
        count: number of images of the largest batch.
        device: the device of the step.

    Raises:
        InputError: that names the largest batch that fits.
    """
    one, two = (peak_of_saved(partial(loss, images)) for images in (1, 2))
    each = two - one  # without the weights, which do not grow with the batch
    available = available_memory(device)
    if available is not None and count * each > available:
        largest = available // each
        expected = f"at most {largest}" if largest else "smaller images or a smaller network"
        raise InputError(
            f"batch_size makes batches of {count} images, and a training step takes at least {in_words(count * each)}, "
            f"{in_words(each)} for each image, of {in_words(available)} available on {device}; {expected} was expected"
        )


def peak_of_saved(compute: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass of a result, at the moment when they are most.

    A lower bound of the memory of a forward pass and its gradient: results that no gradient needs and the buffers of
    an operation come on top. Tensors that share a storage count once.
    """
    kept = _Kept()
    with kept.counting():
        result = compute()
    del result
    return kept.peak


class _Kept:
    """The storages that autograd keeps, with the number of tensors in each."""

    def __init__(self) -> None:
        self.tensors: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def counting(self) -> AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)

    def add(self, storage: torch.UntypedStorage) -> None:
        self.tensors[storage.data_ptr()] += 1
        if self.tensors[storage.data_ptr()] == 1:
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)

    def remove(self, storage: torch.UntypedStorage) -> None:
        self.tensors[storage.data_ptr()] -= 1
        if self.tensors[storage.data_ptr()] == 0:
            self.bytes -= storage.nbytes()


class _Saved:
    """A tensor that autograd keeps; counted until autograd releases it."""

    def __init__(self, tensor: Tensor, kept: _Kept) -> None:
        self.tensor = tensor.detach()  # autograd attaches it again; the tensor itself would keep its own graph alive
        self.kept = kept
        kept.add(self.tensor.untyped_storage())

    def __del__(self) -> None:
        self.kept.remove(self.tensor.untyped_storage())
