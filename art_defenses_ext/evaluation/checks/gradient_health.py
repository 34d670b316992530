"""The health of the gradients that attacks follow: zero, not finite, vanishing, or misleading."""

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
"""Number of images whose gradients are examined."""

AT_ONCE = 25
"""Batch size. The gradient of a large image through a defence that takes gradients itself needs much memory."""

VANISHING = 1e-3
"""A gradient vanishes if it predicts, over the whole ball, a change of the margin below this share of the margin."""

STEP = 0.1
"""Length of the step whose effect the gradient must predict, in units of eps."""

FAITHFUL_FROM, FAITHFUL_TO = 0.5, 2.0
"""The range of the ratio of actual to predicted change over that step."""

FAITHFUL_SHARE = 0.75
"""The share of points at which a network's gradient must be faithful. **Convention**, as are the numbers above: the
gradient of an undefended model is faithful at nearly all points, the JumpReLU's own derivative is not
(``tests/evaluation/checks``)."""


VERDICTS = ("not_finite", "zero", "no_graph", "vanishing", "faithful")
"""The properties of gradients that are counted."""


@dataclass(frozen=True)
class GradientHealth:
    """The margin's gradient under one gradient mode, at clean images and at random points of their balls.

    If the network rejects images, the margin is the one with the rejection merged into the label's logit.

    Attributes:
        mode: the gradient mode.
        points: number of points.
        not_finite: number of points whose gradient holds NaN or infinity.
        zero: number of points whose gradient is zero or missing.
        no_graph: number of these points whose gradient is missing: no graph leads from the logits to the image, for
            example if the network runs under ``torch.no_grad`` or detaches.
        vanishing: number of points whose gradient is finite and not zero, but too small.
        faithful: number of points at which a small step along the gradient changes the margin about as predicted.
        useful: for each point whether its gradient is finite and does not vanish.
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
        """Whether the interval of the share of faithful points reaches the required share."""
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
    """Examine the gradients of ``classifier`` under each mode, for the first ``SAMPLES`` images.

    Args:
        classifier: the classifier that the attacker differentiates.
        x: images ``(N, *input_shape)``.
        labels: true classes (N,).
        threat: the ball.
        modes: gradient modes of ``classifier``.
        seed: seed of the random points; a random defence draws the same numbers in both passes that are compared.
        announce: called with the mode before each of :func:`nb_batches` batches.
    """
    device = classifier.device
    clean, y = torch.tensor(np.asarray(x[:SAMPLES]), device=device), torch.tensor(labels[:SAMPLES], device=device)
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "gradients", 0))
    random = clean + threat.random_inside(clean, generator)
    points = [clean, into_range(random, classifier.clip_values)]
    module = as_module(classifier)
    health = []
    for mode in modes:
        with gradient_mode(classifier, mode):
            verdicts = []
            for images in points:
                for batch, batch_labels in zip(images.split(AT_ONCE), y.split(AT_ONCE), strict=True):
                    announce(mode)
                    verdicts.append(_examine(module, batch, batch_labels, threat, seed))
            health.append(_merge(mode, verdicts))
    return health


def nb_batches(nb_images: int, nb_modes: int) -> int:
    """Return the number of batches in an examination of the gradients of ``nb_images`` images."""
    return nb_modes * 2 * -(-min(nb_images, SAMPLES) // AT_ONCE)


def _examine(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> dict[str, Tensor]:
    """Return the properties (n,) of the gradient at images (n, ...), by name."""
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
    """Return margins (n,) and their gradient (n, ...), NaN included; None if no graph leads to the image."""
    x = x.detach().requires_grad_()
    with seeded(seed):
        margins = _margin(module, x, y)
    if not margins.requires_grad:
        return margins, None
    (gradient,) = torch.autograd.grad(margins.sum(), x, allow_unused=True)
    return margins.detach(), gradient


def _margin(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return margins (n,) of images (n, ...), above zero if the label is predicted or the image is rejected."""
    logits = module(x)
    return margin(merge_rejection(logits, y) if isinstance(module.model, RejectingNetwork) else logits, y)


def _merge(mode: str, batches: list[dict[str, Tensor]]) -> GradientHealth:
    verdicts = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    counts = {name: int(verdicts[name].sum()) for name in VERDICTS}
    useful = tuple(verdicts["useful"].tolist())
    return GradientHealth(mode, points=len(useful), useful=useful, **counts)
