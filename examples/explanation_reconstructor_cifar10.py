"""Explanation reconstructor on CIFAR-10: variants under zero-knowledge attacks, and adaptive attacks.

    python examples/explanation_reconstructor_cifar10.py --data DIR --out OUT [--only variants|chosen|adaptive]
        [--train 10000] [--validate 1000] [--measure 1000] [--adaptive 200] [--seed 0] [--device cuda]

DIR holds CIFAR-10 as torchvision lays it out, and in weights/ the ResNet-20 of the JumpReLU authors (or --weights
FILE). Variants are fitted on training images and compared on validation images; the best one and the authors' are then
measured on test images. OUT receives the detectors, which a later call loads.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators import BaseEstimator
from art.estimators.classification import PyTorchClassifier
from explanation_reconstructor_mnist import HEADS, evading, measured, print_success

from art_defenses_ext import ExplanationReconstructor
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.evaluation.results.detection import DetectionRow
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Split, load_dataset

EPS = 0.03
WEIGHTS = "weights/erichson_cifar10_resnet20_baseline.pkl"
AUTHORS = {"FGSM": 0.631, "PGD-40": 0.546}
"""The mean AUC in the authors' own logs."""

BENIGN = {"scaling": "benign", "score": "l1"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the authors'": ("as published", {}),
    "gradient x input": ("another explanation", {"explanation": "gradient_x_input"}),
    "SmoothGrad": ("another explanation", {"explanation": "smooth_grad"}),
    "integrated gradients": ("another explanation", {"explanation": "integrated_gradients"}),
    "input gradient, magnitude kept": ("keeps the magnitude", BENIGN),
    "loss gradient, magnitude kept": ("keeps the magnitude", {"explanation": "loss_gradient"} | BENIGN),
    "both gradients, magnitude kept": (
        "several explanations",
        {"explanation": ["input_gradient", "loss_gradient"]} | BENIGN,
    ),
    "convolutional": ("a convolutional reconstructor", {"reconstructor": "convolutional"}),
    "convolutional, both, magnitude kept": (
        "a convolutional reconstructor",
        {"reconstructor": "convolutional", "explanation": ["input_gradient", "loss_gradient"]} | BENIGN,
    ),
    "answer to noise": ("the surface around x", {"reconstructor": "statistics", "explanation": "noise_response"}),
    "statistics of the input gradient": (
        "keeps the magnitude",
        {"reconstructor": "statistics", "explanation": "input_gradient"},
    ),
    "statistics of both gradients": (
        "several explanations",
        {"reconstructor": "statistics", "explanation": ["input_gradient", "loss_gradient"]},
    ),
    "statistics of both and answer to noise": (
        "several, and the surface",
        {"reconstructor": "statistics", "explanation": ["input_gradient", "loss_gradient", "noise_response"]},
    ),
}
"""Name -> (kind of change, options)."""


def fitted(name: str, classifier: PyTorchClassifier, part: Split, run: argparse.Namespace) -> ExplanationReconstructor:
    """Return the detector of a variant, fitted or loaded."""
    path = run.out / f"{name.replace(' ', '_').replace(',', '')}-{len(part.x)}-{run.seed}.safetensors"
    if path.exists():
        return ExplanationReconstructor.load(path, classifier=classifier)
    detector = ExplanationReconstructor(classifier, **VARIANTS[name][1])
    detector.fit(part.x, seed=run.seed)
    detector.save(path)
    return detector


class Remembered(EvasionAttack):
    """An attack that makes its images once: those on the undefended classifier are the same for every detector."""

    _estimator_requirements = (BaseEstimator,)

    def __init__(self, attack: EvasionAttack, known: dict[str, FloatArray]) -> None:
        super().__init__(estimator=attack.estimator)
        self.attack, self.known = attack, known

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> FloatArray:
        key = hashlib.sha256(x.tobytes()).hexdigest()
        if key not in self.known:
            self.known[key] = self.attack.generate(x, y)
        return self.known[key].copy()


def remembered(spec: AttackSpec) -> AttackSpec:
    """Return the same attack, made once."""
    known: dict[str, FloatArray] = {}
    return replace(spec, build=lambda classifier, threat, seed: Remembered(spec.build(classifier, threat, seed), known))


ZERO_KNOWLEDGE = [
    remembered(spec) for spec in paper_specs(ExplanationReconstructor) if spec.name.split(",")[0] in AUTHORS
]


def rows_of(
    detector: ExplanationReconstructor, classifier: PyTorchClassifier, part: Split, run: argparse.Namespace
) -> tuple[dict[str, DetectionRow], float]:
    """Return a detector's figures under FGSM and PGD on the undefended classifier, and its false positive rate."""
    detection = measured(classifier, detector, part, EPS, ZERO_KNOWLEDGE, run.seed)
    return {row.key.split(",")[0]: row for row in detection.rows}, detection.false_positives.rate


def print_table(
    title: str, names: list[str], classifier: PyTorchClassifier, train: Split, part: Split, run: argparse.Namespace
) -> str:
    """Print a line per variant; return the name of the variant with the largest minimal AUC."""
    print(f"\n## {title}: {len(train.x)} training images, {len(part.x)} measured, seed {run.seed}\n")
    print("ASR: attack success rate at 5 % FPR.\n")
    heads = ("variant", "kind", *(f"{attack}, mean AUC" for attack in AUTHORS))
    heads += (*(f"{attack}, ASR" for attack in AUTHORS), "flagged clean")
    print(f"| {' | '.join(heads)} |")
    print("|---" * 7 + "|", flush=True)
    print(f"| the authors' logs | | {AUTHORS['FGSM']} | {AUTHORS['PGD-40']} | | | |", flush=True)
    least = {}
    for name in names:
        rows, false_positives = rows_of(fitted(name, classifier, train, run), classifier, part, run)
        aucs = [rows[attack].mean_auc or np.nan for attack in AUTHORS]
        past = [str(rows[attack].success[0].share) if rows[attack].success else "" for attack in AUTHORS]
        least[name] = min(aucs)
        cells = [name, VARIANTS[name][0], *(f"{auc:.3f}" for auc in aucs), *past, f"{100 * false_positives:.1f} %"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return max(least, key=lambda name: least[name])


def print_adaptive(
    name: str, classifier: PyTorchClassifier, train: Split, part: Split, run: argparse.Namespace
) -> None:
    """Print the success rate of adaptive attacks."""
    print(f"\n## Adaptive attacks: {name}, eps {EPS}, {len(part.x)} test images, seed {run.seed}\n")
    print(HEADS, flush=True)
    detector = fitted(name, classifier, train, run)
    for attack in evading(100):
        print_success(name, measured(classifier, detector, part, EPS, [attack], run.seed).rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets, and of weights/")
    parser.add_argument("--out", required=True, type=Path, help="folder of the detectors")
    parser.add_argument("--only", choices=("variants", "chosen", "adaptive"), action="append")
    parser.add_argument("--weights", type=Path, help="of the classifier")
    parser.add_argument("--rows", default="", help="of the variants, those whose name contains this")
    parser.add_argument("--chosen", default="statistics of both gradients", help="the variant for the test images")
    parser.add_argument("--train", type=int, default=10_000, help="training images that the variants learn from")
    parser.add_argument("--validate", type=int, default=1_000, help="validation images that they are compared on")
    parser.add_argument("--measure", type=int, default=1_000, help="test images")
    parser.add_argument("--adaptive", type=int, default=200, help="test images for adaptive attacks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    run = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)
    if run.threads:
        torch.set_num_threads(run.threads)
    run.out.mkdir(parents=True, exist_ok=True)
    stages = run.only or ["variants", "chosen", "adaptive"]
    dataset = load_dataset("cifar10", run.data)
    classifier = load_classifier(dataset, "resnet20", run.weights or run.data / WEIGHTS, device=run.device)
    train = Split(dataset.train.x[: run.train], dataset.train.y[: run.train])
    if "variants" in stages:
        held_out = Split(dataset.validation.x[: run.validate], dataset.validation.y[: run.validate])
        names = [name for name in VARIANTS if run.rows in name]
        best = print_table("Variants, validation images", names, classifier, train, held_out, run)
        print(f"\nThe largest minimal AUC: {best}", flush=True)
    test = dataset.test
    if "chosen" in stages:
        part = Split(test.x[: run.measure], test.y[: run.measure])
        print_table("Test images", ["the authors'", run.chosen], classifier, train, part, run)
    if "adaptive" in stages:
        part = Split(test.x[: run.adaptive], test.y[: run.adaptive])
        print_adaptive(run.chosen, classifier, train, part, run)


if __name__ == "__main__":
    main()
