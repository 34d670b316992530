"""Figures out of records: accuracies with intervals, what each attack broke, the curve, the costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scipy.stats import binomtest

from art_defenses_ext.evaluation.costs import Cost
from art_defenses_ext.evaluation.plan import AttackRun
from art_defenses_ext.evaluation.records import CostRecord, Outcome, SampleRecord
from art_defenses_ext.evaluation.settings import RunDescription
from art_defenses_ext.evaluation.threats import L2, Linf

FORMAT = 1  # of report.json


@dataclass(frozen=True)
class Proportion:
    """So many of so many.

    Attributes:
        count: samples for which it holds.
        total: samples in all, at least one.
    """

    count: int
    total: int

    @property
    def rate(self) -> float:
        """The share, from 0 to 1."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the share."""
        low, high = binomtest(self.count, self.total).proportion_ci(0.95, method="wilson")
        return float(low), float(high)

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Proportion:
        """Count the samples for which the verdict is true."""
        listed = list(verdicts)
        return cls(sum(listed), len(listed))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    def as_dict(self) -> dict[str, Any]:
        """Counts, rate and interval, for JSON."""
        return asdict(self) | {"rate": self.rate, "interval": list(self.interval)}


@dataclass(frozen=True)
class AttackRow:
    """A line of the report: one attack under one gradient mode.

    Attributes:
        key: its name in the records.
        source: ``"paper"`` or ``"ladder"``.
        crafted_on: ``"defended"`` or ``"undefended"``.
        mode: the gradient mode.
        purpose: what it is for.
        samples: ``"all"`` or ``"survivors"``.
        bounded: whether it keeps to the ball, or looks for the smallest perturbation.
        attacked: samples that it ran on; 0 if it did not run.
        broke: samples among them that it moved over the boundary inside the ball and that were classified correctly.
        accuracy: as papers print it: correct after the attack, whatever its size; None unless it ran on all samples.
        robust: correct after the attack, where only perturbations inside the ball count; None likewise.
        median_linf: median linf size of the perturbations that turned a correct prediction wrong; None without any.
        median_l2: likewise.
        forward: images passed forwards per attacked image.
        backward: images passed backwards per attacked image.
        seconds: wall time.
        note: why it did not run, or that it returned images with NaN or outside the clip range; else empty.
    """

    key: str
    source: str
    crafted_on: str
    mode: str
    purpose: str
    samples: str
    bounded: bool
    attacked: int
    broke: int
    accuracy: Proportion | None
    robust: Proportion | None
    median_linf: float | None
    median_l2: float | None
    forward: float
    backward: float
    seconds: float
    note: str


@dataclass(frozen=True)
class Curve:
    """Accuracy of the defended classifier against the eps of one attack, all else equal.

    Attributes:
        attack: the attack and its mode.
        points: (eps, accuracy inside that ball), from eps 0.
    """

    attack: str
    points: list[tuple[float, Proportion]]


@dataclass(frozen=True)
class Summary:
    """The figures of a run.

    Attributes:
        run: what was run.
        clean: accuracy on clean images.
        undefended_clean: the undefended classifier's.
        undefended_robust: the undefended classifier's, after the attacks made on it, inside the ball.
        paper: after the paper's own attacks only, inside the ball; None if it has none.
        worst_case: robust accuracy: no attack at all succeeded.
        rows: the attacks.
        curves: accuracy against eps.
        total: cost of everything.
    """

    run: RunDescription
    clean: Proportion
    undefended_clean: Proportion | None
    undefended_robust: Proportion | None
    paper: Proportion | None
    worst_case: Proportion
    rows: list[AttackRow]
    curves: list[Curve]
    total: Cost

    @property
    def gap(self) -> float | None:
        """How much of the paper's number does not survive the worst case, from 0 to 1; None unless both were tried."""
        if self.paper is None or all(row.source == "paper" for row in self.rows):
            return None
        return self.paper.rate - self.worst_case.rate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``report.json``."""
        return {"format": FORMAT, "gap": self.gap, **_plain(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Proportion):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def summarise(
    run: RunDescription, plan: list[AttackRun], records: list[SampleRecord], costs: list[CostRecord]
) -> Summary:
    """Compute every figure of a run from its records."""
    by_attack = _cost_by_attack(costs)
    paper = {one.key for one in plan if one.spec.source == "paper" and _outcomes(one.key, records)}
    has_undefended = records[0].undefended_clean is not None
    return Summary(
        run=run,
        clean=Proportion.of(record.correct for record in records),
        undefended_clean=Proportion.of(r.undefended_clean == r.label for r in records) if has_undefended else None,
        undefended_robust=_undefended_robust(plan, records),
        paper=Proportion.of(record.robust(paper) for record in records) if paper else None,
        worst_case=Proportion.of(record.robust() for record in records),
        rows=[_row(one, records, by_attack[one.key]) for one in plan if not one.curve]
        + _curve_row(plan, records, costs),
        curves=_curves(run, plan, records),
        total=_sum(record.cost for record in costs),
    )


def _outcomes(key: str, records: list[SampleRecord]) -> list[Outcome]:
    return [record.attacks[key] for record in records if key in record.attacks]


def _row(one: AttackRun, records: list[SampleRecord], cost: Cost) -> AttackRow:
    outcomes = _outcomes(one.key, records)
    missed = [outcome for outcome in outcomes if outcome.misclassified]
    moved = [record.attacks[one.key] for record in records if record.correct and one.key in record.attacks]
    sizes = [outcome for outcome in moved if outcome.misclassified]
    everywhere = len(outcomes) == len(records)
    attacked = max(len(outcomes), 1)
    return AttackRow(
        key=one.key,
        source=one.spec.source,
        crafted_on=one.spec.crafted_on,
        mode=one.mode,
        purpose=one.spec.purpose,
        samples=one.spec.samples,
        bounded=one.spec.bounded,
        attacked=len(outcomes),
        broke=sum(r.correct and r.attacks[one.key].success for r in records if one.key in r.attacks),
        accuracy=Proportion(len(outcomes) - len(missed), len(outcomes)) if everywhere else None,
        robust=Proportion.of(r.robust({one.key}) for r in records) if everywhere else None,
        median_linf=median(outcome.linf for outcome in sizes) if sizes else None,
        median_l2=median(outcome.l2 for outcome in sizes) if sizes else None,
        forward=cost.forward / attacked,
        backward=cost.backward / attacked,
        seconds=cost.seconds,
        note=_note(one, outcomes, records),
    )


def _curve_row(plan: list[AttackRun], records: list[SampleRecord], costs: list[CostRecord]) -> list[AttackRow]:
    """One line for all runs at the curve's eps: what they break inside the ball counts as anything else does."""
    main = {one.key for one in plan if not one.curve}
    curve = {one.key for one in plan if one.curve}
    chosen = [record for record in records if curve & record.attacks.keys() and record.robust(main)]
    if not curve or not any(curve & record.attacks.keys() for record in records):
        return []
    cost = _sum(record.cost for record in costs if record.attack in curve)
    images = max(sum(record.samples for record in costs if record.attack in curve), 1)
    missed = [record for record in chosen if not record.robust()]
    return [
        AttackRow(
            key="the curve's runs",
            source="ladder",
            crafted_on="both",
            mode="all",
            purpose="the attacks of the curve at its other eps, on its samples only",
            samples="survivors",
            bounded=True,
            attacked=len(chosen),
            broke=len(missed),
            accuracy=None,
            robust=None,
            median_linf=None,
            median_l2=None,
            forward=cost.forward / images,
            backward=cost.backward / images,
            seconds=cost.seconds,
            note="" if chosen else "no sample was left",
        )
    ]


def _note(one: AttackRun, outcomes: list[Outcome], records: list[SampleRecord]) -> str:
    unusable = sum(not outcome.usable for outcome in outcomes)
    if outcomes:
        return f"returned {unusable} unusable images" if unusable else ""
    if one.spec.crafted_on == "undefended" and records[0].undefended_clean is None:
        return "not run: no undefended classifier is known"
    return "not run: no sample was left"


def _undefended_robust(plan: list[AttackRun], records: list[SampleRecord]) -> Proportion | None:
    """What the attacks made on the undefended classifier, on all samples and inside the ball, left of it."""
    keys = [
        one.key
        for one in plan
        if one.spec.crafted_on == "undefended" and one.spec.samples == "all" and one.spec.bounded and not one.curve
    ]
    if not keys or any(key not in record.attacks for key in keys for record in records):
        return None
    return Proportion.of(
        record.undefended_clean == record.label
        and all(record.attacks[key].undefended_prediction == record.label for key in keys)
        for record in records
    )


def _curves(run: RunDescription, plan: list[AttackRun], records: list[SampleRecord]) -> list[Curve]:
    """A curve for each attack that ran at several eps, and for each that looks for the smallest perturbation."""
    curves = []
    families: dict[str, list[AttackRun]] = defaultdict(list)
    for one in plan:
        if one.curve and _outcomes(one.key, records):
            families[one.family].append(one)
    for family, runs in families.items():
        chosen = [record for record in records if runs[0].key in record.attacks]
        points = [(0.0, Proportion.of(record.correct for record in chosen))]
        points += [(one.threat.eps, _within(one, chosen, one.threat.eps)) for one in runs]
        curves.append(Curve(family, points))
    grid = [0.0, *sorted({one.threat.eps for one in plan})]
    for one in plan:
        if not one.spec.bounded and len(_outcomes(one.key, records)) == len(records) and len(grid) > 2:
            curves.append(Curve(one.family, [(eps, _within(one, records, eps)) for eps in grid]))
    return curves


def _within(one: AttackRun, records: list[SampleRecord], eps: float) -> Proportion:
    """Accuracy where only perturbations of at most ``eps`` count, read off their sizes."""
    ball = {"linf": Linf, "l2": L2}[one.threat.norm_name](eps) if eps else None
    return Proportion.of(
        record.correct
        and not (
            ball is not None
            and record.attacks[one.key].misclassified
            and ball.allows(getattr(record.attacks[one.key], one.threat.norm_name))
        )
        for record in records
    )


def _cost_by_attack(costs: list[CostRecord]) -> dict[str, Cost]:
    grouped: dict[str, list[Cost]] = defaultdict(list)
    for record in costs:
        grouped[record.attack].append(record.cost)
    return defaultdict(Cost, {key: _sum(group) for key, group in grouped.items()})


def _sum(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total.forward += cost.forward
        total.backward += cost.backward
        total.seconds += cost.seconds
        total.peak_memory = max(total.peak_memory, cost.peak_memory)
    return total
