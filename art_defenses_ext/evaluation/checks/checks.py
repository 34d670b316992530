"""The checks of the attacks. A figure is called robust accuracy only if they pass.

docs/checks.md has a paragraph on each check: its cause, its importance, and the remedy.

Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705), sections 3 to 5, and
Zimmermann et al. 2022 (arXiv:2206.13991).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from art_defenses_ext.base.errors import shown_by
from art_defenses_ext.evaluation.checks.binarization import Binarization
from art_defenses_ext.evaluation.checks.gradient_health import FAITHFUL_SHARE, VERDICTS, GradientHealth
from art_defenses_ext.evaluation.checks.rounds import Round, RoundResult, round_results
from art_defenses_ext.evaluation.checks.standing import untried_modes
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import NotFinite, SampleRecord
from art_defenses_ext.evaluation.suite.plan import AttackRun, Role
from art_defenses_ext.evaluation.suite.rounds import STARTS, steps_of
from art_defenses_ext.evaluation.suite.spec import FEW, Kind

TOLERATED = 0.01
"""The share of samples that may contradict a check. The check fails if the lower end of the share's 95 % interval
exceeds it. **Convention**: the strongest known attacks leave each other less than 1 %. A single sample never fails a
check, even if there are few: for one of 14 samples the lower end is 1.3 %."""

MUST_FIND = 0.95
"""The share of planted examples that the attacks must find (Zimmermann et al. 2022). The check fails if the upper end
of the interval is below it."""

TOO_EASY = 0.5
"""The share of planted examples found by random draws above which the test is uninformative. **Convention**."""

OF_THE_ATTACKS = ("single step", "larger eps", "more effort", "transfer", "queries", "noise", "binarization")
"""The checks of what the attacks find. The other checks concern the network and the plan, and establish nothing
alone."""

OF_EFFORT = ("single step", "more effort", "transfer", "queries")
"""The checks that fail if attacks have not converged, or if the gradient is masked. Rounds of more effort respond to
them, and the resolution of a figure follows from their counts."""

ELSEWHERE = "elsewhere"
"""The check that is made only if examples from elsewhere were added to a run."""

PAGE = "checks"
"""The page of the documentation with a section on each check."""

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Check:
    """A check and its result.

    Attributes:
        name: name of the check; with hyphens also the anchor of its section.
        verdict: ``"passed"``, ``"not run"``, or ``"failed"``: the robust accuracy is not established.
        finding: the result in a sentence with its figures.
        figures: the counts of the finding, as plain data and proportions.
    """

    DERIVED = ("link",)

    name: str
    verdict: Verdict
    finding: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> str:
        """The section of the documentation on the check."""
        return f"{PAGE}#{self.name.replace(' ', '-')}"

    @property
    def link(self) -> str:
        """The command that shows that section."""
        return shown_by(self.section)


@dataclass(frozen=True)
class Evidence:
    """The evidence for the checks.

    Attributes:
        run: description of the run.
        plan: the runs of the attacks.
        records: records of the samples.
        health: gradient health in each mode.
        binarization: the binarization test; None if it was not run.
        rounds: the attacks of each round of more effort, which are also in ``plan``.
    """

    run: RunDescription
    plan: list[AttackRun]
    records: list[SampleRecord]
    health: list[GradientHealth]
    binarization: Binarization | None
    rounds: list[Round] = field(default_factory=list)

    def keys(self, *kinds: Kind, role: Role = "suite") -> list[str]:
        """Return the keys of the runs of the given kinds that attacked an image; rounds count as part of the suite."""
        roles = (role, "round") if role == "suite" else (role,)
        chosen = (run for run in self.plan if run.role in roles and (run.spec.kind in kinds or not kinds))
        return [run.key for run in chosen if any(run.key in record.attacks for record in self.records)]

    @property
    def failed(self) -> list[str]:
        """The names of the checks that fail."""
        return [check.name for check in run_checks(self) if check.verdict == "failed"]

    @property
    def results(self) -> list[RoundResult]:
        """The result of each round."""
        return round_results(self.plan, self.rounds, self.records)

    @property
    def elsewhere(self) -> list[str]:
        """The keys of examples from elsewhere."""
        return [run.key for run in self.plan if run.spec.source == "elsewhere"]

    def late(self, kind: Kind) -> Proportion | None:
        """Return the share that a kind of attack breaks of the samples unbroken by white-box attacks.

        None if no such attack ran on one of these samples.
        """
        white, others = self.keys("white-box"), self.keys(kind)
        unbroken = [record for record in self.among(others) if record.robust(white)]
        if not white or not unbroken:
            return None
        return Proportion.of(not record.robust(others) for record in unbroken)

    def among(self, keys: Collection[str]) -> list[SampleRecord]:
        """Return the samples that at least one of the runs attacked."""
        return [record for record in self.records if any(key in record.attacks for key in keys)]


def run_checks(evidence: Evidence) -> list[Check]:
    """Make every check, in the order of docs/checks.md."""
    if not evidence.keys("white-box"):
        reason = "no white-box attack of ours ran on any sample"
        return [Check(name, "not run", reason) for name in CHECKS]
    checks = [check(name, evidence) for name, check in CHECKS.items()]
    return [*checks, _elsewhere(ELSEWHERE, evidence)] if evidence.elsewhere else checks


def _too_many(share: Proportion) -> bool:
    return share.count > 1 and share.interval[0] > TOLERATED


def _verdict(failed: bool) -> Verdict:
    return "failed" if failed else "passed"


def _late(kind: Kind, breaks: str) -> Callable[[str, Evidence], Check]:
    """Return the check that another kind of attack breaks no sample that is unbroken by white-box attacks."""

    def check(name: str, evidence: Evidence) -> Check:
        share = evidence.late(kind)
        if share is None:
            return Check(name, "not run", "no such attack ran on a sample on which the white-box attacks failed")
        finding = f"{breaks} {_of(share)} images on which the white-box attacks failed{_limits(evidence, kind)}"
        return Check(name, _verdict(_too_many(share)), finding, {"late successes": share})

    return check


def _limits(evidence: Evidence, kind: Kind) -> str:
    """Return the limit of the attacks of a kind that run on a few images only, in words; empty for none."""
    names = {run.spec.name: None for run in evidence.plan if run.spec.kind == kind and run.spec.samples == "few"}
    return f" ({', '.join(names)}, on at most {FEW} of each block)" if names else ""


def _larger_eps(name: str, evidence: Evidence) -> Check:
    """The success rate grows with eps, and at an eps at which no image can be robust accuracy is at most chance."""
    at_limit = evidence.keys(role="limit")
    attacked = evidence.among(at_limit)
    if evidence.run.clip_values is None:
        reason = "without clip values no eps is known from which every image can be turned grey"
        return Check(name, "not run", reason)
    if not attacked:
        return Check(name, "not run", "no attack ran at an eps at which nothing can be robust")
    limit = next(run.threat.eps for run in evidence.plan if run.role == "limit")
    left = Proportion.of(record.correct and _unchanged(record, at_limit) for record in attacked)
    chance = 1 / evidence.run.labels
    rise, place = _largest_rise(evidence)
    failed = left.interval[0] > chance or _too_many(rise)
    reach = "where each can be turned into any other" if evidence.run.rejects else "where all can be turned grey"
    finding = f"{_of(left)} images stay correct{_or_rejected(evidence)} at eps {limit:g}, {reach}"
    if rise.count:
        finding += f"; {_of(rise)} images {place} were broken only by the smaller eps"
    return Check(name, _verdict(failed), finding, {"left at the limit": left, "eps": limit, "accuracy rises": rise})


def _unchanged(record: SampleRecord, keys: Collection[str]) -> bool:
    """Return whether none of the runs, at another eps than the threat's, changed the sample's class."""
    return not any(record.attacks[key].misclassified for key in keys if key in record.attacks)


def _largest_rise(evidence: Evidence) -> tuple[Proportion, str]:
    """Return the largest rise of accuracy, in samples, between two eps of the curve, and its place in words."""
    runs = [run for run in evidence.plan if run.role == "curve" and run.spec.kind == "white-box"]
    by_eps = {eps: [run.key for run in runs if run.threat.eps == eps] for eps in sorted({r.threat.eps for r in runs})}
    samples = evidence.among([run.key for run in runs])
    if not samples:
        return Proportion(0, len(evidence.records)), ""
    left = {eps: sum(record.correct and _unchanged(record, keys) for record in samples) for eps, keys in by_eps.items()}
    rises = [(left[after] - left[before], before, after) for before, after in pairwise(left)]
    count, before, after = max(rises, default=(0, 0.0, 0.0))
    return Proportion(max(count, 0), len(samples)), f"between eps {before:g} and {after:g}"


def _more_effort(name: str, evidence: Evidence) -> Check:
    """More steps and restarts break no more images; after rounds of more effort, the last round decides."""
    if evidence.rounds:
        last = evidence.results[-1]
        share = Proportion(last.broken, last.robust_before)
        effort = f"round {last.number} ({steps_of(last.number)} steps, {STARTS} starts)"
        finding = f"{effort} breaks {_of(share)} images on which all attacks before it failed"
    else:
        keys = evidence.keys(role="effort")
        unbroken = evidence.among(keys)
        if not unbroken:
            return Check(name, "not run", "no sample was left to attack with more effort")
        share = Proportion.of(not record.robust(keys) for record in unbroken)
        finding = f"300 steps from 2 starts break {_of(share)} images on which all attacks failed"
    return Check(name, _verdict(_too_many(share)), finding, {"broken by more effort": share})


def _elsewhere(name: str, evidence: Evidence) -> Check:
    """Examples from elsewhere break no image that is unbroken by all attacks of the run."""
    added = evidence.elsewhere
    own = [run.key for run in evidence.plan if run.key not in added]
    unbroken = [record for record in evidence.among(added) if record.robust(own)]
    if not unbroken:
        return Check(name, "passed", "they were made only from images that the run's own attacks had broken")
    share = Proportion.of(not record.robust(added) for record in unbroken)
    finding = f"examples made elsewhere break {_of(share)} images on which all attacks of the run failed"
    return Check(name, _verdict(_too_many(share)), finding, {"broken elsewhere": share})


def _gradients(name: str, evidence: Evidence) -> Check:
    """At nearly every point some mode has a useful gradient, and the gradient of at least one mode is faithful."""
    health = evidence.health
    if not health:
        return Check(name, "not run", "no white-box attack of the suite ran, and the gradients were not examined")
    useless = Proportion.of(not any(at) for at in zip(*(mode.useful for mode in health), strict=True))
    best = max(health, key=lambda mode: mode.faithful)
    misled = not any(mode.is_faithful for mode in health)
    smoothed = any(run.spec.crafted_on == "smoothed" and run.key in evidence.keys("white-box") for run in evidence.plan)
    faithful = _of(Proportion(best.faithful, best.points))
    parts = [
        f"no useful gradient at {_of(useless)} points",
        f"the best mode, {best.mode}, predicts the effect of a small step at {faithful}",
    ]
    blocked = min(health, key=lambda mode: mode.no_graph)
    if blocked.no_graph:
        cut = "no graph leads from the logits back to the image (something runs under torch.no_grad, or detaches)"
        parts.append(f"at {_of(Proportion(blocked.no_graph, blocked.points))} points {cut}")
    if misled:
        parts.append(
            f"fewer than {100 * FAITHFUL_SHARE:.0f} %, so estimated gradients were followed as well"
            if smoothed
            else f"fewer than {100 * FAITHFUL_SHARE:.0f} %, and no estimated gradient was tried"
        )
    unbroken = any(record.robust(evidence.keys("white-box")) for record in evidence.records)
    failed = _too_many(useless) or (misled and not smoothed and unbroken)
    figures = {
        "useless": useless,
        "modes": [{name: getattr(mode, name) for name in ("mode", "points", *VERDICTS)} for mode in health],
    }
    return Check(name, _verdict(failed), "; ".join(parts), figures)


def _randomness(name: str, evidence: Evidence) -> Check:
    """The attacks on a random defence average several passes."""
    run = evidence.run
    figures = {"random": run.random, "draws": run.draws, "votes": run.votes}
    if not run.random:
        return Check(name, "passed", "two passes of the same images agree", figures)
    if run.draws > 1:
        return Check(name, "passed", f"passes differ; the attacker averaged {run.draws} of them", figures)
    return Check(name, "failed", "passes differ, and the attacker followed the gradient of single passes", figures)


def _batches(name: str, evidence: Evidence) -> Check:
    """The logits of an image do not depend on the others in its batch."""
    if evidence.run.random:
        return Check(name, "not run", "passes differ anyway")
    if evidence.run.batch_dependent:
        finding = "the logits of an image differ alone, in a batch, and in another order: figures depend on block_size"
        return Check(name, "failed", finding)
    return Check(name, "passed", "the logits of an image are the same alone, in a batch, and in another order")


def _modes(name: str, evidence: Evidence) -> Check:
    """White-box attacks were made in every gradient mode; the figure is what the exact gradient alone would miss."""
    run = evidence.run
    if run.withheld:
        withheld = f"the attacker was not given the modes {', '.join(run.withheld)}"
        return Check(name, "failed", withheld, {"withheld": run.withheld})
    untried = untried_modes(run, evidence.plan)
    if untried:
        return Check(name, "failed", f"no white-box attack was made in the modes {', '.join(untried)}", {})
    white = [attack for attack in evidence.plan if attack.role == "suite" and attack.spec.kind == "white-box"]
    first = run.modes[0]  # "exact", unless a step before the network has no exact gradient
    exact = [attack.key for attack in white if attack.spec.modes == "all" and attack.mode == first]
    others = [attack.key for attack in white if attack.key not in exact]
    gradient = "the exact gradient" if set(first.split("+")) == {"exact"} else f"mode {first}"
    unbroken = [record for record in evidence.among(exact) if record.robust(exact)]
    if len(run.modes) == 1:
        return Check(name, "passed", f"{gradient} is the only mode", {})
    if not unbroken:
        return Check(name, "passed", f"{gradient} left no image for the other modes", {})
    share = Proportion.of(not record.robust(others) for record in unbroken)
    finding = f"the other modes break {_of(share)} images on which {gradient} failed"
    return Check(name, "passed", finding, {"hidden by the exact gradient": share})


def _binarization(name: str, evidence: Evidence) -> Check:
    """The attacks find adversarial examples that are known to exist."""
    test = evidence.binarization
    if evidence.run.rejects:
        reason = "it replaces the classifier's last layer, while the detector was fitted to the original one"
        return Check(name, "not run", reason)
    if test is None:
        return Check(name, "not run", "the network does not end in a linear layer, which the test would replace")
    figures = {"found": test.found, "by chance": test.by_chance, "built": test.built}
    finding = f"the attacks find {_of(test.found)} planted examples, chance {test.by_chance.count}"
    if test.by_chance.rate > TOO_EASY:
        return Check(name, "not run", f"{finding}: too easy to be informative", figures)
    return Check(name, _verdict(test.found.interval[1] < MUST_FIND), finding, figures)


def _finite_logits(name: str, evidence: Evidence) -> Check:
    """The logits of every clean image are finite, so that each has a class."""
    counted = NotFinite.of(evidence.records)
    finding = f"logits are not finite for {_of(counted.clean)} clean images"
    if counted.broken is not None and counted.broken.count:
        finding += f"; {_of(counted.broken)} broken images were broken by such logits alone"
    return Check(name, _verdict(counted.clean.count > 0), finding, {"not finite": counted.clean})


def _or_rejected(evidence: Evidence) -> str:
    return " or rejected" if evidence.run.rejects else ""


def _of(share: Proportion) -> str:
    """Return a share in words, such as ``"3 of 200"``."""
    return f"{share.count} of {share.total}"


CHECKS: dict[str, Callable[[str, Evidence], Check]] = {
    "single step": _late("single step", "one step breaks"),
    "larger eps": _larger_eps,
    "more effort": _more_effort,
    "transfer": _late("transfer", "examples made on the undefended model break"),
    "queries": _late("queries", "queries alone break"),
    "noise": _late("noise", "noise breaks"),
    "gradients": _gradients,
    "randomness": _randomness,
    "batches": _batches,
    "gradient modes": _modes,
    "binarization": _binarization,
    "finite logits": _finite_logits,
}
"""The checks by name, in their order."""
