"""A confidence interval for the mean of a random variable between 0 and 1, without further assumptions.

Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable" (Mathematical Methods of Statistics 14); Learned-Miller, Thomas 2019, "A New Confidence Interval for the Mean
of a Bounded Random Variable" (arXiv:1905.06208). The upper end is the 97.5 % quantile of the values' weighted mean,
with the value 1 added and weights that are uniform on the simplex; the lower end is the 2.5 % quantile with 0 added.
For zeros and ones it is the interval of Clopper and Pearson. Its coverage is not proved for all distributions, but no
exception is known; tests/evaluation/records/test_intervals.py measures it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr

Values = npt.NDArray[np.float64]

ERROR = 0.025
"""The probability that the mean lies above the upper end, and that it lies below the lower end."""

MANY = 1000
"""From so many values on they are rounded to ``STEP``, conservatively, so that equal values count together."""

STEP = 1e-4

_NEAR = 1e-3  # in standard deviations: where the saddlepoint formula divides zero by zero
_SEARCHED = (-30.0, 15.0)  # logarithms of how far above 1 the pole of the saddlepoint may lie


def interval(values: Values) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of ``values`` (n,), n at least 1, each from 0 to 1."""
    return 1 - _upper_end(1 - values), _upper_end(values)


def _upper_end(values: Values) -> float:
    if len(values) > MANY:
        values = np.minimum(np.ceil(values / STEP - 1e-6) * STEP, 1.0)
    points, counts = np.unique(np.append(values, 1.0), return_counts=True)  # the latter as weights' parameters
    if len(points) == 1:
        return 1.0
    place = brentq(lambda place: _tail(points, counts, place)[1] - ERROR, *_SEARCHED, xtol=1e-6)
    return _tail(points, counts, place)[0]


def _tail(points: Values, counts: npt.NDArray[np.int64], place: float) -> tuple[float, float]:
    """Return a value above the points' mean, and the probability that their randomly weighted mean is larger.

    Weights that are uniform on the simplex are independent exponential variables divided by their sum. The probability
    is therefore that of a positive sum of as many exponential variables, each times (point - value). Its saddlepoint is
    1 / (pole - value), with a pole above all points, and the value follows from the pole, so the saddlepoint equation
    need not be solved.

    Source: the saddlepoint formula of Lugannani, Rice 1980 (Advances in Applied Probability 12).

    Args:
        points: distinct values, the last of them 1.
        counts: how often each occurs.
        place: logarithm of the pole less 1.
    """
    pole = 1 + np.exp(place)
    near = counts / ((1 - points) + np.exp(place))  # 1 / (pole - point), exact where both are next to 1
    value = 1 - float(near @ (1 - points)) / float(near.sum())
    saddle = 1 / (pole - value)
    scales = (points - value) * saddle
    terms = 1 - scales
    terms[-1] = np.exp(place) * saddle
    cumulant = -float(counts @ np.log(terms))
    curvature = float(counts @ (scales / terms) ** 2)  # times the saddlepoint's square
    signed = np.sqrt(max(-2 * cumulant, 0.0))
    if signed < _NEAR:
        return value, 0.5
    density = np.exp(cumulant) / np.sqrt(2 * np.pi)  # of the normal distribution there
    return value, float(ndtr(-signed) + density * (1 / np.sqrt(curvature) - 1 / signed))
