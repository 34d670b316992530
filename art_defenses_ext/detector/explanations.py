"""Explanations of a prediction, and statistics of them, as inputs of a detector.

An explanation is an attribution to each pixel value. The *statistics* of an explanation are two numbers: its size and
its share of high frequencies. For ``"noise_response"`` they are the changes of the logits under noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.attribution import gradient
from art_defenses_ext.attribution.relevance import epsilon_plus, relevance
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import channels_to_front
from art_defenses_ext.base.shares import as_shares, from_shares
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import evaluation_mode
from art_defenses_ext.gradients.activation import softplus_for_kinks

Explanation = Callable[[Pipeline, Tensor, Tensor, float | None], Tensor]
"""(classifier, images (n, C, H, W), their predicted classes (n,), beta of the softplus that replaces each ReLU or None)
-> attributions (n, C, H, W), differentiable."""


class _OfShares(nn.Module):
    """A classifier of pixels as shares of the clip range, so that noise and baselines do not depend on the range."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, shares: Tensor) -> Tensor:
        logits: Tensor = self.pipeline(from_shares(shares, self.pipeline.clip_values))
        return logits


def _by_gradient(explain: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Explanation:
    def explanation(pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
        with softplus_for_kinks(beta):
            return explain(_OfShares(pipeline), as_shares(x, pipeline.clip_values), classes)

    return explanation


def _smooth_grad(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Compute SmoothGrad with the same noise for every image, so that scores do not depend on the batch or device."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(x)
    for _ in range(SAMPLES):
        noise = torch.randn(1, *x.shape[1:], generator=generator)
        total = total + gradient.input_gradient(model, x + SIGMA * noise.to(x), classes)
    return total / SAMPLES


def _by_relevance(pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Return the relevance of the network's input, since preprocessors need not be layers.

    Raises:
        InputError: for preprocessors that change the size of images.
    """
    with evaluation_mode(pipeline):
        seen = pipeline.before_model(x)
    pixels = relevance(pipeline.model, seen, classes, epsilon_plus(), softplus=beta)
    pixels = channels_to_front(pixels) if pipeline.permutes else pixels
    if pixels.shape != x.shape:
        raise InputError(
            f"explanation is 'relevance', of network inputs {tuple(pixels.shape[1:])} for images {tuple(x.shape[1:])}; "
            "preprocessors that keep their shape, or another explanation, were expected"
        )
    return pixels


EXPLANATIONS: dict[str, Explanation] = {
    "input_gradient": _by_gradient(gradient.input_gradient),
    "gradient_x_input": _by_gradient(gradient.gradient_x_input),
    "smooth_grad": _by_gradient(_smooth_grad),
    "integrated_gradients": _by_gradient(
        lambda model, x, classes: gradient.integrated_gradients(model, x, classes, steps=SAMPLES)
    ),
    "relevance": _by_relevance,
    "loss_gradient": _by_gradient(gradient.loss_gradient),
}
"""The explanations by name. The authors use the input gradient of the predicted class's logit; ``loss_gradient`` is the
gradient of its cross-entropy, whose size depends on the network's confidence."""

SAMPLES = 10
"""Number of noisy copies of SmoothGrad and of steps of integrated gradients. **Convention**: fewer than in the papers,
for speed."""

SIGMA = 0.15
"""Standard deviation of SmoothGrad's noise, as a share of the clip range."""

NOISE, DRAWS = 0.06, 8
"""Noise around an image: its standard deviation as a share of the clip range, and the number of draws.

**Convention**: twice the eps at which the authors' score fails; on CIFAR-10's validation images less noise detects
less."""

TINY = 1e-12


def maps(names: list[str], pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Return absolute attributions summed over colours (n, M, H, W), a map for each explanation of the classes (n,)."""
    attributions = [EXPLANATIONS[name](pipeline, x, classes, beta) for name in names]
    return torch.stack([attribution.abs().sum(dim=1) for attribution in attributions], dim=1)


def statistics(names: list[str], pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Return two numbers (n, M, 1, 2) for each named explanation of the classes (n,), see ``STATISTICS``."""
    pairs = [
        _response_to_noise(pipeline, x, classes, beta)
        if name == SURFACE
        else _size_and_detail(EXPLANATIONS[name](pipeline, x, classes, beta))
        for name in names
    ]
    return torch.stack(pairs, dim=1)[:, :, None]


def _size_and_detail(attribution: Tensor) -> Tensor:
    """Return logarithms (n, 2) of the norm of attributions (n, C, H, W), and of its share that a blur removes.

    A gradient step adds high frequencies to an image, after which the network's gradient has fewer of them.
    """
    whole = attribution.flatten(1).norm(dim=1)
    fine = (attribution - _blurred(attribution)).flatten(1).norm(dim=1)
    return torch.stack([(whole + TINY).log(), ((fine + TINY) / (whole + TINY)).log()], dim=1)


def _blurred(x: Tensor) -> Tensor:
    """Blur by a Gaussian of one pixel, seven pixels wide, with mirrored borders; narrower for smaller images."""
    reach = min(3, min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = (-at.square() / 2).exp()
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(x, [reach] * 4, mode="reflect"), kernel, groups=x.shape[1])


def _response_to_noise(pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Return the mean rise (n, 2) of the class's logit under Gaussian noise, and the largest excess of another's rise.

    *Source*: Roth, Kilcher, Hofmann 2019, "The Odds are Odd" (arXiv:1902.04818). **Convention**: with the same noise
    for every image.
    """
    generator = torch.Generator().manual_seed(0)
    network, x = _OfShares(pipeline), as_shares(x, pipeline.clip_values)
    with evaluation_mode(pipeline), softplus_for_kinks(beta):
        clean = network(x)
        noisy = [network(x + NOISE * torch.randn(1, *x.shape[1:], generator=generator).to(x)) for _ in range(DRAWS)]
    change = torch.stack(noisy).mean(dim=0) - clean  # (n, K)
    own = change.gather(1, classes[:, None])
    others = (change - own).scatter(1, classes[:, None], -torch.inf).amax(dim=1)
    return torch.stack([own.squeeze(1), others], dim=1)


SURFACE = "noise_response"

STATISTICS = (*EXPLANATIONS, SURFACE)
"""The explanations that have statistics, and the response to noise."""
