"""Activations other than the ReLU, as operations of a recorded forward pass.

An elementwise function y = f(z) passes relevance unchanged, R_in = R_out: each output has one input, which takes all of
it (the identity rule). *Source*: Bach et al. 2015 (doi:10.1371/journal.pone.0130140), Achtibat et al.
2024 (arXiv:2402.05602).

**Convention**: a sigmoid, a hard sigmoid and 1 / sqrt(z) are gates: multiplied with a signal they count as its
weight (:mod:`.operations`). They pass relevance as any activation where no signal is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.operations import (
    HANDLERS,
    IN_PLACE,
    Handler,
    Notes,
    each_named,
    handles,
    pass_on,
    smooth_relu,
)
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.estimator.rebuild import at_least_float32


def _elementwise(function: Callable[..., Tensor], *, nonnegative: bool = False, gate: bool = False) -> Handler:
    """Return the handler of an elementwise function; the input is copied, since the function may write to it."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input.clone(), *map(note.without_parameters, args), **kwargs)
        return note.step([input], output, pass_on, nonnegative=nonnegative, gate=gate, monotonic=gate)

    return handler


def _kinked(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of a leaky ReLU r, which is linear on either side of zero: r(z) = r(relu(z)) + r(-relu(-z)).

    Where a softplus replaces the ReLU, it replaces both, and relevance passes as gradient times input, as for a ReLU.
    """
    exact = _elementwise(function)

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        beta = note.softplus
        if beta is None:
            written: Tensor = exact(note, input, *args, **kwargs)
            return written
        arguments = list(map(note.without_parameters, args))
        slope = -function(-torch.ones_like(input), *arguments, **kwargs)
        output = smooth_relu(input, beta) - slope * smooth_relu(-input, beta)

        def back(r: Tensor) -> tuple[Tensor]:
            z = at_least_float32(input)
            derivative = torch.sigmoid(beta * z) + slope * torch.sigmoid(-beta * z)
            return (r / stabilised(at_least_float32(output), note.stabilizer) * derivative * z,)

        return note.step([input], output, back)

    return handler


_ACTIVATIONS = "gelu silu mish hardswish elu selu celu tanh hardshrink softshrink tanhshrink softsign"
_GATES = "sigmoid hardsigmoid rsqrt"
_POWERS = "square sqrt exp"
_KINKED = "leaky_relu prelu"
for _names, _handler_of in (
    (_ACTIVATIONS, _elementwise),
    (_GATES, partial(_elementwise, nonnegative=True, gate=True)),
    (_POWERS, partial(_elementwise, nonnegative=True)),
    (_KINKED, _kinked),
):
    for _name in _names.split():
        _plain, _written = each_named(_name, F, torch, Tensor), each_named(f"{_name}_", F, torch, Tensor)
        HANDLERS |= {function: _handler_of(function) for function in (*_plain, *_written)}
        IN_PLACE.update(_written)


@handles(torch.pow, Tensor.pow, Tensor.__pow__)
def _power(note: Notes, input: Any, exponent: Any) -> Any:
    if not isinstance(exponent, int | float):
        return NotImplemented
    return _elementwise(torch.pow, nonnegative=exponent % 2 == 0)(note, input, exponent)
