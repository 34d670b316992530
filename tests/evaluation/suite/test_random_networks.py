"""A random network's figures against closed forms: noise on the logits of a linear network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from scipy.stats import norm
from torch import Tensor, nn

from art_defenses_ext import Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.vote import predict_by_votes

SIGMA = 1.0
IDLE = 8
DIMENSIONS = 6


class NoisyLinear(nn.Module):
    """Two logits, w x and -w x, each with Gaussian noise: right with a chance of Phi(2 y w x / (sigma sqrt 2))."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        score = (x - 0.5) @ self.weights
        logits = torch.stack([score, -score], dim=1)
        return logits + SIGMA * torch.randn_like(logits)


@dataclass(frozen=True)
class Problem:
    """A noisy network and images whose margins w x y are known."""

    classifier: PyTorchClassifier
    x: FloatArray
    y: IntArray
    margins: Any
    weights: Any

    def chances(self, eps: float = 0.0) -> Any:
        """How likely each image is right in one pass after the worst change of ``eps``."""
        return norm.cdf(2 * (self.margins - eps * np.abs(self.weights).sum()) / (SIGMA * 2**0.5))


@pytest.fixture(scope="module")
def problem() -> Problem:
    random = np.random.default_rng(0)
    weights = random.normal(size=DIMENSIONS).astype(np.float32)
    # Margins from -.5 to 1.5 at equal steps: a quarter of the images is wrong, many are near the boundary.
    margins = np.linspace(-0.5, 1.5, 160)
    y = np.arange(160) % 2
    signed = np.where(y == 0, margins, -margins)
    orthogonal = random.uniform(-0.1, 0.1, size=(160, DIMENSIONS))
    orthogonal -= np.outer(orthogonal @ weights, weights) / (weights @ weights)
    x = (0.5 + orthogonal + np.outer(signed, weights) / (weights @ weights)).astype(np.float32)
    model = NoisyLinear(torch.from_numpy(weights))
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (DIMENSIONS,), 2, clip_values=(-3, 3), device_type="cpu"
    )
    return Problem(classifier, x, y, margins, weights)


class Idle(EvasionAttack):
    """Returns the clean images."""

    _estimator_requirements = ()

    def generate(self, x: FloatArray, y: Any = None, **_: Any) -> FloatArray:
        return x.copy()


def make_idle_specs(count: int) -> list[AttackSpec]:
    return [
        AttackSpec(f"idle {i}", lambda c, t, s: Idle(estimator=c), "does nothing", samples="all") for i in range(count)
    ]


def make_report(problem: Problem, specs: list[AttackSpec], eps: float = 0.05, **options: Any) -> Report:
    return evaluate(
        problem.classifier, (problem.x, problem.y), Linf(eps), specs,
        curve_samples=0, check_samples=0, progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def idle_report(problem: Problem) -> Report:
    return make_report(problem, make_idle_specs(IDLE))


def test_attacks_that_do_nothing_do_not_lower_the_robust_accuracy(problem: Problem, idle_report: Report) -> None:
    """Several, each of which might be lucky on an image near the boundary."""
    accuracy = (problem.margins > 0).mean()
    summary = idle_report.summary
    assert abs(summary.clean.rate - accuracy) <= 0.02  # 1,024 passes tell all but the nearest three of 160 images
    assert summary.worst_case.rate >= summary.clean.rate - 0.0125
    assert summary.worst_case.interval[0] <= accuracy <= summary.worst_case.interval[1]


def test_the_mean_over_passes_is_the_mean_of_the_chances(problem: Problem, idle_report: Report) -> None:
    """With 32 passes an image the standard error is below .006; the worst of all attacks would be .2 less."""
    randomness = idle_report.summary.randomness
    assert randomness is not None
    assert randomness.mean == pytest.approx(problem.chances().mean(), abs=0.02)
    assert randomness.mean_interval[0] <= randomness.mean <= randomness.mean_interval[1]
    never_missed = (problem.chances() ** randomness.votes).mean()
    assert randomness.worst.rate == pytest.approx(
        never_missed, abs=4 * (never_missed * (1 - never_missed) / 160) ** 0.5
    )


def test_an_attack_that_moves_images_reaches_the_closed_form(problem: Problem) -> None:
    """Four other attacks do nothing. Each margin falls by eps times the 1-norm of the weights, here by a half."""
    eps = 0.25 / float(np.abs(problem.weights).sum()) * 2
    apgd = AttackSpec(
        "APGD", lambda c, t, s: AutoPGD(c, t.norm, t.eps, max_iter=5, seed=s), "moves", kind="white-box", samples="all"
    )
    summary = make_report(problem, [*make_idle_specs(2), apgd, *make_idle_specs(4)[2:]], eps).summary
    robust = (problem.margins > 0.5).mean()
    undecided = ((problem.chances(eps) > 0.42) & (problem.chances(eps) <= 0.5)).mean()
    assert robust - 0.02 <= summary.worst_case.rate <= robust + undecided + 0.02
    assert summary.randomness is not None
    assert summary.randomness.undecided.rate <= 0.1
    assert summary.randomness.mean == pytest.approx(problem.chances(eps).mean(), abs=0.04)


def test_every_pass_that_judges_is_counted(problem: Problem, idle_report: Report) -> None:
    outcomes = [outcome for record in idle_report.records for outcome in record.attacks.values()]
    passes = sum(32 + (outcome.passes or 0) for outcome in outcomes)
    forward_passes = idle_report.summary.total.forward  # these attacks ask for nothing
    assert passes + 64 * 160 <= forward_passes <= passes + (32 + 1024) * 160


def test_blocks_are_judged_alike_again_and_beside_other_blocks(problem: Problem) -> None:
    far_problem = replace(problem, x=problem.x[-40:], y=problem.y[-40:])  # all of them far from the boundary
    first, again = (make_report(far_problem, make_idle_specs(2), block_size=20).records for _ in range(2))
    first_block = make_report(
        replace(far_problem, x=far_problem.x[:20], y=far_problem.y[:20]), make_idle_specs(2), block_size=20
    ).records
    assert first == again
    assert first[:20] == first_block
    other = make_report(far_problem, make_idle_specs(2), block_size=20, seed=1).records
    assert [record.clean_misses for record in first] != [record.clean_misses for record in other]


@pytest.mark.parametrize("advantage", [0.0, 0.1])
def test_false_successes_are_as_rare_as_their_bound(advantage: float) -> None:
    """One pass in two, or nearly, names the label of 300 images: 60 attacks may be mistaken on 1 % of them."""

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            named = (torch.rand(len(x)) < 0.5 + advantage / 2).long()
            return nn.functional.one_hot(1 - named, 2).float()

    classifier = PyTorchClassifier(Coin(), nn.CrossEntropyLoss(), (1,), 2, device_type="cpu")
    x, y = np.zeros((300, 1), np.float32), np.zeros(300, np.int64)
    rounds = 2
    broken = sum(predict_by_votes(classifier, x, y, 32, seed, attacks=60).broken(y).sum() for seed in range(rounds))
    assert broken <= 1  # expected at most 300 * 2 * .01 / 60 = .1


def test_idle_attacks_do_not_pass_a_noisy_detector_by_chance() -> None:
    """Misclassified images are rejected in six of ten passes: no attack that does nothing succeeds."""

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x[:, 0], 1 + 0 * x[:, 0]], dim=1)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = torch.where(torch.rand(len(x)) < 0.6, 1.0, -1.0)
            return torch.stack([torch.zeros_like(margin), margin], dim=1)

    classifier, detector = (
        PyTorchClassifier(module, nn.CrossEntropyLoss(), (2,), 2, clip_values=(0, 1), device_type="cpu")
        for module in (Wrong(), Noisy())
    )
    x, y = np.random.default_rng(0).random((60, 2)).astype(np.float32), np.zeros(60, np.int64)
    report = evaluate(
        classifier, (x, y), Linf(0.1), make_idle_specs(6), detector=BinaryInputDetector(detector),
        curve_samples=0, check_samples=0, progress=False,
    )  # fmt: skip
    succeeded = [any(outcome.success for outcome in record.attacks.values()) for record in report.records]
    assert sum(succeeded) <= 1
    assert all(outcome.prediction == 1 for record in report.records for outcome in record.attacks.values())
