"""The search of Auto-PGD: many runs in one batch, their steps, and the schedule of the step size.

Source: Croce, Hein 2020 (arXiv:2003.01690), section 3, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from art_defenses_ext.attack.ball import Ball, ClipValues, into_range, per_sample
from art_defenses_ext.attack.base import BestPoints
from art_defenses_ext.attack.losses import Logits, Objective

MOMENTUM = 0.75  # alpha of equation 1: share of the new step; the rest repeats the previous step
RHO = 0.75  # a step size is halved if fewer of its steps raise the loss
FIRST_WINDOW, SHORTER, LAST_WINDOW = 0.22, 0.03, 0.06  # distances of checkpoints, as shares of max_iter (section 3.2)


@dataclass
class Runs:
    """The runs in the batch, each of one sample. The first axis of every tensor is the run (b, ...)."""

    sample: Tensor  # position of the sample in the block
    number: Tensor  # number of the run among the sample's runs
    clock: Tensor  # number of gradients so far
    x: Tensor
    x_before: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_before: Tensor
    loss_checked: Tensor  # the best loss at the last checkpoint
    step: Tensor
    window: Tensor  # number of gradients between two checkpoints
    since: Tensor  # number of gradients since the last checkpoint
    rises: Tensor  # number of these that raised the loss
    halved: Tensor  # whether the last checkpoint halved the step
    changed: Tensor  # number of pixel values that differed from the clean image at the last checkpoint; in sparse norms
    broken_for: Tensor  # number of consecutive gradients, up to the last, at which the image was broken

    @classmethod
    def new(cls, sample: Tensor, number: Tensor, start: Tensor, step: float, window: int) -> Runs:
        """Return runs that begin at ``start`` (b, ...)."""
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
            changed=count,
            broken_for=count,
        )

    def only(self, which: Tensor) -> Runs:
        """Return the runs for which ``which`` (b,) is true."""
        index = which.nonzero().squeeze(1)
        return Runs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def plus(self, others: Runs) -> Runs:
        """Return these runs and ``others`` in one batch."""
        pairs = {field.name: (getattr(self, field.name), getattr(others, field.name)) for field in fields(self)}
        return Runs(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def note(self, losses: Tensor, gradient: Tensor) -> None:
        """Store the losses (b,) and gradients (b, ...) at the current points, and update the best points."""
        better = losses > self.loss_best
        self.x_best = torch.where(per_sample(better, self.x), self.x, self.x_best)
        self.gradient_best = torch.where(per_sample(better, gradient), gradient, self.gradient_best)
        self.loss_best = torch.where(better, losses, self.loss_best)
        self.rises += (losses > self.loss_before) & (self.clock > 0)
        self.since += self.clock > 0
        self.loss_before = losses
        self.clock = self.clock + 1

    def return_to_best(self, which: Tensor, gradient: Tensor) -> Tensor:
        """Move the runs ``which`` (b,) to their best points; return ``gradient`` (b, ...) with the gradients there."""
        self.x = torch.where(per_sample(which, self.x), self.x_best, self.x)
        return torch.where(per_sample(which, gradient), self.gradient_best, gradient)


@dataclass(frozen=True)
class Search:
    """The arguments of :func:`.auto_pgd`, and the best points so far."""

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
    confirmations: int
    longest: Tensor  # largest ``broken_for`` of any run of a sample (N,)

    def step(self, runs: Runs) -> None:
        """Take one gradient and one step of every run."""
        clean, labels = self.x[runs.sample], self.y[runs.sample]
        targets = self.targets[runs.sample, runs.number]
        margins, losses, gradient = self.objective.differentiate(self.logits, runs.x, labels, targets)
        self.offer(runs, margins)
        runs.note(losses, gradient)
        self.move(runs, clean, self.adapt(runs, clean, gradient))

    def offer(self, runs: Runs, margins: Tensor) -> None:
        """Keep the current points whose margins (b,) are the lowest yet."""
        self.best.offer(runs.x, margins, runs.sample, repeated=self.targets.shape[1] > 1)
        if self.confirmations > 1:
            runs.broken_for = torch.where(margins < 0, runs.broken_for + 1, 0)
            self.longest.scatter_reduce_(0, runs.sample, runs.broken_for, "amax")

    def unbroken(self, samples: Tensor) -> Tensor:
        """Return which samples (n,) go on: those that were not broken ``confirmations`` times in a row."""
        if self.confirmations > 1:
            return self.longest[samples] < self.confirmations
        return self.best.margins[samples] >= 0

    def adapt(self, runs: Runs, clean: Tensor, gradient: Tensor) -> Tensor:
        """At a checkpoint without progress, halve the step and return to the best point; return the gradient there."""
        due = runs.since >= runs.window
        few_rises = runs.rises <= RHO * runs.since
        no_gain = ~runs.halved & (runs.loss_best <= runs.loss_checked)
        halve = due & (few_rises | no_gain)
        runs.step = torch.where(halve, runs.step / 2, runs.step)
        gradient = runs.return_to_best(halve, gradient)
        runs.halved = torch.where(due, halve, runs.halved)
        runs.loss_checked = torch.where(due, runs.loss_best, runs.loss_checked)
        _, shorter, last = self._windows
        runs.window = torch.where(due, (runs.window - shorter).clamp_min(last), runs.window)
        runs.rises, runs.since = torch.where(due, 0, runs.rises), torch.where(due, 0, runs.since)
        return gradient

    def move(self, runs: Runs, clean: Tensor, gradient: Tensor) -> None:
        """Take a step along ``gradient`` (b, ...) with momentum, projected to the balls around ``clean`` (b, ...)."""
        towards = runs.x + per_sample(runs.step, runs.x) * self.ball.steepest(gradient)
        towards = self.ball.inside(towards, clean, self.clip_values)
        share = per_sample(torch.where(runs.clock == 1, 1.0, MOMENTUM), runs.x)
        moved = runs.x + share * (towards - runs.x) + (1 - share) * (runs.x - runs.x_before)
        runs.x_before, runs.x = runs.x, self.ball.inside(moved, clean, self.clip_values)

    def fresh(self, sample: Tensor, number: Tensor) -> Runs:
        """Return new runs ``number`` (b,) of samples ``sample`` (b,) at their starts."""
        clean = self.x[sample]
        start = into_range(clean + self.ball.random_on_surface(clean, self.generator), self.clip_values)
        return Runs.new(sample, number, self.given_or(start, sample, number), 2 * self.ball.eps, self._windows[0])

    def given_or(self, start: Tensor, sample: Tensor, number: Tensor) -> Tensor:
        """Return ``start`` (b, ...), replaced by the given start, if any, for the first run of a sample."""
        if self.start is None:
            return start
        return torch.where(per_sample(number == 0, start), self.start[sample], start)

    @property
    def _windows(self) -> tuple[int, int, int]:
        """The number of gradients before the first checkpoint, its decrease at each checkpoint, and its minimum."""
        first, shorter, last = (max(int(share * self.max_iter), 1) for share in (FIRST_WINDOW, SHORTER, LAST_WINDOW))
        return first, shorter, last

    @property
    def period(self) -> int:
        """The number of steps between two updates of the batch."""
        return max(step for step in range(1, 11) if self.max_iter % step == 0)

    @property
    def patience(self) -> int:
        """The number of gradients of a sample's first run before its other runs begin; most successes come earlier."""
        return -(-self.max_iter // 4)

    def admit(self, runs: Runs | None, waiting: Tensor) -> tuple[Runs, Tensor]:
        """Return the runs of the next batch, with new runs in the free places, and the runs that still wait.

        ``waiting`` holds run r of sample i as r N + i. The later runs of a sample join it together, when the first run
        has taken ``patience`` gradients.
        """
        nb_samples = len(self.x)
        if runs is not None:
            unbroken = self.unbroken(runs.sample)
            ended = runs.clock >= self.max_iter
            is_due = (self.patience <= runs.clock) & (runs.clock < self.patience + self.period)
            first = runs.sample[unbroken & is_due & (runs.number == 0)]
            later = torch.arange(1, self.targets.shape[1], device=first.device)
            waiting = torch.cat([waiting, (later[:, None] * nb_samples + first).flatten()])
            runs = runs.only(unbroken & ~ended)
        waiting = waiting[self.unbroken(waiting % nb_samples)]
        free = self.batch_size - (0 if runs is None else len(runs.sample))
        fresh = self.fresh(waiting[:free] % nb_samples, waiting[:free] // nb_samples)
        return fresh if runs is None else runs.plus(fresh), waiting[free:]
