"""Conformal thresholds of a detector, from the scores of benign images held out from training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from art_defenses_ext.base.errors import InputError


def conformal_thresholds(scores: Tensor, classes: Tensor, nb_classes: int, rate: float) -> Tensor:
    """Return thresholds (K,) at which at most the share ``rate`` of benign images of each predicted class is flagged.

    The share holds in expectation for any distribution of the scores.

    Args:
        scores: scores of benign images (n,).
        classes: predicted classes (n,).
        nb_classes: number of classes K.
        rate: false positive rate, between 0 and 1.

    Raises:
        InputError: for a class with too few images.

    *Source*: Vovk, Gammerman, Shafer 2005 (conformal prediction): the quantile of n + 1 scores.
    """
    thresholds = []
    for number in range(nb_classes):
        benign = scores[classes == number].sort().values
        place = math.ceil((len(benign) + 1) * (1 - rate) - 1e-9)
        if place > len(benign):
            raise InputError(
                f"false_positive_rate is {rate}, for which class {number} has too few images held out "
                f"({len(benign)}); at least {needed(rate)} were expected"
            )
        thresholds.append(benign[max(place, 1) - 1])
    return torch.stack(thresholds)


def needed(rate: float) -> int:
    """Return the minimum number of images of a class for a threshold that flags at most the share ``rate``."""
    return math.ceil(1 / rate - 1e-9) - 1


def hold_out(classes: Tensor, nb_classes: int, share: float, rate: float, seed: int) -> Tensor:
    """Return which images (N,) are held out for the thresholds: the same share of each predicted class."""
    counts = torch.bincount(classes, minlength=nb_classes).tolist()
    kept = [int(share * count + 1e-9) for count in counts]  # so that 0.29 of 100 are 29
    missing = [number for number in range(nb_classes) if counts[number] == 0]
    if missing:
        raise InputError(
            f"x has no image that is predicted as class {_listed(missing)}; images of each class were expected"
        )
    few = [number for number in range(nb_classes) if kept[number] < needed(rate)]
    if few:
        raise InputError(
            f"x has {counts[few[0]]} images predicted as class {few[0]}, of which a validation_split of {share:g} "
            f"holds out {kept[few[0]]} (too few in class {_listed(few)}); at least {needed(rate)} held out of each "
            f"class were expected for a false_positive_rate of {rate:g}{_larger_split(min(counts), rate)}"
        )
    unlearnt = [number for number in range(nb_classes) if kept[number] >= counts[number]]
    if unlearnt:
        raise InputError(
            f"validation_split is {share!r}, which leaves no image of class {_listed(unlearnt)} to learn from; a "
            "smaller one was expected"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(classes), dtype=torch.bool)
    for number in range(nb_classes):
        members = (classes == number).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[: kept[number]]]] = True
    return chosen


def _larger_split(count: int, rate: float) -> str:
    """Suggest a validation split that suffices for a class of ``count`` images, if there is one."""
    share = math.ceil(100 * needed(rate) / count) / 100
    return f": validation_split={share:g} holds out as many" if share <= 0.5 else ""


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
