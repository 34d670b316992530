"""Explanation reconstructor on MNIST: the paper's zero-knowledge setting, and adaptive attacks.

    python examples/explanation_reconstructor_mnist.py --data DIR --out OUT [--only paper|adaptive|binary]
        [--seeds 0,1,2] [--measure 2000] [--adaptive 1000] [--long 200] [--epochs 10] [--device cuda]

DIR holds MNIST as torchvision lays it out. OUT receives the classifiers (the authors' network, trained as in their
code), the detectors, and in ``runs`` the evaluations, which a later call goes on with.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import load_file, save_file
from torch import nn

from art_defenses_ext import ExplanationReconstructor, Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.results.detection import Detection, DetectionRow
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.training.classifier import train_classifier
from art_defenses_ext.zoo.datasets import Split, load_dataset
from art_defenses_ext.zoo.networks import KoLim, LeNetLike

GRID = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)

PAPER = {
    "FGSM": {0.05: ".930", 0.10: ".9583", 0.30: ".981"},
    "PGD-40": {0.05: ".972", 0.10: ".9942", 0.30: ".996"},
    "MIM": {0.05: ".980", 0.10: ".9944", 0.30: ".996"},
}
"""The paper's mean AUC: at .1 as printed, at .05 and .3 read off its figure."""

EVADING: dict[str, Callable[..., Any]] = {
    "selective PGD": SelectivePGD,
    "orthogonal PGD": OrthogonalPGD,
    "Lagrangian PGD": LagrangianPGD,
}


def network_as(build: Callable[[], nn.Module], seed: int, device: str) -> PyTorchClassifier:
    """Return a classifier with random weights, for images in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build().to(device).eval()
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device == "cuda" else "cpu",
    )


def watched(seed: int, train: Split, run: argparse.Namespace) -> tuple[PyTorchClassifier, ExplanationReconstructor]:
    """Return the authors' classifier and a detector for it, trained by their settings or loaded."""
    classifier = network_as(KoLim, seed, run.device)
    weights, fitted = run.out / f"classifier-{seed}.safetensors", run.out / f"detector-{seed}.safetensors"
    if weights.exists():
        classifier.model.load_state_dict(load_file(weights))
    else:
        options = {"nb_epochs": run.epochs, "batch_size": 32, "mean": [0.0], "std": [1.0], "seed": seed}
        train_classifier(classifier.model, train.x, train.y, **options)
        save_file(classifier.model.state_dict(), weights)
    classifier.model.requires_grad_(False)
    if fitted.exists():
        return classifier, ExplanationReconstructor.load(fitted, classifier=classifier)
    detector = ExplanationReconstructor(classifier)
    detector.fit(train.x, seed=seed)
    detector.save(fitted)
    return classifier, detector


def measured(
    classifier: PyTorchClassifier,
    detector: BinaryInputDetector,
    part: Split,
    eps: float,
    attacks: list[AttackSpec],
    seed: int,
    out: Path | None = None,
) -> Detection:
    """Return a detector's figures under attacks on all images; an evaluation with a folder goes on after a kill."""
    folder = out and out / f"seed {seed}, eps {eps:g}, {len(part.x)} images"
    report = evaluate(
        classifier, (part.x, part.y), Linf(eps), attacks, detector=detector, seed=seed, curve_samples=0,
        check_samples=0, progress=False, out=folder,
    )  # fmt: skip
    assert report.summary.detection is not None
    return report.summary.detection


def print_paper(pairs: dict[int, tuple[PyTorchClassifier, ExplanationReconstructor]], part: Split, out: Path) -> None:
    """Print the mean AUC over the classes and seeds, beside the paper's, and the measured false positive rate."""
    attacks = list(paper_specs(ExplanationReconstructor))
    measured_aucs: dict[tuple[str, float], list[float]] = {}
    false_positives = []
    for seed, (classifier, detector) in pairs.items():
        for eps in GRID:
            detection = measured(classifier, detector, part, eps, attacks, seed, out / "paper")
            for row in detection.rows:
                if row.mean_auc is not None:
                    measured_aucs.setdefault((row.key.split(",")[0], eps), []).append(row.mean_auc)
        false_positives.append(detection.false_positives)
    print(f"\n## The paper's setting, {len(part.x)} test images, seeds {', '.join(map(str, pairs))}: mean AUC\n")
    print(f"| attack | {' | '.join(f'eps {eps:g}' for eps in GRID)} |\n|---|{'---|' * len(GRID)}", flush=True)
    for attack, printed in PAPER.items():
        cells = []
        for eps in GRID:
            aucs = measured_aucs[attack, eps]
            cells.append(f"{np.mean(aucs):.4f} ({min(aucs):.4f} to {max(aucs):.4f})")
        print(f"| {attack} | {' | '.join(cells)} |")
        print(f"| the paper | {' | '.join(printed.get(eps, '') for eps in GRID)} |")
    total = Proportion(sum(share.count for share in false_positives), sum(share.total for share in false_positives))
    by_seed = ", ".join(f"{100 * share.rate:.1f}" for share in false_positives)
    print(f"\nFalse positive rate on unseen benign images at the 5 % setting: {total}; by seed {by_seed} %", flush=True)


def evading(nb_steps: int) -> list[AttackSpec]:
    """Return the adaptive attacks with ``nb_steps`` steps; the last attacks the classifier of N + 1 classes.

    All aim at the detector's own threshold: they stop once an image is misclassified and accepted there.
    """

    def build(attack: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return lambda classifier, threat, seed: attack(
            classifier, threat.norm, threat.eps, max_iter=nb_steps, seed=seed, **options
        )

    builds = {name: build(attack) for name, attack in EVADING.items()}
    builds["APGD, N + 1 classes"] = build(AutoPGD)
    return [
        AttackSpec(name, made, "adaptive", kind="white-box", modes="smoothest", samples="all")
        for name, made in builds.items()
    ]


HEADS = "| setting | attack | misclassified | attack success rate at the detector's own threshold |\n|---|---|---|---|"


def print_success(title: str, rows: list[DetectionRow]) -> None:
    for row in rows:
        print(f"| {title} | {row.key} | {row.fooled} | {row.past} |", flush=True)


def print_adaptive(
    classifier: PyTorchClassifier, detector: ExplanationReconstructor, test: Split, run: argparse.Namespace, seed: int
) -> None:
    """Print the success rates of adaptive and zero-knowledge attacks at the detector's own threshold."""
    runs = run.out / "runs"
    print(f"\n## Adaptive attacks, seed {seed}: misclassified and not flagged, %\n")
    print(HEADS, flush=True)
    for eps in (0.1, 0.3):
        if run.adaptive:
            part = Split(test.x[: run.adaptive], test.y[: run.adaptive])
            zero_knowledge = measured(
                classifier, detector, part, eps, list(paper_specs(ExplanationReconstructor)), seed, runs / "paper"
            )
            print_success(f"eps {eps:g}, {len(part.x)} images", zero_knowledge.rows)
        for nb_steps, count in ((100, run.adaptive), (1000, run.long)):
            if count:
                part = Split(test.x[:count], test.y[:count])
                for attack in evading(nb_steps):
                    out = runs / f"{attack.name}, {nb_steps} steps"
                    detection = measured(classifier, detector, part, eps, [attack], seed, out)
                    print_success(f"eps {eps:g}, {nb_steps} steps, {count} images", detection.rows)
    if run.adaptive:
        print(f"\nFlagged clean images: {zero_knowledge.false_positives}", flush=True)


BINARY_EPS = 0.3
"""The radius of the FGSM examples that ART's own detector is trained on, and of the attacks on it."""


class Binary(LeNetLike):
    """The JumpReLU authors' LeNet with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(90, 2)


def trained_on_fgsm(classifier: PyTorchClassifier, train: Split, run: argparse.Namespace, seed: int) -> nn.Module:
    """Return the network of ART's own detector, trained on FGSM examples or loaded."""
    model, weights = Binary(), run.out / f"binary-{seed}.safetensors"
    if not weights.exists():
        model, x_clean = network_as(Binary, seed, run.device).model, train.x[:10_000]
        attacked = FastGradientMethod(classifier, eps=BINARY_EPS, batch_size=256).generate(x_clean)
        x = np.concatenate([x_clean, attacked])
        y = np.concatenate([np.zeros(len(attacked), dtype=np.int64), np.ones(len(attacked), dtype=np.int64)])
        train_classifier(model, x, y, nb_epochs=3, mean=[0.0], std=[1.0], seed=seed)
        save_file(model.state_dict(), weights)
    model.load_state_dict(load_file(weights))
    return model.to(run.device).eval().requires_grad_(False)


def print_binary(classifier: PyTorchClassifier, train: Split, test: Split, run: argparse.Namespace, seed: int) -> None:
    """Print the figures of ART's own detector under the same attacks."""
    model = trained_on_fgsm(classifier, train, run, seed)
    binary = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 28, 28), 2, clip_values=(0.0, 1.0))
    part = Split(test.x[: run.adaptive], test.y[: run.adaptive])
    print(f"\n## ART's BinaryInputDetector trained on FGSM, eps {BINARY_EPS}, {len(part.x)} images, seed {seed}\n")
    print(HEADS, flush=True)
    detector, runs = BinaryInputDetector(binary), run.out / "runs"
    for attack in [*paper_specs(ExplanationReconstructor), *evading(100)]:
        out = runs / f"binary, {attack.name}"
        detection = measured(classifier, detector, part, BINARY_EPS, [attack], seed, out)
        print_success("BinaryInputDetector", detection.rows)
    print(f"\nFlagged clean images: {detection.false_positives}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--out", required=True, type=Path, help="folder of classifiers and detectors")
    parser.add_argument("--only", choices=("paper", "adaptive", "binary"), action="append")
    parser.add_argument(
        "--seeds", default="0,1,2", help="seeds of classifiers and detectors; adaptive attacks use the first"
    )
    parser.add_argument("--measure", type=int, default=2_000, help="test images of the paper's setting")
    parser.add_argument("--adaptive", type=int, default=1_000, help="test images for attacks of 100 steps; 0 for none")
    parser.add_argument("--long", type=int, default=200, help="test images for attacks of 1,000 steps; 0 for none")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the classifiers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    run = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)
    if run.threads:
        torch.set_num_threads(run.threads)
    run.out.mkdir(parents=True, exist_ok=True)
    stages = run.only or ["paper", "adaptive", "binary"]
    dataset = load_dataset("mnist", run.data)
    seeds = [int(seed) for seed in run.seeds.split(",")]
    chosen = seeds if "paper" in stages else seeds[:1]
    pairs = {seed: watched(seed, dataset.train, run) for seed in chosen}
    first, test = pairs[seeds[0]], dataset.test
    if "paper" in stages:
        print_paper(pairs, Split(test.x[: run.measure], test.y[: run.measure]), run.out / "runs")
    if "adaptive" in stages:
        print_adaptive(*first, test, run, seeds[0])
    if "binary" in stages:
        print_binary(first[0], dataset.train, test, run, seeds[0])


if __name__ == "__main__":
    main()
