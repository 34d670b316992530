"""NDCG and reciprocal rank: against their definition, by hand, and from the images to the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator
from hypothesis import given, strategies as st
from scipy.special import softmax
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, evaluate
from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.evaluation.records.metrics import ndcg, reciprocal_rank, recorded
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.attacker import VOTES
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.datasets import Dataset

from ...conftest import omit_pictures

Rational = Sequence[Fraction]


def lists(*rows: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)


# The definition, read aloud: one list at a time, in rational numbers


def ranking(probabilities: Rational) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda k: (-probabilities[k], k))


def cut(probabilities: Rational, mass: Fraction) -> list[int]:
    ranked: list[int] = []
    for k in ranking(probabilities):
        ranked.append(k)
        if sum(probabilities[index] for index in ranked) >= mass:
            break
    return ranked


def ndcg_by_definition(clean: Rational, other: Rational, mass: Fraction) -> float:
    relevant = cut(clean, mass)

    def dcg(ranked: list[int]) -> float:
        return sum(
            (2 ** float(clean[k]) - 1) / math.log2(rank + 1) for rank, k in enumerate(ranked, 1) if k in relevant
        )

    return dcg(cut(other, mass)) / dcg(relevant)


def reciprocal_rank_by_definition(clean: Rational, other: Rational) -> float:
    return 1 / (1 + ranking(other).index(ranking(clean)[0]))


def rational(row: npt.NDArray[Any]) -> Rational:
    return [Fraction(float(probability)) for probability in row]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Rational], list[Rational]]:
    """Two batches of lists of small whole numbers over their sum, so that ties and exact masses abound."""
    nb_classes = draw(st.integers(1, 8))
    weights = st.lists(st.integers(0, 5), min_size=nb_classes, max_size=nb_classes).filter(any)
    drawn = draw(st.lists(st.tuples(weights, weights), min_size=1, max_size=4))
    shares = [[[Fraction(weight, sum(row)) for weight in row] for row in pair] for pair in drawn]
    return [pair[0] for pair in shares], [pair[1] for pair in shares]


@given(pairs(), st.sampled_from([Fraction(1, 10), Fraction(1, 2), Fraction(4, 5), Fraction(9, 10), Fraction(1)]))
def test_ndcg_and_reciprocal_rank_agree_with_their_definition(
    batches: tuple[list[Rational], list[Rational]], mass: Fraction
) -> None:
    clean, other = (np.array(rows, dtype=np.float64) for rows in batches)
    expected = [ndcg_by_definition(*pair, mass) for pair in zip(*batches, strict=True)]
    values = ndcg(clean, other, float(mass))
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)
    assert (values >= 0).all()
    assert (values <= 1).all()
    ranks = [reciprocal_rank_by_definition(*pair) for pair in zip(*batches, strict=True)]
    np.testing.assert_allclose(reciprocal_rank(clean, other), ranks, rtol=1e-15)


# By hand

A, B, C = (2**p - 1 for p in (0.5, 0.3, 0.2))


def test_identical_lists_agree_to_the_last_bit() -> None:
    same = softmax(np.random.default_rng(0).normal(size=(300, 50)), axis=1)
    assert (ndcg(same, same) == 1).all()
    assert (reciprocal_rank(same, same) == 1).all()


# What is refused

GOOD = lists((0.5, 0.5), (1, 0))
BAD: dict[str, tuple[Any, str]] = {
    "a list": ([[0.5, 0.5], [1.0, 0.0]], "a list; a numpy array was expected"),
    "three axes": (GOOD[np.newaxis], r"shape \(1, 2, 2\); \(N, K\)"),
    "no image": (np.empty((0, 2)), r"shape \(0, 2\); \(N, K\) of at least one list and class was expected"),
    "negative": (lists((1.5, -0.5), (1, 0)), "negative, NaN or infinite values; probabilities were expected"),
    "NaN": (lists((math.nan, 1), (1, 0)), "negative, NaN or infinite values; probabilities were expected"),
    "logits": (lists((3, 1), (1, 0)), "sum to 1 up to 4; probabilities that sum to 1 were expected"),
}


@pytest.mark.parametrize("metric", [ndcg, reciprocal_rank])
@pytest.mark.parametrize("case", BAD)
def test_a_malformed_batch_of_softmax_lists_is_refused(case: str, metric: Callable[..., Any]) -> None:
    bad, message = BAD[case][0], "probabilities that sum to 1 was expected"
    with pytest.raises(InputError, match=f"clean .*{message}"):
        metric(bad, GOOD)
    with pytest.raises(InputError, match=f"other .*{message}"):
        metric(GOOD, bad)


@pytest.mark.parametrize("metric", [ndcg, reciprocal_rank])
def test_lists_of_other_images_or_classes_are_refused(metric: Callable[..., Any]) -> None:
    for other in (lists((0.5, 0.5)), lists((0.5, 0.5, 0), (1, 0, 0))):
        with pytest.raises(InputError, match=r"other has shape .*; that of clean, \(2, 2\), was expected"):
            metric(GOOD, other)


@pytest.mark.parametrize("mass", [0, 1.1, math.nan, "0.9", True])
def test_a_mass_outside_0_to_1_is_refused(mass: Any) -> None:
    with pytest.raises(InputError, match=r"mass is .*; a number above 0 and at most 1 was expected"):
        ndcg(GOOD, GOOD, mass)


# As records keep them


def test_records_keep_six_digits_and_none_for_unknown_values() -> None:
    clean = lists((0.5, 0.3, 0.2), (0.5, 0.3, 0.2), (0.5, 0.3, 0.2), (math.nan, 0, 0))
    other = lists((0.2, 0.3, 0.5), (0.3, 0.5, 0.2), (math.nan, math.nan, math.nan), (0.5, 0.3, 0.2))
    ndcgs, ranks = recorded(clean, other, np.array([True, False, True, True]))
    assert ndcgs == [round((C + B / math.log2(3) + A / 2) / (A + B / math.log2(3) + C / 2), 6), None, None, None]
    assert ranks == [0.333333, None, None, None]
    assert all(type(value) is float for value in (ndcgs[0], ranks[0]))


# From the images to the report

EPS = 0.3
Act = Callable[[FloatArray], FloatArray]


class Own(EvasionAttack):
    """An attack that does what a test says, and remembers what it gave back."""

    _estimator_requirements = (BaseEstimator,)

    def __init__(self, estimator: PyTorchClassifier, act: Act, returned: list[FloatArray]) -> None:
        super().__init__(estimator=estimator)
        self.act, self.returned = act, returned

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> FloatArray:
        self.returned.append(self.act(x))
        return self.returned[-1]


def near(x: FloatArray) -> FloatArray:
    shift = np.random.default_rng(int(1e4 * x.sum())).choice([-EPS, EPS], size=x.shape)
    return np.clip(x + shift, 0, 1).astype(np.float32)


def darker(x: FloatArray) -> FloatArray:
    return np.clip(x - np.float32(EPS), 0, 1).astype(np.float32)


def far(x: FloatArray) -> FloatArray:
    """Outside the ball, but for the first image of a block."""
    adversarial = (1 - x).astype(np.float32)
    adversarial[0] = x[0]
    return adversarial


def unusable(x: FloatArray) -> FloatArray:
    adversarial = darker(x)
    adversarial[::2] = np.nan
    return adversarial


ACTS: dict[str, Act] = {"near": near, "darker": darker, "far": far, "unusable": unusable}


@dataclass
class Run:
    """An evaluation, what its attacks returned, and its files."""

    classifier: PyTorchClassifier
    report: Report
    returned: dict[str, FloatArray]
    folder: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "records.jsonl").read_text().splitlines()]

    @property
    def written(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return data


def evaluate_acts(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, folder: Path) -> Run:
    returned: dict[str, list[FloatArray]] = {name: [] for name in (*ACTS, "transfer")}

    def spec(name: str, act: Act, **options: Any) -> AttackSpec:
        def build(target: PyTorchClassifier, threat: Any, seed: int) -> EvasionAttack:
            return Own(target, act, returned[name])

        return AttackSpec(name, build, "for a test", samples="all", **options)

    specs = [*(spec(name, act) for name, act in ACTS.items()), spec("transfer", near, crafted_on="undefended")]
    options: dict[str, Any] = {"block_size": 10, "curve_samples": 0, "check_samples": 0, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        omit_pictures(patch)
        report = evaluate(classifier, (x, y), Linf(EPS), specs, out=folder, **options)
    return Run(
        classifier, report, {key: np.concatenate(batches) for key, batches in returned.items() if batches}, folder
    )


@pytest.fixture(scope="module")
def images(digits: Dataset) -> tuple[FloatArray, IntArray]:
    return digits.test.x[:25].copy(), digits.test.y[:25].copy()


@pytest.fixture(scope="module")
def defended_run(
    digits_classifier: PyTorchClassifier,
    images: tuple[FloatArray, IntArray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    return evaluate_acts(JumpReLU(digits_classifier, 1.0)(), *images, tmp_path_factory.mktemp("defended"))


def predict_probabilities(classifier: PyTorchClassifier, x: FloatArray) -> npt.NDArray[np.float64]:
    """Softmax lists by ART's own path, not the evaluation's."""
    probabilities: npt.NDArray[np.float64] = softmax(classifier.predict(x).astype(np.float64), axis=1)
    return probabilities


def expected_metrics(
    reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    rows = [(rational(a), rational(b)) for a, b in zip(reference, other, strict=True)]
    return (
        [ndcg_by_definition(a, b, Fraction(9, 10)) for a, b in rows],
        [reciprocal_rank_by_definition(a, b) for a, b in rows],
    )


def test_records_agree_with_the_definition_on_each_image_in_the_ball(
    defended_run: Run, images: tuple[FloatArray, IntArray]
) -> None:
    run, x = defended_run, images[0]
    assert run.written["reference"] == "undefended"
    reference = predict_probabilities(undefended(run.classifier) or run.classifier, x)
    clean = expected_metrics(reference, predict_probabilities(run.classifier, x))
    assert [line["clean_ndcg"] for line in run.lines] == pytest.approx(clean[0], abs=1e-4)
    assert [line["clean_reciprocal_rank"] for line in run.lines] == pytest.approx(clean[1], abs=1e-4)
    compared = left_out = 0
    for key, adversarial in run.returned.items():
        usable = np.isfinite(adversarial).all(axis=(1, 2, 3))
        scores = expected_metrics(
            reference, predict_probabilities(run.classifier, np.where(np.isfinite(adversarial), adversarial, 0))
        )
        for i, line in enumerate(run.lines):
            outcome = line["attacks"][key]
            if usable[i] and np.abs(adversarial[i] - x[i]).max() <= EPS + 1e-5:
                assert outcome["ndcg"] == pytest.approx(scores[0][i], abs=1e-4)
                assert outcome["reciprocal_rank"] == pytest.approx(scores[1][i], abs=1e-4)
                compared += 1
            else:
                assert outcome["ndcg"] is None
                assert outcome["reciprocal_rank"] is None
                left_out += 1
    assert compared == 25 * (len(run.returned) - 2) + 3 + 12
    assert left_out == 22 + 13
    assert len({line["attacks"]["near"]["ndcg"] for line in run.lines}) > 3  # or this test shows little


def brute_force(values: Sequence[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None])
    return {"mean": known.mean(), "deviation": known.std(), "total": len(known)}


def assert_means(means: dict[str, Any], values: dict[str, Sequence[float | None]]) -> None:
    assert means.keys() == values.keys()
    for name, column in values.items():
        anew = brute_force(column)
        assert means[name].keys() == anew.keys() | {"interval"}
        assert means[name]["interval"][0] < anew["mean"] < means[name]["interval"][1] or anew["deviation"] == 0
        for key, value in anew.items():
            assert means[name][key] == pytest.approx(value, abs=1e-9), (name, key)


def test_the_reports_means_agree_with_brute_force_over_the_file(defended_run: Run) -> None:
    run = defended_run
    lines, written = run.lines, run.written
    names = ("ndcg", "reciprocal_rank")
    assert_means(written["clean_agreement"], {name: [line[f"clean_{name}"] for line in lines] for name in names})
    keys = list(run.returned)
    rows = {row["key"]: row for row in written["rows"]}
    for key in keys:
        assert_means(rows[key]["agreement"], {name: [line["attacks"][key][name] for line in lines] for name in names})
    worst: dict[str, Sequence[float | None]] = {}
    for name in names:
        tried = [[line[f"clean_{name}"], *(line["attacks"][key][name] for key in keys)] for line in lines]
        worst[name] = [min(value for value in values if value is not None) for values in tried]
    assert_means(written["worst_agreement"], worst)
    assert written["worst_agreement"]["ndcg"]["mean"] < written["clean_agreement"]["ndcg"]["mean"]


class Noisy(nn.Module):
    """The logits under noise that each pass draws anew."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits + 3 * torch.randn_like(logits)


def test_a_random_classifiers_lists_are_means_over_its_votes(
    digits_classifier: PyTorchClassifier, images: tuple[FloatArray, IntArray], tmp_path: Path
) -> None:
    """The clean lists, too, are means over all votes: lists of a single pass would not agree with them."""
    noisy = rebuild(digits_classifier, model=Noisy(digits_classifier.model))
    x, y = images
    run = evaluate_acts(noisy, x[:6], y[:6], tmp_path)
    assert run.report.summary.run.votes == VOTES
    assert {line["clean_ndcg"] for line in run.lines} == {1.0}
    agreement = run.report.summary.worst_agreement
    assert agreement is not None
    assert agreement.ndcg.total == 6
