"""DeepFool for l2 and linf in the form of the JumpReLU authors.

Source: Moosavi-Dezfooli, Fawzi, Frossard 2016 (arXiv:1511.04599), algorithm 2 and section 3.3 for other norms; the
order of operations follows the published code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750): the overshoot
multiplies each step, and an image is left alone once it is misclassified. ART's DeepFool is l2 only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.attack.base import TensorAttack, check_count, check_positive, iterate_until_broken
from art_defenses_ext.attack.norms import Norm, check_norm, per_sample, size, steepest
from art_defenses_ext.validation import InputError

_PUSH = 1e-4  # the authors' addition to each step, in units of ``scale``: a step of zero length would never cross


class DeepFoolLp(TensorAttack):
    """Step to the nearest boundary of the linearised network, again and again, until misclassified.

    Args:
        estimator: the classifier under attack.
        norm: 2 or inf: which distance is "nearest".
        max_iter: steps at most.
        overshoot: each step is 1 + overshoot times as long as the linearised distance; the authors' 1.02 is .02 here.
        nb_grads: how many classes to consider, those of the largest logits.
        scale: pixel values per unit of distance, as in :class:`.IterativeFGSM`.
        **options: see :class:`TensorAttack`.
    """

    attack_params = [*TensorAttack.attack_params, "norm", "max_iter", "overshoot", "nb_grads", "scale"]  # noqa: RUF012

    def __init__(
        self,
        estimator: PyTorchClassifier,
        norm: Norm | str = np.inf,
        max_iter: int = 40,
        overshoot: float = 0.02,
        nb_grads: int = 10,
        scale: float | npt.NDArray[np.float32] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(estimator, **options)
        self.norm = check_norm(norm)
        self.max_iter = max_iter
        self.overshoot = overshoot
        self.nb_grads = nb_grads
        self.scale = scale
        self._check_params()

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        scale = torch.as_tensor(self.scale, device=x.device, dtype=x.dtype)

        def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits, gradients = self._sorted_gradients(module, images)  # (n, G), (G, n, ...)
            unbroken = logits.argmax(dim=1) == labels
            move = self._to_nearest_boundary(logits.sort(dim=1, descending=True)[0], gradients * scale)
            moved = self.clip(images + scale * move)
            return torch.where(per_sample(unbroken, images), moved, images), unbroken

        return iterate_until_broken(step, x, y, self.max_iter, period=1)

    def _sorted_gradients(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, K), and the gradients (G, n, ...) of the G largest in descending order."""
        x = x.detach().requires_grad_()
        logits = module(x)
        ranked = logits.sort(dim=1, descending=True)[0].sum(dim=0)
        count = min(self.nb_grads, len(ranked))
        gradients = [torch.autograd.grad(ranked[rank], x, retain_graph=rank < count - 1)[0] for rank in range(count)]
        return logits.detach(), torch.stack(gradients)

    def _to_nearest_boundary(self, ranked: Tensor, gradients: Tensor) -> Tensor:
        """The step (n, ...) from the largest of the ``ranked`` logits (n, K) towards its nearest rival."""
        dual = 1 if self.norm == np.inf else 2
        towards = gradients[1:] - gradients[0]  # (G - 1, n, ...)
        slope = torch.stack([size(one, dual) for one in towards])  # (G - 1, n)
        gap = (ranked[:, :1] - ranked[:, 1 : len(gradients)]).T  # (G - 1, n)
        distance, nearest = torch.where(slope > 0, gap / slope, torch.inf).min(dim=0)
        # Where all slopes are zero no boundary is in sight; stay, rather than jump to infinity.
        distance = torch.where(distance.isfinite(), (distance + _PUSH) * (1 + self.overshoot), 0)
        direction = towards[nearest, torch.arange(len(nearest), device=nearest.device)]
        return per_sample(distance, direction) * steepest(direction, self.norm)

    def _check_params(self) -> None:
        super()._check_params()
        check_count("max_iter", self.max_iter)
        check_positive("scale", self.scale)
        if not 0 <= self.overshoot < np.inf:
            raise InputError(f"overshoot is {self.overshoot!r}; a finite number >= 0 was expected")
        if isinstance(self.nb_grads, bool) or not isinstance(self.nb_grads, int) or self.nb_grads < 2:
            raise InputError(f"nb_grads is {self.nb_grads!r}; a whole number of at least 2 was expected")
