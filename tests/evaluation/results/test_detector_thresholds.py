"""Attacks on a linear detector beside a linear network, compared with the linear programme that solves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from scipy.optimize import linprog
from torch import nn

from art_defenses_ext import Linf, evaluate
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, STANDARD

Numbers = npt.NDArray[np.float64]
DIMENSIONS, EPS = 20, 0.06
ATTACKS = (*DETECTOR_SUITE, *(spec for spec in STANDARD if spec.kind == "transfer"))


def linear(weights: Numbers, bias: Numbers) -> PyTorchClassifier:
    layer = nn.Linear(DIMENSIONS, len(weights))
    layer.load_state_dict({"weight": torch.tensor(weights).float(), "bias": torch.tensor(bias).float()})
    return PyTorchClassifier(
        layer, nn.CrossEntropyLoss(), (DIMENSIONS,), len(weights), clip_values=(0, 1), device_type="cpu"
    )


class Linear:
    """Three classes and a detector, both linear, and 80 images that the classifier gets right."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.weights, self.detector_weights = random.normal(size=(3, DIMENSIONS)), random.normal(size=DIMENSIONS)
        self.bias = -self.weights @ np.full(DIMENSIONS, 0.5)
        self.x = random.uniform(0.2, 0.8, size=(80, DIMENSIONS)).astype(np.float32)
        self.y = (self.x @ self.weights.T + self.bias).argmax(axis=1)

    def best_success_rate(self, threshold: float) -> float:
        """The share of images that can be misclassified with a score of the detector below the threshold."""
        return float(np.mean([self._passes(x, label, threshold) for x, label in zip(self.x, self.y, strict=True)]))

    def _passes(self, x: Numbers, label: int, threshold: float) -> bool:
        box = list(zip(np.maximum(x - EPS, 0), np.minimum(x + EPS, 1), strict=True))
        for other in {0, 1, 2} - {int(label)}:
            gap = self.weights[other] - self.weights[label]
            solution = linprog(-gap, A_ub=[self.detector_weights], b_ub=[threshold], bounds=box)
            if solution.status == 0 and -solution.fun + self.bias[other] - self.bias[label] > 1e-6:
                return True
        return False

    def make_summary(self, threshold: float) -> Summary:
        detector = linear(np.stack([np.zeros(DIMENSIONS), self.detector_weights]), np.array([0, -threshold]))
        report = evaluate(
            linear(self.weights, self.bias), (self.x, self.y), Linf(EPS), ATTACKS,
            detector=BinaryInputDetector(detector), check_samples=0, curve_samples=0,
            undefended_suite="papers", progress=False,
        )  # fmt: skip
        return report.summary


@pytest.mark.parametrize("flagged", [0.05, 0.5])
def test_attacks_with_perfect_knowledge_reach_the_linear_programme_at_the_detector_s_own_threshold(
    flagged: float,
) -> None:
    problem = Linear()
    threshold = float(np.quantile(problem.x @ problem.detector_weights, 1 - flagged))
    detection: Any = problem.make_summary(threshold).detection
    (perfect,) = [pool for pool in detection.pools if pool.knows == "perfect"]
    assert perfect.past.rate == pytest.approx(problem.best_success_rate(threshold), abs=0.05)
    assert perfect.success == []
    for row in detection.rows:
        if row.knows == "perfect":
            assert row.past.rate >= problem.best_success_rate(threshold) - 0.15  # a single attack
            assert (row.success, row.true_positives, row.auc, row.mean_auc) == ([], [], None, None)
    (zero,) = [pool for pool in detection.pools if pool.knows == "zero"]
    assert [at.false_positives for at in zero.success] == [0.05, 0.5]
    assert zero.past.rate <= perfect.past.rate
