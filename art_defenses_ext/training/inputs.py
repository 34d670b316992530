"""Training inputs of a restorer: clean, noisy and adversarial images, generated during training.

The attacks fit into a training step: a few steps along the sign of the cross-entropy's gradient, on the device. Those
that evaluate a defence are in ``attack/``. Sizes are fractions of the clip range, so that training on images in
[0, 255] and on the same images in [0, 1] is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.base.declared import (
    Count,
    Declared,
    Flag,
    Kind,
    Positive,
    accepted,
    number,
    one_of,
    validated,
)

Radius = Annotated[float, number("a share of the clip range, at most 1,", lambda value: 0 < value <= 1)]
"""Size of a perturbation: 8/255, not 8, for images in [0, 255] and in [0, 1] alike."""

Logits = Callable[[Tensor], Tensor]
"""From images (n, C, H, W) in the clip range to logits (n, K), differentiable."""


@dataclass(frozen=True)
class Networks:
    """The networks that an attack in training can target.

    Attributes:
        classifier: the undefended classifier.
        defended: the same classifier behind the restorer in its current state.
        clip_values: minimum and maximum pixel value.
    """

    classifier: Logits
    defended: Logits
    clip_values: tuple[float, float]

    @property
    def width(self) -> float:
        """The width of the clip range, which scales fractions of it to pixel values."""
        return self.clip_values[1] - self.clip_values[0]


class TrainingInput(Protocol):
    """A function that makes training images of one kind."""

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        """Return the restorer's inputs for the clean images ``x`` (n, C, H, W) of the classes ``y`` (n,)."""


@dataclass(frozen=True)
class Clean:
    """Clean images."""

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        return x


@dataclass(frozen=True)
class GaussianNoise(Declared):
    """Images with white noise, clipped.

    Attributes:
        sigma: standard deviation of the noise, as a fraction of the clip range.
    """

    sigma: Positive

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        drawn = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
        return (x + self.sigma * networks.width * drawn).clamp(*networks.clip_values)


@dataclass(frozen=True)
class SignedGradient(Declared):
    """Signed gradient ascent on the cross-entropy inside an linf ball.

    Attributes:
        eps: radius of the ball, as a fraction of the clip range, up to 1.
        step: step size, as a fraction of the clip range.
        nb_steps: number of steps.
        random_start: start at a uniform random point of the ball instead of the image.
        decay: decay of the momentum of l1-normalised gradients; None for no momentum.
        through: ``"classifier"``: attack the undefended classifier; ``"defence"``: restorer and classifier, end to
            end.
    """

    eps: Radius
    step: Positive
    nb_steps: Count = 1
    random_start: Flag = False
    decay: Positive | None = None
    through: Annotated[Literal["classifier", "defence"], one_of("classifier", "defence")] = "classifier"

    def __str__(self) -> str:
        start = " from a random start" if self.random_start else ""
        momentum = "" if self.decay is None else f" with momentum {self.decay}"
        where = " through the defence" if self.through == "defence" else ""
        return f"{self.nb_steps} signed step(s) of {self.step:.4g} within {self.eps:.4g}{start}{momentum}{where}"

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        network = networks.classifier if self.through == "classifier" else networks.defended
        low, high = networks.clip_values
        eps, step = self.eps * networks.width, self.step * networks.width
        least, most = (x - eps).clamp(min=low), (x + eps).clamp(max=high)
        current, momentum = x, torch.zeros_like(x)
        if self.random_start:
            drawn = torch.rand(x.shape, generator=noise, device=x.device, dtype=x.dtype)
            current = torch.clamp(x + (2 * drawn - 1) * eps, low, high)
        for _ in range(self.nb_steps):
            direction = _gradient(network, current, y)
            if self.decay is not None:
                size = direction.abs().flatten(1).mean(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
                momentum = self.decay * momentum + direction / size.reshape(-1, 1, 1, 1)
                direction = momentum
            current = torch.clamp(current + step * direction.sign(), least, most)
        return current


def _gradient(network: Logits, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each image's cross-entropy."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()  # cloned below, since a network may work in place
        loss = functional.cross_entropy(network(x.clone()), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def _share(eps: float, nb_steps: int) -> float:
    return accepted(Radius, "eps", eps) / accepted(Count, "nb_steps", nb_steps)  # type: ignore[no-any-return]


def fgsm(eps: float) -> SignedGradient:
    """FGSM: one step to the edge of the ball. Source: Goodfellow, Shlens, Szegedy 2015 (arXiv:1412.6572), section 4."""
    return SignedGradient(eps, eps)


def ffgsm(eps: float) -> SignedGradient:
    """Fast FGSM: one step of 1.25 eps from a random start.

    Source: Wong, Rice, Kolter 2020 (arXiv:2001.03994), section 4.1.
    """
    return SignedGradient(eps, 1.25 * eps, random_start=True)


def bim(eps: float, nb_steps: int = 10) -> SignedGradient:
    """BIM: steps of eps / nb_steps from the image.

    Source: Kurakin, Goodfellow, Bengio 2017 (arXiv:1607.02533), section 2.2.

    **Departure**: the source uses steps of one grey level, and a number of steps that depends on eps.
    """
    return SignedGradient(eps, _share(eps, nb_steps), nb_steps)


def mim(eps: float, nb_steps: int = 10) -> SignedGradient:
    """MIM: steps of eps / nb_steps along a momentum of decay 1.

    Source: Dong et al. 2018 (arXiv:1710.06081), section 3.1.
    """
    return SignedGradient(eps, _share(eps, nb_steps), nb_steps, decay=1.0)


def pgd(eps: float, nb_steps: int = 10, through: Literal["classifier", "defence"] = "classifier") -> SignedGradient:
    """PGD: steps of 2.5 eps / nb_steps from a random start.

    Source: Madry et al. 2018 (arXiv:1706.06083), section 2.1; the step size is that of later code.
    """
    return SignedGradient(eps, 2.5 * _share(eps, nb_steps), nb_steps, random_start=True, through=through)


INPUTS: dict[str, Callable[[float], TrainingInput]] = {
    "clean": lambda eps: Clean(),
    "noise": GaussianNoise,
    "fgsm": fgsm,
    "ffgsm": ffgsm,
    "bim": bim,
    "mim": mim,
    "pgd": pgd,
    "end_to_end": lambda eps: pgd(eps, through="defence"),
}
"""Kinds of training images by name, for a given eps; for ``"noise"`` it is the standard deviation."""


def _inputs(value: Any) -> Any:
    """A list of names out of ``INPUTS`` and of functions."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    if not all(kind in INPUTS if isinstance(kind, str) else callable(kind) for kind in value):
        raise ValueError
    return value


Inputs = Annotated[Sequence[str | TrainingInput], Kind(f"a list of {', '.join(INPUTS)}, or of functions", _inputs)]


def may_be_end_to_end(kind: str | TrainingInput) -> bool:
    """Return whether a kind of training images may attack the defence; true for the user's own functions."""
    if isinstance(kind, str):
        return kind == "end_to_end"
    return (
        kind.through == "defence" if isinstance(kind, SignedGradient) else not isinstance(kind, Clean | GaussianNoise)
    )


@validated
def mixture(inputs: Inputs, eps: Radius) -> TrainingInput:
    """Return training inputs that divide each batch evenly among the kinds ``inputs``.

    Args:
        inputs: names of ``INPUTS``, or functions; at least one.
        eps: radius for named kinds, as a fraction of the clip range, up to 1.

    Raises:
        InputError: for an unknown name, an empty list, and for a larger ``eps``.
    """
    makers = [INPUTS[kind](eps) if isinstance(kind, str) else kind for kind in inputs]

    def mix(x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        parts = [slice(first, None, len(makers)) for first in range(len(makers))]
        result = torch.empty_like(x)
        for make, rows in zip(makers, parts, strict=True):
            if len(x[rows]):
                result[rows] = make(x[rows], y[rows], networks, noise).detach()
        return result

    return mix
