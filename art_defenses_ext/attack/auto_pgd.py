"""Auto-PGD: projected gradient descent that chooses its step size by itself.

Source: Croce, Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks" (arXiv:2003.01690), section 3, algorithm 1 and the published code: momentum, a step that is halved where
progress stalls, and a return to the best point at each halving.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import Ball, ClipValues, NormName, into_range, per_sample
from art_defenses_ext.attack.base import BestPoints, TensorAttack
from art_defenses_ext.attack.boundaries import nearest_rivals
from art_defenses_ext.attack.losses import MIN_CLASSES, Logits, LossName, Objective
from art_defenses_ext.base.declared import Count, Flag, Positive
from art_defenses_ext.base.errors import InputError

MARGIN = Objective()

MOMENTUM = 0.75  # alpha of equation 1: share of the new step; the rest goes on in the former direction
RHO = 0.75  # a step that raises the loss less often than this is too long
FIRST_WINDOW, SHORTER, LAST_WINDOW = 0.22, 0.03, 0.06  # the checkpoints, in shares of max_iter (section 3.2)


def auto_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    objective: Objective = MARGIN,
    max_iter: int = 100,
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
        targets: the class that each run of an image heads for (N, runs), where the loss has any; its width is the
            number of runs. None for a single run.
        start: where the first run begins (N, ...); None for a random point of the ball's surface, as later runs do.
        clip_values: least and largest pixel value.
        batch_size: images in one pass. An image leaves the batch once it is broken or its runs are done, and the next
            takes its place.
        generator: of the random starts.

    Returns:
        Images (N, ...).
    """
    targets = y[:, None] if targets is None else targets
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    search = _Search(
        logits, x, y, ball, objective, max_iter, targets, start, clip_values, batch_size, generator, BestPoints(x)
    )
    runs, waiting = search.admit(None, torch.arange(len(x), device=x.device))
    while len(runs.sample):
        for _ in range(search.period):  # no step waits for the device; who leaves and enters is settled in between
            search.step(runs)
        runs, waiting = search.admit(runs, waiting)
    return search.best.points


@dataclass(frozen=True)
class _Search:
    """The arguments of :func:`auto_pgd`, and the best points so far."""

    logits: Logits
    x: Tensor
    y: Tensor
    ball: Ball
    objective: Objective
    max_iter: int
    targets: Tensor
    start: Tensor | None
    clip_values: ClipValues
    batch_size: int
    generator: torch.Generator
    best: BestPoints

    def step(self, runs: _Runs) -> None:
        """One gradient and one move of every run."""
        clean, labels = self.x[runs.sample], self.y[runs.sample]
        targets = self.targets[runs.sample, runs.number]
        margins, losses, gradient = self.objective.differentiate(self.logits, runs.x, labels, targets)
        self.best.offer(runs.x, margins, runs.sample)
        gradient = self._adapt_step(runs, losses, gradient)

        towards = runs.x + per_sample(runs.step, runs.x) * self.ball.steepest(gradient)
        towards = self.ball.inside(towards, clean, self.clip_values)
        share = per_sample(torch.where(runs.clock == 1, 1.0, MOMENTUM), runs.x)
        moved = runs.x + share * (towards - runs.x) + (1 - share) * (runs.x - runs.x_before)
        runs.x_before, runs.x = runs.x, self.ball.inside(moved, clean, self.clip_values)

    def _adapt_step(self, runs: _Runs, losses: Tensor, gradient: Tensor) -> Tensor:
        """Note the new point; at a checkpoint without progress halve the step and go back to the best point."""
        better = losses > runs.loss_best
        runs.x_best = torch.where(per_sample(better, runs.x), runs.x, runs.x_best)
        runs.gradient_best = torch.where(per_sample(better, gradient), gradient, runs.gradient_best)
        runs.loss_best = torch.where(better, losses, runs.loss_best)
        runs.rises += (losses > runs.loss_before) & (runs.clock > 0)
        runs.since += runs.clock > 0
        runs.loss_before = losses
        runs.clock = runs.clock + 1

        due = runs.since >= runs.window
        few_rises = runs.rises <= RHO * runs.since
        no_gain = ~runs.halved & (runs.loss_best <= runs.loss_checked)
        halve = due & (few_rises | no_gain)
        runs.step = torch.where(halve, runs.step / 2, runs.step)
        runs.x = torch.where(per_sample(halve, runs.x), runs.x_best, runs.x)
        gradient = torch.where(per_sample(halve, gradient), runs.gradient_best, gradient)
        runs.halved = torch.where(due, halve, runs.halved)
        runs.loss_checked = torch.where(due, runs.loss_best, runs.loss_checked)
        _, shorter, last = self._windows
        runs.window = torch.where(due, (runs.window - shorter).clamp_min(last), runs.window)
        runs.rises, runs.since = torch.where(due, 0, runs.rises), torch.where(due, 0, runs.since)
        return gradient

    @property
    def _windows(self) -> tuple[int, int, int]:
        """Gradients before the first checkpoint, how many fewer before each next, and the fewest."""
        first, shorter, last = (max(int(share * self.max_iter), 1) for share in (FIRST_WINDOW, SHORTER, LAST_WINDOW))
        return first, shorter, last

    @property
    def period(self) -> int:
        """Steps between two looks at who leaves and who enters."""
        return max(step for step in range(1, 11) if self.max_iter % step == 0)

    def admit(self, runs: _Runs | None, waiting: Tensor) -> tuple[_Runs, Tensor]:
        """The runs that go on, with the next ones in the free places, and those that still wait.

        ``waiting`` holds run r of sample i as r N + i. The later runs of a sample begin when the first has come a
        quarter of its way, all of them at once where there is room.
        """
        nb_samples, margins = len(self.x), self.best.margins
        if runs is not None:
            goes_on = margins[runs.sample] >= 0
            ended = runs.clock >= self.max_iter
            quarter = -(-self.max_iter // 4)  # most samples that break at all do so before, and need no other run
            there = (quarter <= runs.clock) & (runs.clock < quarter + self.period)
            first = runs.sample[goes_on & there & (runs.number == 0)]
            later = torch.arange(1, self.targets.shape[1], device=first.device)
            waiting = torch.cat([waiting, (later[:, None] * nb_samples + first).flatten()])
            runs = runs.only(goes_on & ~ended)
        waiting = waiting[margins[waiting % nb_samples] >= 0]
        free = self.batch_size - (0 if runs is None else len(runs.sample))
        samples, numbers = waiting[:free] % nb_samples, waiting[:free] // nb_samples
        clean = self.x[samples]
        start = into_range(clean + self.ball.random_on_surface(clean, self.generator), self.clip_values)
        if self.start is not None:
            start = torch.where(per_sample(numbers == 0, start), self.start[samples], start)
        fresh = _Runs.new(samples, numbers, start, 2 * self.ball.eps, self._windows[0])
        return fresh if runs is None else runs.plus(fresh), waiting[free:]


@dataclass
class _Runs:
    """The runs in the batch, each of one sample; the first axis of every tensor is theirs (b, ...)."""

    sample: Tensor  # position in the block
    number: Tensor  # which of the sample's runs
    clock: Tensor  # gradients so far
    x: Tensor
    x_before: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_before: Tensor
    loss_checked: Tensor  # the best loss at the last checkpoint
    step: Tensor
    window: Tensor  # gradients from one checkpoint to the next
    since: Tensor  # gradients since the last checkpoint
    rises: Tensor  # how many of these raised the loss
    halved: Tensor  # whether the last checkpoint halved the step

    @classmethod
    def new(cls, sample: Tensor, number: Tensor, start: Tensor, step: float, window: int) -> _Runs:
        """Runs that begin at ``start`` (b, ...)."""
        count = torch.zeros_like(sample)
        loss = torch.full((len(sample),), -torch.inf, device=start.device, dtype=start.dtype)
        return cls(
            sample=sample,
            number=number,
            clock=count,
            x=start,
            x_before=start,
            x_best=start,
            gradient_best=torch.zeros_like(start),
            loss_best=loss,
            loss_before=loss,
            loss_checked=loss,
            step=torch.full_like(loss, step),
            window=torch.full_like(count, window),
            since=count.clone(),
            rises=count.clone(),
            halved=torch.ones_like(count, dtype=torch.bool),
        )

    def only(self, which: Tensor) -> _Runs:
        """Those runs for which ``which`` (b,) is true."""
        index = which.nonzero().squeeze(1)
        return _Runs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def plus(self, others: _Runs) -> _Runs:
        """These runs and ``others``."""
        return _Runs(
            **{
                field.name: torch.cat([getattr(self, field.name), getattr(others, field.name)])
                for field in fields(self)
            }
        )


@dataclass(eq=False, repr=False)
class AutoPGD(TensorAttack):
    """Auto-PGD on any loss of :mod:`.losses`, from several starts or towards several targets.

    What comes back is the image of lowest margin that was seen: broken, or the nearest to it.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2; or a class of :mod:`.ball`.
        eps: radius of the ball, in pixel values.
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

    norm: NormName = "linf"
    eps: Positive = 0.3
    max_iter: Count = 100
    loss: LossName = "margin"
    nb_runs: Count = 1
    eot: Count = 1
    targeted: Flag = False

    batches_per_block = 16

    def perturb(
        self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, start: Tensor | None = None
    ) -> Tensor:
        """As :meth:`TensorAttack.perturb`; ``start`` (N, ...): where the first run begins instead of at random."""
        return auto_pgd(
            partial(self.logits, module),
            x,
            y,
            self.geometry(self.eps),
            objective=Objective(self._loss, self.eot, self.targeted),
            max_iter=self.max_iter,
            targets=self._targets(module, x, y),
            start=start,
            clip_values=self.estimator.clip_values,
            batch_size=self.batch_size,
            generator=generator,
        )

    @property
    def _loss(self) -> str:
        """The name of the loss; of two classes that count there is no third logit to divide by."""
        return self.loss.replace("dlr", "margin") if self._paired else self.loss

    def _targets(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The class that each run of each sample heads for (N, runs); only targeted losses look at it."""
        if not self._loss.endswith("_targeted"):
            return y[:, None].expand(-1, self.nb_runs)
        batches = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        return torch.cat(
            [
                nearest_rivals(partial(self.logits, module, y=labels), images, self.geometry, self.nb_runs)
                for images, labels in batches
            ]
        )

    def _check_params(self) -> None:
        super()._check_params()
        least = MIN_CLASSES.get(self._loss, 2)
        if self.nb_labels < least:
            raise InputError(f"loss {self.loss} needs {least} classes; the classifier has {self.nb_labels}")
        if self.targeted and self.loss.endswith("_targeted"):
            raise InputError(f"loss {self.loss} chooses its targets; with targeted another loss was expected")
