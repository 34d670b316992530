"""Operations between a network's input and its first layer with weights, usually a normalisation.

A normalisation may be outside the network, its first module, or in its ``forward``. Code that depends on the first
layer's input uses this module, so that all three are equivalent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from art_defenses_ext.attribution.linear_map import LinearMap
from art_defenses_ext.attribution.operations import Back
from art_defenses_ext.attribution.trace import Trace
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import as_model_input, evaluation_mode


class Entrance(NamedTuple):
    """The input of the first layer with weights.

    Attributes:
        values: values for each image (n, ...).
        elementwise: whether each value that depends on the image is a monotonic function of a single value of it, or an
            average of such.
    """

    values: Tensor
    elementwise: bool


class Normalisation(NamedTuple):
    """The normalisation (x - mean) / std before the first layer, per channel.

    Attributes:
        mean: mean (C,), by least squares.
        std: standard deviation (C,), below zero for an inverted channel.
    """

    mean: Tensor
    std: Tensor


def entrance(model: nn.Module, x: Tensor, softplus: float | None = None) -> Entrance | None:
    """Return the input of the first layer with weights of ``model`` for the images ``x`` (n, ...).

    The network runs up to this layer only.

    Args:
        model: any network; it runs in evaluation mode.
        x: its input.
        softplus: as for :func:`.relevance`.

    Returns:
        The values, without a gradient; None if the first layer's input is ``x`` itself.

    Raises:
        InputError: for a network whose first layer cannot be found, or with an operation before it that
            :mod:`.trace` does not support.
    """
    trace = _UpToFirstLayer(as_model_input(x, model), model, softplus, 0.0)
    try:
        with torch.no_grad(), evaluation_mode(model), trace:
            model(trace.x)
    except _Reached as reached:
        return None if reached.values is trace.x else Entrance(reached.values, trace.elementwise)
    raise InputError("the model has no layer with weights that its input could be followed to")


def normalisation_of(model: nn.Module, low: Tensor, high: Tensor, channel: int = 0) -> Normalisation | None:
    """Return the normalisation inside a network, before its first layer.

    Args:
        model: the network.
        low: an image in the format of the network's input, with the minimum pixel value everywhere.
        high: an image with the maximum pixel value everywhere.
        channel: channel axis of an image.

    Returns:
        The normalisation, in the units of the network's input; None if there is none or it cannot be computed.
    """
    nb_channels = low.shape[channel]
    is_channel = torch.eye(nb_channels, dtype=torch.bool, device=low.device)
    mask = is_channel.reshape(nb_channels, *(nb_channels if axis == channel else 1 for axis in range(low.ndim)))
    corners = torch.cat([low[None], torch.where(mask, high, low)])  # (C + 1, ...)
    try:
        reached = entrance(model, corners)
    except InputError:
        return None
    if reached is None:
        return None
    values = reached.values.flatten(1).double()
    rise = (values[1:] - values[0]).T  # (D, C)
    share = torch.linalg.lstsq(rise, -values[0][:, None]).solution.squeeze(1)  # of the way from low to high
    touched = (rise != 0).sum(dim=0)
    ends = [end.movedim(channel, 0).flatten(1).double().mean(dim=1) for end in (low, high)]
    slope = rise.sum(dim=0) / touched / (ends[1] - ends[0])
    mean = ends[0] + share * (ends[1] - ends[0])
    if not bool((touched > 0).all() and (slope != 0).all() and mean.isfinite().all()):
        return None
    return Normalisation(mean.to(low.dtype), (1 / slope).to(low.dtype))


class _Reached(BaseException):
    """Ends a forward pass at its first layer; not an ``Exception``, which a ``forward`` might catch."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values


class _UpToFirstLayer(Trace):
    """A recorded pass that ends before the first layer with weights."""

    elementwise = True

    def linear(self, a: Tensor, layer: LinearMap, z: Tensor) -> Tensor:
        if layer.kind != "scale":  # a batch norm in front is a normalisation
            raise _Reached(a)
        return super().linear(a, layer, z)

    def step(self, inputs: Any, output: Tensor, back: Back, *, monotonic: bool = True, **kinds: Any) -> Tensor:
        self.elementwise = self.elementwise and monotonic
        return super().step(inputs, output, back, **kinds)
