"""The figures of a detector: against scikit-learn's formulas, and counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.evaluation.records.proportion import Proportion, plain
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.results.detection import (
    FALSE_POSITIVES,
    PASSING,
    Detection,
    DetectionRow,
    auc,
    clean_margins,
    detection,
    fooled_margins,
    roc,
    runs_on_all,
    threshold,
)
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat

THREAT = Linf(0.1)
Numbers = npt.NDArray[np.float64]


def refuse_to_build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("figures come from records")


def make_run(name: str, **options: Any) -> AttackRun:
    return AttackRun(AttackSpec(name, refuse_to_build, "by hand", samples="all", **options), "exact", THREAT)


ZERO, PERFECT = make_run("zero", crafted_on="undefended"), make_run("perfect")
PLAN = [ZERO, PERFECT]


def outcome(prediction: int, margin: float | None, label: int = 0, linf: float = 0.1, usable: bool = True) -> Outcome:
    rejected = margin is None or margin > 0
    missed = prediction != label and not rejected
    success = missed and usable and linf <= 0.1
    return Outcome(prediction, missed, linf, 2 * linf, success, usable, rejected=rejected, detection_margin=margin)


def sample(index: int, margin: float | None, label: int = 0, clean: int | None = None, **attacks: Outcome) -> Any:
    return SampleRecord(
        index,
        label,
        label if clean is None else clean,
        clean_rejected=margin is None or margin > 0,
        clean_detection_margin=margin,
        attacks=attacks,
    )


def make_detection(records: list[SampleRecord], plan: list[AttackRun] = PLAN) -> Detection:
    result = detection(plan, records, THREAT)
    assert result is not None
    return result


def find_row(records: list[SampleRecord], key: str) -> DetectionRow:
    (row,) = [row for row in make_detection(records).rows if row.key == key]
    return row


def random_records(seed: int, count: int = 120, nb_classes: int = 4) -> list[SampleRecord]:
    """Margins with many ties; images that are classified wrongly, that no attack moved, that left the ball."""
    generator = np.random.default_rng(seed)

    def draw(label: int, shift: float) -> Outcome:
        return outcome(
            int(generator.integers(nb_classes)),
            round(float(generator.normal(shift)), 1),
            label,
            linf=float(generator.choice([0.05, 0.1, 0.3], p=[0.4, 0.5, 0.1])),
            usable=bool(generator.random() > 0.1),
        )

    records = []
    for index in range(count):
        label = int(generator.integers(nb_classes))
        clean = label if generator.random() > 0.2 else int(generator.integers(nb_classes))
        margin = round(float(generator.normal(-1)), 1)
        records.append(sample(index, margin, label, clean, zero=draw(label, 0.8), perfect=draw(label, -0.5)))
    return records


# The area under the curve


@given(st.lists(st.tuples(st.booleans(), st.integers(-5, 5) | st.sampled_from([-1e9, 1e9])), min_size=2, max_size=40))
def test_the_area_is_scikit_learn_s_also_with_ties(drawn: list[tuple[bool, float]]) -> None:
    labels, margins = np.array([label for label, _ in drawn]), np.array([float(margin) for _, margin in drawn])
    area = auc(margins[~labels], margins[labels])
    if labels.all() or not labels.any():
        assert area is None
        return
    assert area == pytest.approx(roc_auc_score(labels, margins), abs=1e-12)
    infinite = np.where(np.abs(margins) == 1e9, np.copysign(np.inf, margins), margins)
    assert auc(infinite[~labels], infinite[labels]) == area  # which scikit-learn refuses


def test_the_curve_is_scikit_learn_s_and_the_area_under_it_is_the_area() -> None:
    records = random_records(0)
    clean, fooled = clean_margins(records), fooled_margins("zero", records, THREAT)
    false_positives, true_positives = roc(clean, fooled)
    labels = np.repeat([0, 1], [len(clean), len(fooled)])
    expected_curve = roc_curve(labels, np.concatenate([clean, fooled]), drop_intermediate=False)
    np.testing.assert_allclose(
        np.unique(np.stack([false_positives, true_positives]), axis=1), np.unique(np.stack(expected_curve[:2]), axis=1)
    )
    assert np.trapezoid(true_positives, false_positives) == pytest.approx(find_row(records, "zero").auc, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_areas_of_classes_and_of_all_are_those_of_the_paper_s_protocol(seed: int) -> None:
    records = random_records(seed)
    for key in ("zero", "perfect"):
        areas = []
        fooled = [
            (record.label, attack_outcome.prediction, attack_outcome.detection_margin)
            for record in records
            if (attack_outcome := record.attacks[key]).prediction != record.label
            and attack_outcome.usable
            and attack_outcome.linf <= 0.1 + 1e-6
        ]
        for number in range(4):
            negatives = [record.clean_detection_margin for record in records if record.label == number]
            positives = [margin for _, prediction, margin in fooled if prediction == number]
            labels = np.repeat([0, 1], [len(negatives), len(positives)])
            areas.append(roc_auc_score(labels, [*negatives, *positives]))
        row = find_row(records, key)
        assert (row.knows, row.fooled) == (key, Proportion(len(fooled), len(records)))
        if key == "perfect":
            assert (row.class_aucs, row.mean_auc, row.auc, row.success, row.true_positives) == (
                [],
                None,
                None,
                [],
                [],
            )
            continue
        assert row.class_aucs == pytest.approx(areas)
        assert row.mean_auc == pytest.approx(np.mean(areas))
        assert row.left_out == 0
        clean = [record.clean_detection_margin for record in records]
        labels = np.repeat([0, 1], [len(clean), len(fooled)])
        assert row.auc == pytest.approx(roc_auc_score(labels, [*clean, *(margin for *_, margin in fooled)]))


def test_a_class_without_adversarial_images_is_left_out_and_counted() -> None:
    records = [
        sample(0, -1.0, label=0, zero=outcome(1, 2.0, label=0), perfect=outcome(0, 3.0, label=0)),
        sample(1, -2.0, label=1, zero=outcome(1, 5.0, label=1), perfect=outcome(1, 3.0, label=1)),
        sample(2, -3.0, label=2, zero=outcome(1, -9.0, label=2), perfect=outcome(2, 3.0, label=2)),
    ]
    row = find_row(records, "zero")
    assert (row.class_aucs, row.left_out, row.mean_auc) == ([None, 0.5, None], 2, 0.5)
    unfooled_row = find_row(records, "perfect")
    assert (unfooled_row.mean_auc, unfooled_row.auc, unfooled_row.fooled.count, unfooled_row.detected) == (
        None,
        None,
        0,
        None,
    )
    assert unfooled_row.fooled == Proportion(0, 3)
    assert unfooled_row.true_positives == []
    assert (unfooled_row.success, unfooled_row.past) == ([], Proportion(0, 3))


# Thresholds, by hand


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.sampled_from([*FALSE_POSITIVES, *PASSING]))
def test_a_threshold_is_the_lowest_at_its_false_positive_rate(drawn: list[int], share: float) -> None:
    clean = np.array(drawn, dtype=float)
    limit = threshold(clean, share)
    assert (clean > limit).mean() <= share + 1e-9
    assert limit in clean
    lower = clean[clean < limit]
    assert len(lower) == 0 or (clean > lower.max()).mean() > share


def test_true_positives_and_success_counted_by_hand() -> None:
    """Twenty clean images with margins -1 to -20: one of them lies above the threshold of 5 %, two above that of 10 %.

    The attack fools the classifier on four of class 0 with margins 1, -1.5, -2 and -15, and on one that the classifier
    had wrong from the start.
    """
    adversarial_margins = {0: 1.0, 1: -1.5, 2: -2.0, 3: -15.0, 4: -15.0}
    records = [
        sample(
            index,
            -1.0 - index,
            clean=1 if index == 4 else 0,
            zero=outcome(1, adversarial_margins[index]) if index in adversarial_margins else outcome(0, 9.0),
            perfect=outcome(0, -9.0),
        )
        for index in range(20)
    ]
    summary = make_detection(records)
    assert dict(summary.thresholds) == {0.01: -1.0, 0.05: -2.0, 0.1: -3.0, 0.5: -11.0}
    assert summary.false_positives == Proportion(0, 20)
    row = find_row(records, "zero")
    true_positives = {point.false_positives: point.share for point in row.true_positives}
    assert true_positives == {0.01: Proportion(1, 5), 0.05: Proportion(2, 5), 0.1: Proportion(3, 5)}
    success = {point.false_positives: point.share for point in row.success}
    assert success == {0.05: Proportion(2, 19), 0.5: Proportion(1, 19)}  # of those that the classifier gets right
    assert row.detected == Proportion(1, 5)


def test_the_detector_s_own_threshold_rejects_clean_images() -> None:
    records = [sample(index, margin) for index, margin in enumerate([-1.0, 0.5, 0.0, 2.0])]
    # At the threshold itself nothing is rejected.
    assert make_detection(records, []).false_positives == Proportion(2, 4)
    assert not make_detection(records, []).pools


def test_images_outside_the_ball_or_unusable_fool_no_classifier() -> None:
    records = [
        sample(0, -1.0, zero=outcome(1, -5.0, linf=0.2), perfect=outcome(1, -5.0, usable=False)),
        sample(1, -1.0, zero=outcome(1, -5.0), perfect=outcome(0, -5.0)),
    ]
    assert find_row(records, "zero").fooled == Proportion(1, 2)
    assert find_row(records, "perfect").fooled == Proportion(0, 2)


def test_a_margin_that_is_not_finite_is_above_or_below_all_others() -> None:
    records = [
        sample(0, None, zero=outcome(1, None)),
        sample(1, -1.0, zero=outcome(1, -2.0)),
    ]
    assert clean_margins(records).tolist() == [np.inf, -1.0]
    assert fooled_margins("zero", records, THREAT).tolist() == [np.inf, -2.0]
    summary = make_detection(records, [ZERO])
    assert dict(summary.thresholds)[0.01] is None  # no finite one is high enough
    json.dumps([vars(row.success[0]) | {"share": plain(row.success[0].share)} for row in summary.rows])


# All attacks together


def test_an_image_is_detected_if_it_is_flagged_under_every_attack_that_fooled_the_classifier() -> None:
    records = [
        sample(0, -1.0, zero=outcome(1, 1.0), perfect=outcome(2, 2.0)),  # flagged both times
        sample(1, -1.0, zero=outcome(1, 1.0), perfect=outcome(2, -2.0)),  # flagged with zero knowledge only
        sample(2, -1.0, zero=outcome(0, -1.0), perfect=outcome(2, 1.0)),  # the failed attack says nothing
        sample(3, -1.0, zero=outcome(0, 1.0), perfect=outcome(0, -1.0)),  # no attack fooled the classifier
        sample(4, -1.0, clean=1, zero=outcome(1, -1.0), perfect=outcome(1, -1.0)),  # wrong from the start
    ]
    zero, perfect = make_detection(records).pools
    assert (zero.knows, zero.mead) == ("zero", Proportion(2, 2))
    assert (perfect.knows, perfect.mead) == ("perfect", Proportion(2, 3))
    assert [point.share for point in zero.success] == [Proportion(0, 4)] * 2
    assert (zero.past, perfect.past, perfect.success) == (Proportion(0, 4), Proportion(1, 4), [])


def test_the_attacker_takes_their_best_attack_for_each_image() -> None:
    records = random_records(7)
    summary = make_detection(records)
    rows = {row.key: row.past.count for row in summary.rows if row.past is not None}
    zero, perfect = (pool.past for pool in summary.pools)
    assert zero is not None
    assert perfect is not None
    assert zero.count == rows["zero"]
    assert max(rows.values()) <= perfect.count <= sum(rows.values())
    assert [point.share.count for point in summary.pools[0].success] == [
        point.share.count for row in summary.rows if row.key == "zero" for point in row.success
    ]
    at_own = sum(
        record.clean == record.label and any(attack_outcome.success for attack_outcome in record.attacks.values())
        for record in records
    )
    assert perfect.count == at_own
    mead = summary.pools[-1].mead
    assert mead is not None
    assert mead.total - mead.count == at_own  # an image that some attack keeps unflagged is a success


def test_attacks_on_a_part_of_the_images_have_no_row_but_count_in_the_pool() -> None:
    part = AttackRun(AttackSpec("part", refuse_to_build, "by hand"), "exact", THREAT)
    records = [
        sample(0, -1.0, zero=outcome(0, -1.0), part=outcome(1, -1.0)),
        sample(1, -1.0, zero=outcome(0, -1.0)),
    ]
    assert runs_on_all([ZERO, part], records) == runs_on_all([ZERO, part], records[:1]) == [ZERO]
    summary = make_detection(records, [ZERO, part])
    assert [row.key for row in summary.rows] == ["zero"]
    assert summary.pools[1].past == Proportion(1, 2)


def test_without_a_detector_there_is_no_detection() -> None:
    assert detection(PLAN, [SampleRecord(0, 0, 0)], THREAT) is None
