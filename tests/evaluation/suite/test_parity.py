"""The suite ``fast`` beside the published AutoAttack: a row of tests/benchmarks/autoattack.py that CI can afford.

Of the published ensemble its two Auto-PGD members run, which take seconds; the benchmark runs all four.
"""

from __future__ import annotations

import numpy as np
import pyautoattack
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import Linf, as_module, evaluate
from art_defenses_ext.evaluation.records.costs import measured
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.zoo.datasets import Dataset

EPS, SAMPLES = 0.1, 30


def test_the_fast_suite_misses_at_most_one_image_that_autoattack_breaks(
    digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    x, y = digits.test.x[:SAMPLES], digits.test.y[:SAMPLES]
    report = evaluate(digits_classifier, (x, y), Linf(EPS), "fast", curve_samples=0, check_samples=0, progress=False)
    robust = np.array([record.robust() for record in report.records])
    with measured(digits_classifier) as cost:
        attack = pyautoattack.AutoAttack(as_module(digits_classifier), norm="Linf", eps=EPS, seed=0, device="cpu")
        attack.attacks_to_run = ["apgd-ce", "apgd-t"]
        adversarial, _ = attack.run_standard_evaluation(torch.tensor(x), torch.tensor(y), batch_size=SAMPLES)
    published = predict(digits_classifier, adversarial.numpy()).classes == y
    assert 0.2 * SAMPLES < published.sum() < 0.8 * SAMPLES  # or there is nothing to compare
    assert (robust & ~published).sum() <= 1
    passes = {
        direction: sum(getattr(row, direction) * row.attacked for row in report.summary.rows)
        for direction in ("forward", "backward")
    }
    assert passes["backward"] <= 200 * SAMPLES
    assert sum(passes.values()) < (cost.forward + cost.backward) / 2
