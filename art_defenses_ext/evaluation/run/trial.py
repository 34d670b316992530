"""The images of a trial, and the seconds of an attack's step as a function of the batch size."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.records.metrics import Scores
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.suite.probe import with_least_effort
from art_defenses_ext.gradients.modes import gradient_mode

TRIAL = 24
"""Number of images of a trial."""

REPEATS = 3
"""Number of times that a batch is timed; the shortest time counts."""

FEW, MORE = 2, 8
"""Numbers of steps of the attacks that are timed."""


def spread(softmax: Scores, labels: IntArray, count: int) -> IntArray:
    """Return the indices (m,) of images that are spread evenly over the quantiles of the margin.

    Robustness correlates with the margin, so the share of robust images among them is nearer to that among all images
    than in a random sample.

    Args:
        softmax: probabilities (n, K).
        labels: true classes (n,).
        count: number of images; all images if there are fewer.
    """
    rows = np.arange(len(softmax))
    logs = np.log(np.maximum(softmax, np.finfo(np.float64).tiny))
    true = logs[rows, labels]
    logs[rows, labels] = -np.inf
    ranked = np.argsort(true - logs.max(axis=1), kind="stable")
    count = min(count, len(rows))
    places = ((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)
    chosen: IntArray = np.sort(ranked[places])
    return chosen


def timed(work: Work, x: FloatArray, labels: IntArray, count: int) -> Callable[[float, bool], float]:
    """Return a function for the seconds of an attack's step: of the batch size, and of whether it takes gradients.

    The first white-box attack and the first attack by queries are timed on one image, on a trial and on a whole block.
    The seconds are interpolated and extrapolated linearly. Without such an attack of this package they are proportional
    to the batch size.

    Args:
        work: the attacks.
        x: images (n, ...) of a whole block.
        labels: true classes (n,).
        count: number of images of a trial.
    """
    sizes = sorted({1, count, len(x)})
    steps = {backward: _seconds_of_steps(work, x, labels, sizes, backward) for backward in (True, False)}

    def seconds(images: float, backward: bool) -> float:
        times = steps[backward]
        if times is None or len(sizes) < 2:
            return images
        if images <= sizes[-1]:
            return float(np.interp(images, sizes, times))
        slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        return float(times[-1] + slope * (images - sizes[-1]))

    return seconds


def _seconds_of_steps(
    work: Work, x: FloatArray, labels: IntArray, sizes: list[int], backward: bool
) -> list[float] | None:
    """Return the seconds of a step for each batch size, of the first attack of a kind; None without such an attack."""
    for run in work.plan:
        wanted = run.spec.kind == ("white-box" if backward else "queries") and run.spec.crafted_on == "defended"
        target = work.target(run) if wanted else None
        attack = None if target is None else run.spec.build(target, run.threat, 0)
        if target is not None and isinstance(attack, TensorAttack):
            one_hot = np.eye(target.nb_classes, dtype=np.float32)[labels[: len(x)]]
            with gradient_mode(target, run.mode):
                return [_seconds_of_step(attack, x[:size], one_hot[:size]) for size in sizes]
    return None


def _seconds_of_step(attack: TensorAttack, x: FloatArray, one_hot: FloatArray) -> float:
    """Return the seconds of a step: the difference between many and few steps, without the work done once."""
    few, more = (min(_seconds(_with_steps(attack, steps), x, one_hot) for _ in range(REPEATS)) for steps in (FEW, MORE))
    return max(more - few, 0.01 * more) / (MORE - FEW)


def _with_steps(attack: TensorAttack, steps: int) -> TensorAttack:
    brief = with_least_effort(attack)
    for name in ("max_iter", "max_queries"):
        if name in attack.attack_params:
            setattr(brief, name, steps)
    return brief


def _seconds(attack: TensorAttack, x: FloatArray, one_hot: FloatArray) -> float:
    begin = time.perf_counter()
    attack.generate(x, one_hot)
    return time.perf_counter() - begin
