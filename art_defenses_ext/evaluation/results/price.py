"""The expected cost of an evaluation, from a trial on a few of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add

from art_defenses_ext.evaluation.checks.gradient_health import SAMPLES as EXAMINED
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.phases import BINARIZATION, GRADIENTS, PHASES, PREDICTIONS
from art_defenses_ext.evaluation.records.sample import CostRecord
from art_defenses_ext.evaluation.run.block import BINARIZED
from art_defenses_ext.evaluation.suite.plan import AttackRun

PAPERS = "--attacks papers"
"""The option that leaves out everything but the paper's attacks."""

WORTH = 0.9
"""The largest share of the cost at which a cheaper evaluation is proposed."""


@dataclass(frozen=True)
class Trial:
    """The cost of all attacks of a plan on a few images.

    Attributes:
        plan: the runs of the attacks.
        settings: the settings of the evaluation.
        start: index of the first image.
        size: number of images.
        costs: costs of attacks and phases.
        seconds_of_step: seconds of a step of an attack on a batch, up to a factor, by the number of images in it and
            whether the attack passes backwards.
    """

    plan: list[AttackRun]
    settings: Settings
    start: int
    size: int
    costs: list[CostRecord]
    seconds_of_step: Callable[[float, bool], float] = field(default_factory=lambda: lambda images, backward: images)

    def expected(self, settings: Settings, starts: Sequence[int], papers_only: bool = False) -> Cost:
        """Return the expected cost of an evaluation of the same model.

        **Convention**: each attack runs on the same share of images as in the trial.

        Args:
            settings: settings of the evaluation.
            starts: indices of the first samples of its blocks.
            papers_only: leave out everything but the paper's attacks.
        """
        spent = {record.attack: record for record in self.costs}
        runs = [run for run in self.plan if not papers_only or (run.spec.source == "paper" and run.role == "suite")]
        attacks = [
            cost for run in runs if run.key in spent for cost in self._in_blocks(run, spent[run.key], settings, starts)
        ]
        tried = sum(spent[run.key].samples for run in self.plan if run.key in spent)
        shares = {
            GRADIENTS: 0.0 if papers_only else _ratio(settings, self.settings, EXAMINED, "samples"),
            BINARIZATION: 0.0 if papers_only else _ratio(settings, self.settings, BINARIZED, "check_samples"),
            PREDICTIONS: sum(count for count, _ in attacks) / max(tried, 1),
        }
        phases = [_times(spent[name].cost, shares.get(name, 1.0)) for name in PHASES if name in spent]
        return reduce(add, [*(cost for _, cost in attacks), *phases], Cost())

    def _in_blocks(
        self, run: AttackRun, record: CostRecord, settings: Settings, starts: Sequence[int]
    ) -> Iterator[tuple[float, Cost]]:
        """Return the expected cost of an attack in each block, by the number of images that it will attack."""
        share = record.samples / _eligible(run, self.settings, self.start, self.size)
        for start in starts:
            size = min(settings.block_size, settings.samples - start)
            count = min(share * _eligible(run, settings, start, size), run.most(size))
            if count:
                cost = _times(record.cost, count / record.samples)
                yield count, replace(cost, seconds=cost.seconds * self._slower(record.cost, count / record.samples))

    def _slower(self, cost: Cost, more: float) -> float:
        """Return the factor of an image's seconds in a batch that is larger by another factor."""
        batch = cost.forward / cost.calls if cost.calls else 1.0
        if batch <= 1:  # an attack that takes one image after the other
            return 1.0
        before, after = (self.seconds_of_step(size, cost.backward > 0) / size for size in (batch, batch * more))
        return after / before


def _eligible(run: AttackRun, settings: Settings, start: int, size: int) -> int:
    """Return the number of a block's images that a run attacks if all are robust."""
    first = {"suite": settings.samples, "curve": settings.curve_samples}.get(run.role, settings.check_samples)
    return max(0, min(start + size, first) - start)


def _ratio(settings: Settings, tried: Settings, most: int, name: str) -> float:
    """Return the ratio of the images of a phase to those of the trial; a phase has at most ``most`` images."""
    images, before = (min(most, int(getattr(chosen, name))) for chosen in (settings, tried))
    return images / max(1, before)


def _times(cost: Cost, factor: float) -> Cost:
    return Cost(round(cost.forward * factor), round(cost.backward * factor), cost.seconds * factor, cost.peak_memory)


@dataclass(frozen=True)
class Price:
    """The expected cost of an evaluation.

    Attributes:
        cost: the total cost.
        cheaper: options of the command with a lower cost, and this cost.
        trial: number of images in the trial.
    """

    cost: Cost
    cheaper: dict[str, Cost]
    trial: int

    @classmethod
    def of(cls, trial: Trial, settings: Settings) -> Price:
        """Return the expected cost of an evaluation, and of evaluations with fewer images or attacks."""
        cost = trial.expected(settings, _starts(settings))
        fewer = {"samples": max(1, settings.samples // 4), "curve_samples": 0, "check_samples": 20}
        others: dict[str, Settings] = {
            f"--{name.replace('_', '-')} {count}": Settings.of(asdict(settings) | {name: count})
            for name, count in fewer.items()
            if count < getattr(settings, name)
        }
        cheaper = {option: trial.expected(each, _starts(each)) for option, each in others.items()}
        if settings.attacks != "papers":
            cheaper[PAPERS] = trial.expected(settings, _starts(settings), papers_only=True)
        worth = {option: each for option, each in cheaper.items() if each.seconds <= WORTH * cost.seconds}
        return cls(cost, dict(sorted(worth.items(), key=lambda item: -item[1].seconds)), trial.size)

    def beside(self, undefended: Price) -> Price:
        """Return the expected cost with the evaluation of the undefended model, unless only papers' attacks run."""
        both = {
            option: cost if option == PAPERS else cost + undefended.cheaper.get(option, undefended.cost)
            for option, cost in self.cheaper.items()
        }
        cheaper = both | {"--undefended papers": self.cost}
        return Price(self.cost + undefended.cost, cheaper, self.trial)

    def lines(self) -> Iterator[str]:
        """Return the expected cost in words, line by line."""
        yield f"Expected: {in_words(self.cost)} (a trial of {self.trial} images)."
        for option, cost in self.cheaper.items():
            papers = "; the paper's attacks alone give no robust accuracy" if option == PAPERS else ""
            yield f"Cheaper: {option}: {duration(cost.seconds)}{papers}"


def _starts(settings: Settings) -> range:
    return range(0, settings.samples, settings.block_size)


def in_words(cost: Cost) -> str:
    """Return a cost as ``"1,234 passes forwards, 567 backwards, 3 min, at most 0.8 GB of memory"``."""
    passes = f"{cost.forward:,} passes forwards, {cost.backward:,} backwards"
    return f"{passes}, {duration(cost.seconds)}, at most {cost.peak_memory / 1e9:.2f} GB of memory"


def duration(seconds: float) -> str:
    """Return seconds as ``"42 s"``, ``"12 min"`` or ``"3.4 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
