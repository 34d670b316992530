"""The resolution of a robust accuracy: the largest overestimate that its checks would not detect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtri

from art_defenses_ext.evaluation.checks.checks import OF_EFFORT, TOLERATED, Check
from art_defenses_ext.evaluation.records.proportion import Proportion


def most_that_pass(total: int) -> int:
    """Return the maximum number of ``total`` images that may contradict a check that passes.

    Wilson's lower end is at most ``TOLERATED`` if the score test does not reject that share: if the count exceeds its
    mean by at most 1.96 of its standard deviations. A single image never fails a check.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", equation 4.
    """
    deviation = math.sqrt(total * TOLERATED * (1 - TOLERATED))
    return min(total, max(1, math.floor(total * TOLERATED + float(ndtri(0.975)) * deviation)))


def resolution(checks: Sequence[Check], robust: Proportion, undecided: float = 0.0) -> float | None:
    """Return the largest overestimate of a figure whose checks pass, from 0 to 1; None without a check of effort.

    A check takes n images that some attacks leave unbroken, and passes if stronger attacks break at most k of them. It
    would not detect that the share k / n of all robust images can be broken. The result is the largest of these shares
    over the checks of ``OF_EFFORT`` that were made, and of the images of a random defence that count as robust because
    no number of passes decided.

    Args:
        checks: the checks of the run.
        robust: its robust accuracy.
        undecided: share of all images that are robust and undecided.
    """
    shares = [figure for check in checks if check.name in OF_EFFORT for figure in check.figures.values()]
    totals = [share.total for share in shares if isinstance(share, Proportion)]
    missed = [most_that_pass(total) / total * robust.rate for total in totals]
    return max(*missed, undecided) if missed else None
