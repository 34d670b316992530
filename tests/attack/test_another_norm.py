"""A norm that somebody else adds: one class outside the package, with which attacks, checks and records work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import AttackSpec, HeatAndBlur, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import Ball, Linf, ball_type
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import attacks_in

SHAPE = (1, 4, 6)


class Halves(Ball):
    """The largest change, where those of the image's upper half count twice."""

    norm_name, rule = "halves", "each pixel value may change by at most, in the upper half by half of"

    @staticmethod
    def weights(reference: Tensor) -> Tensor:
        weights = torch.ones(SHAPE, dtype=reference.dtype)
        weights[:, :2] = 2
        return weights

    @classmethod
    def size(cls, delta: Tensor) -> Tensor:
        return (delta * cls.weights(delta)).abs().flatten(1).amax(dim=1)

    @classmethod
    def dual_size(cls, gradient: Tensor) -> Tensor:
        return (gradient / cls.weights(gradient)).abs().flatten(1).sum(dim=1)

    @classmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        return gradient.sign() / cls.weights(gradient)

    def project(self, delta: Tensor) -> Tensor:
        limit = self.eps / self.weights(delta)
        return torch.minimum(torch.maximum(delta, -limit), limit)


def two_classes(linear_classifier: Callable[..., PyTorchClassifier]) -> tuple[PyTorchClassifier, Any, Any, Any]:
    """Images in the middle of the clip range, and their distance to the boundary: gap over dual norm."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(2, *SHAPE)).astype(np.float32)
    difference = (weight[0] - weight[1]).astype(np.float64)
    x = random.uniform(0.35, 0.65, size=(40, *SHAPE)).astype(np.float32)
    bias = np.array([0, 0.5 * difference.sum()], np.float32)
    classifier = linear_classifier(weight.reshape(2, -1), bias, SHAPE)
    gap = (x.astype(np.float64) * difference).sum(axis=(1, 2, 3)) - bias[1]
    dual = float(Halves.dual_size(torch.from_numpy(difference)[None]))
    return classifier, x, (gap < 0).astype(np.int64), np.abs(gap) / dual


def test_it_is_known_by_its_class_and_its_name() -> None:
    assert ball_type("halves") is ball_type(Halves) is Halves.norm is Halves
    assert str(Halves("1/8")) == "halves 0.125"
    assert Halves(0.1) != Linf(0.1)


@pytest.mark.parametrize("attack", [AutoPGD, Square, RandomNoise])
def test_attacks_break_what_lies_within_and_nothing_else(attack: Any, linear_classifier: Any) -> None:
    classifier, x, y, distance = two_classes(linear_classifier)
    eps = float(np.median(distance))
    options = {AutoPGD: {"max_iter": 50}, Square: {"max_queries": 100}}.get(attack, {})
    adversarial = attack(classifier, Halves, eps, **options).generate(x, y)
    broken = classifier.predict(adversarial).argmax(axis=1) != y
    assert Halves(eps).exact_sizes(adversarial - x).max() <= eps * (1 + 1e-6)
    assert not broken[distance > 1.01 * eps].any()
    if attack is AutoPGD:
        assert broken[distance < 0.99 * eps].all()


def test_the_papers_attacks_that_art_has_in_its_norms_alone_do_not_run(linear_classifier: Any) -> None:
    classifier, x, y, _ = two_classes(linear_classifier)
    suited = attacks_in(Halves(0.2), paper_specs(HeatAndBlur))
    assert [spec.name for spec in paper_specs(HeatAndBlur)] == ["FGSM, gray-box", "PGD-10, gray-box"]
    assert [spec.name for spec in suited] == ["FGSM, gray-box"]
    adversarial = suited[0].attack_on(classifier, Halves(0.2), 0).generate(x, y)
    assert Halves(0.2).exact_sizes(adversarial - x).max() <= 0.2 * (1 + 1e-6)


def test_an_evaluation_counts_what_lies_within_eps(linear_classifier: Any, tmp_path: Any) -> None:
    """One class outside the package, and the run's records, checks, figures and page know of the norm."""
    classifier, x, y, distance = two_classes(linear_classifier)
    eps = float(np.median(distance))

    def build(classifier: PyTorchClassifier, threat: Ball, seed: int) -> AutoPGD:
        return AutoPGD(classifier, threat.norm, threat.eps, max_iter=50, seed=seed)

    spec = AttackSpec("APGD", build, "", kind="white-box", modes="all")
    report = evaluate(classifier, (x, y), Halves(eps), [spec], check_samples=4, progress=False, out=tmp_path / "run")
    assert [record.robust() for record in report.records] == [bool(image_distance > eps) for image_distance in distance]
    sizes = [record.attacks["APGD [exact]"].size or 0 for record in report.records]
    assert max(sizes) == pytest.approx(eps)
    assert report.summary.run.settings.threat == "halves"
    (row,) = report.summary.rows
    assert 0.8 * eps < row.median_size <= eps
    loaded = Report.load(tmp_path / "run")
    assert loaded.records == report.records
