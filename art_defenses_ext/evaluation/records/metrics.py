"""The agreement of two rankings of the classes: NDCG and reciprocal rank of softmax lists.

Accuracy depends on the first class only. These two metrics measure how much an attack changes the whole ranking, and
how much of it a defence restores.

Source: Brama, Grinshpoun 2020 (arXiv:2003.07573) for the NDCG; Brama, Dery, Grinshpoun 2022 (arXiv:2201.05071) for the
idea of a reciprocal rank. **Convention**: the latter's exact form was not available; it also weighs probabilities,
which the plain reciprocal rank of the information retrieval literature does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_number

Lists = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

MASS = 0.9
"""The default of the probability to which a list is cut."""

DIGITS = 6
"""Decimal places in records, so that they do not depend on the last bits of a kernel."""

SUM_TOLERANCE = 1e-3  # how far a list's sum may be from 1: a softmax in float16
MASS_TOLERANCE = 1e-6  # relative tolerance of the mass, since 0.6 + 0.3 is below 0.9 in binary numbers


def ndcg(clean: Lists, other: Lists, mass: float = MASS) -> Scores:
    """Return the normalised discounted cumulative gain of softmax lists against those of the clean images.

    Both lists are cut to the fewest most probable classes that have a probability of ``mass`` together. The gain of a
    class is 2^p - 1, with p its probability in the clean list; its discount is log2(rank + 1), with its rank from 1.
    The value of the other list is the sum, over its classes that are also in the clean list, of their gains divided by
    their discounts there. It is divided by the clean list's own value.

    Args:
        clean: softmax lists (N, K) of the clean images, floating point; each sums to 1.
        other: softmax lists (N, K) of the same images attacked, defended or both.
        mass: the probability at which lists are cut, above 0 and at most 1.

    Returns:
        One number for each image, (N,), from 0 to 1: 1 if the classes of the cut lists are in the same order, 0 if the
        cut lists have no class in common. Of the other list only the order and the cut count, not the probabilities.

    Raises:
        InputError: for empty lists, lists of other or different shapes, values that are not probabilities, or a
            ``mass`` out of range.

    Source: Brama, Grinshpoun 2020 (arXiv:2003.07573).

    **Convention**: the papers leave ``mass`` open. With a cut at 1, the tail of a thousand classes, whose order depends
    little on the image, makes up much of the value even if the first class differs; with a cut at one half, most lists
    hold one or two classes, and the metric is close to accuracy. A list is cut where it reaches ``mass``, not where it
    exceeds it. Of equally probable classes the one with the lower index comes first, as in ``argmax``.

    >>> ndcg(np.array([[0.5, 0.3, 0.2]]), np.array([[0.3, 0.5, 0.2]])).round(3)
    array([0.893])
    """
    clean, other = _check_lists(clean, other)
    mass = check_number("mass", mass, "a number above 0 and at most 1", lambda share: 0 < share <= 1)
    clean_ranks, other_ranks = _ranks(clean), _ranks(other)  # (N, K)
    gains = np.where(_in_cut_list(clean, clean_ranks, mass), np.exp2(clean) - 1, 0.0)  # (N, K)
    regained = np.where(_in_cut_list(other, other_ranks, mass), gains, 0.0)  # (N, K)
    ideal = (gains / np.log2(clean_ranks + 1)).sum(axis=1)  # (N,), > 0
    value = (regained / np.log2(other_ranks + 1)).sum(axis=1)  # (N,)
    scores: Scores = np.minimum(value / ideal, 1.0)  # equal gains in another order may sum to an ulp more
    return scores


def reciprocal_rank(clean: Lists, other: Lists) -> Scores:
    """Return 1 / rank, in other softmax lists, of the first class of the clean image's list.

    Args:
        clean: softmax lists (N, K) of the clean images, floating point; each sums to 1.
        other: softmax lists (N, K) of the same images attacked, defended or both.

    Returns:
        One number for each image, (N,), from 1 / K to 1; 1 if both lists have the same first class.

    Raises:
        InputError: for empty lists, lists of other or different shapes, or values that are not probabilities.

    Source: the idea is that of Brama, Dery, Grinshpoun 2022 (arXiv:2201.05071). **Convention**: the plain reciprocal
    rank; of equally probable classes the one with the lower index comes first, as in ``argmax``.

    >>> reciprocal_rank(np.array([[0.5, 0.3, 0.2]]), np.array([[0.3, 0.5, 0.2]]))
    array([0.5])
    """
    clean, other = _check_lists(clean, other)
    first = clean.argmax(axis=1)[:, np.newaxis]  # (N, 1)
    scores: Scores = 1.0 / np.take_along_axis(_ranks(other), first, axis=1)[:, 0]
    return scores


def recorded(
    clean: Lists, other: Lists, counted: npt.NDArray[np.bool_]
) -> tuple[list[float | None], list[float | None]]:
    """Return both metrics in the form of a sample's record.

    Args:
        clean: softmax lists (N, K) of the clean images.
        other: softmax lists (N, K) of the same images attacked, defended or both.
        counted: which images count (N,).

    Returns:
        NDCG and reciprocal rank, N of each, to six decimal places; None for an image that does not count, or with a
        list that is not finite, as of a network that overflows.
    """
    known = counted & np.isfinite(clean).all(axis=1) & np.isfinite(other).all(axis=1)
    even = 1 / clean.shape[1]  # replaces unknown rows, so that all rows are lists
    reference, lists = (np.where(known[:, np.newaxis], rows, even) for rows in (clean, other))
    return _rounded(ndcg(reference, lists), known), _rounded(reciprocal_rank(reference, lists), known)


def _rounded(scores: Scores, known: npt.NDArray[np.bool_]) -> list[float | None]:
    return [round(float(score), DIGITS) if use else None for score, use in zip(scores, known, strict=True)]


def _ranks(lists: Scores) -> npt.NDArray[np.int64]:
    """Return the rank of each class in its list, (N, K), from 1."""
    order = np.argsort(-lists, axis=1, kind="stable")  # (N, K): the likeliest class first
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, lists.shape[1] + 1)[np.newaxis], axis=1)
    return ranks


def _in_cut_list(lists: Scores, ranks: npt.NDArray[np.int64], mass: float) -> npt.NDArray[np.bool_]:
    """Return the classes in the cut lists (N, K): those above which the probabilities do not reach ``mass``."""
    ordered = -np.sort(-lists, axis=1)  # (N, K)
    above = np.cumsum(ordered, axis=1) - ordered  # (N, K), rank by rank
    length = (above < mass * (1 - MASS_TOLERANCE)).sum(axis=1, keepdims=True)  # (N, 1), at least 1
    in_list: npt.NDArray[np.bool_] = ranks <= length
    return in_list


def _check_lists(clean: Any, other: Any) -> tuple[Scores, Scores]:
    """Return both in float64, if they are softmax lists of the same images and classes."""
    for argument, lists in (("clean", clean), ("other", other)):
        if not _are_softmax_lists(lists):
            raise InputError(
                f"{argument} is {shown(lists)}; an array (N, K) of probabilities that sum to 1 was expected"
            )
    if clean.shape != other.shape:
        raise InputError(f"other has shape {other.shape}; that of clean, {clean.shape}, was expected")
    return clean.astype(np.float64), other.astype(np.float64)


def _are_softmax_lists(lists: Any) -> bool:
    if not isinstance(lists, np.ndarray) or lists.dtype.kind != "f" or lists.ndim != 2 or lists.size == 0:
        return False
    sums = lists.astype(np.float64).sum(axis=1)
    return bool((lists >= 0).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all())
