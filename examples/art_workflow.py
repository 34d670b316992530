"""One workflow in ART, end to end: train, defend, attack, evaluate adaptively, harden, compare.

    python examples/art_workflow.py [--eps 0.1] [--samples 60] [--out OUT]
    python examples/art_workflow.py --dataset mnist --data DIR [--epochs 5] [--hardening-epochs 5]

1. train: a `PyTorchClassifier`, by its own `fit`;
2. defend: a JumpReLU tuned on validation images, and a feature autoencoder in front;
3. attack: ART's PGD and Auto-PGD as any user of ART runs them, along the exact gradient;
4. evaluate: the same attacks under every gradient mode, then the attack suite, for the robust accuracy;
5. harden: ART's `AdversarialTrainerMadryPGD` on a fresh network, and adversarial training of the feature autoencoder;
6. compare: each run with the undefended network, image by image.

On digits it takes about two minutes on one core, since it uses few images and a suite without the slowest attacks
(`SUITE`); `attacks="standard"` has all of them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import FeatureAutoencoder, JumpReLU, Linf, defend, evaluate
from art_defenses_ext.evaluation.publish.compare import Compared, compare
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.catalogue import DEFAULT_MODEL, MODELS
from art_defenses_ext.zoo.datasets import Dataset, load_dataset
from art_defenses_ext.zoo.models import build_model

EPOCHS = {"digits": (30, 10), "mnist": (5, 5)}
"""Training epochs of the network, and of each training of a defence."""


def art_pgd(classifier: PyTorchClassifier, threat: Threat, seed: int) -> ProjectedGradientDescent:
    return ProjectedGradientDescent(
        classifier, threat.norm, threat.eps, threat.eps / 4, max_iter=20, num_random_init=1, verbose=False
    )


def art_auto_pgd(classifier: PyTorchClassifier, threat: Threat, seed: int) -> AutoProjectedGradientDescent:
    return AutoProjectedGradientDescent(
        classifier, threat.norm, threat.eps, 2 * threat.eps, max_iter=20, nb_random_init=1, verbose=False
    )


ARTS = (
    AttackSpec("ART PGD", art_pgd, "ART's, 20 steps", kind="white-box", modes="all", samples="all"),
    AttackSpec("ART Auto-PGD", art_auto_pgd, "ART's, 20 steps", kind="white-box", modes="all", samples="all"),
)
"""ART's attacks, run on all images under every gradient mode."""

SUITE = ("APGD margin", "APGD annealed", "transfer PGD-40", "FGSM", "noise")
"""The faster attacks of the suite ``standard``."""

ATTACKS = (*(spec for spec in STANDARD if spec.name in SUITE), *ARTS)


@dataclass(frozen=True)
class Setting:
    """The common settings of all runs.

    Args:
        data: the data set.
        threat: the ball.
        samples: test images.
        check_samples: test images for the checks.
        epochs: training epochs of the network.
        hardening_epochs: training epochs of each defence.
        device: ``"cpu"`` or ``"gpu"``, as in ART.
    """

    data: Dataset
    threat: Linf
    samples: int
    check_samples: int
    epochs: int
    hardening_epochs: int
    device: str


def untrained(setting: Setting) -> PyTorchClassifier:
    """Return the data set's default network in ART's wrapper."""
    name = DEFAULT_MODEL[setting.data.name]
    network = build_model(name)
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        input_shape=setting.data.input_shape,
        nb_classes=setting.data.nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(MODELS[name].mean), np.array(MODELS[name].std)),
        device_type=setting.device,
    )


def trained(setting: Setting) -> PyTorchClassifier:
    """Return a classifier trained by ART's ``fit``."""
    classifier, train = untrained(setting), setting.data.train
    classifier.fit(train.x, train.y, batch_size=64, nb_epochs=setting.epochs)
    return classifier


def adversarially_trained(setting: Setting) -> PyTorchClassifier:
    """Return a classifier trained by ART's adversarial trainer, on PGD examples only."""
    train, eps = setting.data.train, setting.threat.eps
    trainer = AdversarialTrainerMadryPGD(
        untrained(setting), setting.hardening_epochs, batch_size=64, eps=eps, eps_step=eps / 4, max_iter=7
    )
    trainer.fit(train.x, np.eye(setting.data.nb_classes, dtype=np.float32)[train.y])
    return trainer.get_classifier()


def classifiers(setting: Setting) -> Iterator[tuple[str, PyTorchClassifier]]:
    """Yield the undefended network, then the defended ones, each built on demand."""
    train, validation = setting.data.train, setting.data.validation
    plain = trained(setting)
    yield "undefended", plain

    jump = JumpReLU(plain)
    jump.fit(validation.x, validation.y, max_accuracy_drop=0.01)
    yield "JumpReLU", jump()

    restorer = FeatureAutoencoder.for_classifier(plain)
    options = {"eps": setting.threat.eps, "nb_epochs": setting.hardening_epochs, "progress": False}
    restorer.fit(train.x, train.y, **options)
    yield "autoencoder", defend(plain, restorer)

    restorer.fit(train.x, train.y, adversarial=True, **options)
    yield "autoencoder, adversarially trained", defend(plain, restorer)

    yield "ART's adversarial training", adversarially_trained(setting)


def evaluated(classifier: PyTorchClassifier, setting: Setting, folder: Path) -> Report:
    test = setting.data.test
    return evaluate(
        classifier,
        (test.x[: setting.samples], test.y[: setting.samples]),
        setting.threat,
        ATTACKS,
        out=folder,
        overwrite=True,
        curve_samples=0,
        check_samples=setting.check_samples,
        progress=False,
    )


def accuracy_under_art(report: Report, every_mode: bool) -> Proportion:
    """Return the accuracy under ART's attacks, along the exact gradient or under every mode."""
    names = [spec.name for spec in ARTS]
    keys = {row.key for row in report.summary.rows if row.key.startswith(tuple(names))}
    chosen = keys if every_mode else {key for key in keys if key.endswith("[exact]")}
    return Proportion.of(record.robust(chosen) for record in report.records)


def line(run: Compared, report: Report) -> str:
    """Return a run's line in the table."""
    worst, pair = run.summary.worst_case, run.against_first
    cells = [
        run.name,
        str(run.summary.clean),
        str(accuracy_under_art(report, every_mode=False)),
        str(accuracy_under_art(report, every_mode=True)),
        f"at most {worst}" if run.summary.standing != "established" else str(worst),
        "" if pair is None else str(pair),
        "" if pair is None else f"{pair.p_value:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


HEADS = ("run", "clean", "ART, exact gradient", "ART, all modes", "robust accuracy", "minus undefended", "p")


def run_workflow(setting: Setting, out: Path) -> None:
    folders = []
    for name, classifier in classifiers(setting):
        folders.append(out / name)
        report = evaluated(classifier, setting, out / name)
        print(f"{name}: {report}\n", flush=True)

    runs = compare(folders).runs
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    for run, folder in zip(runs, folders, strict=True):
        print(line(run, Report.load(folder)))
    print("\nShares: Wilson's 95 % interval. ART: PGD and Auto-PGD. Robust accuracy: these and the attack suite;")
    print("'at most' if they failed a check. Minus undefended: paired difference, 95 % interval; p: McNemar's test.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="digits", choices=tuple(EPOCHS))
    parser.add_argument("--data", type=Path, help="folder of MNIST, with --dataset mnist")
    parser.add_argument("--eps", type=float, default=0.1, help="largest change of a pixel")
    parser.add_argument("--samples", type=int, default=60, help="test images")
    parser.add_argument("--check-samples", type=int, default=10, help="test images for the checks; 0 for no checks")
    parser.add_argument("--epochs", type=int, help="training epochs of the network")
    parser.add_argument("--hardening-epochs", type=int, help="training epochs of each defence")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (ART draws from the global generator)
    epochs, hardening_epochs = EPOCHS[options.dataset]
    setting = Setting(
        load_dataset(options.dataset, options.data),
        Linf(options.eps),
        options.samples,
        options.check_samples,
        epochs if options.epochs is None else options.epochs,
        hardening_epochs if options.hardening_epochs is None else options.hardening_epochs,
        "gpu" if options.device == "cuda" else "cpu",
    )
    with tempfile.TemporaryDirectory() as scratch:
        run_workflow(setting, Path(scratch) if options.out is None else options.out)


if __name__ == "__main__":
    main()
