"""Which images a trial takes, and how the seconds of a step grow with the images in its batch."""

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
"""Images of a trial."""

REPEATS = 3
"""How often a batch is timed; the quickest counts."""

FEW, MORE = 2, 8
"""Steps of the attacks that are timed."""


def spread(softmax: Scores, labels: IntArray, count: int) -> IntArray:
    """Return so many images, spread evenly over the margins of all, from the least sure one to the surest.

    Robustness goes with the margin, so the share of robust images among them is nearer to that among all than of images
    drawn at random.

    Args:
        softmax: probabilities (n, K).
        labels: true classes (n,).
        count: of images, at most all.
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
    """Return the seconds of an attack's step on a batch, by the images in it and whether the attack passes backwards.

    Of the first white-box attack and the first by queries some steps are timed on one image, on a trial and on a whole
    block. Between these sizes and above them seconds are linear. Where there is no such attack of ours, they grow with
    the images.

    Args:
        work: whose attacks.
        x: images (n, ...) of a whole block.
        labels: their classes (n,).
        count: images of a trial.
    """
    sizes = sorted({1, count, len(x)})
    steps = {backward: _seconds_of_steps(work, x, labels, sizes, backward) for backward in (True, False)}

    def seconds(images: float, backward: bool) -> float:
        known = steps[backward]
        if known is None or len(sizes) < 2:
            return images
        if images <= sizes[-1]:
            return float(np.interp(images, sizes, known))
        slope = (known[-1] - known[-2]) / (sizes[-1] - sizes[-2])
        return float(known[-1] + slope * (images - sizes[-1]))

    return seconds


def _seconds_of_steps(
    work: Work, x: FloatArray, labels: IntArray, sizes: list[int], backward: bool
) -> list[float] | None:
    """Return the seconds of a step of the first attack of a kind for each size of batch; None without one."""
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
    """Return the seconds of a step: of more of them minus those of a few, which hold what is done once as well."""
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
