"""The accuracy of a random defence over single passes, under the attack that seems worst for each sample.

The minimum over many noisy counts would be biased downwards. The attack is therefore selected by its first passes, and
the passes after these are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import betaln

from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.threat import Threat, named_threat

MOST_SENT = 20
"""How often an attacker sends an image, at most, in the figures of the worst of N passes. **Convention**."""

MORE_SENT = (50, 100, 1000)
"""How often an attacker might send an image, for figures that are extrapolated. **Convention**."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Randomness:
    """The figures of a random defence's single passes, for one image of each sample.

    Of the clean image and the attacked images in the ball, the first passes select the one that seems to be
    misclassified most often, and later passes are counted. Attacks that do nothing therefore lower neither figure.

    Attributes:
        votes: number of counted passes.
        mean: mean accuracy over samples and passes, from 0 to 1.
        mean_interval: its 95 % interval over the samples.
        worst: share of samples that are correct in every counted pass.
        worst_of: accuracy against an attacker who sends each image N times and needs one success, for N = 1, 2, ...:
            the mean over samples of the share of all sets of N counted passes without a miss.
        worst_of_more: the same accuracy for N = 50, 100 and 1000, extrapolated, see :func:`extrapolated_worst_of`.
        undecided: share of all samples that count as robust, though the largest number of passes did not decide
            whether an attack succeeded.
    """

    votes: int
    mean: float
    mean_interval: tuple[float, float]
    worst: Proportion
    worst_of: list[float]
    worst_of_more: list[float]
    undecided: Proportion


def randomness(run: RunDescription, records: list[SampleRecord]) -> Randomness | None:
    """Return the figures of the passes; None for a defence that is not random."""
    if run.votes == 1:
        return None
    ball = named_threat(run.settings.threat, run.settings.eps)
    chosen = zip(records, worst_of_each(records, ball, run.votes), strict=True)
    misses = [(record.clean_misses if worst is None else worst.misses) or 0 for record, worst in chosen]
    right = Mean.of(1 - count / run.votes for count in misses)
    near = [
        record.robust() and any(outcome.undecided for outcome in _inside(record, ball).values()) for record in records
    ]
    return Randomness(
        votes=run.votes,
        mean=right.mean,
        mean_interval=right.interval,
        worst=Proportion.of(count == 0 for count in misses),
        worst_of=worst_of(misses, run.votes),
        worst_of_more=extrapolated_worst_of(misses, run.votes, MORE_SENT),
        undecided=Proportion.of(near),
    )


def worst_of(misses: Sequence[int], votes: int) -> list[float]:
    """Return the accuracy in the worst of N passes, from 0 to 1, for N from 1 to ``MOST_SENT``.

    It is the mean over samples of C(votes - misses, N) / C(votes, N), the share of the sets of N passes without a miss:
    an unbiased estimate, since the passes are independent.

    Args:
        misses: of each sample, how many of its passes missed the label.
        votes: passes of each sample.
    """
    sizes = range(1, min(MOST_SENT, votes) + 1)
    return [fmean(comb(votes - count, size) / comb(votes, size) for count in misses) for size in sizes]


def extrapolated_worst_of(misses: Sequence[int], votes: int, sizes: Sequence[int]) -> list[float]:
    """Return the expected accuracy in the worst of N passes, from 0 to 1, for each N of ``sizes``.

    The probability p that a pass misses is taken as a draw from a beta distribution over the samples, Beta(a, b), whose
    a and b maximise the likelihood of the misses. A sample with m misses of V then keeps its class in N passes with
    probability E[(1 - p)^N | m] = B(a + m, b + V - m + N) / B(a + m, b + V - m), where B is the beta function. No
    misses in V passes thus do not mean that a pass never misses.

    Args:
        misses: of each sample, how many of its passes missed the label.
        votes: passes of each sample, V.
        sizes: numbers of passes that the attacker makes, N.

    *Source*: Robbins 1956, "An Empirical Bayes Approach to Statistics" (Proceedings of the Third Berkeley Symposium).
    **Convention**: a and b lie between 1e-3 and 1e3.
    """
    counts = np.asarray(misses)

    def cost(logarithms: Numbers) -> float:
        a, b = np.exp(logarithms)
        return -float(np.sum(betaln(a + counts, b + votes - counts) - betaln(a, b)))

    bounds = [(np.log(1e-3), np.log(1e3))] * 2
    a, b = np.exp(minimize(cost, np.zeros(2), method="L-BFGS-B", bounds=bounds).x)
    right = b + votes - counts
    return [float(np.mean(np.exp(betaln(a + counts, right + size) - betaln(a + counts, right)))) for size in sizes]


def worst_of_each(records: list[SampleRecord], ball: Threat, votes: int) -> list[Outcome | None]:
    """Return for each sample the attack inside the ball that seems worst; None for the clean image.

    The effect of an attack on a sample's misses is estimated from the first passes, and shrunk to its mean effect over
    the samples as far as their differences are due to chance. Otherwise one of many attacks that do nothing would seem
    worse than an attack that does something.

    Source: Efron, Morris 1973 (Journal of the American Statistical Association 68), empirical Bayes estimates.
    """
    gains: list[dict[str, float]] = [{} for _ in records]
    inside = [_inside(record, ball) for record in records]
    for key in sorted({key for outcomes in inside for key in outcomes}):
        rows = [row for row, outcomes in enumerate(inside) if key in outcomes]
        after = np.array([inside[row][key].first_misses or 0 for row in rows], dtype=np.float64)
        before = np.array([records[row].clean_first_misses or 0 for row in rows], dtype=np.float64)
        for row, gain in zip(rows, _shrunk(before, after, votes), strict=True):
            gains[row][key] = gain
    return [_best(estimates, outcomes) for estimates, outcomes in zip(gains, inside, strict=True)]


def _shrunk(before: Numbers, after: Numbers, votes: int) -> Numbers:
    """Return the estimated effect of an attack, from the misses ``before`` (n,) and ``after`` it (n,)."""
    gain = after - before
    by_chance = (
        sum(float(np.mean(misses * (1 - misses / votes))) for misses in (before, after)) * votes / max(votes - 1, 1)
    )
    true = max(float(gain.var()) - by_chance, 0.0)
    share = true / (true + by_chance) if true else float(by_chance == 0)
    shrunk: Numbers = gain.mean() + share * (gain - gain.mean())
    return shrunk


def _best(gains: dict[str, float], outcomes: dict[str, Outcome]) -> Outcome | None:
    key = max(gains, key=lambda attack: gains[attack], default=None)
    return None if key is None or gains[key] <= 0 else outcomes[key]


def _inside(record: SampleRecord, ball: Threat) -> dict[str, Outcome]:
    """Return the outcomes of attacks that stayed in the ball, by the attack's key."""
    return {key: outcome for key, outcome in record.attacks.items() if outcome.usable and outcome.lies_in(ball)}
