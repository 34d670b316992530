"""Surrogate gradients for preprocessors and layers without a gradient, or with a masked one.

Source: Athalye, Carlini, Wagner 2018, "Obfuscated Gradients Give a False Sense of Security" (arXiv:1802.00420), section
4.1: backward-pass differentiable approximation (BPDA). The estimated pass uses antithetic Gaussian sampling, as
in Tramer, Carlini, Brendel, Madry 2020 (arXiv:2002.08347), section 5, against k-winners-take-all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_count, check_positive
from art_defenses_ext.gradients.modes import Defence

ROWS_AT_ONCE = 512  # noisy copies in one pass of the wrapped function

Backward = str | Callable[[Tensor], Tensor]
"""``"identity"``, ``"estimated"``, or a differentiable function whose derivative is used."""


class Surrogate(nn.Module, PreprocessorPyTorch, Defence):
    """A torch preprocessor or layer with an additional backward pass (BPDA) for the same forward pass.

    In mode ``"exact"`` it is the wrapped function; in mode ``"surrogate"`` it has the given backward pass. It takes the
    place of the original: in ``preprocessing_defences``, or inside a network.

    Args:
        wrapped: an ART ``PreprocessorPyTorch`` or an ``nn.Module``.
        backward: ``"identity"`` passes the gradient unchanged, for functions that change an image little; if height
            and width change, it is resized by the adjoint of bilinear interpolation. A function is differentiated
            instead of the original. ``"estimated"`` is gradient estimation: it samples the derivative of the original
            smoothed by Gaussian noise, for discontinuous functions.
        sigma: standard deviation of that noise, in units of the input.
        samples: number of antithetic pairs, two forward passes of the wrapped function each; the noise comes from
            torch's global generator, which ``evaluate`` seeds for each attack.

    Raises:
        InputError: for other arguments.

    >>> import numpy as np
    >>> from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
    >>> class Rounding(PreprocessorPyTorch):
    ...     def __init__(self):
    ...         super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
    ...     def forward(self, x, y=None):
    ...         return (x * 7).round() / 7, y
    >>> from art_defenses_ext import Surrogate, defend, gradient_mode
    >>> defended = defend(classifier, Surrogate(Rounding()))
    >>> bool(defended.loss_gradient(x, np.eye(10)[y]).any())  # rounding has a derivative of zero
    False
    >>> with gradient_mode(defended, "surrogate"):
    ...     bool(defended.loss_gradient(x, np.eye(10)[y]).any())
    True
    """

    name = "surrogate"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "surrogate")
    params = ["apply_fit", "apply_predict"]  # noqa: RUF012 (ART's convention)

    def __init__(
        self,
        wrapped: PreprocessorPyTorch | nn.Module,
        backward: Backward = "identity",
        *,
        sigma: float = 8 / 255,
        samples: int = 32,
    ) -> None:
        expected = self._can_wrap(wrapped)
        if expected is not None:
            raise InputError(f"wrapped is a {type(wrapped).__name__}; {expected} was expected")
        named = isinstance(backward, str) and backward in ("identity", "estimated")
        if not named and not callable(backward):
            raise InputError(f"backward is {shown(backward)}; 'identity', 'estimated' or a function was expected")
        sigma, samples = check_positive("sigma", sigma), check_count("samples", samples)
        nn.Module.__init__(self)
        is_preprocessor = isinstance(wrapped, Preprocessor)
        PreprocessorPyTorch.__init__(
            self,
            is_fitted=True,
            apply_fit=wrapped.apply_fit if is_preprocessor else False,
            apply_predict=wrapped.apply_predict if is_preprocessor else True,
        )
        self.wrapped = wrapped
        self.is_preprocessor = is_preprocessor
        self.backward_rule = backward
        self.sigma = sigma
        self.samples = samples

    def forward(self, x: Tensor, y: Any = None) -> Any:
        """Return the wrapped function's output: for a preprocessor the pair (x, y), for a layer a tensor."""
        result = self._run(x) if self._follows_original() else self._with_surrogate(x)
        return (result, y) if self.is_preprocessor else result

    def describe(self) -> dict[str, Any]:
        """Return the wrapped class, its plain parameters, and the surrogate backward pass."""
        rule = self.backward_rule
        estimate = {"sigma": self.sigma, "samples": self.samples} if rule == "estimated" else {}
        own = {"wrapped": type(self.wrapped).__name__, "backward": _name(rule)}
        return plain_params(self.wrapped) | own | estimate

    @staticmethod
    def _can_wrap(wrapped: Any) -> str | None:
        """Return None, or what was expected in the place of ``wrapped``."""
        return None if isinstance(wrapped, PreprocessorPyTorch | nn.Module) else "a PreprocessorPyTorch or nn.Module"

    def _rule(self) -> Backward:
        """Return the current backward pass, if it is not the exact one."""
        return self.backward_rule

    def _follows_original(self) -> bool:
        # Not x.requires_grad, which is False inside torch.func transforms.
        return self.gradient_mode == "exact" or not torch.is_grad_enabled()

    def _run(self, x: Tensor) -> Tensor:
        result: Tensor = self.wrapped.forward(x)[0] if self.is_preprocessor else self.wrapped(x)
        return result

    def _with_surrogate(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            result = self._run(x)
        rule = self._rule()
        if rule == "identity":
            stand_in = resized(x, result.shape)
        elif callable(rule):
            stand_in = rule(x)
        else:
            estimated: Tensor = _Estimated.apply(x, result, self)
            return estimated
        if stand_in.shape != result.shape:
            raise InputError(
                f"backward gives shape {tuple(stand_in.shape)} where the wrapped one gives {tuple(result.shape)}; "
                "the same shape was expected"
            )
        return replaced(stand_in, result)

    def _estimate(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the smoothed original at ``x`` (n, ...), by sampling, for that of its output."""
        gradient = gradient.flatten(1)
        total = torch.zeros_like(x)
        at_once = max(1, min(self.samples, ROWS_AT_ONCE // max(len(x), 1)))
        for done in range(0, self.samples, at_once):
            pairs = min(at_once, self.samples - done)
            noise = torch.randn(pairs, *x.shape, device=x.device, dtype=x.dtype)
            points = torch.cat([x + self.sigma * noise, x - self.sigma * noise]).flatten(0, 1)
            above, below = self._run(points).reshape(2, pairs, len(x), -1)
            rise = ((above - below) * gradient).sum(dim=2)  # (pairs, n)
            total += (rise.reshape(*rise.shape, *[1] * (x.ndim - 1)) * noise).sum(dim=0)
        return total / (2 * self.sigma * self.samples)


def plain_params(preprocessor: Any) -> dict[str, Any]:
    """Return the plain parameters of an ART preprocessor, without those on when it is applied."""
    names = [name for name in getattr(preprocessor, "params", ()) if "apply_" not in name]
    named = {name: getattr(preprocessor, name, None) for name in names}
    return {name: value for name, value in named.items() if isinstance(value, bool | int | float | str)}


def resized(x: Tensor, shape: torch.Size) -> Tensor:
    """Resize images (N, C, H, W) bilinearly to the height and width of ``shape``; unchanged if other axes differ."""
    if x.shape == shape or x.ndim != 4 or len(shape) != 4 or x.shape[:2] != shape[:2]:
        return x
    return functional.interpolate(x, size=shape[2:], mode="bilinear", align_corners=False)


def replaced(stand_in: Tensor, result: Tensor) -> Tensor:
    """Return ``result`` with the derivative of ``stand_in``, of the same shape, as its backward pass."""
    answer: Tensor = _Replaced.apply(stand_in, result)
    return answer


class _Replaced(torch.autograd.Function):
    """The second argument in the forward pass, the derivative of the first in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(stand_in: Tensor, result: Tensor) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Save nothing."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class _Estimated(torch.autograd.Function):
    """The result in the forward pass, the surrogate's estimate in the backward pass."""

    @staticmethod
    def forward(x: Tensor, result: Tensor, surrogate: Surrogate) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Surrogate], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.surrogate = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.surrogate._estimate(x, grad_outputs[0]), None, None


def _name(rule: Backward) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
