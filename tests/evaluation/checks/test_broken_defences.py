"""Defences that are known to be broken: the suite breaks them, and the checks catch an attacker who does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import AttackSpec, JumpReLU, Linf, defend, evaluate
from art_defenses_ext.attack.square import Square
from art_defenses_ext.evaluation.checks.checks import CHECKS
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run import block
from art_defenses_ext.evaluation.suite.suites import FAST, STANDARD
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

SAMPLES, FEW, CHECKED = 40, 16, 8
# The binarization test takes a thousand points, each in 16 passes of a random network, and a fit for each image.
BINARIZED = 4


QUERIES = AttackSpec(
    "Square", lambda c, t, seed: Square(c, t.norm, t.eps, max_queries=200, seed=seed), "b", kind="queries"
)
SUITE = [
    *(spec for spec in FAST if spec.name in ("APGD margin, 30 steps", "APGD smoothed, 20 steps", "transfer PGD-20")),
    QUERIES,
]
"""The suite's kinds of attacks, without those that only take longer."""
LONGER = [
    *(spec for spec in STANDARD if spec.name in ("APGD margin", "APGD smoothed", "transfer PGD-40")),
    QUERIES,
]
"""The same of the suite ``standard``: what k-WTA needs to fall."""


class Foreign(PreprocessorPyTorch):
    """A foreign preprocessor, which names no surrogate."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)
        self.change = change

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return self.change(x), y


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "rounding": lambda x: torch.round(8 * x) / 8,
    "detaching": lambda x: x.detach(),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
}


class WinnersTakeAll(nn.Module):
    """Keeps only the ``k`` largest values of each row (Xiao, Zhong, Zheng 2019, arXiv:1905.10510)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z >= z.topk(self.k, dim=1)[0][:, -1:], z, 0)


def train_winners_take_all(digits: Dataset) -> PyTorchClassifier:
    """A network with k-WTA, trained on the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Flatten(), nn.Linear(64, 256), WinnersTakeAll(25), nn.Linear(256, 256), WinnersTakeAll(25)]
        model = nn.Sequential(*hidden, nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        x, y = torch.from_numpy(digits.train.x), torch.from_numpy(digits.train.y)
        for _ in range(30):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")


def make_report(
    classifier: PyTorchClassifier,
    data: Dataset,
    threat: Linf,
    adaptive: bool,
    samples: int,
    checked: int = CHECKED,
    suite: Any = SUITE,
    binarized: int = BINARIZED,
) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "BINARIZED", binarized)
        return evaluate(
            classifier,
            (data.test.x[:samples], data.test.y[:samples]),
            threat,
            suite,
            adaptive=adaptive,
            curve_samples=0,
            check_samples=checked,
            undefended_suite="papers",
            progress=False,
        )


def white_box_accuracy(report: Report) -> float:
    """The accuracy after the attacks that follow a gradient, without the black-box ones and the controls."""
    keys = {row.key for row in report.summary.rows if row.key.startswith("APGD")}
    return sum(record.robust(keys) for record in report.records) / len(report.records)


# The others are clearer.
SIZES: dict[str, dict[str, Any]] = {
    "winners take all": {"samples": SAMPLES, "checked": SAMPLES, "suite": LONGER, "binarized": 16}
}

# The defence, its radius, the highest accuracy after the suite's white-box attacks, the lowest after those of the naive
# attacker, and the checks that must fail for the latter.
BROKEN = [
    ("rounding", 0.2, 0.05, 0.70, {"gradients", "binarization", "transfer"}),
    ("detaching", 0.2, 0.05, 0.70, {"gradients", "binarization", "transfer"}),
    ("noise", 0.2, 0.05, 0.0, {"randomness"}),
    ("winners take all", 0.1, 0.25, 0.35, {"queries", "gradients", "binarization"}),
]


@pytest.mark.parametrize(("name", "eps", "at_most", "naive_at_least", "caught_by"), BROKEN)
def test_the_suite_breaks_broken_defences_and_checks_fail_for_a_naive_attacker(
    name: str,
    eps: float,
    at_most: float,
    naive_at_least: float,
    caught_by: set[str],
    digits: Dataset,
    digits_classifier: PyTorchClassifier,
) -> None:
    broken = (
        train_winners_take_all(digits) if name not in CHANGES else defend(digits_classifier, Foreign(CHANGES[name]))
    )
    sizes = SIZES.get(name, {"samples": FEW})
    report = make_report(broken, digits, Linf(eps), adaptive=True, **sizes)
    assert report.summary.clean.rate >= 0.85
    assert white_box_accuracy(report) <= at_most
    assert report.established, report.summary.failed_checks

    naive = make_report(broken, digits, Linf(eps), adaptive=False, **sizes)
    assert white_box_accuracy(naive) >= naive_at_least
    assert caught_by <= set(naive.summary.failed_checks)
    assert naive.established is False


def test_no_check_fails_on_an_undefended_model(digits: Dataset, digits_classifier: PyTorchClassifier) -> None:
    report = make_report(digits_classifier, digits, Linf(0.1), adaptive=True, samples=FEW)
    assert report.established
    assert {check.verdict for check in report.summary.checks} <= {"passed", "not run"}
    assert [check.name for check in report.summary.checks] == list(CHECKS)


def test_jump_relu_under_its_own_derivative_alone_is_not_established(
    digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    naive = make_report(defended, digits, Linf(0.1), adaptive=False, samples=FEW, suite=SUITE[:1])
    assert {"gradients", "gradient modes"} <= set(naive.summary.failed_checks)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "weights", "eps"),
    [("lenet_like", "erichson_mnist_lenet_baseline.pkl", 0.1), ("wong_kolter", "fastadv_mnist_pgd.pth", 0.3)],
)
def test_no_check_fails_on_undefended_and_adversarially_trained_models(
    name: str, weights: str, eps: float, data_root: Any
) -> None:
    data = load_dataset("mnist", data_root)
    classifier = load_classifier(data, name, data_root / "weights" / weights)
    report = make_report(classifier, data, Linf(eps), adaptive=True, samples=200, suite="standard", binarized=CHECKED)
    assert report.summary.failed_checks == []
    assert report.established


@pytest.mark.data
@pytest.mark.parametrize(
    ("weights", "eps", "at_most"), [("baseline", 0.1, 0.62), ("robust", 0.1, 0.905), ("robust", 0.2, 0.14)]
)
def test_jump_relu_on_its_authors_networks_has_the_expected_robust_accuracy(
    weights: str, eps: float, at_most: float, data_root: Any
) -> None:
    """The published AutoAttack with the native derivative stops at 74.6, 91.6 and 38.8 %."""
    data = load_dataset("mnist", data_root)
    classifier = load_classifier(data, "lenet_like", data_root / "weights" / f"erichson_mnist_lenet_{weights}.pkl")
    report = evaluate(
        JumpReLU(classifier, 1.0)(),
        (data.test.x[:500], data.test.y[:500]),
        Linf(eps),
        curve_samples=0,
        check_samples=100,
    )
    assert report.accuracy_after_attacks <= at_most
    assert report.established, report.summary.failed_checks
