"""How finely a robust accuracy is established: the largest overestimate that its checks let pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtri

from art_defenses_ext.evaluation.checks.checks import OF_EFFORT, TOLERATED, Check
from art_defenses_ext.evaluation.records.proportion import Proportion


def most_that_pass(total: int) -> int:
    """Return how many of ``total`` images may contradict a check that still passes.

    Wilson's lower end is at most ``TOLERATED`` where the score test does not refuse that share: where the count exceeds
    its mean by no more than 1.96 of its standard deviations. A single image passes in any case.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", equation 4.
    """
    deviation = math.sqrt(total * TOLERATED * (1 - TOLERATED))
    return min(total, max(1, math.floor(total * TOLERATED + float(ndtri(0.975)) * deviation)))


def resolution(checks: Sequence[Check], robust: Proportion) -> float | None:
    """Return by how much a figure may be too high although its checks pass, from 0 to 1; None without such a check.

    A check looks at n images that some attacks leave, and passes as long as stronger ones break at most k of them. If
    they broke this share of all robust images, the check would not tell. The largest of these shares counts, of those
    checks of ``OF_EFFORT`` that were made.

    Args:
        checks: of the run.
        robust: its robust accuracy.
    """
    shares = [figure for check in checks if check.name in OF_EFFORT for figure in check.figures.values()]
    totals = [share.total for share in shares if isinstance(share, Proportion)]
    return max((most_that_pass(total) / total * robust.rate for total in totals), default=None)
