"""DeepFool for l2 and linf in the form of the JumpReLU authors.

Source: Moosavi-Dezfooli, Fawzi, Frossard 2016 (arXiv:1511.04599), algorithm 2 and section 3.3 for other norms; the
order of operations follows the published code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750): the overshoot
multiplies each step, and an image does not change once it is misclassified. ART's DeepFool is l2 only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import Ball, ClipValues, NormName, into_range, per_sample
from art_defenses_ext.attack.base import TensorAttack, iterate_until_broken
from art_defenses_ext.attack.boundaries import Linearised, linearise
from art_defenses_ext.attack.losses import Logits
from art_defenses_ext.base.declared import Count, NonNegative, integer
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.logits import undefined
from art_defenses_ext.base.validation import check_all_positive

_PUSH = 1e-4  # the authors' addition to each step, in units of ``scale``, since a step of zero length never crosses


def deep_fool(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    norm: type[Ball],
    *,
    max_iter: int = 40,
    overshoot: float = 0.02,
    nb_grads: int = 10,
    scale: Tensor | float = 1.0,
    clip_values: ClipValues = None,
) -> Tensor:
    """Return images (N, ...) after steps to the nearest linearised boundary, until they are misclassified.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        norm: norm of the distances.
        max_iter: maximum number of steps.
        overshoot: each step is 1 + overshoot times as long as the distance.
        nb_grads: number of classes considered, in the order of their logits.
        scale: pixel values per unit of distance, a number or a tensor that broadcasts against an image.
        clip_values: lowest and highest pixel value.
    """

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        at = linearise(logits, images, labels, nb_grads)
        unbroken = (at.classes[:, 0] == labels) & ~undefined(at.logits)
        change = scale * _to_nearest_boundary(at._replace(gradients=at.gradients * scale), norm, overshoot)
        moved = into_range(images + change, clip_values)
        return torch.where(per_sample(unbroken, images), moved, images), unbroken

    return iterate_until_broken(step, x, y, max_iter, period=1)


def _to_nearest_boundary(at: Linearised, norm: type[Ball], overshoot: float) -> Tensor:
    """Return the step (n, ...) to the nearest boundary; zero if all slopes are zero."""
    distance, nearest = at.distances(norm).min(dim=0)
    rows = torch.arange(len(nearest), device=nearest.device)
    direction = at.gradients[1:][nearest, rows] - at.gradients[0]
    step = per_sample((distance + _PUSH) * (1 + overshoot), direction) * norm.steepest(direction)
    return torch.where(per_sample(distance.isfinite(), direction), step, 0)


@dataclass(eq=False, repr=False)
class DeepFoolLp(TensorAttack):
    """Steps to the nearest boundary of the linearised network until the image is misclassified.

    Args:
        estimator: the classifier under attack.
        norm: norm of the distances: ``"linf"`` or ``"l2"``, or ART's numbers inf or 2.
        max_iter: maximum number of steps.
        overshoot: each step is 1 + overshoot times as long as the linearised distance; the authors' 1.02 is .02 here.
        nb_grads: number of classes considered, in the order of their logits.
        scale: pixel values per unit of distance, as in :class:`.IterativeFGSM`.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    norm: NormName = "linf"
    max_iter: Count = 40
    overshoot: NonNegative = 0.02
    nb_grads: Annotated[int, integer(2)] = 10
    scale: float | npt.NDArray[np.float32] = 1.0

    function = staticmethod(deep_fool)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        scale = torch.as_tensor(self.scale, dtype=x.dtype).to(x.device)
        return super().options(module, x) | {"scale": scale}

    def _check_params(self) -> None:
        super()._check_params()
        if self.geometry.sparse:
            raise InputError(
                f"norm is {self.geometry.norm_name}, for which DeepFool has no form; linf or l2 was expected"
            )
        check_all_positive("scale", self.scale, self.estimator.input_shape)
