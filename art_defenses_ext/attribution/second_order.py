"""Explanations that an attacker differentiates once more: kernels that allow it, and networks that do not.

A fused attention kernel has no second derivative in torch; the plain one has, and computes the same function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from art_defenses_ext.validation import InputError


def plain_attention() -> AbstractContextManager[None]:
    """Inside the block attention is computed by operations that can be differentiated twice."""
    kernels: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return kernels


def check_second_derivative(explain: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    """Refuse a network whose explanation cannot be differentiated, as whoever attacks it must.

    Args:
        explain: from images (n, ...) to an explanation made of the network's first derivative.
        model: the network, for the error's words.
        x: a few images.

    Raises:
        InputError: for an operation without a second derivative, by its name.
    """
    with torch.inference_mode(False), torch.enable_grad():
        live = x.clone().requires_grad_()
        explanation = explain(live)
        if not explanation.requires_grad:
            return  # of a linear network: the same for all images
        try:
            torch.autograd.grad(explanation.sum(), live, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"model is a {type(model).__name__} with {_operation(error, explanation)}, which torch cannot "
                "differentiate twice; whoever attacks a defence that looks at gradients must do so, and a network of "
                "operations that have a second derivative was expected"
            ) from error


def _operation(error: RuntimeError, explanation: Tensor) -> str:
    """What has no second derivative, as far as torch tells."""
    named = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", str(error))
    if named is not None:
        return f"the operation {named[1].removeprefix('_').removesuffix('_backward')}"
    own = sorted(_own_functions(explanation))
    if own:
        return f"the autograd function {', '.join(own)}"
    return f"an operation ({' '.join(str(error).split())})"


def _own_functions(result: Tensor) -> set[str]:
    """Names of the autograd functions written in Python that ``result`` was computed by."""
    seen: set[Any] = set()
    waiting: list[Any] = [result.grad_fn]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [further for further, _ in node.next_functions]
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
    return found
