"""The phases of an evaluation besides attacks: their progress, passes and seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from art.estimators.classification import PyTorchClassifier
from rich.progress import Progress

from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.evaluation.records.sample import CostRecord

PREPARATION = "preparation"
GRADIENTS = "gradient examination"
PREDICTIONS = "predictions"
PICTURES = "pictures"
BINARIZATION = "binarization"
"""The phases besides the attacks, by their names in the costs."""

PHASES = (PREPARATION, GRADIENTS, PREDICTIONS, PICTURES, BINARIZATION)

Announce = Callable[[str], None]
"""A function that announces the next step of a phase."""


class Phases:
    """The phases of one process of an evaluation.

    Args:
        bar: the progress bar.
        costs: the costs of earlier phases.
    """

    def __init__(self, bar: Progress, costs: dict[str, Cost] | None = None) -> None:
        self.bar = bar
        self._costs = {} if costs is None else dict(costs)

    @contextmanager
    def phase(self, name: str, *classifiers: PyTorchClassifier | None, steps: int | None = None) -> Iterator[Announce]:
        """Show a phase while it runs, and count the passes of some classifiers in it.

        Args:
            name: one of ``PHASES``.
            classifiers: the classifiers whose passes count; None is skipped.
            steps: number of steps; None if unknown.
        """
        task = self.bar.add_task(name, total=steps, note="")
        try:
            with measured(*filter(None, classifiers)) as cost:
                yield lambda note: self.bar.update(task, advance=1, note=note)
            self.count(name, cost)
        finally:
            self.bar.remove_task(task)

    def count(self, name: str, cost: Cost) -> None:
        """Add a cost to a phase."""
        self._costs[name] = self._costs[name] + cost if name in self._costs else cost

    def taken(self, block: int) -> list[CostRecord]:
        """Return the costs since the last call, for the block that begins at sample ``block``."""
        costs, self._costs = self._costs, {}
        return [CostRecord(block, name, 0, cost) for name, cost in costs.items()]
