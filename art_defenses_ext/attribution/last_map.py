"""The start ``"last_conv"``: the last convolution's output in a recorded pass, or that of all blocks that follow.

A step counts if relevance from the logits reaches it, since the others bear no evidence: neither the gate of a squeeze
and excitation, which weights a map, nor attention weights that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_defenses_ext.attribution.axes import Axis, followed
from art_defenses_ext.attribution.trace import Step
from art_defenses_ext.base.errors import AttributionError


def last_map(steps: list[Step], x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tensor of the pass where relevance starts, and its relevance.

    Args:
        steps: the steps of the pass, in their order.
        x: its input (N, ...).
        logits: its output.

    Raises:
        InputError: where no convolution is on the way.
    """
    steps = _towards(logits, steps)
    images = _axes(steps, x, Axis(0))
    layers = [step for step in steps if step.layer is not None and step.layer.kind != "scale"]
    with_places = [step for step in layers if _has_places(step, images)]
    convolutions = _convolutions(with_places) or _convolutions(layers)  # of a tiny image none may have several places
    if not convolutions:
        raise AttributionError("start is 'last_conv', but no convolution ran on the way to the logits")
    if not with_places or with_places[-1] is convolutions[-1]:
        return convolutions[-1].output, convolutions[-1].output.clamp(min=0)
    output = next(step.output for step in reversed(steps) if _has_places(step, images))
    last = Axis(with_places[-1].output.ndim - 1)  # of a dense layer, whose units it holds
    units = _axes(steps, with_places[-1].output, last).get(id(output), Axis(output.ndim - 1))
    nb_patches = convolutions[-1].output.shape[2:].numel()
    others = set(range(output.ndim)) - {images[id(output)].place, units.place}
    return output, output.clamp(min=0) * _of_patches(output, others, nb_patches)


def _towards(logits: Tensor, steps: list[Step]) -> list[Step]:
    """Return the steps through which relevance from the logits goes."""
    wanted, kept = {id(logits)}, []
    for step in reversed(steps):
        if id(step.output) in wanted:
            wanted.update(map(id, step.inputs))
            kept.append(step)
    return kept[::-1]


def _axes(steps: list[Step], tensor: Tensor, axis: Axis) -> dict[int, Axis]:
    """Return where an axis of ``tensor`` is in each output that keeps it, by the output's id."""
    axes = {id(tensor): axis}
    for step in steps:
        if (reached := followed(step, axes)) is not None:
            axes[id(step.output)] = reached
    return axes


def _convolutions(layers: list[Step]) -> list[Step]:
    return [step for step in layers if step.layer is not None and step.layer.kind == "convolution"]


def _has_places(step: Step, images: dict[int, Axis]) -> bool:
    """Return whether a step gives several places for each image, each with several numbers."""
    axis = images.get(id(step.output))
    sizes = [size for place, size in enumerate(step.output.shape) if axis is not None and place != axis.place]
    return axis is not None and axis.is_whole and sum(size > 1 for size in sizes) > 1


def _of_patches(output: Tensor, axes: set[int], nb_patches: int) -> Tensor | int:
    """Return 1 for the tokens, along the one axis, that patches made, and 0 for others, which come first."""
    if output.ndim != 3 or len(axes) != 1:
        return 1
    (axis,) = axes
    tokens = torch.arange(output.shape[axis], device=output.device)
    return (tokens >= len(tokens) - nb_patches).reshape([-1 if place == axis else 1 for place in range(3)])
