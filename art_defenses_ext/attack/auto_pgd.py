"""Auto-PGD: projected gradient descent that chooses its step size by itself.

Source: Croce, Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks" (arXiv:2003.01690), section 3, algorithm 1 and the published code: momentum, a step that is halved where
progress stalls, and a return to the best point at each halving (:mod:`.search`). In l1: Croce, Hein 2021, "Mind the
Box" (arXiv:2103.01208), algorithm 1: sparse steps in balls that shrink (:mod:`.sparse_search`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import Ball, ClipValues
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.boundaries import nearest_rivals
from art_defenses_ext.attack.losses import MIN_CLASSES, Logits, LossName, Objective
from art_defenses_ext.attack.search import Search
from art_defenses_ext.attack.sparse_search import SparseSearch
from art_defenses_ext.base.declared import Count, Flag
from art_defenses_ext.base.errors import InputError

MARGIN = Objective()


def auto_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    objective: Objective = MARGIN,
    max_iter: int = 100,
    nb_runs: int = 1,
    targets: Tensor | None = None,
    start: Tensor | None = None,
    clip_values: ClipValues = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images of lowest margin that Auto-PGD finds in the balls around ``x``: misclassified, or nearest to it.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: their labels (N,).
        ball: where to search.
        objective: what to climb.
        max_iter: gradients a run.
        nb_runs: runs an image.
        targets: the class that each run of an image heads for (N, nb_runs), where the loss has any; None for those
            whose boundaries seem nearest.
        start: where the first run begins (N, ...); None for a random point of the ball's surface, as later runs do.
        clip_values: least and largest pixel value.
        batch_size: images in one pass. An image leaves the batch once it is broken or its runs are done, and the next
            takes its place.
        generator: of the random starts.

    Returns:
        Images (N, ...).
    """
    targets = nearest_targets(logits, x, y, ball, objective.loss, nb_runs, batch_size) if targets is None else targets
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    search = (SparseSearch if ball.sparse else Search)(
        logits, x, y, ball, objective, max_iter, targets, start, clip_values, batch_size, generator, BestPoints(x)
    )
    runs, waiting = search.admit(None, torch.arange(len(x), device=x.device))
    while len(runs.sample):
        for _ in range(search.period):  # no step waits for the device; who leaves and enters is settled in between
            search.step(runs)
        runs, waiting = search.admit(runs, waiting)
    return search.best.points


def nearest_targets(
    logits: Logits, x: Tensor, y: Tensor, ball: Ball, loss: str, nb_runs: int, batch_size: int = 256
) -> Tensor:
    """The class that each run of each image heads for (N, nb_runs); only targeted losses look at it."""
    if not loss.endswith("_targeted"):
        return y[:, None].expand(-1, nb_runs)
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([nearest_rivals(logits, images, labels, type(ball), nb_runs) for images, labels in batches])


@dataclass(eq=False, repr=False)
class AutoPGD(BallAttack):
    """Auto-PGD on any loss of :mod:`.losses`, from several starts or towards several targets.

    It returns the image of lowest margin that was seen: broken, or the nearest to it.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        max_iter: gradients a run.
        loss: a name out of ``losses.LOSSES``.
        nb_runs: runs a sample; each from a new random start, with a targeted loss also towards another class, those
            first whose boundaries seem nearest (logit gap over gradient norm).
        eot: forward and backward passes averaged at each point, for defences that draw random numbers.
        targeted: as ART has it: ``y`` is the class to reach, not the one to leave.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    **Departure** from the published code: a run ends as soon as its sample is broken, and each sample keeps its own
    clock, so that another can take its place.
    """

    max_iter: Count = 100
    loss: LossName = "margin"
    nb_runs: Count = 1
    eot: Count = 1
    targeted: Flag = False

    batches_per_block = 16

    function = staticmethod(auto_pgd)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        return super().options(module, x) | {"objective": self.objective}

    @property
    def objective(self) -> Objective:
        """What the attack climbs."""
        return Objective(self._loss, self.eot, self.targeted)

    @property
    def _loss(self) -> str:
        """The name of the loss; of two classes that count there is no third logit to divide by."""
        return self.loss.replace("dlr", "margin") if self._paired else self.loss

    def _check_params(self) -> None:
        super()._check_params()
        least = MIN_CLASSES.get(self._loss, 2)
        if self.nb_labels < least:
            raise InputError(f"loss {self.loss} needs {least} classes; the classifier has {self.nb_labels}")
        if self.targeted and self.loss.endswith("_targeted"):
            raise InputError(f"loss {self.loss} chooses its targets; with targeted another loss was expected")
