"""One attack on a random defence, judged while it optimises and after (docs/evaluation.md, "Random defences")."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, prod
from statistics import fmean
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.data import images_and_labels
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_count, check_flag, check_images, check_labels, check_seed
from art_defenses_ext.estimator.bridged import differentiable
from art_defenses_ext.estimator.rebuild import gradients_enabled
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.results.randomness import MOST_SENT
from art_defenses_ext.evaluation.suite.attacker import averaged, for_any_attack, is_random, watched, with_surrogates
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.evaluation.suite.queries import PointPasses, Queries
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.task import classifier_of
from art_defenses_ext.evaluation.threat import Threat, check_threat
from art_defenses_ext.gradients.modes import gradient_mode

FRESH = 64
"""Fresh passes of each attacked image. **Convention**: as many as :func:`evaluate` counts at least."""


@dataclass(frozen=True)
class PassFigures:
    """The accuracy of a random defence by three counts of its passes, from 0 to 1.

    Attributes:
        mean: of one pass.
        worst_of: of the worst of N passes, for N from 1 to 20.
        majority: of the majority vote; where another class has as many passes as the label, the image is broken.
    """

    mean: Mean
    worst_of: list[float]
    majority: Proportion


@dataclass(frozen=True)
class RandomProtocol:
    """The figures of one attack on a random defence.

    Attributes:
        while_optimising: against an attacker who succeeds at any point that the attack sends.
        after: against an attacker who sends the attack's last image alone, on fresh passes.
        points: mean number of points that the attack sends for an image.
        passes: mean number of passes of the defence for an image while the attack optimises.
        fresh: number of fresh passes of each last image.
    """

    while_optimising: PassFigures
    after: PassFigures
    points: float
    passes: float
    fresh: int

    def table(self) -> str:
        """Return the figures in per cent, as a table in Markdown."""
        rows = [("while optimising", self.while_optimising), ("after", self.after)]
        sizes = (1, 2, 5, 10, MOST_SENT)
        head = ["", "mean", *(f"worst of {size}" for size in sizes), "majority vote"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, figures in rows:
            low, high = figures.mean.interval
            cells = [name, f"{100 * figures.mean.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"]
            cells += [f"{100 * figures.worst_of[size - 1]:.1f}" for size in sizes]
            majority = figures.majority
            low, high = majority.interval
            cells.append(f"{100 * majority.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


@gradients_enabled()
def random_protocol(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attack: AttackSpec,
    *,
    mode: str = "exact",
    draws: int = MOST_SENT,
    seed: int = 0,
    progress: bool = True,
) -> RandomProtocol:
    """Run one attack on a random defence, and count its passes at every point that the attack sends, and after.

    While the attack optimises, each pass of the defence at a point in the ball is an attempt of the attacker. After it,
    64 fresh passes of its last image are counted. All images are attacked, also those misclassified without an attack.

    Args:
        model: the random classifier, as for :func:`evaluate`.
        data: images and labels, as for :func:`evaluate`.
        threat: the ball.
        attack: the attack, on the average of ``draws`` passes (EOT).
        mode: the gradient mode.
        draws: passes that the attack averages at each point, which are the attempts there.
        seed: seed of the attack and of all passes.
        progress: show a progress bar.

    Raises:
        InputError: for a classifier that is not random, or that rejects, and for arguments that cannot be used.

    *Source*: Wang et al. 2024, "DiffHammer: Rethinking the Robustness of Diffusion-Based Adversarial Purification"
    (NeurIPS 2024), the evaluation with N attempts at each step. **Convention**: of a point that an attack sent less
    often than N times, all passes count.
    """
    if not isinstance(attack, AttackSpec):
        raise InputError(f"attack is {shown(attack)}; an AttackSpec was expected")
    draws, seed, progress = check_count("draws", draws), check_seed(seed), check_flag("progress", progress)
    x, y = images_and_labels(data)
    classifier = differentiable(classifier_of(model, (x, y), {}))
    x = check_images(x, classifier)
    labels = check_labels(y, classifier.nb_classes, len(x))
    check_threat(threat, classifier, x)
    if rejects(classifier):
        raise InputError("model rejects images; a random classifier without a detector was expected")
    if not is_random(classifier, x[:8], derived_seed(seed, "is it random", 0)):
        raise InputError("model gives the same logits in two passes; a random classifier was expected")
    queries = Queries(x, labels, threat, classifier.clip_values, draws)
    groups = _groups(queries)
    points: list[list[PointPasses]] = []
    adversarial = []
    with progress_bar(progress) as bar:
        task = bar.add_task(attack.name, total=len(groups) + 1, note="")
        for rows in groups:
            part = queries.of(rows)
            adversarial.append(_attack(classifier, part, attack, mode, derived_seed(seed, attack.name, rows.start)))
            points += part.points
            bar.advance(task)
        after = _send_again(classifier, np.concatenate(adversarial), queries, derived_seed(seed, "after", 0))
    return RandomProtocol(
        while_optimising=figures_of(points),
        after=figures_of([[point] for point in after]),
        points=fmean(len(of_image) for of_image in points),
        passes=fmean(sum(point.passes for point in of_image) for of_image in points),
        fresh=FRESH,
    )


def figures_of(points: list[list[PointPasses]]) -> PassFigures:
    """Return the figures of an attacker who succeeds at any of the points of an image (N lists).

    The worst of N passes is the mean over images of the product over points of C(k - m, N) / C(k, N) for a point with k
    passes and m misses: the share of all choices of N passes at each point that hold no miss.
    """
    images = [[point for point in of_image if point.passes] for of_image in points]
    return PassFigures(
        mean=Mean.of(min((1 - point.misses / point.passes for point in image), default=1.0) for image in images),
        worst_of=[fmean(_without_miss(image, size) for image in images) for size in range(1, MOST_SENT + 1)],
        majority=Proportion.of(not any(point.outvoted for point in image) for image in images),
    )


def _without_miss(points: list[PointPasses], size: int) -> float:
    """Return the share of the choices of ``size`` passes at each point that hold no miss."""
    sizes = [min(size, point.passes) for point in points]
    shares = (comb(p.passes - p.misses, n) / comb(p.passes, n) for p, n in zip(points, sizes, strict=True))
    return prod(shares)


def _groups(queries: Queries) -> list[slice]:
    """Return the images that are attacked together: all, or each alone where two balls may overlap."""
    count = len(queries.x)
    return [slice(0, count)] if queries.apart() else [slice(row, row + 1) for row in range(count)]


def _attack(classifier: PyTorchClassifier, queries: Queries, attack: AttackSpec, mode: str, seed: int) -> FloatArray:
    """Return the attack's images (n, ...), and note all passes on its way in ``queries``."""
    attacked = for_any_attack(averaged(watched(with_surrogates(classifier), queries), queries.draws))
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[queries.labels]
    with seeded(seed), gradient_mode(attacked, mode):
        adversarial: FloatArray = attack.attack_on(attacked, queries.threat, seed).generate(queries.x, one_hot)
    return adversarial


def _send_again(
    classifier: PyTorchClassifier, adversarial: FloatArray, queries: Queries, seed: int
) -> list[PointPasses]:
    """Return fresh passes of an attack's last images (N, ...), of the clean image where that is outside the ball."""
    x, threat = queries.x, queries.threat
    inside = np.array([threat.allows(size) for size in threat.sizes(x, adversarial, classifier.clip_values)])
    images = np.where(inside.reshape(-1, *[1] * (x.ndim - 1)), adversarial, x)
    points = [PointPasses(int(label)) for label in queries.labels]
    with seeded(seed):
        for _ in range(FRESH):
            for point, name in zip(points, predict(classifier, images).classes, strict=True):
                point.named[int(name)] += 1
    return points
