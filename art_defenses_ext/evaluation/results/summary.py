"""The figures of a report, from records: accuracies with intervals, results of attacks, curves, costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar, Literal

from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.evaluation.checks.checks import OF_THE_ATTACKS, Check
from art_defenses_ext.evaluation.checks.resolution import resolution
from art_defenses_ext.evaluation.checks.rounds import Round, RoundResult, round_results
from art_defenses_ext.evaluation.checks.standing import Standing, lacking
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.records.phases import PHASES
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion, plain
from art_defenses_ext.evaluation.records.sample import CostRecord, NotFinite, Outcome, SampleRecord
from art_defenses_ext.evaluation.results.detection import Detection, detection
from art_defenses_ext.evaluation.results.randomness import Randomness, randomness, worst_of_each
from art_defenses_ext.evaluation.suite.plan import AttackRun, Role
from art_defenses_ext.evaluation.suite.rounds import steps_of
from art_defenses_ext.evaluation.threat import named_threat

FORMAT = 11
"""The format of ``report.json``. From 3 on it holds the agreement of softmax lists: ``reference``, ``clean_agreement``,
``worst_agreement``, and ``agreement`` in each of ``rows``; from 4 on ``run`` holds ``trainings``; from 5 on there is
``detection``, and ``run`` holds ``rejects``; from 6 on ``run`` says what a manifest says of it
(``evaluation/run/manifest.py``); from 7 on ``robust_accuracy`` is null without an adaptive attack suite and its checks,
``after_attacks`` is the accuracy after whatever ran, formerly ``worst_case``, there is ``not_finite``, ``detection``
has figures away from the detector's own threshold of attacks with zero knowledge alone, and ``randomness`` those of
passes that chose no attack; from 8 on rows have ``median_size``, their ``source`` is ``"suite"``, ``"paper"`` or
``"side"``, and ``detection`` gives thresholds of the detector's margin; from 9 on ``phases`` are costs by name; from
10 on there are ``own_worst_case`` and ``against_undefended``, and the ``source`` of a row may be ``"elsewhere"``; from
11 on there are ``rounds`` and ``resolution``, the ``source`` of a row may be ``"round"``, and ``randomness`` has
``worst_of`` and ``worst_of_more``."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of images' softmax lists with those of the clean images (``evaluation/records/metrics.py``).

    Attributes:
        ndcg: mean NDCG over the images that count.
        reciprocal_rank: mean reciprocal rank over the same images.
    """

    ndcg: Mean
    reciprocal_rank: Mean

    @classmethod
    def of(cls, pairs: Iterable[tuple[float | None, float | None]]) -> Agreement | None:
        """Return the means over recorded pairs (NDCG, reciprocal rank); None if there are none."""
        known = [(ndcg, rank) for ndcg, rank in pairs if ndcg is not None and rank is not None]
        return cls(*(Mean.of(values) for values in zip(*known, strict=True))) if known else None


@dataclass(frozen=True)
class AttackRow:
    """A line of the report: one attack under one gradient mode.

    Attributes:
        key: its name in the records.
        source: ``"paper"``, ``"suite"``, ``"elsewhere"`` for added examples, ``"side"`` for the runs of curves and
            checks, or ``"round"`` for those of rounds of more effort.
        crafted_on: ``"defended"``, ``"undefended"`` or ``"smoothed"``.
        mode: the gradient mode.
        purpose: its purpose.
        samples: ``"all"``, ``"unbroken"`` or ``"few"`` of these.
        bounded: whether it stays in the ball, or minimises the perturbation.
        attacked: number of samples that it ran on; 0 if it did not run.
        broke: number of those samples that were correct and are misclassified inside the ball.
        accuracy: accuracy under the attack at any size of the perturbation, which papers print; None unless it ran on
            all samples.
        robust: accuracy under the attack if only perturbations inside the ball count; None unless it ran on all
            samples.
        median_size: median size, in the norm of the threat, of the perturbations that turned a correct prediction
            wrong; None without any.
        agreement: agreement of its images inside the ball with the clean images' softmax lists; None without any, and
            for a line of several runs.
        forward: images passed forwards per attacked image.
        backward: images passed backwards per attacked image.
        seconds: wall time.
        note: the reason why it did not run, or that it returned images with NaN or outside the clip range; may be
            empty.
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
    forward: float
    backward: float
    seconds: float
    note: str
    accuracy: Proportion | None = None
    robust: Proportion | None = None
    median_size: float | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Curve:
    """The accuracy of the defended classifier against the eps of one attack.

    Attributes:
        attack: the attack and its mode.
        points: pairs of eps and the accuracy inside that ball, from eps 0.
    """

    attack: str
    points: list[tuple[float, Proportion]]


@dataclass(frozen=True)
class RoundRow:
    """A round of more effort.

    Attributes:
        result: its result.
        steps: number of steps of its descents.
        cost: cost of its attacks, without the predictions of their images.
    """

    result: RoundResult
    steps: int
    cost: Cost


@dataclass(frozen=True)
class AgainstUndefended:
    """The undefended model under the same suite, on the same images.

    Attributes:
        worst_case: its accuracy under all attacks.
        standing: whether this is an established robust accuracy, as in :attr:`Summary.standing`.
        paired: the paired comparison of the undefended model with the defended one.
        cost: the cost of its evaluation.
    """

    worst_case: Proportion
    standing: Standing
    paired: Paired
    cost: Cost

    @classmethod
    def of(cls, defended: list[SampleRecord], undefended: list[SampleRecord], summary: Summary) -> AgainstUndefended:
        """Compare the records of both models image by image; ``summary`` is the undefended model's."""
        verdicts = ([record.robust() for record in records] for records in (undefended, defended))
        return cls(summary.worst_case, summary.standing, Paired.of(*verdicts), summary.total)


@dataclass(frozen=True)
class Summary:
    """The figures of a run.

    With a detector, a clean image is correct if it is classified correctly and accepted, and an attacked image if it is
    classified correctly or rejected.

    Attributes:
        run: the description of the run.
        clean: accuracy on clean images.
        undefended_clean: the same for the undefended classifier.
        undefended_robust: accuracy of the undefended classifier under the attacks made on it, inside the ball.
        paper: accuracy under the paper's own attacks only, inside the ball; None if there are none.
        worst_case: share of samples on which no attack succeeded. ``standing`` says whether it is a robust accuracy.
        lacking: the reason why the attacks that ran are not an adaptive suite, in words; empty if they are.
        checks: the checks of the attacks; empty if none were made.
        randomness: None unless the defence is random, in which case all accuracies are of its most probable classes.
        not_finite: images without finite logits.
        reference: the model whose softmax list for the clean image is the reference: ``"undefended"``, or ``"own"``
            without an undefended classifier.
        clean_agreement: agreement of the clean images' lists with the reference; None if it was not recorded.
        worst_agreement: the least agreement of each sample, over its clean image and all attacks inside the ball. No
            attack minimises it, so it is an upper bound. For a random defence, that of the image that ``randomness``
            counts.
        detection: the detector's error rates and the attack success rates; None without a detector.
        rows: the attacks.
        curves: accuracy against eps.
        own_worst_case: the worst case over the run's own attacks, if examples from elsewhere were added; else None.
        phases: the cost of each phase besides the attacks, by name (``evaluation/records/phases.py``).
        total: total cost without the undefended model's own evaluation.
        against_undefended: the undefended model under the same suite; None if it was not evaluated.
        rounds: the rounds of more effort, in their order.
    """

    DERIVED = ("standing", "established", "gap", "robust_accuracy", "resolution")
    IN_FILE: ClassVar = {"worst_case": "after_attacks"}

    run: RunDescription
    clean: Proportion
    undefended_clean: Proportion | None
    undefended_robust: Proportion | None
    paper: Proportion | None
    worst_case: Proportion
    lacking: str
    checks: list[Check]
    randomness: Randomness | None
    not_finite: NotFinite
    reference: Literal["undefended", "own"]
    clean_agreement: Agreement | None
    worst_agreement: Agreement | None
    detection: Detection | None
    rows: list[AttackRow]
    curves: list[Curve]
    phases: dict[str, Cost]
    total: Cost
    own_worst_case: Proportion | None = None
    against_undefended: AgainstUndefended | None = None
    rounds: list[RoundRow] = field(default_factory=list)

    @property
    def standing(self) -> Standing:
        """Whether an adaptive suite ran, and whether its checks were made and passed."""
        if self.lacking:
            return "no adaptive attack"
        if self.failed_checks:
            return "not established"
        return "established" if self._attacks_were_checked else "no checks"

    @property
    def established(self) -> bool | None:
        """Whether an adaptive suite passed its checks; None without such a suite or without checks."""
        if self.failed_checks:
            return False
        return True if self.standing == "established" else None

    @property
    def robust_accuracy(self) -> Proportion | None:
        """The worst case over an adaptive suite; an upper bound if it is not established, None if it is unknown."""
        return self.worst_case if self.standing in ("established", "not established") else None

    @property
    def unknown(self) -> str:
        """The reason why there is no robust accuracy, in words; empty if there is one."""
        if self.standing == "no adaptive attack":
            return f"no adaptive attack ran: {self.lacking}"
        return "no checks were made" if self.standing == "no checks" else ""

    @property
    def _attacks_were_checked(self) -> bool:
        """Whether a check of the attacks' results was made; not needed if the attacks broke every image."""
        ran = [check for check in self.checks if check.verdict != "not run"]
        return bool(ran) and (self.worst_case.count == 0 or any(check.name in OF_THE_ATTACKS for check in ran))

    @property
    def failed_checks(self) -> list[str]:
        """The names of the failed checks."""
        return [check.name for check in self.checks if check.verdict == "failed"]

    @property
    def resolution(self) -> float | None:
        """By how much the robust accuracy may be too high although its checks pass, from 0 to 1 (docs/checks.md).

        None where it is not established, or no check that bounds it was made.
        """
        undecided = 0.0 if self.randomness is None else self.randomness.undecided.rate
        return resolution(self.checks, self.worst_case, undecided) if self.standing == "established" else None

    @property
    def gap(self) -> float | None:
        """The accuracy under the paper's attacks minus the robust accuracy; None unless both are known."""
        if self.paper is None or self.robust_accuracy is None:
            return None
        return self.paper.rate - self.robust_accuracy.rate

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``report.json``."""
        figures = {self.IN_FILE.get(name, name): figure for name, figure in plain(self).items()}
        return {"format": FORMAT, **figures}


def summarise(
    run: RunDescription,
    plan: list[AttackRun],
    records: list[SampleRecord],
    costs: list[CostRecord],
    checks: list[Check],
    rounds: Sequence[Round] = (),
) -> Summary:
    """Compute every figure of a run from its records; the attacks of ``rounds`` stand in ``plan`` too."""
    by_attack = _cost_by_attack(costs)
    paper = {attack.key for attack in plan if attack.spec.source == "paper" and _outcomes(attack.key, records)}
    has_undefended = records[0].undefended_clean is not None
    return Summary(
        run=run,
        clean=Proportion.of(record.correct for record in records),
        undefended_clean=Proportion.of(r.undefended_clean == r.label for r in records) if has_undefended else None,
        undefended_robust=_undefended_robust(plan, records),
        paper=Proportion.of(record.robust(paper) for record in records) if paper else None,
        worst_case=Proportion.of(record.robust() for record in records),
        lacking=lacking(run, plan),
        checks=checks,
        randomness=randomness(run, records),
        not_finite=NotFinite.of(records),
        reference="undefended" if has_undefended else "own",
        clean_agreement=Agreement.of((record.clean_ndcg, record.clean_reciprocal_rank) for record in records),
        worst_agreement=_worst_agreement(run, records),
        detection=detection(plan, records, named_threat(run.settings.threat, run.settings.eps)),
        rows=[_row(attack, records, by_attack[attack.key]) for attack in plan if attack.role == "suite"]
        + [row for role in SIDE_ROWS for row in _side_row(role, plan, records, costs)]
        + [_row(attack, records, by_attack[attack.key]) for attack in plan if attack.role == "round"],
        curves=_curves(run, plan, records),
        phases={name: by_attack[name] for name in PHASES if name in by_attack},
        total=_sum(record.cost for record in costs),
        own_worst_case=_own_worst_case(plan, records),
        rounds=[
            RoundRow(result, steps_of(result.number), _sum(by_attack[run.key] for run in attacks))
            for result, attacks in zip(round_results(plan, rounds, records), rounds, strict=True)
        ],
    )


def _own_worst_case(plan: list[AttackRun], records: list[SampleRecord]) -> Proportion | None:
    own = [attack.key for attack in plan if attack.spec.source != "elsewhere"]
    return None if len(own) == len(plan) else Proportion.of(record.robust(own) for record in records)


def _outcomes(key: str, records: list[SampleRecord]) -> list[Outcome]:
    return [record.attacks[key] for record in records if key in record.attacks]


def _row(attack: AttackRun, records: list[SampleRecord], cost: Cost) -> AttackRow:
    outcomes = _outcomes(attack.key, records)
    missed = [outcome for outcome in outcomes if outcome.misclassified]
    moved = [record.attacks[attack.key] for record in records if record.correct and attack.key in record.attacks]
    sizes = [outcome for outcome in moved if outcome.misclassified]
    everywhere = len(outcomes) == len(records)
    attacked = max(len(outcomes), 1)
    return AttackRow(
        key=attack.key,
        source="round" if attack.role == "round" else attack.spec.source,
        crafted_on=attack.spec.crafted_on,
        mode=attack.mode,
        purpose=attack.spec.purpose,
        samples=attack.spec.samples,
        bounded=attack.spec.bounded,
        attacked=len(outcomes),
        broke=sum(r.correct and r.attacks[attack.key].success for r in records if attack.key in r.attacks),
        accuracy=Proportion(len(outcomes) - len(missed), len(outcomes)) if everywhere else None,
        robust=Proportion.of(r.robust({attack.key}) for r in records) if everywhere else None,
        median_size=median(outcome.size_in(attack.threat) for outcome in sizes) if sizes else None,
        agreement=Agreement.of([(outcome.ndcg, outcome.reciprocal_rank) for outcome in outcomes]),
        forward=cost.forward / attacked,
        backward=cost.backward / attacked,
        seconds=cost.seconds,
        note=_note(attack, outcomes, records),
    )


SIDE_ROWS: dict[Role, tuple[str, str]] = {
    "effort": ("the checks' effort", "300 steps from two starts, on what was left of the checks' samples"),
    "limit": ("the checks' limit", "an eps at which nothing can be robust, on the checks' samples"),
    "curve": ("the curve's runs", "the attacks of the curve at its eps, on its samples only"),
}
"""Name and purpose of the lines for all runs of a role, in the order in which they ran."""


def _side_row(
    role: Role, plan: list[AttackRun], records: list[SampleRecord], costs: list[CostRecord]
) -> list[AttackRow]:
    """Return one line for all runs of a role, whose successes inside the ball count like any other."""
    keys = {attack.key for attack in plan if attack.role == role}
    before = _keys_before(role, plan)
    reached = [record for record in records if keys & record.attacks.keys()]
    if not reached:
        return []
    chosen = [record for record in reached if record.robust(before)]
    cost = _sum(record.cost for record in costs if record.attack in keys)
    images = max(sum(record.samples for record in costs if record.attack in keys), 1)
    name, purpose = SIDE_ROWS[role]
    return [
        AttackRow(
            key=name,
            source="side",
            crafted_on="both" if role == "curve" else "defended",
            mode="all",
            purpose=purpose,
            samples="unbroken",
            bounded=True,
            attacked=len(chosen),
            broke=sum(not record.robust(before | keys) for record in chosen),
            forward=cost.forward / images,
            backward=cost.backward / images,
            seconds=cost.seconds,
            note="" if chosen else "no sample was left",
        )
    ]


def _keys_before(role: Role, plan: list[AttackRun]) -> set[str]:
    """Return the runs of the suite and of the roles whose lines are above this one's."""
    above: list[Role] = ["suite", *list(SIDE_ROWS)[: list(SIDE_ROWS).index(role)]]
    return {attack.key for attack in plan if attack.role in above}


def _note(attack: AttackRun, outcomes: list[Outcome], records: list[SampleRecord]) -> str:
    unusable = sum(not outcome.usable for outcome in outcomes)
    undefined = sum(outcome.prediction == NO_CLASS for outcome in outcomes)
    if outcomes:
        notes = [f"returned {unusable} unusable images"] if unusable else []
        notes += [f"{undefined} of its images give logits that are not finite"] if undefined else []
        return "; ".join(notes)
    if attack.spec.crafted_on == "undefended" and records[0].undefended_clean is None:
        return "not run: no undefended classifier is known; undefended= gives one"
    if attack.spec.crafted_on == "smoothed":
        return "not run: no need, or no sample was left"
    return "not run: no sample was left"


def _undefended_robust(plan: list[AttackRun], records: list[SampleRecord]) -> Proportion | None:
    """Return the undefended classifier's accuracy under the attacks made on it, on all samples inside the ball."""
    keys = [
        attack.key
        for attack in plan
        if attack.spec.crafted_on == "undefended"
        and attack.spec.samples == "all"
        and attack.spec.bounded
        and attack.role == "suite"
    ]
    if not keys or any(key not in record.attacks for key in keys for record in records):
        return None
    return Proportion.of(
        record.undefended_clean == record.label
        and all(record.attacks[key].undefended_prediction == record.label for key in keys)
        for record in records
    )


def _curves(run: RunDescription, plan: list[AttackRun], records: list[SampleRecord]) -> list[Curve]:
    """Return a curve for each attack that ran at several eps, and for each minimum-norm attack."""
    curves = []
    families: dict[str, list[AttackRun]] = defaultdict(list)
    for attack in plan:
        if attack.role == "curve" and _outcomes(attack.key, records):
            families[attack.family].append(attack)
    for family, runs in families.items():
        chosen = [record for record in records if runs[0].key in record.attacks]
        points = [(0.0, Proportion.of(record.correct for record in chosen))]
        points += [(attack.threat.eps, _within(attack, chosen, attack.threat.eps)) for attack in runs]
        curves.append(Curve(family, points))
    grid = [0.0, *sorted({attack.threat.eps for attack in plan if attack.role in ("suite", "curve")})]
    for attack in plan:
        if not attack.spec.bounded and len(_outcomes(attack.key, records)) == len(records) and len(grid) > 2:
            curves.append(Curve(attack.family, [(eps, _within(attack, records, eps)) for eps in grid]))
    return curves


def _within(attack: AttackRun, records: list[SampleRecord], eps: float) -> Proportion:
    """Return the accuracy if only perturbations of size at most ``eps`` count."""
    ball = named_threat(attack.threat.norm_name, eps) if eps else None
    return Proportion.of(
        record.correct
        and not (
            ball is not None and record.attacks[attack.key].misclassified and record.attacks[attack.key].lies_in(ball)
        )
        for record in records
    )


def _worst_agreement(run: RunDescription, records: list[SampleRecord]) -> Agreement | None:
    """Return each metric's least value of each sample, over its images inside the ball.

    For a random defence it is the value of the image that the first passes selected, since the minimum of many means
    over passes would be biased.
    """
    if run.votes > 1:
        worst = worst_of_each(records, named_threat(run.settings.threat, run.settings.eps), run.votes)
        return Agreement.of(
            (record.clean_ndcg, record.clean_reciprocal_rank)
            if outcome is None
            else (outcome.ndcg, outcome.reciprocal_rank)
            for record, outcome in zip(records, worst, strict=True)
        )
    return Agreement.of(
        (
            _least([record.clean_ndcg, *(outcome.ndcg for outcome in record.attacks.values())]),
            _least([record.clean_reciprocal_rank, *(each.reciprocal_rank for each in record.attacks.values())]),
        )
        for record in records
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _cost_by_attack(costs: list[CostRecord]) -> dict[str, Cost]:
    grouped: dict[str, list[Cost]] = defaultdict(list)
    for record in costs:
        grouped[record.attack].append(record.cost)
    return defaultdict(Cost, {key: _sum(group) for key, group in grouped.items()})


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
