"""Figures, each worked out by hand from a few records."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pytest
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.evaluation.checks.checks import Check
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion, plain
from art_defenses_ext.evaluation.records.sample import CostRecord, Outcome, SampleRecord
from art_defenses_ext.evaluation.results.randomness import extrapolated_worst_of, worst_of
from art_defenses_ext.evaluation.results.summary import FORMAT, Agreement, AttackRow, Curve, Summary, summarise
from art_defenses_ext.evaluation.suite.plan import AttackRun, Role
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat


def never(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("a summary builds no attack")


THREAT = Linf(0.1)
SUITE = AttackSpec("suite", never, "the suite's", kind="white-box")
PAPER = AttackSpec("paper", never, "the paper's", source="paper", samples="all", bounded=False)
TRANSFER = AttackSpec("transfer", never, "made elsewhere", crafted_on="undefended", samples="all")

RUN = RunDescription(
    settings=Settings(
        threat="linf",
        eps=0.1,
        attacks=["by hand"],
        samples=4,
        seed=0,
        block_size=4,
        curve_samples=4,
        check_samples=4,
        adaptive=True,
    ),
    defences=[],
    tunings=[],
    trainings=[],
    modes=["exact"],
    votes=1,
    draws=1,
    model="ByHand",
    model_sha256="",
    pipeline_sha256="",
    undefended_sha256=None,
    foreign=[],
    labels=10,
    clip_values=(0.0, 1.0),
    random=False,
    withheld=[],
    data_sha256="",
    device="paper",
    threads=1,
    command="",
    versions={},
)


def run(spec: AttackSpec, threat: Threat = THREAT, role: Role = "suite") -> AttackRun:
    return AttackRun(spec, "exact", threat, role)


def broken(linf: float = 0.05, plain: int | None = None) -> Outcome:
    """Another class, by a change of this size."""
    return Outcome(1, True, linf, 2 * linf, success=linf <= 0.1, undefended_prediction=plain)


def held(plain: int | None = None, usable: bool = True) -> Outcome:
    return Outcome(0, False, 0.1, 0.2, success=False, usable=usable, undefended_prediction=plain)


def samples(
    *attacks: dict[str, Outcome], clean: list[int] | None = None, plain: list[int] | None = None
) -> list[SampleRecord]:
    """Samples of class 0: what was done to each, its clean class, and the undefended classifier's."""
    nb_samples = len(attacks)
    clean = [0] * nb_samples if clean is None else clean
    plains: list[Any] = [None] * nb_samples if plain is None else list(plain)
    return [SampleRecord(i, 0, clean[i], plains[i], attacks=attacks[i]) for i in range(nb_samples)]


def summary(
    plan: list[AttackRun],
    records: list[SampleRecord],
    costs: list[CostRecord] | None = None,
    checks: Sequence[Check] = (),
    votes: int = 1,
) -> Summary:
    return summarise(replace(RUN, votes=votes), plan, records, costs or [], list(checks))


def row(result: Summary, key: str) -> AttackRow:
    (found,) = [one for one in result.rows if one.key == key]
    return found


# Proportions


@pytest.mark.parametrize("total", [1, 20, 1797])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_interval_is_wilsons(share: float, total: int) -> None:
    count = round(share * total)
    p, n, z = count / total, total, NormalDist().inv_cdf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert Proportion(count, total).interval == pytest.approx((centre - half, centre + half), abs=1e-9)


# The headline figures


def test_robust_accuracy_is_the_mean_of_the_minimum_over_attacks() -> None:
    """Each attack alone leaves half; together they leave one of the four."""
    plan = [run(replace(SUITE, name=name, samples="all")) for name in "ab"]
    records = samples(
        {"a": broken(), "b": held()},
        {"a": broken(), "b": broken()},
        {"a": held(), "b": broken()},
        {"a": held(), "b": held()},
    )
    result = summary(plan, records)
    assert [row(result, name).robust for name in "ab"] == [Proportion(2, 4)] * 2
    assert result.worst_case == Proportion(1, 4)
    assert result.clean == Proportion(4, 4)


def test_a_sample_that_is_wrong_without_attack_is_not_robust() -> None:
    records = samples({"suite": held()}, {"suite": held()}, {}, {}, clean=[0, 0, 5, 5])
    result = summary([run(SUITE)], records)
    assert (result.clean, result.worst_case) == (Proportion(2, 4), Proportion(2, 4))


def test_the_papers_number_counts_its_attacks_only_and_inside_the_ball() -> None:
    records = samples(
        {"paper": broken(), "suite": held()},
        {"paper": broken(linf=0.5), "suite": broken()},
        {"paper": held(), "suite": broken()},
        {"paper": held(), "suite": held()},
    )
    result = summary([run(PAPER), run(SUITE)], records, checks=[Check("noise", "passed", "")])
    assert result.paper == Proportion(3, 4)
    assert result.worst_case == result.robust_accuracy == Proportion(1, 4)
    assert result.gap == 0.5


def test_without_a_papers_attack_there_is_no_gap() -> None:
    result = summary([run(SUITE)], samples({"suite": broken()}, {"suite": held()}))
    assert result.paper is None
    assert result.gap is None
    result = summary([run(PAPER), run(SUITE)], samples({"suite": broken()}, {"suite": held()}))
    assert result.paper is None  # it never ran
    assert row(result, "paper").attacked == 0


def test_the_undefended_figures_are_the_undefended_classifiers() -> None:
    """Its clean accuracy, and what the examples made on it leave: both judged by its own predictions."""
    records = samples(
        {"transfer": held(plain=1)},  # fools it alone
        {"transfer": broken(plain=0)},  # fools the defended one alone
        {"transfer": held(plain=0)},
        {"transfer": held(plain=0)},
        clean=[0, 0, 0, 4],
        plain=[0, 0, 4, 0],
    )
    result = summary([run(TRANSFER)], records)
    assert result.undefended_clean == Proportion(3, 4)
    assert result.undefended_robust == Proportion(2, 4)  # the second and the last
    assert (result.clean, result.worst_case) == (Proportion(3, 4), Proportion(2, 4))


@pytest.mark.parametrize(
    "spec",
    [SUITE, replace(TRANSFER, bounded=False), replace(TRANSFER, samples="unbroken")],
    ids=["made on the defended", "whatever the size", "on unbroken images"],
)
def test_the_undefended_figure_needs_bounded_attacks_on_all(spec: AttackSpec) -> None:
    records = samples({spec.name: held(plain=0)}, {spec.name: held(plain=1)}, plain=[0, 0])
    assert summary([run(spec)], records).undefended_robust is None


def test_without_an_undefended_classifier_its_rows_say_not_run() -> None:
    result = summary([run(TRANSFER), run(SUITE)], samples({"suite": held()}, {"suite": broken()}))
    assert result.undefended_clean is result.undefended_robust is None
    missing = row(result, "transfer")
    assert missing.note == "not run: no undefended classifier is known; undefended= gives one"
    assert (missing.attacked, missing.accuracy, missing.robust) == (0, None, None)
    assert row(result, "suite").note == ""


# The rows


def test_unbroken_images_are_reported_as_broke_k_of_m() -> None:
    """The first attack meets three samples and breaks one; the next meets the other two."""
    plan = [run(replace(SUITE, name=name)) for name in ("first", "second", "third")]
    records = samples(
        {"first": broken()},
        {"first": held(), "second": broken()},
        {"first": held(), "second": broken(linf=0.3)},
        {},
        clean=[0, 0, 0, 7],
    )
    result = summary(plan, records)
    assert [(one.broke, one.attacked) for one in result.rows] == [(1, 3), (1, 2), (0, 0)]
    assert [one.accuracy for one in result.rows] == [None] * 3
    assert row(result, "third").note == "not run: no sample was left"
    assert result.worst_case == Proportion(1, 4)


def test_an_attack_breaks_only_what_was_right_before() -> None:
    spec = replace(SUITE, samples="all")
    one = row(summary([run(spec)], samples({"suite": broken()}, {"suite": broken()}, clean=[0, 4])), "suite")
    assert (one.broke, one.attacked) == (1, 2)


def test_a_papers_accuracy_counts_any_size_and_robust_the_ball() -> None:
    records = samples({"paper": broken(0.05)}, {"paper": broken(0.3)}, {"paper": broken(0.7)}, {"paper": held()})
    one = row(summary([run(PAPER)], records), "paper")
    assert one.accuracy == Proportion(1, 4)
    assert one.robust == Proportion(3, 4)
    assert one.median_size == 0.3


def test_costs_are_summed_over_blocks_and_given_per_image() -> None:
    costs = [
        CostRecord(0, "suite", 2, Cost(forward=20, backward=10, seconds=0.5, peak_memory=300)),
        CostRecord(2, "suite", 1, Cost(forward=10, backward=8, seconds=0.25, peak_memory=200)),
        CostRecord(0, "paper", 3, Cost(forward=3, backward=0, seconds=1.0, peak_memory=100)),
    ]
    records = samples(*({"suite": held(), "paper": held()} for _ in range(3)))
    result = summary([run(PAPER), run(SUITE), run(replace(SUITE, name="idle"))], records, costs)
    one = row(result, "suite")
    assert (one.forward, one.backward, one.seconds) == (10, 6, 0.75)
    assert (row(result, "idle").forward, row(result, "idle").seconds) == (0, 0)
    assert result.total == Cost(forward=33, backward=18, seconds=1.75, peak_memory=300)


# The curves


def curved(*eps: float) -> list[AttackRun]:
    return [run(SUITE), *(run(replace(SUITE, curve=True), Linf(one), "curve") for one in eps)]


def rates(curve: Curve) -> list[tuple[float, float]]:
    return [(eps, share.rate) for eps, share in curve.points]


def test_a_curve_begins_at_clean_accuracy_and_has_a_point_for_each_eps() -> None:
    records = samples(
        {"suite @ 0.05": broken(0.05), "suite @ 0.2": broken(0.2)},
        {"suite @ 0.05": held(), "suite @ 0.2": broken(0.15)},
        {"suite @ 0.05": held(), "suite @ 0.2": held()},
        {"suite @ 0.05": held(), "suite @ 0.2": held()},
        clean=[0, 0, 0, 8],
    )
    (curve,) = summary(curved(0.05, 0.2), records).curves
    assert curve.attack == "suite"
    assert rates(curve) == [(0.0, 0.75), (0.05, 0.5), (0.2, 0.25)]


def test_a_curve_is_of_the_samples_that_it_ran_on() -> None:
    records = samples({"suite @ 0.05": broken()}, {"suite @ 0.05": held()}, {}, {}, clean=[0, 0, 9, 9])
    (curve,) = summary(curved(0.05), records).curves
    assert [share for _, share in curve.points] == [Proportion(2, 2), Proportion(1, 2)]


def test_a_curve_counts_only_what_lies_inside_its_ball() -> None:
    """An attack that oversteps its radius has shown nothing about that radius."""
    records = samples({"suite @ 0.05": broken(0.3)}, {"suite @ 0.05": broken(0.05)})
    (curve,) = summary(curved(0.05), records).curves
    assert rates(curve) == [(0.0, 1.0), (0.05, 0.5)]


def test_the_curve_of_an_attack_without_a_ball_is_read_off_its_sizes() -> None:
    """The smallest change found breaks at every radius from its size on."""
    records = samples(
        {"paper": broken(0.02)}, {"paper": broken(0.08)}, {"paper": broken(0.3)}, {"paper": held()}, {"paper": broken()}
    )
    for record in records:
        record.attacks |= {key: held() for key in ("suite @ 0.05", "suite @ 0.2")}
    records[-1].clean = 6
    result = summary([run(PAPER), *curved(0.05, 0.2)], records)
    (curve,) = [one for one in result.curves if one.attack == "paper"]
    assert rates(curve) == [(0.0, 0.8), (0.05, 0.6), (0.1, 0.4), (0.2, 0.4)]


def test_the_curves_runs_count_where_they_lie_inside_the_threats_ball() -> None:
    """They share one row: of what all else left, what they broke inside the ball."""
    records = samples(
        {"suite": held(), "suite @ 0.05": held(), "suite @ 0.2": broken(0.09)},
        {"suite": held(), "suite @ 0.05": held(), "suite @ 0.2": broken(0.2)},
        {"suite": broken(), "suite @ 0.05": broken(), "suite @ 0.2": broken(0.09)},
        {"suite @ 0.05": broken(), "suite @ 0.2": broken(0.09)},
        {"suite": held()},
        clean=[0, 0, 0, 5, 0],
    )
    costs = [
        CostRecord(0, "suite", 4, Cost(forward=4, backward=4)),
        CostRecord(0, "suite @ 0.05", 4, Cost(forward=8, backward=4, seconds=0.5)),
        CostRecord(0, "suite @ 0.2", 4, Cost(forward=24, backward=12, seconds=0.25)),
    ]
    result = summary(curved(0.05, 0.2), records, costs)
    assert result.worst_case == Proportion(2, 5)
    first, rest = result.rows
    assert (first.key, first.broke, first.attacked) == ("suite", 1, 4)
    assert (rest.broke, rest.attacked, rest.note) == (1, 2, "")
    assert (rest.forward, rest.backward, rest.seconds) == (4, 2, 0.75)
    assert first.broke + rest.broke == result.clean.count - result.worst_case.count


# The checks


EFFORT = replace(SUITE, name="effort")


def checked() -> list[AttackRun]:
    """A suite, a curve, and what the checks run, in the order in which they run."""
    return [
        run(SUITE),
        run(EFFORT, role="effort"),
        run(SUITE, Linf(0.5), "limit"),
        run(replace(SUITE, curve=True), Linf(0.2), "curve"),
    ]


def test_the_runs_of_curves_and_checks_have_a_row_each_and_add_up() -> None:
    """Of what the suite and the lines above left, what each broke inside the ball."""
    limit = "suite @ 0.5, limit"
    records = samples(
        {"suite": broken(), limit: broken(0.4), "suite @ 0.2": broken(0.2)},
        {"suite": held(), "effort": broken(), limit: broken(0.4), "suite @ 0.2": broken(0.2)},
        {"suite": held(), "effort": held(), limit: broken(0.08), "suite @ 0.2": held()},
        {"suite": held(), "effort": held(), limit: held(), "suite @ 0.2": broken(0.09)},
        {"suite": held(), "effort": held(), limit: broken(0.4), "suite @ 0.2": held()},
        {"suite": held()},
        {limit: broken(0.05), "suite @ 0.2": broken(0.05)},
        clean=[0, 0, 0, 0, 0, 0, 5],
    )
    costs = [
        CostRecord(0, "suite", 6, Cost(forward=6)),
        CostRecord(0, "effort", 4, Cost(forward=40, backward=20, seconds=2.0)),
        CostRecord(0, limit, 6, Cost(forward=18, backward=12, seconds=1.0)),
        CostRecord(0, "suite @ 0.2", 6, Cost(forward=12, backward=6, seconds=0.5)),
    ]
    result = summary(checked(), records, costs)
    effort, at_limit, curve = result.rows[1:]
    assert [one.source for one in result.rows] == ["suite", "side", "side", "side"]
    assert [one.key for one in result.rows[1:]] == ["the checks' effort", "the checks' limit", "the curve's runs"]
    assert [(one.broke, one.attacked) for one in result.rows] == [(1, 6), (1, 4), (1, 3), (1, 2)]
    assert (effort.forward, effort.backward, effort.seconds) == (10, 5, 2.0)
    assert (at_limit.forward, at_limit.backward, at_limit.seconds) == (3, 2, 1.0)
    assert (curve.forward, curve.backward, curve.seconds) == (2, 1, 0.5)
    assert all(one.accuracy is one.robust is one.median_size is None for one in (curve, effort, at_limit))
    assert sum(one.broke for one in result.rows) == result.clean.count - result.worst_case.count
    assert result.total.forward == 76


@pytest.mark.parametrize(
    ("verdicts", "established", "failed"),
    [
        ([], None, []),
        (["not run", "not run"], None, []),
        (["passed", "not run"], True, []),
        (["passed", "failed", "not run", "failed"], False, ["larger eps", "transfer"]),
    ],
)
def test_a_result_is_established_if_no_check_that_was_made_failed(
    verdicts: list[Any], established: bool | None, failed: list[str]
) -> None:
    names = ("single step", "larger eps", "more effort", "transfer")
    checks = [Check(name, verdict, "") for name, verdict in zip(names, verdicts, strict=False)]
    result = summary([run(SUITE)], samples({"suite": held()}), checks=checks)
    assert result.checks == checks
    assert result.established is established
    assert result.failed_checks == failed
    assert result.as_dict()["established"] is established


# Random defences


def passed(outcome: Outcome, first: int, misses: int, **changes: Any) -> Outcome:
    return replace(outcome, first_misses=first, misses=misses, passes=10, **changes)


def test_the_first_passes_choose_the_attack_of_each_sample_and_others_are_counted() -> None:
    """Of ten passes: clean images, and what lay inside the ball, whether it won the vote or not."""
    records = samples(
        {"suite": passed(broken(), 9, 8), "paper": passed(held(), 2, 10)},  # the second was lucky only afterwards
        {"suite": passed(held(), 3, 3)},
        {"suite": passed(held(), 0, 0), "paper": passed(broken(0.5), 10, 10)},  # too large a change
        {"suite": passed(held(usable=False), 10, 10)},
        {"suite": passed(held(), 1, 10, undecided=True)},
    )
    clean = [(0, 0), (1, 1), (0, 0), (0, 1), (4, 2)]
    for record, (first, others) in zip(records, clean, strict=True):
        record.clean_first_misses, record.clean_misses = first, others
    found = summary([run(PAPER), run(SUITE)], records, votes=10).randomness
    right = [0.2, 0.7, 1.0, 0.9, 0.8]
    assert found is not None
    assert found.votes == 10
    assert found.mean == pytest.approx(sum(right) / 5)
    assert found.mean_interval == pytest.approx(Mean.of(right).interval)
    assert found.worst == Proportion(1, 5)
    assert found.worst_of[0] == pytest.approx(found.mean)
    assert found.worst_of[-1] == found.worst.rate
    assert found.undecided == Proportion(1, 5)


def test_the_worst_of_n_passes_is_the_share_of_all_choices_of_n_that_hold_no_miss() -> None:
    """An enumeration of all sets of the stored passes, for N from 1 to their number."""
    misses, votes = [0, 1, 2, 6], 6
    passes = [[True] * count + [False] * (votes - count) for count in misses]
    for size, accuracy in enumerate(worst_of(misses, votes), 1):
        sets = [list(combinations(of_sample, size)) for of_sample in passes]
        assert accuracy == pytest.approx(fmean(fmean(not any(chosen) for chosen in each) for each in sets))
    assert len(worst_of(misses, votes)) == votes
    assert len(worst_of([0], 32)) == 20
    assert worst_of([3], 32)[0] == 29 / 32


def test_more_passes_are_extrapolated_to_the_accuracy_that_they_give() -> None:
    """Misses of 1,000 samples whose probabilities are known, and the ends: no pass misses, each does."""
    random = np.random.default_rng(0)
    probabilities = random.beta(0.3, 3.0, size=1000)
    misses, votes = random.binomial(32, probabilities).tolist(), 32
    for size in (10, 100, 1000):
        true = float(((1 - probabilities) ** size).mean())
        assert extrapolated_worst_of(misses, votes, [size])[0] == pytest.approx(true, abs=0.03)
    assert extrapolated_worst_of(misses, votes, [10])[0] == pytest.approx(worst_of(misses, votes)[9], abs=0.01)
    assert extrapolated_worst_of([0] * 50, 32, [1000])[0] > 0.95
    assert extrapolated_worst_of([32] * 50, 32, [1])[0] < 0.05


# The agreement of softmax lists


def scored(outcome: Outcome, ndcg: float, rank: float) -> Outcome:
    return replace(outcome, ndcg=ndcg, reciprocal_rank=rank)


def test_agreement_is_a_mean_over_the_images_in_the_ball_and_at_worst_over_the_least_of_each() -> None:
    records = samples(
        {"paper": scored(broken(), 0.2, 0.5), "suite": scored(held(), 0.6, 0.25)},
        {"paper": broken(0.5)},  # outside the ball
        {"paper": scored(held(), 0.9, 1.0), "suite @ 0.05": scored(held(), 0.7, 1.0)},
    )
    for record, (ndcg, rank) in zip(records, [(1.0, 1.0), (0.8, 0.5), (1.0, 1.0)], strict=True):
        record.clean_ndcg, record.clean_reciprocal_rank = ndcg, rank
    result = summary([run(PAPER), *curved(0.05)], records)
    assert result.reference == "own"
    assert result.clean_agreement == Agreement(Mean.of([1.0, 0.8, 1.0]), Mean.of([1.0, 0.5, 1.0]))
    assert row(result, "paper").agreement == Agreement(Mean.of([0.2, 0.9]), Mean.of([0.5, 1.0]))
    assert row(result, "suite").agreement == Agreement(Mean.of([0.6]), Mean.of([0.25]))
    assert row(result, "the curve's runs").agreement is None
    # What the curve's runs leave inside the ball counts, as for the robust accuracy.
    assert result.worst_agreement == Agreement(Mean.of([0.2, 0.8, 0.7]), Mean.of([0.25, 0.5, 1.0]))


# As data


def test_the_data_of_a_report_are_json_and_hold_every_figure() -> None:
    records = samples(
        {"paper": held(), "transfer": held(plain=1), "suite": broken(), "suite @ 0.05": held()},
        {"paper": broken(), "transfer": held(plain=0), "suite @ 0.05": broken()},
        plain=[0, 0],
    )
    checks = [Check("more effort", "failed", "300 steps break 1 of 2", {"broken": Proportion(1, 2), "eps": 0.1})]
    plan = [run(PAPER), run(TRANSFER), *curved(0.05)]
    result = summary(plan, records, [CostRecord(0, "paper", 2, Cost(4, 2, 0.5))], checks)
    data = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert data["format"] == FORMAT
    assert (data["established"], data["gap"]) == (False, 0.5)
    assert data["checks"][0]["figures"] == {"broken": plain(Proportion(1, 2)), "eps": 0.1}
    assert data["after_attacks"] == data["robust_accuracy"] == plain(result.worst_case)
    assert data["undefended_robust"]["count"] == 1
    assert [one["key"] for one in data["rows"]][:3] == ["paper", "transfer", "suite"]
    assert data["curves"][0]["points"][1] == [0.05, plain(Proportion(1, 2))]
    assert data["total"]["forward"] == 4
