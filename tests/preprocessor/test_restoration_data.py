"""The restorers on MNIST at eps .2: what short fits reach in the papers' setting, and what an end-to-end stage adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import FeatureAutoencoder, Linf, TwoStreamRestoration, defend
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.training.inputs import pgd
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

pytestmark = pytest.mark.data

EPS = 0.2
MEASURED = 300
HOW: dict[str, Any] = {"eps": EPS, "nb_epochs": 2, "validation_split": 0.0, "progress": False}


@pytest.fixture
def mnist(data_root: Path) -> Dataset:
    return load_dataset("mnist", data_root)


@pytest.fixture
def classifier(mnist: Dataset, data_root: Path) -> PyTorchClassifier:
    return load_classifier(mnist, weights=data_root / "weights/erichson_mnist_lenet_baseline.pkl")


def accuracy(classifier: PyTorchClassifier, x: FloatArray, dataset: Dataset) -> float:
    return float((predict(classifier, x)[0] == dataset.test.y[: len(x)]).mean())


def gray_box(classifier: PyTorchClassifier, dataset: Dataset) -> FloatArray:
    """The paper's PGD, made on the undefended classifier."""
    (spec,) = [attack for attack in paper_specs(FeatureAutoencoder) if attack.name.startswith("PGD")]
    labels = np.eye(10, dtype=np.float32)[dataset.test.y[:MEASURED]]
    adversarial: FloatArray = spec.build(classifier, Linf(EPS), 0).generate(dataset.test.x[:MEASURED], labels)
    return adversarial


@pytest.mark.parametrize("face", [FeatureAutoencoder, TwoStreamRestoration])
def test_a_short_fit_restores_what_the_papers_attack_made(
    face: type[TrainedRestorer], classifier: PyTorchClassifier, mnist: Dataset
) -> None:
    restorer = face.for_classifier(classifier)
    restorer.fit(mnist.train.x[:9_600], mnist.train.y[:9_600], **HOW, learning_rate=2e-3)
    defended, attacked = defend(classifier, restorer), gray_box(classifier, mnist)
    assert accuracy(classifier, attacked, mnist) <= 0.1
    assert accuracy(defended, attacked, mnist) >= 0.85
    assert accuracy(defended, mnist.test.x[:1_000], mnist) >= 0.95


def test_an_end_to_end_stage_holds_against_an_attacker_who_knows_of_it(
    classifier: PyTorchClassifier, mnist: Dataset
) -> None:
    """In the worst case of each image over all gradient modes and transfer, where the denoiser alone is a gamble."""
    restorer = FeatureAutoencoder.for_classifier(classifier)
    images, labels = mnist.train.x[:9_600], mnist.train.y[:9_600]
    restorer.fit(images, labels, **HOW, learning_rate=2e-3)
    restorer.fit(images, labels, **HOW, adversarial=True, inputs=["clean", pgd(EPS, 5, through="defence")])
    defended = defend(classifier, restorer)
    x, y = mnist.test.x[:128], mnist.test.y[:128]
    standing = predict(defended, x)[0] == y
    attacks = [MarginPGD(defended, eps=EPS, max_iter=20, gradient_mode=mode) for mode in restorer.gradient_modes]
    for attack in (*attacks, MarginPGD(classifier, eps=EPS, max_iter=20, stop_when_broken=False)):
        standing &= predict(defended, attack.generate(x, y))[0] == y
    assert standing.mean() >= 0.7
