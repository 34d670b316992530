"""Activations other than the ReLU, as operations of a recorded forward pass.

An elementwise function y = f(z) passes relevance unchanged, R_in = R_out: each output has one input, which takes all of
it (the identity rule). *Source*: Bach et al. 2015 (doi:10.1371/journal.pone.0130140), Achtibat et al.
2024 (arXiv:2402.05602).

**Convention**: a sigmoid, a hard sigmoid and 1 / sqrt(z) are gates: multiplied with a signal they count as its
weight (:mod:`.operations`). They pass relevance as any activation where no signal is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.operations import HANDLERS, IN_PLACE, Handler, Notes, each_named, handles, pass_on


def _elementwise(function: Callable[..., Tensor], *, nonnegative: bool = False, gate: bool = False) -> Handler:
    """Return the handler of an elementwise function; the input is copied, since the function may write to it."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input.clone(), *map(note.without_parameters, args), **kwargs)
        return note.step([input], output, pass_on, nonnegative=nonnegative, gate=gate, monotonic=gate)

    return handler


_ACTIVATIONS = "gelu silu mish hardswish leaky_relu prelu elu selu celu tanh hardshrink softshrink tanhshrink softsign"
_GATES = "sigmoid hardsigmoid rsqrt"
_POWERS = "square sqrt exp"
for _names, _options in (
    (_ACTIVATIONS, {}),
    (_GATES, {"nonnegative": True, "gate": True}),
    (_POWERS, {"nonnegative": True}),
):
    for _name in _names.split():
        _plain, _written = each_named(_name, F, torch, Tensor), each_named(f"{_name}_", F, torch, Tensor)
        HANDLERS |= {function: _elementwise(function, **_options) for function in (*_plain, *_written)}
        IN_PLACE.update(_written)


@handles(torch.pow, Tensor.pow, Tensor.__pow__)
def _power(note: Notes, input: Any, exponent: Any) -> Any:
    if not isinstance(exponent, int | float):
        return NotImplemented
    return _elementwise(torch.pow, nonnegative=exponent % 2 == 0)(note, input, exponent)
