"""What an evaluation does besides attacking: shown while it runs, and its passes and seconds counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from art.estimators.classification import PyTorchClassifier
from rich.progress import Progress

from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.evaluation.records.sample import CostRecord

PREPARATION = "preparation"
GRADIENTS = "gradient examination"
JUDGING = "judging"
PICTURES = "pictures"
BINARIZATION = "binarization"
"""What is counted beside the attacks, by the name under which it stands in the costs."""

PHASES = (PREPARATION, GRADIENTS, JUDGING, PICTURES, BINARIZATION)

Announce = Callable[[str], None]
"""Told what is done next; each call is a step of the phase."""


class Phases:
    """The phases of one process of an evaluation.

    Args:
        bar: where they are shown.
        costs: of phases before.
    """

    def __init__(self, bar: Progress, costs: dict[str, Cost] | None = None) -> None:
        self.bar = bar
        self._costs = {} if costs is None else dict(costs)

    @contextmanager
    def phase(self, name: str, *classifiers: PyTorchClassifier | None, steps: int | None = None) -> Iterator[Announce]:
        """Show a phase while it runs, and count the passes of some classifiers in it.

        Args:
            name: one of ``PHASES``.
            classifiers: whose passes to count; None for one that there is not.
            steps: how many there are; None where nobody knows.
        """
        task = self.bar.add_task(name, total=steps, note="")
        try:
            with measured(*filter(None, classifiers)) as cost:
                yield lambda note: self.bar.update(task, advance=1, note=note)
            self.count(name, cost)
        finally:
            self.bar.remove_task(task)

    def count(self, name: str, cost: Cost) -> None:
        """Add what was spent on a phase."""
        self._costs[name] = self._costs[name] + cost if name in self._costs else cost

    def taken(self, block: int) -> list[CostRecord]:
        """Return what was counted since the last call, in the name of the block that begins at sample ``block``."""
        costs, self._costs = self._costs, {}
        return [CostRecord(block, name, 0, cost) for name, cost in costs.items()]
