"""What a restorer is trained on: clean images, noisy ones, and adversarial ones made as training goes on.

The attacks here are the ones that fit into a training step: a few steps along the sign of the cross-entropy's gradient,
on the device. To measure a defence there are others, under ``attack/``. Their sizes are shares of the clip range, so
that images in [0, 255] are trained on as the same images in [0, 1] are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import InputError, check_choice, check_count, check_flag, check_positive

Logits = Callable[[Tensor], Tensor]
"""From images (n, C, H, W) in the clip range to logits (n, K), differentiable."""


@dataclass(frozen=True)
class Networks:
    """What an attack in training may be made on.

    Attributes:
        classifier: the bare classifier.
        defended: the same behind the restorer as it is now.
        clip_values: least and largest pixel value.
    """

    classifier: Logits
    defended: Logits
    clip_values: tuple[float, float]

    @property
    def width(self) -> float:
        """Of the clip range: what shares of it are multiplied by."""
        return self.clip_values[1] - self.clip_values[0]


class TrainingInput(Protocol):
    """Makes a kind of training images."""

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        """What the restorer gets instead of the clean images ``x`` (n, C, H, W) of the classes ``y`` (n,)."""


@dataclass(frozen=True)
class Clean:
    """The images as they are."""

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        return x


@dataclass(frozen=True)
class GaussianNoise:
    """Images under white noise, clipped.

    Attributes:
        sigma: its standard deviation, as a share of the clip range.
    """

    sigma: float

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)

    def __call__(self, x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        drawn = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
        return (x + self.sigma * networks.width * drawn).clamp(*networks.clip_values)


@dataclass(frozen=True)
class SignedGradient:
    """Images moved up the cross-entropy inside an linf ball, by steps along the sign of its gradient.

    Attributes:
        eps: radius of the ball, as a share of the clip range, up to 1.
        step: size of a step, likewise.
        nb_steps: how many.
        random_start: begin at a uniformly drawn point of the ball, not at the image.
        decay: of the momentum, in which l1-normalised gradients add up; None steps along the last gradient.
        through: ``"classifier"``: made on the bare classifier; ``"defence"``: on the restorer and it, end to end.
    """

    eps: float
    step: float
    nb_steps: int = 1
    random_start: bool = False
    decay: float | None = None
    through: Literal["classifier", "defence"] = "classifier"

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        check_positive("step", self.step)
        check_count("nb_steps", self.nb_steps)
        check_flag("random_start", self.random_start)
        if self.decay is not None:
            check_positive("decay", self.decay)
        check_choice("through", self.through, ("classifier", "defence"))

    def __str__(self) -> str:
        extras = [" from a random start"] * self.random_start + [f" with momentum {self.decay}"] * (
            self.decay is not None
        )
        where = " through the defence" if self.through == "defence" else ""
        return f"{self.nb_steps} signed step(s) of {self.step:.4g} within {self.eps:.4g}{''.join(extras)}{where}"

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
    """Of each image's own cross-entropy."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()  # cloned below: a network may work in place
        loss = functional.cross_entropy(network(x.clone()), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def _check_eps(eps: float) -> None:
    check_positive("eps", eps)
    if eps > 1:
        raise InputError(f"eps is {eps!r}; a share of the clip range, at most 1, was expected: 8/255, not 8")


def _share(eps: float, nb_steps: int) -> float:
    _check_eps(eps)
    check_count("nb_steps", nb_steps)
    return eps / nb_steps


def fgsm(eps: float) -> SignedGradient:
    """One step to the edge of the ball. Source: Goodfellow, Shlens, Szegedy 2015 (arXiv:1412.6572), section 4."""
    return SignedGradient(eps, eps)


def ffgsm(eps: float) -> SignedGradient:
    """One step of 1.25 eps from a random start. Source: Wong, Rice, Kolter 2020 (arXiv:2001.03994), section 4.1."""
    return SignedGradient(eps, 1.25 * eps, random_start=True)


def bim(eps: float, nb_steps: int = 10) -> SignedGradient:
    """Steps of eps / nb_steps from the image. Source: Kurakin, Goodfellow, Bengio 2017 (arXiv:1607.02533), section 2.2.

    **Departure**: the source steps by one grey level, as often as eps asks for.
    """
    return SignedGradient(eps, _share(eps, nb_steps), nb_steps)


def mim(eps: float, nb_steps: int = 10) -> SignedGradient:
    """Steps of eps / nb_steps along a momentum of decay 1. Source: Dong et al. 2018 (arXiv:1710.06081), section 3.1."""
    return SignedGradient(eps, _share(eps, nb_steps), nb_steps, decay=1.0)


def pgd(eps: float, nb_steps: int = 10, through: Literal["classifier", "defence"] = "classifier") -> SignedGradient:
    """Steps of 2.5 eps / nb_steps from a random start. Source: Madry et al. 2018 (arXiv:1706.06083), section 2.1; the
    step is that of their code's successors."""
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
"""Kinds of training images by name, for a given eps; ``"noise"`` has it as standard deviation."""


def may_be_end_to_end(kind: str | TrainingInput) -> bool:
    """Whether a kind of training images is made through the defence; of a function of one's own nobody knows."""
    if isinstance(kind, str):
        return kind == "end_to_end"
    return (
        kind.through == "defence" if isinstance(kind, SignedGradient) else not isinstance(kind, Clean | GaussianNoise)
    )


def mixture(kinds: Sequence[str | TrainingInput], eps: float) -> TrainingInput:
    """Each batch dealt out evenly among ``kinds``.

    Args:
        kinds: names out of ``INPUTS``, or functions of one's own; at least one.
        eps: for the named ones, as a share of the clip range, up to 1.

    Raises:
        InputError: for an unknown name, or none at all, and for a larger ``eps``.
    """
    _check_eps(eps)
    if not isinstance(kinds, list | tuple) or not kinds:
        raise InputError(f"inputs is {shown(kinds)}; a list of {', '.join(INPUTS)}, or of functions, was expected")
    made: list[TrainingInput] = []
    for kind in kinds:
        if isinstance(kind, str):
            if kind not in INPUTS:
                raise InputError(f"inputs names {shown(kind)}; one of {', '.join(INPUTS)} was expected")
            made.append(INPUTS[kind](eps))
        elif callable(kind):
            made.append(kind)
        else:
            raise InputError(f"inputs holds {shown(kind)}; one of {', '.join(INPUTS)}, or a function, was expected")

    def dealt(x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        parts = [slice(which, None, len(made)) for which in range(len(made))]
        result = torch.empty_like(x)
        for one, rows in zip(made, parts, strict=True):
            if len(x[rows]):
                result[rows] = one(x[rows], y[rows], networks, noise).detach()
        return result

    return dealt
