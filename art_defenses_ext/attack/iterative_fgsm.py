"""Fast gradient steps, one or many, that stop at the decision boundary, as in the JumpReLU authors' code.

Source: Goodfellow, Shlens, Szegedy 2015 (arXiv:1412.6572) for the single step; for many, the published code of
Erichson, Yao, Mahoney 2019 (arXiv:1904.03750): no ball, a fixed number of small steps in the network's normalised
input space, and no further step once an image is misclassified. ART's basic iterative method projects to a ball and
never stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.attack.ball import Ball, ClipValues, NormName, into_range, per_sample
from art_defenses_ext.attack.base import TensorAttack, iterate_until_broken
from art_defenses_ext.attack.losses import Logits, gradient_of
from art_defenses_ext.base.declared import Count, Positive
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.base.validation import check_all_positive


def iterative_fgsm(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    norm: type[Ball],
    *,
    step_size: Tensor | float,
    max_iter: int,
    clip_values: ClipValues = None,
) -> Tensor:
    """Return images (N, ...) after steps along the gradient of the cross-entropy, until they are misclassified.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        norm: norm of the steps.
        step_size: size of a step in pixel values, or a tensor that broadcasts against an image.
        max_iter: maximum number of steps.
        clip_values: lowest and highest pixel value.
    """

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_()
        outputs = logits(images, labels)
        gradient = gradient_of(F.cross_entropy(outputs, labels, reduction="none"), images)
        unbroken = named_classes(outputs) == labels
        images = images.detach()
        moved = into_range(images + step_size * norm.step(gradient), clip_values)
        return torch.where(per_sample(unbroken, x), moved, images), unbroken

    return iterate_until_broken(step, x, y, max_iter)


@dataclass(eq=False, repr=False)
class IterativeFGSM(TensorAttack):
    """Steepest steps of the cross-entropy until the image is misclassified; for linf along the sign of the gradient.

    One step of size eps is the fast gradient sign method. ART's own cannot attack a defence without a gradient.

    Args:
        estimator: the classifier under attack.
        eps_step: step size in ``norm``, in units of ``scale``.
        max_iter: maximum number of steps.
        scale: pixel values per unit of the step: a number, or an array that broadcasts against an image, such as the
            standard deviations (C, 1, 1) for steps in normalised space.
        norm: ``"linf"`` or ``"l2"``, or ART's numbers inf or 2.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    eps_step: Positive = 0.01
    max_iter: Count = 40
    scale: float | npt.NDArray[np.float32] = 1.0
    norm: NormName = "linf"

    @property
    def ball(self) -> Ball | None:
        """The ball that the steps cannot leave; None if ``scale`` differs between pixels."""
        if np.ndim(self.scale) > 0:
            return None
        return self.geometry(self.max_iter * self.eps_step * float(self.scale))

    function = staticmethod(iterative_fgsm)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        size = self.eps_step * torch.as_tensor(self.scale, dtype=x.dtype).to(x.device)
        return super().options(module, x) | {"step_size": size}

    def _check_params(self) -> None:
        super()._check_params()
        check_all_positive("scale", self.scale, self.estimator.input_shape)
