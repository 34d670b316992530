"""Auto-PGD: projected gradient descent that adapts its step size.

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
from art_defenses_ext.attack.base import CONFIRMATIONS, BallAttack, BestPoints
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
    confirmations: int = 1,
) -> Tensor:
    """Return the images of lowest margin (N, ...) that Auto-PGD finds in the balls around images ``x`` (N, ...).

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        objective: the loss to raise.
        max_iter: number of gradients per run.
        nb_runs: number of runs per image.
        targets: target class of each run (N, nb_runs) of a targeted loss; None for the classes whose boundaries seem
            nearest.
        start: start of the first run (N, ...); None for a random point on the ball's surface, as for later runs.
        clip_values: lowest and highest pixel value.
        batch_size: number of images per pass. An image leaves the batch once it is broken or its runs have ended, and
            the next image takes its place.
        generator: source of the random starts.
        confirmations: number of consecutive gradients at which an image must be broken before its runs end; more than
            one for a random network, which may look broken by chance.

    Returns:
        Images (N, ...).
    """
    targets = nearest_targets(logits, x, y, ball, objective.loss, nb_runs, batch_size) if targets is None else targets
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    search = (SparseSearch if ball.sparse else Search)(
        logits, x, y, ball, objective, max_iter, targets, start, clip_values, batch_size, generator, BestPoints(x),
        confirmations, torch.zeros(len(x), dtype=torch.int64, device=x.device),
    )  # fmt: skip
    runs, waiting = search.admit(None, torch.arange(len(x), device=x.device))
    while len(runs.sample):
        for _ in range(search.period):  # no step waits for the device; the batch changes between the periods
            search.step(runs)
        runs, waiting = search.admit(runs, waiting)
    return search.best.points


def nearest_targets(
    logits: Logits, x: Tensor, y: Tensor, ball: Ball, loss: str, nb_runs: int, batch_size: int = 256
) -> Tensor:
    """Return the target class of each run of each image (N, nb_runs); only targeted losses use it."""
    if not loss.endswith("_targeted"):
        return y[:, None].expand(-1, nb_runs)
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([nearest_rivals(logits, images, labels, type(ball), nb_runs) for images, labels in batches])


@dataclass(eq=False, repr=False)
class AutoPGD(BallAttack):
    """Auto-PGD on any loss of :mod:`.losses`, from several starts or towards several targets.

    It returns the image of lowest margin on its path.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        max_iter: number of gradients per run.
        loss: a name in ``losses.LOSSES``.
        nb_runs: number of runs per image, each from a new random start. With a targeted loss each run has another
            target, in the order of the estimated distance of its boundary (logit gap over gradient norm).
        eot: number of forward and backward passes averaged at each point (EOT), for random defences.
        targeted: as in ART: ``y`` is the class to reach, not the class to leave.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    **Departure** from the published code: a run ends as soon as its image is broken (for a random network, broken
    :data:`.CONFIRMATIONS` times in a row), and each image has its own clock,
    so that another image can take its place.
    """

    max_iter: Count = 100
    loss: LossName = "margin"
    nb_runs: Count = 1
    eot: Count = 1
    targeted: Flag = False

    batches_per_block = 16

    function = staticmethod(auto_pgd)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        random = {"confirmations": CONFIRMATIONS} if self.eot > 1 else {}
        return super().options(module, x) | {"objective": self.objective} | random

    @property
    def objective(self) -> Objective:
        """The loss that the attack raises."""
        return Objective(self._loss, self.eot, self.targeted)

    @property
    def _loss(self) -> str:
        """The name of the loss; the margin instead of DLR if only two classes count, which needs a third logit."""
        return self.loss.replace("dlr", "margin") if self._paired else self.loss

    def _check_params(self) -> None:
        super()._check_params()
        least = MIN_CLASSES.get(self._loss, 2)
        if self.nb_labels < least:
            raise InputError(f"loss {self.loss} needs {least} classes; the classifier has {self.nb_labels}")
        if self.targeted and self.loss.endswith("_targeted"):
            raise InputError(f"loss {self.loss} chooses its targets; with targeted another loss was expected")
