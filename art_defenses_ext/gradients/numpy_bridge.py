"""ART's numpy preprocessors and postprocessors inside a torch graph, so that attacks differentiate past them.

Source: Athalye, Carlini, Wagner 2018, "Obfuscated Gradients Give a False Sense of Security" (arXiv:1802.00420), section
4.1 (BPDA), against JPEG compression, total variation minimisation and thermometer encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor.postprocessor import Postprocessor
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.gradients.surrogate import Backward, Surrogate, plain_params, replaced

MODES = ("own", "identity", "estimated")
"""The backward passes of a numpy preprocessor: its ``estimate_gradient``, the identity, gradient estimation."""


class NumpyBridge(Surrogate):
    """A numpy preprocessor of ART as a torch preprocessor, with a surrogate as its backward pass.

    A numpy function has no exact derivative, so ``"exact"`` is not among the modes; the first mode replaces it.

    **Convention**: images outside the ``clip_values`` of the preprocessor are clipped to them first. Images of an
    evaluation lie inside; samples of gradient estimation may not, and JPEG refuses them.

    Args:
        preprocessor: an ART ``Preprocessor`` that works on numpy arrays and needs no labels at prediction.
        modes: the backward passes to offer, of ``"own"`` (the preprocessor's ``estimate_gradient``), ``"identity"``
            and ``"estimated"`` (as for :class:`.Surrogate`; two passes of the preprocessor for each of ``samples``).
        sigma: standard deviation of the noise of ``"estimated"``, in units of the input.
        samples: its antithetic pairs.

    Raises:
        InputError: for other arguments.
    """

    wrapped: Any  # a numpy preprocessor, and no child module

    def __init__(
        self,
        preprocessor: Preprocessor,
        modes: Sequence[str] = ("identity",),
        *,
        sigma: float = 8 / 255,
        samples: int = 32,
    ) -> None:
        if not modes or isinstance(modes, str) or any(mode not in MODES for mode in modes):
            raise InputError(f"modes is {shown(modes)}; some of {', '.join(MODES)} were expected")
        super().__init__(preprocessor, sigma=sigma, samples=samples)
        self.gradient_modes = tuple(modes)  # type: ignore[misc]  # each preprocessor has its own
        self.gradient_mode = modes[0]
        self.name = type(preprocessor).__name__  # type: ignore[misc]

    def forward(self, x: Tensor, y: Any = None) -> Any:
        """Return the preprocessed images and the labels, which it may change in training (label smoothing, Mixup)."""
        if y is None or torch.is_grad_enabled():  # ART trains on what is preprocessed without gradients
            return super().forward(x, y)
        images, labels = self.wrapped(self._as_images(x), y.cpu().numpy())
        return self._as_tensor(images, x), torch.as_tensor(labels, device=x.device)

    def describe(self) -> dict[str, Any]:
        """Return the preprocessor's plain parameters."""
        return plain_params(self.wrapped)

    @staticmethod
    def _can_wrap(wrapped: Any) -> str | None:
        return None if is_numpy(wrapped) else "an ART Preprocessor that works on numpy arrays"

    def _follows_original(self) -> bool:
        return not torch.is_grad_enabled()

    def _rule(self) -> Backward:
        return self.gradient_mode

    def _run(self, x: Tensor) -> Tensor:
        return self._as_tensor(self.wrapped(self._as_images(x))[0], x)

    def _estimate(self, x: Tensor, gradient: Tensor) -> Tensor:
        if self.gradient_mode == "estimated":
            return super()._estimate(x, gradient)
        return self._as_tensor(self.wrapped.estimate_gradient(self._as_images(x), gradient.cpu().numpy()), x)

    def _as_images(self, x: Tensor) -> FloatArray:
        """Return a copy, which the preprocessor may write into."""
        images = x.detach().to("cpu", torch.float32, copy=True).numpy()
        clip = getattr(self.wrapped, "clip_values", None)
        return images if clip is None else np.clip(images, *clip).astype(np.float32)

    @staticmethod
    def _as_tensor(array: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=x.device).to(x.dtype)


def is_numpy(preprocessor: Any) -> bool:
    """Return whether an ART preprocessor works on numpy arrays."""
    return isinstance(preprocessor, Preprocessor) and not isinstance(preprocessor, PreprocessorPyTorch)


class Postprocessed(nn.Module):
    """A network followed by ART's postprocessors, with the gradient of the logits as its backward pass.

    Attributes:
        network: the network alone.
        logits: the network whose gradient is used: itself, or the logarithm of its probabilities.
        steps: the postprocessors in their order, without those for training alone.
    """

    def __init__(self, network: nn.Module, logits: nn.Module, postprocessors: Sequence[Postprocessor]) -> None:
        super().__init__()
        self.network, self.logits = network, logits
        self.steps = [step for step in postprocessors if step.apply_predict]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        outputs = logits.detach().float().cpu().numpy()
        for step in self.steps:
            outputs = step(outputs)
        return replaced(logits, torch.as_tensor(outputs, device=logits.device).to(logits.dtype))
