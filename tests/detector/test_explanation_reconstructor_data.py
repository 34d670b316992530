"""The explanation reconstructor on MNIST: it tells the attackers who do not know of it, and falls to one who does."""

from __future__ import annotations

from pathlib import Path

import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import ExplanationReconstructor, Linf, evaluate
from art_defenses_ext.attack.orthogonal_pgd import OrthogonalPGD
from art_defenses_ext.evaluation.results.detection import Detection
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

pytestmark = pytest.mark.data

FITTED = 12_000


@pytest.fixture(scope="module")
def mnist(data_root: Path) -> Dataset:
    return load_dataset("mnist", data_root)


@pytest.fixture(scope="module")
def watched(mnist: Dataset, data_root: Path) -> tuple[PyTorchClassifier, ExplanationReconstructor]:
    classifier = load_classifier(mnist, weights=data_root / "weights/erichson_mnist_lenet_baseline.pkl")
    detector = ExplanationReconstructor(classifier)
    detector.fit(mnist.train.x[:FITTED], progress=False)
    return classifier, detector


def detection(
    watched: tuple[PyTorchClassifier, ExplanationReconstructor],
    mnist: Dataset,
    eps: float,
    attacks: list[AttackSpec],
    count: int,
) -> Detection:
    classifier, detector = watched
    x, y = mnist.test.x[:count], mnist.test.y[:count]
    report = evaluate(
        classifier, (x, y), Linf(eps), attacks, detector=detector, curve_samples=0, check_samples=0, progress=False
    )
    assert report.summary.detection is not None
    return report.summary.detection


def orthogonal(classifier: PyTorchClassifier, threat: Linf, seed: int) -> OrthogonalPGD:
    return OrthogonalPGD(classifier, threat.norm, threat.eps, max_iter=60, seed=seed)


def test_attacks_on_the_classifier_alone_are_detected(
    watched: tuple[PyTorchClassifier, ExplanationReconstructor], mnist: Dataset
) -> None:
    report = detection(watched, mnist, 0.2, list(paper_specs(ExplanationReconstructor)), 500)
    assert min(row.mean_auc or 0 for row in report.rows) >= 0.75
    assert report.false_positives.interval[0] <= 0.07


def test_an_adaptive_attack_evades_the_detector(
    watched: tuple[PyTorchClassifier, ExplanationReconstructor], mnist: Dataset
) -> None:
    adaptive = AttackSpec("orthogonal", orthogonal, "", kind="white-box", modes="smoothest", samples="all")
    report = detection(watched, mnist, 0.3, [adaptive], 60)
    evasion = report.rows[0].past
    assert evasion is not None
    assert evasion.rate >= 0.5
