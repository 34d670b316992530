"""The search of Auto-PGD in l1: sparse steps whose density follows the best point, in balls that shrink.

Source: Croce, Hein 2021, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers"
(arXiv:2103.01208), algorithm 1, section 3.3 and the published code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_defenses_ext.attack.ball import per_sample
from art_defenses_ext.attack.search import Runs, Search

STAGES = (0.3, 0.6)  # shares of max_iter at which the first two stages end, in balls of three and two times eps
WINDOW = 0.04  # distance of two checkpoints, as a share of the stage's gradients
SPARSER = 0.95  # a best point is sparser if it changes less than this share of the values of the last checkpoint's
DENSITY = 1 / 1.5  # number of values that a step changes, over the number that the best point changes
SLOWER, SLOWEST = 1.5, 10.0  # divisor of the step size if the best point is not sparser, and the largest divisor


class SparseSearch(Search):
    """A search in three stages, in balls of three, two and one times eps; only points of the last stage count.

    Each stage begins at the best point of the previous stage, projected to its ball. There is no momentum.
    """

    def offer(self, runs: Runs, margins: Tensor) -> None:
        super().offer(runs, torch.where(self._growth(runs) == 1, margins, torch.inf))

    def adapt(self, runs: Runs, clean: Tensor, gradient: Tensor) -> Tensor:
        """At a checkpoint, adopt the density of the best point.

        If the best point is sparser than at the last checkpoint, the run continues there with a step of the radius.
        Otherwise the step is shortened.
        """
        due = runs.since >= runs.window
        longest = self.ball.eps * self._growth(runs, passed=1)
        changed = _changed(runs.x_best, clean)
        sparser = changed < SPARSER * runs.changed
        shorter = torch.maximum(runs.step / SLOWER, longest / SLOWEST)
        runs.step = torch.where(due, torch.where(sparser, longest, shorter), runs.step)
        runs.changed = torch.where(due, changed, runs.changed)
        runs.since = torch.where(due, 0, runs.since)
        return runs.return_to_best(due & sparser, gradient)

    def move(self, runs: Runs, clean: Tensor, gradient: Tensor) -> None:
        share = DENSITY * runs.changed / clean[0].numel()
        moved = runs.x + per_sample(runs.step, runs.x) * self.ball.step(gradient, share)
        growth = self._growth(runs)
        new = growth < self._growth(runs, passed=1)  # the next gradient is the first in its stage
        moved = torch.where(per_sample(new, moved), runs.x_best, moved)
        runs.x = self.ball.inside(moved, clean, self.clip_values, growth)
        self._begin_stage(runs, clean, new)

    def fresh(self, sample: Tensor, number: Tensor) -> Runs:
        clean = self.x[sample]
        noise = torch.empty_like(clean).normal_(generator=self.generator)
        runs = Runs.new(sample, number, self.given_or(clean + noise, sample, number), self.ball.eps, 1)
        runs.x = self.ball.inside(runs.x, clean, self.clip_values, self._growth(runs))
        runs.x_best = runs.x
        self._begin_stage(runs, clean, torch.ones_like(runs.halved))
        return runs

    def _begin_stage(self, runs: Runs, clean: Tensor, new: Tensor) -> None:
        """Reset the runs ``new`` (b,), whose best points lie in a larger ball."""
        growth = self._growth(runs)
        first, last = (max(int(WINDOW * share * self.max_iter), 1) for share in (STAGES[0], 1 - STAGES[1]))
        runs.window = torch.where(new, torch.where(growth > 1, first, last), runs.window)
        runs.step = torch.where(new, self.ball.eps * growth, runs.step)
        runs.loss_best = torch.where(new, -torch.inf, runs.loss_best)
        runs.changed = torch.where(new, _changed(runs.x, clean), runs.changed)
        runs.since = torch.where(new, torch.where(runs.clock > 0, -1, 0), runs.since)  # a start is no step

    def _growth(self, runs: Runs, passed: int = 0) -> Tensor:
        """Return the radius of each run's ball (b,), in units of eps, at its next gradient or ``passed`` earlier."""
        clock = runs.clock - passed
        ends = self._ends
        return 3.0 - (clock >= ends[0]).to(self.x.dtype) - (clock >= ends[1]).to(self.x.dtype)

    @property
    def _ends(self) -> tuple[int, int]:
        return int(STAGES[0] * self.max_iter), int(STAGES[1] * self.max_iter)

    @property
    def patience(self) -> int:
        begun = self._ends[1]
        return begun + -(-(self.max_iter - begun) // 4)


def _changed(points: Tensor, clean: Tensor) -> Tensor:
    """Return the number of values (b,) of each point (b, ...) that differ from the clean image."""
    return (points != clean).flatten(1).sum(dim=1)
