"""Gradient checkpointing for defences of many steps, such as iterated purification.

Source: Chen, Xu, Zhang, Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from art_defenses_ext.base.errors import InputError

Argument = TypeVar("Argument")


def checkpoint_steps(step: Callable[[Tensor, Argument], Tensor], x: Tensor, arguments: Iterable[Argument]) -> Tensor:
    """Apply a step once for each argument; the backward pass computes each step again instead of keeping it.

    Memory holds the activations of one step, and of each other step its input images alone. Values and gradients, also
    second derivatives, are those of a plain loop; each step costs one more forward pass. The second pass of a step
    draws the same random numbers from torch's global generators, and leaves these as they were.

    Args:
        step: a differentiable function of images (N, ...) and one argument, such as a time; it may be random, by
            torch's global generators. What changes it between the passes, such as a ``torch.Generator`` of its own or
            another gradient mode, makes the gradient that of another function: run the backward pass under the
            gradient mode of the forward pass, as all attacks do.
        x: the first step's images (N, ...).
        arguments: the steps' arguments, in the order of the steps.

    Returns:
        The last step's images; ``x`` without any step.

    Raises:
        InputError: for a step that is not callable.

    Source: Chen, Xu, Zhang, Guestrin 2016 (arXiv:1604.06174), with a segment for each step. **Convention**: memory
    grows with the number of steps by one batch of images, not by the square root of the activations.

    >>> import torch
    >>> from art_defenses_ext import checkpoint_steps
    >>> def denoise(x, time):
    ...     return x - 0.1 * time * torch.tanh(x + 0.01 * torch.randn_like(x))
    >>> x = torch.linspace(-1, 1, 5).requires_grad_()
    >>> checkpoint_steps(denoise, x, reversed(range(1, 10))).shape
    torch.Size([5])
    """
    if not callable(step):
        raise InputError(f"step is a {type(step).__name__}; a function of images and an argument was expected")
    for argument in arguments:
        if torch.is_grad_enabled():
            x = checkpoint(step, x, argument, use_reentrant=False, preserve_rng_state=True)
        else:
            x = step(x, argument)
    return x
