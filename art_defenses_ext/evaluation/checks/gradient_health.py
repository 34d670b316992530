"""Whether the gradients that an attacker is given lead anywhere: zero, not finite, vanishing, or misleading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.attack.ball import into_range, per_sample
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.base.arrays import Images, IntArray
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.rebuild import gradients_enabled
from art_defenses_ext.estimator.rejecting import RejectingNetwork, merge_rejection
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import gradient_mode

SAMPLES = 100
"""Images that the gradients are looked at for."""

AT_ONCE = 25
"""Images at a time: a gradient of a large image through a defence that takes gradients itself fills memory."""

VANISHING = 1e-3
"""A gradient vanishes if following it through the whole ball would change the margin by less than this share of it."""

STEP = 0.1
"""Length of the step that a gradient must foretell, in units of eps."""

FAITHFUL_FROM, FAITHFUL_TO = 0.5, 2.0
"""What that step changes, in units of what the gradient foretold."""

FAITHFUL_SHARE = 0.75
"""The share of points at which a network's gradient must be faithful. **Convention**, as are the numbers above: a
undefended model's is at nearly all, the JumpReLU's own derivative is not (``tests/evaluation/checks``)."""


VERDICTS = ("not_finite", "zero", "no_graph", "vanishing", "faithful")
"""What is counted of the gradients."""


@dataclass(frozen=True)
class GradientHealth:
    """The margin's gradient under one gradient mode, at clean images and at random points of their balls.

    Where the network rejects, the margin is that with the rejection merged into the label's logit.

    Attributes:
        mode: the gradient mode.
        points: how many were looked at.
        not_finite: where the gradient holds NaN or infinity.
        zero: where it is zero, or none passes.
        no_graph: of these, where none passes: no graph leads from the logits back to the image, as where the network
            runs under ``torch.no_grad`` or detaches.
        vanishing: where it is finite and not zero, but too small to matter.
        faithful: where a small step along it changes the margin about as much as it says.
        useful: which points have a finite gradient that does not vanish.
    """

    mode: str
    points: int
    not_finite: int
    zero: int
    no_graph: int
    vanishing: int
    faithful: int
    useful: tuple[bool, ...]

    @property
    def is_faithful(self) -> bool:
        """Whether the share of faithful points may be as large as it must be: the interval reaches so far."""
        return Proportion(self.faithful, self.points).interval[1] >= FAITHFUL_SHARE


@gradients_enabled()
def examine_gradients(
    classifier: PyTorchClassifier,
    x: Images,
    labels: IntArray,
    threat: Threat,
    modes: tuple[str, ...],
    seed: int,
    announce: Callable[[str], None] = lambda _: None,
) -> list[GradientHealth]:
    """Look at the gradients of ``classifier`` under each mode, for the first ``SAMPLES`` images.

    Args:
        classifier: what the attacker differentiates.
        x: images ``(N, *input_shape)``.
        labels: their classes (N,).
        threat: the ball.
        modes: gradient modes of ``classifier``.
        seed: of the random points; a random defence draws the same numbers in both passes that are compared.
        announce: is told the mode before each of :func:`nb_looks` looks at a few images.
    """
    device = classifier.device
    clean, y = torch.tensor(np.asarray(x[:SAMPLES]), device=device), torch.tensor(labels[:SAMPLES], device=device)
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "gradients", 0))
    drawn = clean + threat.random_inside(clean, generator)
    points = [clean, into_range(drawn, classifier.clip_values)]
    module = as_module(classifier)
    health = []
    for mode in modes:
        with gradient_mode(classifier, mode):
            looks = []
            for at in points:
                for batch, labels_of in zip(at.split(AT_ONCE), y.split(AT_ONCE), strict=True):
                    announce(mode)
                    looks.append(_look(module, batch, labels_of, threat, seed))
            health.append(_merge(mode, looks))
    return health


def nb_looks(nb_images: int, nb_modes: int) -> int:
    """Return how many looks at a few images it takes to examine the gradients of so many."""
    return nb_modes * 2 * -(-min(nb_images, SAMPLES) // AT_ONCE)


def _look(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> dict[str, Tensor]:
    """Return what the gradient is at each of ``x`` (n, ...), as verdicts (n,)."""
    margins, slopes = _differentiate(module, x, y, seed)
    gradient = torch.zeros_like(x) if slopes is None else slopes
    flat = gradient.flatten(1)
    finite = flat.isfinite().all(dim=1)
    zero = finite & (flat == 0).all(dim=1)
    slope = threat.dual_size(torch.where(per_sample(finite, gradient), gradient, 0))
    vanishing = finite & ~zero & (threat.eps * slope < VANISHING * margins.abs())

    step = STEP * threat.eps * threat.steepest(torch.where(per_sample(finite, gradient), gradient, 0))
    with seeded(seed), torch.no_grad():
        above = _margin(module, x + step, y)
    with seeded(seed), torch.no_grad():
        below = _margin(module, x - step, y)
    ratio = (above - below) / (2 * STEP * threat.eps * slope)
    faithful = finite & ~zero & (ratio >= FAITHFUL_FROM) & (ratio <= FAITHFUL_TO)
    return {
        "not_finite": ~finite,
        "zero": zero,
        "no_graph": torch.full_like(zero, slopes is None),
        "vanishing": vanishing,
        "faithful": faithful,
        "useful": finite & ~zero & ~vanishing,
    }


def _differentiate(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
    """Margins (n,) and their gradient (n, ...) as it is, NaN where it is NaN; None if no graph leads to the image."""
    x = x.detach().requires_grad_()
    with seeded(seed):
        margins = _margin(module, x, y)
    if not margins.requires_grad:
        return margins, None
    (gradient,) = torch.autograd.grad(margins.sum(), x, allow_unused=True)
    return margins.detach(), gradient


def _margin(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Margins (n,) of images (n, ...), above zero where the label is predicted or the image is rejected."""
    logits = module(x)
    return margin(merge_rejection(logits, y) if isinstance(module.model, RejectingNetwork) else logits, y)


def _merge(mode: str, looks: list[dict[str, Tensor]]) -> GradientHealth:
    verdicts = {name: torch.cat([look[name] for look in looks]) for name in looks[0]}
    counts = {name: int(verdicts[name].sum()) for name in VERDICTS}
    useful = tuple(verdicts["useful"].tolist())
    return GradientHealth(mode, points=len(useful), useful=useful, **counts)
