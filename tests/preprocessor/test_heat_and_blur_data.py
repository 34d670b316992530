"""Heat and Blur on real images with published weights: it runs on each data set, and an adaptive attacker breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_defenses_ext import HeatAndBlur, Linf, defend, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

PGD = AttackSpec(
    "APGD margin",
    lambda c, threat, seed: AutoPGD(c, threat.norm, threat.eps, max_iter=20, loss="margin", seed=seed),
    "white-box, 20 steps",
    kind="white-box",
    modes="all",
)

# Data set, weights, eps, images, clean accuracy at least.
SETTINGS = {
    "mnist": ("erichson_mnist_lenet_baseline.pkl", 0.2, 50, 0.9),
    "cifar10": ("erichson_cifar10_resnet20_baseline.pkl", 4 / 255, 20, 0.2),
    "image_folder": ("squeezenet1_1_torchvision_fp16.pt", 4 / 255, 8, 0.1),
}


@pytest.mark.data
@pytest.mark.parametrize("name", SETTINGS)
def test_an_adaptive_attacker_leaves_little_of_it(name: str, data_root: Path) -> None:
    weights, eps, samples, least_clean = SETTINGS[name]
    dataset = load_dataset(name, data_root)
    plain = load_classifier(dataset, None, data_root / "weights" / weights)
    defended = defend(plain, HeatAndBlur.for_classifier(plain))
    x, y = dataset.test.x[:samples], dataset.test.y[:samples]
    attacks = [PGD, *paper_specs(HeatAndBlur)]
    report = evaluate(
        defended, (x, y), Linf(eps), attacks, block_size=10, curve_samples=0, check_samples=0, progress=False
    )
    summary = report.summary
    assert summary.run.modes == ["exact", "frozen", "smooth", "identity"]
    assert summary.clean.rate >= least_clean
    assert summary.worst_case.rate <= 0.1
