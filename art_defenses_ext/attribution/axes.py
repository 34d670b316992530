"""Where an axis of an operation's input is in its output, such as the axis of the images.

A size does not tell: a transformer may hold its tokens as (L, N, E), and L may equal N. The answer here depends on the
operation alone, and so is the same for any number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """An axis, which reshapes may merge with its neighbours.

    Attributes:
        place: its place in the shape.
        outer: product of the sizes of the axes that were merged with it from before.
        inner: the same of those from behind.
    """

    place: int
    outer: int = 1
    inner: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is an axis by itself."""
        return self.outer == self.inner == 1


Follow = Callable[[Tensor, Tensor, Axis], Axis | None]
"""From an operation's input, its output and an axis of the input to that of the output; None where there is none."""


def aligned(input: Tensor, output: Tensor, axis: Axis) -> Axis | None:
    """Follow an axis through an operation that keeps the order of axes, counted from the last as in broadcasting."""
    place = axis.place + output.ndim - input.ndim
    return axis._replace(place=place) if place >= 0 and output.shape[place] == input.shape[axis.place] else None


def reshaped(input: Tensor, output: Tensor, axis: Axis) -> Axis | None:
    """Follow an axis through a reshape: as long as before, after as many values as before."""
    if 0 in input.shape:
        return None  # no image, or no value
    before = input.shape[: axis.place].numel() * axis.outer
    size = input.shape[axis.place] // (axis.outer * axis.inner)
    found = []
    for place, total in enumerate(output.shape):
        outer, rest = divmod(before, output.shape[:place].numel())
        if rest == 0 and outer > 0 and total % (outer * size) == 0:
            found.append(Axis(place, outer, total // (outer * size)))
    # An axis of one image could be anywhere between its neighbours: it is by itself if it can be.
    return next((axis for axis in found if axis.is_whole), found[0] if found else None)


def moved(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Follow:
    """Follow an axis through a view: what grows by one if the axis does. Tensors without values are enough for that."""

    def follow(input: Tensor, output: Tensor, axis: Axis) -> Axis | None:
        if _holds_tensor((*args, *kwargs.values())):
            return aligned(input, output, axis) if input.ndim == output.ndim else None
        longer = [size + (place == axis.place) for place, size in enumerate(input.shape)]
        try:
            sizes = function(torch.empty(longer, device="meta"), *args, **kwargs).shape
        except RuntimeError:  # the arguments name the very sizes, as those of expand do
            return aligned(input, output, axis)
        grown = [place for place, pair in enumerate(zip(sizes, output.shape, strict=True)) if pair[0] != pair[1]]
        same = len(grown) == 1 and output.shape[grown[0]] == input.shape[axis.place]
        return axis._replace(place=grown[0]) if same else None

    return follow


def stacked(dim: int) -> Follow:
    """Follow an axis through a stack of tensors along a new axis ``dim``."""
    return lambda input, output, axis: axis._replace(place=axis.place + (axis.place >= dim % output.ndim))


def lettered(equation: str, operands: Sequence[Tensor]) -> Follow:
    """Follow an axis through an einsum, by its letter."""
    terms, _, result = equation.replace(" ", "").partition("->")

    def follow(input: Tensor, output: Tensor, axis: Axis) -> Axis | None:
        place = next(place for place, operand in enumerate(operands) if operand is input)
        letter = "" if "." in equation else terms.split(",")[place][axis.place]
        return axis._replace(place=result.index(letter)) if letter and letter in result else None

    return follow


def followed(step: Any, axes: dict[int, Axis]) -> Axis | None:
    """Return the axis in the output of a step, given those of earlier tensors, by their id."""
    for tensor in step.inputs:
        axis = axes.get(id(tensor))
        reached: Axis | None = None if axis is None else step.follow(tensor, step.output, axis)
        if reached is not None:
            return reached
    return None


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))
