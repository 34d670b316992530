"""Auto-PGD: projected gradient descent that chooses its step size by itself.

Source: Croce, Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks" (arXiv:2003.01690), section 3, algorithm 1 and the published code: momentum, a step that is halved where
progress stalls, and a return to the best point at each halving.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.attack.ball import ball_type, per_sample
from art_defenses_ext.attack.base import BestPoints, TensorAttack
from art_defenses_ext.attack.boundaries import nearest_rivals
from art_defenses_ext.attack.losses import LOSSES, MIN_CLASSES, gradient_of, margin
from art_defenses_ext.base.validation import InputError, check_choice, check_count, check_flag, check_positive

MOMENTUM = 0.75  # alpha of equation 1: share of the new step; the rest goes on in the former direction
RHO = 0.75  # a step that raises the loss less often than this is too long
FIRST_WINDOW, SHORTER, LAST_WINDOW = 0.22, 0.03, 0.06  # the checkpoints, in shares of max_iter (section 3.2)


class AutoPGD(TensorAttack):
    """Auto-PGD on any loss of :mod:`.losses`, from several starts or towards several targets.

    A sample leaves the batch once it is broken or its runs are done, and the next of the block takes its place. Its
    later runs begin when the first has come a quarter of its way, all of them at once where there is room. What comes
    back is the image of lowest margin that was seen: broken, or the nearest to it.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2.
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

    attack_params = [  # noqa: RUF012
        *TensorAttack.attack_params,
        *("norm", "eps", "max_iter", "loss", "nb_runs", "eot", "targeted"),
    ]
    batches_per_block = 16

    def __init__(
        self,
        estimator: PyTorchClassifier,
        norm: Any = "linf",
        eps: float = 0.3,
        max_iter: int = 100,
        loss: str = "margin",
        nb_runs: int = 1,
        eot: int = 1,
        targeted: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(estimator, **options)
        self.norm = ball_type(norm).norm
        self.eps = eps
        self.max_iter = max_iter
        self.loss = loss
        self.nb_runs = nb_runs
        self.eot = eot
        self.targeted = targeted
        self._check_params()

    def perturb(
        self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, start: Tensor | None = None
    ) -> Tensor:
        """As :meth:`TensorAttack.perturb`; ``start`` (N, ...): where the first run begins instead of at random."""
        block = _Block(x, y, self._targets(module, x, y), BestPoints(x), start)
        runs, waiting = self._admit(None, torch.arange(len(x), device=x.device), block, generator)
        while len(runs.sample):
            for _ in range(self._period):  # no step waits for the device; who leaves and enters is settled in between
                self._step(module, runs, block)
            runs, waiting = self._admit(runs, waiting, block, generator)
        return block.best.points

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

    def _admit(
        self, runs: _Runs | None, waiting: Tensor, block: _Block, generator: torch.Generator
    ) -> tuple[_Runs, Tensor]:
        """The runs that go on, with the next ones in the free places, and those that still wait.

        ``waiting`` holds run r of sample i as r N + i.
        """
        nb_samples, margins = len(block.x), block.best.margins
        if runs is not None:
            goes_on = margins[runs.sample] >= 0
            ended = runs.clock >= self.max_iter
            quarter = -(-self.max_iter // 4)  # most samples that break at all do so before, and need no other run
            there = (quarter <= runs.clock) & (runs.clock < quarter + self._period)
            first = runs.sample[goes_on & there & (runs.number == 0)]
            later = torch.arange(1, block.targets.shape[1], device=first.device)
            waiting = torch.cat([waiting, (later[:, None] * nb_samples + first).flatten()])
            runs = runs.only(goes_on & ~ended)
        waiting = waiting[margins[waiting % nb_samples] >= 0]
        free = self.batch_size - (0 if runs is None else len(runs.sample))
        samples, numbers = waiting[:free] % nb_samples, waiting[:free] // nb_samples
        clean = block.x[samples]
        start = self.clip(clean + self.geometry(self.eps).random_on_surface(clean, generator))
        if block.start is not None:
            start = torch.where(per_sample(numbers == 0, start), block.start[samples], start)
        fresh = _Runs.new(samples, numbers, start, 2 * self.eps, self._windows[0])
        return fresh if runs is None else runs.plus(fresh), waiting[free:]

    @property
    def _period(self) -> int:
        """Steps between two looks at who leaves and who enters."""
        return max(step for step in range(1, 11) if self.max_iter % step == 0)

    @property
    def _windows(self) -> tuple[int, int, int]:
        """Gradients before the first checkpoint, how many fewer before each next, and the fewest."""
        first, shorter, last = (max(int(share * self.max_iter), 1) for share in (FIRST_WINDOW, SHORTER, LAST_WINDOW))
        return first, shorter, last

    def _step(self, module: nn.Module, runs: _Runs, block: _Block) -> None:
        """One gradient and one move of every run."""
        clean, labels = block.x[runs.sample], block.y[runs.sample]
        targets = block.targets[runs.sample, runs.number]
        logits, losses, gradient = self._differentiate(module, runs.x, labels, targets)
        margins = margin(logits, labels)
        block.best.offer(runs.x, -margins if self.targeted else margins, runs.sample)
        gradient = self._adapt_step(runs, losses, gradient)

        towards = runs.x + per_sample(runs.step, runs.x) * self.geometry.steepest(gradient)
        towards = self._into_ball(towards, clean)
        share = per_sample(torch.where(runs.clock == 1, 1.0, MOMENTUM), runs.x)
        moved = runs.x + share * (towards - runs.x) + (1 - share) * (runs.x - runs.x_before)
        runs.x_before, runs.x = runs.x, self._into_ball(moved, clean)

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

    def _differentiate(self, module: nn.Module, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean logits (n, K), losses (n,) and gradients (n, ...) over the passes at one point."""
        sums: list[Tensor] = []
        for _ in range(self.eot):
            x = x.detach().requires_grad_()
            logits = self.logits(module, x, y)
            losses = LOSSES[self._loss](logits, y, target)
            if self.targeted:
                losses = -losses
            found = [logits.detach(), losses.detach(), gradient_of(losses, x)]
            sums = [one + other for one, other in zip(sums, found, strict=True)] if sums else found
        logits, losses, gradient = (one / self.eot for one in sums)
        return logits, losses, gradient

    def _into_ball(self, points: Tensor, clean: Tensor) -> Tensor:
        return self.geometry(self.eps).inside(points, clean, self.estimator.clip_values)

    def _check_params(self) -> None:
        super()._check_params()
        check_positive("eps", self.eps)
        for argument in ("max_iter", "nb_runs", "eot"):
            check_count(argument, getattr(self, argument))
        check_flag("targeted", self.targeted)
        check_choice("loss", self.loss, list(LOSSES))
        least = MIN_CLASSES.get(self._loss, 2)
        if self.nb_labels < least:
            raise InputError(f"loss {self.loss} needs {least} classes; the classifier has {self.nb_labels}")
        if self.targeted and self.loss.endswith("_targeted"):
            raise InputError(f"loss {self.loss} chooses its targets; with targeted another loss was expected")


class _Block(NamedTuple):
    """The samples under attack and what is known of them."""

    x: Tensor  # clean images (N, ...)
    y: Tensor  # labels (N,)
    targets: Tensor  # (N, runs)
    best: BestPoints
    start: Tensor | None  # of the first runs (N, ...)


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
