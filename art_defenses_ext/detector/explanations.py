"""Explanations of a prediction as a detector's input, and statistics of them.

An explanation is an attribution to each pixel value. *Statistics* of one are few numbers: how large it is and how much
of it is of high frequency; or, of the surface around the image, how the logits answer to noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.attribution import gradient
from art_defenses_ext.attribution.relevance import epsilon_plus, relevance
from art_defenses_ext.base.layout import channels_to_front
from art_defenses_ext.base.shares import as_shares, from_shares
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import evaluation_mode
from art_defenses_ext.gradients.activation import softplus_for_kinks

Explanation = Callable[[Pipeline, Tensor, Tensor, float | None], Tensor]
"""(classifier, images (n, C, H, W), their predicted classes (n,), beta of the softplus that replaces each ReLU or None)
-> attributions (n, C, H, W), differentiable."""


class _OfShares(nn.Module):
    """A classifier of pixels as shares of the clip range: explanations, noise and baselines mean the same in any."""

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
    """SmoothGrad with the same noise for every image: no score depends on its neighbours, or on the device."""
    drawn = torch.Generator().manual_seed(0)
    total = torch.zeros_like(x)
    for _ in range(SAMPLES):
        noise = torch.randn(1, *x.shape[1:], generator=drawn)
        total = total + gradient.input_gradient(model, x + SIGMA * noise.to(x), classes)
    return total / SAMPLES


def _by_relevance(pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Return the relevance of the network's input: preprocessors need be no layers, and normalisation passes it on."""
    with evaluation_mode(pipeline):
        x = pipeline.before_model(x)
    pixels = relevance(pipeline.model, x, classes, epsilon_plus(), softplus=beta)
    return channels_to_front(pixels) if pipeline.permutes else pixels


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
"""By name. The authors' is the input gradient of the predicted class's logit; ``loss_gradient`` is that of its
cross-entropy, whose size tells how sure the network is."""

SAMPLES = 10
"""Noisy copies of SmoothGrad, steps of integrated gradients. **Convention**: fewer than their papers', for speed."""

SIGMA = 0.15
"""Standard deviation of SmoothGrad's noise, as a share of the clip range."""

NOISE, DRAWS = 0.06, 8
"""Noise around an image: its standard deviation as a share of the clip range, and the number of draws.

**Convention**: twice the eps that the method was found wanting at; on CIFAR-10's validation images less tells less."""

TINY = 1e-12


def maps(names: list[str], pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Absolute attributions summed over colours (n, M, H, W), a map for each named explanation of the classes (n,)."""
    attributions = [EXPLANATIONS[name](pipeline, x, classes, beta) for name in names]
    return torch.stack([attribution.abs().sum(dim=1) for attribution in attributions], dim=1)


def statistics(names: list[str], pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """Two numbers (n, M, 1, 2) for each named explanation of the classes (n,), see ``STATISTICS``."""
    pairs = [
        _answer_to_noise(pipeline, x, classes, beta)
        if name == SURFACE
        else _size_and_detail(EXPLANATIONS[name](pipeline, x, classes, beta))
        for name in names
    ]
    return torch.stack(pairs, dim=1)[:, :, None]


def _size_and_detail(attribution: Tensor) -> Tensor:
    """(n, 2) of attributions (n, C, H, W): logarithms of the Euclidean norm, and of the share of it that a blur takes.

    A gradient step writes high frequencies into an image, after which the network's gradient has fewer of them.
    """
    whole = attribution.flatten(1).norm(dim=1)
    fine = (attribution - _blurred(attribution)).flatten(1).norm(dim=1)
    return torch.stack([(whole + TINY).log(), ((fine + TINY) / (whole + TINY)).log()], dim=1)


def _blurred(x: Tensor) -> Tensor:
    """By a Gaussian of one pixel, seven wide, with mirrored borders; smaller images by what they have room for."""
    reach = min(3, min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = (-at.square() / 2).exp()
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(x, [reach] * 4, mode="reflect"), kernel, groups=x.shape[1])


def _answer_to_noise(pipeline: Pipeline, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
    """(n, 2): how much the logit of the class rises under Gaussian noise, and how much more that of the best other.

    *Source*: Roth, Kilcher, Hofmann 2019, "The Odds are Odd" (arXiv:1902.04818). **Convention**: with the same noise
    for every image.
    """
    drawn = torch.Generator().manual_seed(0)
    network, x = _OfShares(pipeline), as_shares(x, pipeline.clip_values)
    with softplus_for_kinks(beta):
        clean = network(x)
        noisy = [network(x + NOISE * torch.randn(1, *x.shape[1:], generator=drawn).to(x)) for _ in range(DRAWS)]
    change = torch.stack(noisy).mean(dim=0) - clean  # (n, K)
    own = change.gather(1, classes[:, None])
    others = (change - own).scatter(1, classes[:, None], -torch.inf).amax(dim=1)
    return torch.stack([own.squeeze(1), others], dim=1)


SURFACE = "noise_response"

STATISTICS = (*EXPLANATIONS, SURFACE)
"""Names of everything that statistics are computed of."""
