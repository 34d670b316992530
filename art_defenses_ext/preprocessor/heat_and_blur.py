"""Heat and Blur: regions of an image without relevance for the network are blurred.

Source: Brama, Grinshpoun 2020, "Heat and Blur: An Effective and Fast Defense Against Adversarial Examples"
(arXiv:2003.07573). Its hypothesis is that the network's activity still holds information about the true object when the
image is perturbed; relevance heatmaps extract it, and strong blurring destroys the perturbation. The method is for
trained networks and needs no training.

**Convention**: the abstract and figures of the paper leave open where relevance starts, which rules it follows, how
heat is scaled, how heat and image are combined and how strong the blur is. All interpretations are options here; the
defaults were chosen by an ablation on separate images, whose table is in docs/methods/heat_and_blur.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.attribution.relevance import (
    Composite,
    Start,
    TopK,
    check_start,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_box,
    epsilon_plus_flat,
    relevance,
)
from art_defenses_ext.attribution.second_order import check_second_derivative
from art_defenses_ext.attribution.trace import check_visible
from art_defenses_ext.base.declared import Count, Kind, NonNegative, Positive, number, one_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import channels_to_front
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.preprocessor.base import RestoringPreprocessor

STARTS = ("last_conv", "predicted", "top_k", "positive")

RULES: dict[str, Callable[[Tensor, Tensor], Composite]] = {
    "epsilon_plus": lambda low, high: epsilon_plus(),
    "epsilon_plus_box": epsilon_plus_box,
    "epsilon_plus_flat": lambda low, high: epsilon_plus_flat(),
    "epsilon_alpha2_beta1": lambda low, high: epsilon_alpha2_beta1(),
    "epsilon_gamma_box": epsilon_gamma_box,
}
"""Composites by name; (least, largest value of a normalised pixel, to broadcast against an image) -> composite."""

SCALES = ("percentile", "max")

MIXES = ("blend", "heat_then_blur", "soft_mask", "strength", "gain", "blur", "heat")
"""Ways to combine heat and image, as ``HeatAndBlur`` defines them. The last two are controls: no heat, no blur."""

BETA = 10.0
"""Beta of the softplus in the smooth surrogate: the larger, the closer to the ReLU. **Convention**: Dombrowski et al.
2019 (arXiv:1906.07983), who smooth explanations so, go from 0.8 to 10."""

TINY = 1e-12

LARGEST_SIGMA, SIDE_OF_SIGMA = 2.0, 24
"""The default blur: a sigma of 2 pixels, which was chosen at 224 pixels. **Convention**: for small images a 24th of the
shorter side, since 2 pixels would blur too much."""


def _composite(value: Any) -> Any:
    if not isinstance(value, Composite) and not (isinstance(value, str) and value in RULES):
        raise ValueError
    return value


class HeatAndBlur(RestoringPreprocessor):
    """A preprocessor that blurs the regions of an image without relevance for the network.

    With h (N, 1, H, W) in [0, 1] the heat, b the blurred image and m the network's mean pixel, ``mix`` is one of

    - ``"blend"``: h x + (1 - h) b;
    - ``"heat_then_blur"``: blur(h x + (1 - h) m);
    - ``"soft_mask"``: blur(h) b + (1 - blur(h)) m;
    - ``"strength"``: h b' + (1 - h) b with b' blurred by ``sharp_sigma`` only;
    - ``"gain"``: m + (1 + gain h)(b - m), in the clip range: heat raises the contrast of the blurred image;
    - ``"blur"``: b, and ``"heat"``: h x + (1 - h) m, the controls with one of both alone.

    Args:
        model: the network, from normalised images to logits (N, K).
        start: where relevance starts: ``"last_conv"`` (the activity of the last convolution that is no gate, in a
            transformer or ConvNeXt that of the last block, which depends on no class), ``"predicted"``, ``"top_k"``
            (largest logits) or ``"positive"`` (all positive logits).
        top_k: number of classes for ``"top_k"``.
        rules: the rules of relevance by name, see ``RULES``, or a ``Composite``.
        scale: divisor of the heat: its 99th ``"percentile"`` (beyond it heat is 1) or its ``"max"``.
        heat_sigma: blur of the heat itself, in pixels; 0 for none.
        floor: least heat of a pixel, in [0, 1).
        mix: how heat and image are combined.
        sigma: standard deviation of the Gaussian blur, in pixels, > 0; None for the shorter side / 24, at most 2. The
            kernel has 2 ceil(3 sigma) + 1 pixels, and the image is mirrored at its edges.
        sharp_sigma: sigma of the weak blur, for ``"strength"``.
        gain: contrast, for ``"gain"``. **Convention**: the defaults of this, ``sharp_sigma`` and ``top_k`` come from no
            ablation, since their interpretations were not chosen.
        passes: number of averaged heatmaps: the first is that of the image, each further one that of the image restored
            with the heat so far.
        **options: see :class:`.RestoringPreprocessor`.

    Attributes:
        gradient_modes: ``"exact"`` also differentiates the heat, to second order; ``"frozen"`` holds it constant;
            ``"smooth"`` takes its derivative from the network with softplus in place of ReLU; ``"identity"`` passes
            gradients unchanged.

    Raises:
        InputError: for an unknown option, a number out of range, a model without convolution for ``"last_conv"`` or a
            compiled model, and in ``forward`` for images smaller than the kernel.

    >>> from art_defenses_ext import HeatAndBlur, defend
    >>> preprocessor = HeatAndBlur.for_classifier(classifier, sigma=1.0)
    >>> restored, _ = preprocessor(x)
    >>> restored.shape == x.shape
    True
    >>> defend(classifier, preprocessor).predict(x).shape
    (8, 10)
    """

    name = "heat_and_blur"
    gradient_modes = ("exact", "frozen", "smooth", "identity")
    annealable_modes = ("smooth",)
    title = "Heat and Blur: blurs what is irrelevant to the network (Brama, Grinshpoun 2020)"
    paper = "https://arxiv.org/abs/2003.07573"
    start: Annotated[str, one_of(*STARTS)] = "last_conv"
    top_k: Count = 5
    rules: Annotated[str | Composite, Kind(f"one of {', '.join(RULES)}, or a Composite,", _composite)] = (
        "epsilon_plus_box"
    )
    scale: Annotated[str, one_of(*SCALES)] = "max"
    heat_sigma: NonNegative = 0.0
    floor: Annotated[float, number("a number from 0 up to 1", lambda value: 0 <= value < 1)] = 0.0
    mix: Annotated[str, one_of(*MIXES)] = "blend"
    sigma: Positive | None = None
    sharp_sigma: Positive = 0.5
    gain: Positive = 1.0
    passes: Count = 1

    def _check_network(self, classifier: PyTorchClassifier) -> None:
        if self.mix != "blur":
            check_second_derivative(self._relevance, self.model, self._probes(classifier))

    def heatmap(self, x: Tensor) -> Tensor:
        """Return the heat: positive relevance, summed over channels and divided by its 99th percentile or maximum.

        Args:
            x: images (N, C, H, W) in the clip range; (N, H, W, C) without ``channels_first``.

        Returns:
            Heat (N, 1, H, W) in [0, 1].
        """
        self._check_images(x)
        x = self._inside(x)
        self._check_size(x)
        return self._heat(x, None)

    def mixed(self, x: Tensor, heat: Tensor) -> Tensor:
        """Combine images and their heat into the network's input.

        Args:
            x: images (N, C, H, W) in the clip range; (N, H, W, C) without ``channels_first``.
            heat: heat of the images, (N, 1, H, W) in [0, 1].

        Returns:
            Images of the shape of ``x`` in the clip range.
        """
        return self._outside(self._mixed(self._inside(x), heat))

    def _mixed(self, x: Tensor, heat: Tensor) -> Tensor:
        sigma = self._sigma_for(x)
        if self.mix == "blur":
            return blurred(x, sigma)
        if self.mix == "blend":
            return heat * x + (1 - heat) * blurred(x, sigma)
        if self.mix == "strength":
            return heat * blurred(x, self.sharp_sigma) + (1 - heat) * blurred(x, sigma)
        mean = self._mean_pixel(x)
        if self.mix == "heat":
            return heat * x + (1 - heat) * mean
        if self.mix == "heat_then_blur":
            return blurred(heat * x + (1 - heat) * mean, sigma)
        if self.mix == "soft_mask":
            mask = blurred(heat, sigma)
            return mask * blurred(x, sigma) + (1 - mask) * mean
        return self._clipped(mean + (1 + self.gain * heat) * (blurred(x, sigma) - mean))  # gain

    def restore(self, x: Tensor) -> Tensor:
        return self._restored(x, lambda at: self._heat(at, None))

    def restore_with(self, x: Tensor, mode: str) -> Tensor:
        if mode == "frozen":
            return self._restored(x, lambda at: self._heat(at.detach(), None))
        if mode == "smooth":
            return self._restored(x, self._smooth_heat)
        return super().restore_with(x, mode)

    def describe(self) -> dict[str, Any]:
        """Return the options."""
        return super().describe() | {"rules": self.rules if isinstance(self.rules, str) else repr(self.rules)}

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return FGSM and PGD. **Convention**: ten steps without a random start; the paper's were not available."""
        return (
            PaperAttack("FGSM, gray-box", "fgsm"),
            PaperAttack("PGD-10, gray-box", "pgd", {"max_iter": 10, "eps_step": 0.25}),
        )

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Return the heatmap, if there is one, and the restored image."""
        shown = {"what the network is shown": self.shown(self.restore(self._inside(x)))}
        return shown if self.mix == "blur" else {"heat": self.heatmap(x)} | shown

    # The method

    def _restored(self, x: Tensor, heat_of: Callable[[Tensor], Tensor]) -> Tensor:
        self._check_size(x)
        if self.mix == "blur":
            return blurred(x, self._sigma_for(x))
        heats, restored = [], x
        for _ in range(self.passes):
            heats.append(heat_of(restored))
            restored = self._mixed(x, torch.stack(heats).mean(dim=0))
        return restored

    def _heat(self, x: Tensor, softplus: float | None) -> Tensor:
        pixels = self._relevance(x, softplus)
        pixels = pixels if self.channels_first else channels_to_front(pixels)
        heat = pixels.clamp(min=0).sum(dim=1, keepdim=True)  # (N, 1, H, W)
        heat = heat / (self._scale_of(heat) + TINY)
        if self.heat_sigma > 0:
            heat = blurred(heat.clamp(max=1), self.heat_sigma)
            heat = heat / (self._scale_of(heat) + TINY)
        return self.floor + (1 - self.floor) * heat.clamp(max=1)

    def _relevance(self, x: Tensor, softplus: float | None = None) -> Tensor:
        return relevance(self.model, self._normalised(x), self._start(), self._composite(), softplus=softplus)

    def _smooth_heat(self, x: Tensor) -> Tensor:
        """Return the exact heat, with the derivative of that of the network with softplus, whose width attacks set."""
        with torch.no_grad():
            exact = self._heat(x, None)
        smooth = self._heat(x, BETA / self.surrogate_width)
        return replaced(smooth, exact)

    def _scale_of(self, heat: Tensor) -> Tensor:
        """Return the divisor (N, 1, 1, 1) of heat (N, 1, H, W)."""
        flat = heat.flatten(1)
        nb_above = 1 if self.scale == "max" else max(1, math.ceil(0.01 * flat.shape[1]))
        return flat.topk(nb_above, dim=1).values[:, -1].reshape(-1, 1, 1, 1)

    def _start(self) -> Start:
        return TopK(self.top_k) if self.start == "top_k" else self.start

    def _composite(self) -> Composite:
        if isinstance(self.rules, Composite):
            return self.rules
        low, high = ((end.to(self.mean) - self.mean) / self.std for end in self._ends)  # (C, 1, 1)
        if not self.channels_first:
            low, high = low.reshape(-1), high.reshape(-1)  # broadcast against (H, W, C)
        return RULES[self.rules](low, high)

    def _mean_pixel(self, x: Tensor) -> Tensor:
        """Return the colour (C, 1, 1) that the normalisation, inside or outside the network, maps to zero."""
        mean, inner = self.mean.to(x), self._inner_normalisation(x)
        return self._clipped(mean if inner is None else mean + self.std.to(x) * inner.mean.reshape(-1, 1, 1))

    def _sigma_for(self, x: Tensor) -> float:
        return min(LARGEST_SIGMA, min(x.shape[2:]) / SIDE_OF_SIGMA) if self.sigma is None else self.sigma

    def _clipped(self, x: Tensor) -> Tensor:
        low, high = (end.to(x) for end in self._ends)
        return x.clamp(low, high)

    # Checks

    def _check_params(self) -> None:
        super()._check_params()
        if self.mix != "blur":
            check_visible(self.model)
            check_start(self._start(), self.model)

    def _check_size(self, x: Tensor) -> None:
        sigmas = [0.0 if self.mix == "heat" else self._sigma_for(x), 0.0 if self.mix == "blur" else self.heat_sigma]
        used = max(*sigmas, self.sharp_sigma if self.mix == "strength" else 0.0)
        kernel = 2 * math.ceil(3 * used) + 1
        if min(x.shape[2:]) < kernel:
            raise InputError(
                f"x has images of {x.shape[2]} x {x.shape[3]} pixels and a blur of sigma {used:g} has a kernel of "
                f"{kernel}; images as large as the kernel, or a smaller sigma, were expected"
            )


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Return ``x`` (N, C, H, W) blurred by a Gaussian of ``sigma`` pixels, cut at 3 sigma and mirrored at the edges."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = functional.pad(x, (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=x.shape[1])
    return functional.conv2d(across, kernel[:, :, :, None], groups=x.shape[1])
