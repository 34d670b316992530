"""Every pass and every second of an evaluation stands in its report: a count of the network's own agrees."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import AttackSpec, Linf, defend, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.evaluation.checks import gradient_health
from art_defenses_ext.evaluation.records.phases import BINARIZATION, GRADIENTS, PHASES, PREDICTIONS, PREPARATION
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.suites import FAST

N, K = 10, 4


class _Counted(torch.autograd.Function):
    """The identity, which counts images on their way forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: dict[str, int]) -> Tensor:
        ctx.counts = counts
        counts["forward"] += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counts["backward"] += len(gradient)
        return gradient, None


class Counting(nn.Module):
    """A network that counts for itself: before its first layer, where each gradient of an image comes out."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(1, 3, 3), nn.Linear(3 * 16, K)
        self.counts = {"forward": 0, "backward": 0}

    def forward(self, x: Tensor) -> Tensor:
        counted: Tensor = _Counted.apply(x, self.counts)
        logits: Tensor = self.out(torch.relu(self.conv(counted)).flatten(1))
        return logits


class Noise(PreprocessorPyTorch):
    """Makes a random defence."""

    params: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x + 0.1 * torch.randn_like(x), y


def wrap(network: nn.Module, **options: Any) -> PyTorchClassifier:
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), (1, 6, 6), K, clip_values=(0.0, 1.0), device_type="cpu", **options
    )


X = np.random.default_rng(0).random((N, 1, 6, 6), dtype=np.float32)


def make_report(classifier: PyTorchClassifier, attacks: Any = "standard", count: int = N, **options: Any) -> Report:
    labels = np.arange(count) % K
    settings: dict[str, Any] = {"curve_samples": 2, "check_samples": 4, "block_size": 6, "progress": False}
    settings |= {"undefended_suite": "papers"} | options
    return evaluate(classifier, (X[:count], labels), Linf(0.02), attacks, **settings)


BRIEF = (
    AttackSpec("PGD", lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=3, seed=seed), "", kind="white-box"),
    *(spec for spec in FAST if spec.name in ("APGD smoothed, 20 steps", "transfer PGD-20", "noise")),
)

pytestmark = pytest.mark.usefixtures("short_suite")

CASES: dict[str, Callable[[], tuple[PyTorchClassifier, dict[str, Any], list[Counting]]]] = {}


def case(build: Callable[[], tuple[PyTorchClassifier, dict[str, Any], list[Counting]]]) -> None:
    CASES[build.__name__] = build


@case
def with_an_undefended_one() -> tuple[PyTorchClassifier, dict[str, Any], list[Counting]]:
    network, other = Counting(), Counting()
    return wrap(network), {"undefended": wrap(other), "attacks": BRIEF}, [network, other]


@case
def random() -> tuple[PyTorchClassifier, dict[str, Any], list[Counting]]:
    network = Counting()
    return (
        defend(wrap(network), Noise()),
        {"attacks": BRIEF, "count": 4, "block_size": 3, "check_samples": 2},
        [network],
    )


@case
def without_checks() -> tuple[PyTorchClassifier, dict[str, Any], list[Counting]]:
    network = Counting()
    return wrap(network), {"check_samples": 0, "curve_samples": 0}, [network]


@dataclass(frozen=True)
class Plain:
    """A whole evaluation of one network, with curve and checks: its report, the network's counts and the wall time."""

    report: Report
    network: Counting
    seconds: float


@pytest.fixture(scope="module")
def plain(shortened_suite: Callable[[], AbstractContextManager[None]]) -> Plain:
    network = Counting()
    classifier = wrap(network)
    with shortened_suite():
        begin = time.perf_counter()
        report = make_report(classifier)
        return Plain(report, network, time.perf_counter() - begin)


def assert_all_passes_are_counted(report: Report, networks: list[Counting]) -> None:
    total = report.summary.total
    for direction in ("forward", "backward"):
        assert getattr(total, direction) == sum(network.counts[direction] for network in networks), direction
    rows = sum(row.forward * row.attacked for row in report.summary.rows if row.source != "side")
    assert 0 < rows + sum(phase.forward for phase in report.summary.phases.values()) <= total.forward


def test_the_sum_of_all_passes_of_a_whole_evaluation_agrees_with_the_networks_own_counts(plain: Plain) -> None:
    assert_all_passes_are_counted(plain.report, [plain.network])


@pytest.mark.parametrize("name", CASES)
def test_the_sum_of_all_passes_agrees_with_the_networks_own_counts(name: str) -> None:
    classifier, options, networks = CASES[name]()
    assert_all_passes_are_counted(make_report(classifier, **options), networks)


def test_the_seconds_add_up_to_the_wall_time(plain: Plain) -> None:
    assert 0.7 * plain.seconds <= plain.report.summary.total.seconds <= plain.seconds


def test_each_phase_stands_in_the_report_once_and_in_order(plain: Plain) -> None:
    names = list(plain.report.summary.phases)
    assert names == [name for name in PHASES if name in names]
    assert {PREPARATION, GRADIENTS, PREDICTIONS, BINARIZATION} <= set(names)
    assert {"phases", "total"} <= plain.report.summary.as_dict().keys()


@pytest.mark.parametrize(
    ("attacks", "options", "examined"),
    [
        ("standard", {}, True),
        ("standard", {"check_samples": 0}, True),  # whether the smoothed network is attacked depends on it
        ("standard", {"check_samples": 0, "adaptive": False}, False),
        (BRIEF[:1], {"check_samples": 0}, False),
        (BRIEF[:1], {}, True),  # a check
        (BRIEF[2:], {}, False),  # nothing follows a gradient of the defended network
    ],
)
def test_gradients_are_examined_where_the_outcome_is_used(
    attacks: Any, options: dict[str, Any], examined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    examinations = []
    monkeypatch.setattr(gradient_health, "_examine", _count_calls(gradient_health._examine, examinations))
    report = make_report(wrap(Counting()), attacks, count=3, curve_samples=0, **options)
    assert bool(examinations) == examined
    assert (GRADIENTS in set(report.summary.phases)) == examined


def _count_calls(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return counting
