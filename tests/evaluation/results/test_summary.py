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


def refuse_to_build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("a summary builds no attack")


THREAT = Linf(0.1)
SUITE = AttackSpec("suite", refuse_to_build, "the suite's", kind="white-box")
PAPER = AttackSpec("paper", refuse_to_build, "the paper's", source="paper", samples="all", bounded=False)
TRANSFER = AttackSpec("transfer", refuse_to_build, "made elsewhere", crafted_on="undefended", samples="all")

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


def make_run(spec: AttackSpec, threat: Threat = THREAT, role: Role = "suite") -> AttackRun:
    return AttackRun(spec, "exact", threat, role)


def broken(linf: float = 0.05, undefended: int | None = None) -> Outcome:
    """A misclassification by a change of this size."""
    return Outcome(1, True, linf, 2 * linf, success=linf <= 0.1, undefended_prediction=undefended)


def held(undefended: int | None = None, usable: bool = True) -> Outcome:
    return Outcome(0, False, 0.1, 0.2, success=False, usable=usable, undefended_prediction=undefended)


def make_samples(
    *attacks: dict[str, Outcome], clean: list[int] | None = None, undefended: list[int] | None = None
) -> list[SampleRecord]:
    """Samples of class 0: the outcomes, the clean class and the undefended classifier's class of each."""
    nb_samples = len(attacks)
    clean = [0] * nb_samples if clean is None else clean
    undefended_classes: list[Any] = [None] * nb_samples if undefended is None else list(undefended)
    return [SampleRecord(i, 0, clean[i], undefended_classes[i], attacks=attacks[i]) for i in range(nb_samples)]


def make_summary(
    plan: list[AttackRun],
    records: list[SampleRecord],
    costs: list[CostRecord] | None = None,
    checks: Sequence[Check] = (),
    votes: int = 1,
) -> Summary:
    return summarise(replace(RUN, votes=votes), plan, records, costs or [], list(checks))


def find_row(result: Summary, key: str) -> AttackRow:
    (row,) = [row for row in result.rows if row.key == key]
    return row


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
    plan = [make_run(replace(SUITE, name=name, samples="all")) for name in "ab"]
    records = make_samples(
        {"a": broken(), "b": held()},
        {"a": broken(), "b": broken()},
        {"a": held(), "b": broken()},
        {"a": held(), "b": held()},
    )
    result = make_summary(plan, records)
    assert [find_row(result, name).robust for name in "ab"] == [Proportion(2, 4)] * 2
    assert result.worst_case == Proportion(1, 4)
    assert result.clean == Proportion(4, 4)


def test_a_misclassified_clean_sample_is_not_robust() -> None:
    records = make_samples({"suite": held()}, {"suite": held()}, {}, {}, clean=[0, 0, 5, 5])
    result = make_summary([make_run(SUITE)], records)
    assert (result.clean, result.worst_case) == (Proportion(2, 4), Proportion(2, 4))


def test_the_papers_number_counts_its_attacks_only_and_inside_the_ball() -> None:
    records = make_samples(
        {"paper": broken(), "suite": held()},
        {"paper": broken(linf=0.5), "suite": broken()},
        {"paper": held(), "suite": broken()},
        {"paper": held(), "suite": held()},
    )
    result = make_summary([make_run(PAPER), make_run(SUITE)], records, checks=[Check("noise", "passed", "")])
    assert result.paper == Proportion(3, 4)
    assert result.worst_case == result.robust_accuracy == Proportion(1, 4)
    assert result.gap == 0.5


def test_without_a_papers_attack_there_is_no_gap() -> None:
    result = make_summary([make_run(SUITE)], make_samples({"suite": broken()}, {"suite": held()}))
    assert result.paper is None
    assert result.gap is None
    result = make_summary([make_run(PAPER), make_run(SUITE)], make_samples({"suite": broken()}, {"suite": held()}))
    assert result.paper is None  # it never ran
    assert find_row(result, "paper").attacked == 0


def test_the_undefended_figures_use_the_undefended_classifiers_predictions() -> None:
    """Its clean accuracy and its accuracy on the examples made on it: both judged by its own predictions."""
    records = make_samples(
        {"transfer": held(undefended=1)},  # fools it alone
        {"transfer": broken(undefended=0)},  # fools the defended one alone
        {"transfer": held(undefended=0)},
        {"transfer": held(undefended=0)},
        clean=[0, 0, 0, 4],
        undefended=[0, 0, 4, 0],
    )
    result = make_summary([make_run(TRANSFER)], records)
    assert result.undefended_clean == Proportion(3, 4)
    assert result.undefended_robust == Proportion(2, 4)  # the second and the last
    assert (result.clean, result.worst_case) == (Proportion(3, 4), Proportion(2, 4))


@pytest.mark.parametrize(
    "spec",
    [SUITE, replace(TRANSFER, bounded=False), replace(TRANSFER, samples="unbroken")],
    ids=["made on the defended", "whatever the size", "on unbroken images"],
)
def test_the_undefended_figure_needs_bounded_attacks_on_all_images(spec: AttackSpec) -> None:
    records = make_samples({spec.name: held(undefended=0)}, {spec.name: held(undefended=1)}, undefended=[0, 0])
    assert make_summary([make_run(spec)], records).undefended_robust is None


def test_without_an_undefended_classifier_its_rows_say_not_run() -> None:
    result = make_summary([make_run(TRANSFER), make_run(SUITE)], make_samples({"suite": held()}, {"suite": broken()}))
    assert result.undefended_clean is result.undefended_robust is None
    transfer_row = find_row(result, "transfer")
    assert transfer_row.note == "not run: no undefended classifier is known; undefended= gives one"
    assert (transfer_row.attacked, transfer_row.accuracy, transfer_row.robust) == (0, None, None)
    assert find_row(result, "suite").note == ""


# The rows


def test_unbroken_images_are_reported_as_broke_k_of_m() -> None:
    """The first attack meets three samples and breaks one; the next meets the other two."""
    plan = [make_run(replace(SUITE, name=name)) for name in ("first", "second", "third")]
    records = make_samples(
        {"first": broken()},
        {"first": held(), "second": broken()},
        {"first": held(), "second": broken(linf=0.3)},
        {},
        clean=[0, 0, 0, 7],
    )
    result = make_summary(plan, records)
    assert [(row.broke, row.attacked) for row in result.rows] == [(1, 3), (1, 2), (0, 0)]
    assert [row.accuracy for row in result.rows] == [None] * 3
    assert find_row(result, "third").note == "not run: no sample was left"
    assert result.worst_case == Proportion(1, 4)


def test_an_attack_breaks_only_correctly_classified_samples() -> None:
    spec = replace(SUITE, samples="all")
    row = find_row(
        make_summary([make_run(spec)], make_samples({"suite": broken()}, {"suite": broken()}, clean=[0, 4])), "suite"
    )
    assert (row.broke, row.attacked) == (1, 2)


def test_a_papers_accuracy_counts_any_size_and_robust_the_ball() -> None:
    records = make_samples({"paper": broken(0.05)}, {"paper": broken(0.3)}, {"paper": broken(0.7)}, {"paper": held()})
    row = find_row(make_summary([make_run(PAPER)], records), "paper")
    assert row.accuracy == Proportion(1, 4)
    assert row.robust == Proportion(3, 4)
    assert row.median_size == 0.3


def test_costs_are_summed_over_blocks_and_given_per_image() -> None:
    costs = [
        CostRecord(0, "suite", 2, Cost(forward=20, backward=10, seconds=0.5, peak_memory=300)),
        CostRecord(2, "suite", 1, Cost(forward=10, backward=8, seconds=0.25, peak_memory=200)),
        CostRecord(0, "paper", 3, Cost(forward=3, backward=0, seconds=1.0, peak_memory=100)),
    ]
    records = make_samples(*({"suite": held(), "paper": held()} for _ in range(3)))
    result = make_summary([make_run(PAPER), make_run(SUITE), make_run(replace(SUITE, name="idle"))], records, costs)
    row = find_row(result, "suite")
    assert (row.forward, row.backward, row.seconds) == (10, 6, 0.75)
    assert (find_row(result, "idle").forward, find_row(result, "idle").seconds) == (0, 0)
    assert result.total == Cost(forward=33, backward=18, seconds=1.75, peak_memory=300)


# The curves


def make_curved_plan(*eps: float) -> list[AttackRun]:
    return [make_run(SUITE), *(make_run(replace(SUITE, curve=True), Linf(radius), "curve") for radius in eps)]


def rates(curve: Curve) -> list[tuple[float, float]]:
    return [(eps, share.rate) for eps, share in curve.points]


def test_a_curve_begins_at_clean_accuracy_and_has_a_point_for_each_eps() -> None:
    records = make_samples(
        {"suite @ 0.05": broken(0.05), "suite @ 0.2": broken(0.2)},
        {"suite @ 0.05": held(), "suite @ 0.2": broken(0.15)},
        {"suite @ 0.05": held(), "suite @ 0.2": held()},
        {"suite @ 0.05": held(), "suite @ 0.2": held()},
        clean=[0, 0, 0, 8],
    )
    (curve,) = make_summary(make_curved_plan(0.05, 0.2), records).curves
    assert curve.attack == "suite"
    assert rates(curve) == [(0.0, 0.75), (0.05, 0.5), (0.2, 0.25)]


def test_a_curve_counts_the_samples_that_it_ran_on() -> None:
    records = make_samples({"suite @ 0.05": broken()}, {"suite @ 0.05": held()}, {}, {}, clean=[0, 0, 9, 9])
    (curve,) = make_summary(make_curved_plan(0.05), records).curves
    assert [share for _, share in curve.points] == [Proportion(2, 2), Proportion(1, 2)]


def test_a_curve_counts_only_images_inside_its_ball() -> None:
    """An attack that oversteps its radius has shown nothing about that radius."""
    records = make_samples({"suite @ 0.05": broken(0.3)}, {"suite @ 0.05": broken(0.05)})
    (curve,) = make_summary(make_curved_plan(0.05), records).curves
    assert rates(curve) == [(0.0, 1.0), (0.05, 0.5)]


def test_the_curve_of_an_attack_without_a_ball_is_read_off_its_sizes() -> None:
    """The smallest change found breaks at every radius from its size on."""
    records = make_samples(
        {"paper": broken(0.02)}, {"paper": broken(0.08)}, {"paper": broken(0.3)}, {"paper": held()}, {"paper": broken()}
    )
    for record in records:
        record.attacks |= {key: held() for key in ("suite @ 0.05", "suite @ 0.2")}
    records[-1].clean = 6
    result = make_summary([make_run(PAPER), *make_curved_plan(0.05, 0.2)], records)
    (curve,) = [curve for curve in result.curves if curve.attack == "paper"]
    assert rates(curve) == [(0.0, 0.8), (0.05, 0.6), (0.1, 0.4), (0.2, 0.4)]


def test_the_curves_runs_count_where_they_lie_inside_the_threats_ball() -> None:
    """They share one row: the images inside the ball that they broke among those that all other attacks left."""
    records = make_samples(
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
    result = make_summary(make_curved_plan(0.05, 0.2), records, costs)
    assert result.worst_case == Proportion(2, 5)
    suite_row, curve_row = result.rows
    assert (suite_row.key, suite_row.broke, suite_row.attacked) == ("suite", 1, 4)
    assert (curve_row.broke, curve_row.attacked, curve_row.note) == (1, 2, "")
    assert (curve_row.forward, curve_row.backward, curve_row.seconds) == (4, 2, 0.75)
    assert suite_row.broke + curve_row.broke == result.clean.count - result.worst_case.count


# The checks


EFFORT = replace(SUITE, name="effort")


def make_checked_plan() -> list[AttackRun]:
    """A suite, a curve, and what the checks run, in the order in which they run."""
    return [
        make_run(SUITE),
        make_run(EFFORT, role="effort"),
        make_run(SUITE, Linf(0.5), "limit"),
        make_run(replace(SUITE, curve=True), Linf(0.2), "curve"),
    ]


def test_the_runs_of_curves_and_checks_have_a_row_each_and_add_up() -> None:
    """Each row counts the images broken inside the ball among those that the suite and the rows above left."""
    limit = "suite @ 0.5, limit"
    records = make_samples(
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
    result = make_summary(make_checked_plan(), records, costs)
    effort, at_limit, curve = result.rows[1:]
    assert [row.source for row in result.rows] == ["suite", "side", "side", "side"]
    assert [row.key for row in result.rows[1:]] == ["the checks' effort", "the checks' limit", "the curve's runs"]
    assert [(row.broke, row.attacked) for row in result.rows] == [(1, 6), (1, 4), (1, 3), (1, 2)]
    assert (effort.forward, effort.backward, effort.seconds) == (10, 5, 2.0)
    assert (at_limit.forward, at_limit.backward, at_limit.seconds) == (3, 2, 1.0)
    assert (curve.forward, curve.backward, curve.seconds) == (2, 1, 0.5)
    assert all(row.accuracy is row.robust is row.median_size is None for row in (curve, effort, at_limit))
    assert sum(row.broke for row in result.rows) == result.clean.count - result.worst_case.count
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
    result = make_summary([make_run(SUITE)], make_samples({"suite": held()}), checks=checks)
    assert result.checks == checks
    assert result.established is established
    assert result.failed_checks == failed
    assert result.as_dict()["established"] is established


# Random defences


def with_misses(outcome: Outcome, first: int, misses: int, **changes: Any) -> Outcome:
    return replace(outcome, first_misses=first, misses=misses, passes=10, **changes)


def test_the_first_passes_choose_the_attack_and_the_other_passes_are_counted() -> None:
    """Ten passes of clean images and of images inside the ball count, whether these won the vote or not."""
    records = make_samples(
        # The second attack was lucky only in the later passes.
        {"suite": with_misses(broken(), 9, 8), "paper": with_misses(held(), 2, 10)},
        {"suite": with_misses(held(), 3, 3)},
        {"suite": with_misses(held(), 0, 0), "paper": with_misses(broken(0.5), 10, 10)},  # too large a change
        {"suite": with_misses(held(usable=False), 10, 10)},
        {"suite": with_misses(held(), 1, 10, undecided=True)},
    )
    clean = [(0, 0), (1, 1), (0, 0), (0, 1), (4, 2)]
    for record, (first_misses, misses) in zip(records, clean, strict=True):
        record.clean_first_misses, record.clean_misses = first_misses, misses
    randomness = make_summary([make_run(PAPER), make_run(SUITE)], records, votes=10).randomness
    accuracies = [0.2, 0.7, 1.0, 0.9, 0.8]
    assert randomness is not None
    assert randomness.votes == 10
    assert randomness.mean == pytest.approx(sum(accuracies) / 5)
    assert randomness.mean_interval == pytest.approx(Mean.of(accuracies).interval)
    assert randomness.worst == Proportion(1, 5)
    assert randomness.worst_of[0] == pytest.approx(randomness.mean)
    assert randomness.worst_of[-1] == randomness.worst.rate
    assert randomness.undecided == Proportion(1, 5)


def test_the_worst_of_n_passes_agrees_with_an_enumeration() -> None:
    """An enumeration of all sets of the stored passes, for N from 1 to their number."""
    misses, votes = [0, 1, 2, 6], 6
    passes = [[True] * count + [False] * (votes - count) for count in misses]
    for size, accuracy in enumerate(worst_of(misses, votes), 1):
        sets = [list(combinations(sample_passes, size)) for sample_passes in passes]
        assert accuracy == pytest.approx(fmean(fmean(not any(choice) for choice in choices) for choices in sets))
    assert len(worst_of(misses, votes)) == votes
    assert len(worst_of([0], 32)) == 20
    assert worst_of([3], 32)[0] == 29 / 32


def test_the_worst_of_more_passes_is_extrapolated() -> None:
    """Misses of 1,000 samples whose probabilities are known, and the ends: no pass misses, each does."""
    random = np.random.default_rng(0)
    probabilities = random.beta(0.3, 3.0, size=1000)
    misses, votes = random.binomial(32, probabilities).tolist(), 32
    for size in (10, 100, 1000):
        expected = float(((1 - probabilities) ** size).mean())
        assert extrapolated_worst_of(misses, votes, [size])[0] == pytest.approx(expected, abs=0.03)
    assert extrapolated_worst_of(misses, votes, [10])[0] == pytest.approx(worst_of(misses, votes)[9], abs=0.01)
    assert extrapolated_worst_of([0] * 50, 32, [1000])[0] > 0.95
    assert extrapolated_worst_of([32] * 50, 32, [1])[0] < 0.05


# The agreement of softmax lists


def with_agreement(outcome: Outcome, ndcg: float, rank: float) -> Outcome:
    return replace(outcome, ndcg=ndcg, reciprocal_rank=rank)


def test_agreement_is_a_mean_over_images_in_the_ball_and_the_worst_over_the_minimum_of_each() -> None:
    records = make_samples(
        {"paper": with_agreement(broken(), 0.2, 0.5), "suite": with_agreement(held(), 0.6, 0.25)},
        {"paper": broken(0.5)},  # outside the ball
        {"paper": with_agreement(held(), 0.9, 1.0), "suite @ 0.05": with_agreement(held(), 0.7, 1.0)},
    )
    for record, (ndcg, rank) in zip(records, [(1.0, 1.0), (0.8, 0.5), (1.0, 1.0)], strict=True):
        record.clean_ndcg, record.clean_reciprocal_rank = ndcg, rank
    result = make_summary([make_run(PAPER), *make_curved_plan(0.05)], records)
    assert result.reference == "own"
    assert result.clean_agreement == Agreement(Mean.of([1.0, 0.8, 1.0]), Mean.of([1.0, 0.5, 1.0]))
    assert find_row(result, "paper").agreement == Agreement(Mean.of([0.2, 0.9]), Mean.of([0.5, 1.0]))
    assert find_row(result, "suite").agreement == Agreement(Mean.of([0.6]), Mean.of([0.25]))
    assert find_row(result, "the curve's runs").agreement is None
    # What the curve's runs leave inside the ball counts, as for the robust accuracy.
    assert result.worst_agreement == Agreement(Mean.of([0.2, 0.8, 0.7]), Mean.of([0.25, 0.5, 1.0]))


# As data


def test_the_data_of_a_report_are_json_and_hold_every_figure() -> None:
    records = make_samples(
        {"paper": held(), "transfer": held(undefended=1), "suite": broken(), "suite @ 0.05": held()},
        {"paper": broken(), "transfer": held(undefended=0), "suite @ 0.05": broken()},
        undefended=[0, 0],
    )
    checks = [Check("more effort", "failed", "300 steps break 1 of 2", {"broken": Proportion(1, 2), "eps": 0.1})]
    plan = [make_run(PAPER), make_run(TRANSFER), *make_curved_plan(0.05)]
    result = make_summary(plan, records, [CostRecord(0, "paper", 2, Cost(4, 2, 0.5))], checks)
    data = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert data["format"] == FORMAT
    assert (data["established"], data["gap"]) == (False, 0.5)
    assert data["checks"][0]["figures"] == {"broken": plain(Proportion(1, 2)), "eps": 0.1}
    assert data["after_attacks"] == data["robust_accuracy"] == plain(result.worst_case)
    assert data["undefended_robust"]["count"] == 1
    assert [row["key"] for row in data["rows"]][:3] == ["paper", "transfer", "suite"]
    assert data["curves"][0]["points"][1] == [0.05, plain(Proportion(1, 2))]
    assert data["total"]["forward"] == 4
