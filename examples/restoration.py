"""Common code of the restoration examples: fits, ablations, the papers' setting, and robust accuracy.

Run ``restoration_mnist.py``, ``restoration_fashion_mnist.py`` or ``restoration_cifar10.py``; each says what it does.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from inspect import getmodule
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import FeatureAutoencoder, Linf, RestorationLoss, TwoStreamRestoration, defend, evaluate
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.gradients.modes import surrogate_width
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.training.inputs import pgd
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, Split, load_dataset

Options = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The example of a data set.

    Attributes:
        dataset: its name.
        eps: radius of training and attacks, linf, in pixel values.
        model: the classifier's name.
        weights: its weights, relative to the data folder; None: trained (or --weights).
        fit: arguments of every fit.
        adversarial: additional arguments of the adversarial stage.
        ablation_images: training images of an ablation's fits.
        ablation_fit: arguments of an ablation's fits.
        options: options of every restorer's constructor.
        tried: further fits, which run only if ``--fits`` names them.
    """

    dataset: str
    eps: float
    model: str
    weights: str | None
    fit: Options
    adversarial: Options
    ablation_images: int
    ablation_fit: Options
    options: Options = field(default_factory=dict)
    tried: tuple[Fit, ...] = ()


@dataclass(frozen=True)
class Fit:
    """A restorer and how it is trained.

    Attributes:
        name: name of its file.
        title: title of its row.
        face: class of the restorer.
        options: options of its constructor.
        training: arguments of its fit that differ from the setting's.
        after: the fit that it continues.
    """

    name: str
    title: str
    face: type[TrainedRestorer]
    options: Options = field(default_factory=dict)
    training: Options = field(default_factory=dict)
    after: str | None = None


def fits(setting: Setting) -> list[Fit]:
    """Return the restorers of the tables, in the order in which they are trained."""
    adversarial = {"adversarial": True, **setting.adversarial}
    listed = [
        Fit("autoencoder", "feature autoencoder", FeatureAutoencoder),
        Fit(
            "autoencoder_adversarial",
            "the same, adversarially trained",
            FeatureAutoencoder,
            {},
            adversarial,
            "autoencoder",
        ),
        Fit("two_stream", "TRN", TwoStreamRestoration),
        Fit("image_only", "TRN trained without gradient map", TwoStreamRestoration, {"gradient_stream": "zero"}),
        Fit(
            "two_stream_adversarial", "TRN, adversarially trained", TwoStreamRestoration, {}, adversarial, "two_stream"
        ),
    ]
    smooth = adversarial | {"attack_mode": "smooth"}  # the exact derivative is masked, the smooth one is not
    title = "TRN, adversarially trained along the smooth derivative"
    listed.append(Fit("two_stream_smooth", title, TwoStreamRestoration, {}, smooth, "two_stream"))
    if setting.dataset in ("mnist", "fashion_mnist"):  # the paper's architecture fits their images
        options, training = {"architecture": "paper"}, {"nb_epochs": 12, "learning_rate": 1e-3}
        paper = Fit("paper", "the paper's autoencoder (5,729 parameters)", FeatureAutoencoder, options, training)
        listed.insert(0, paper)
    return listed


def trained(
    fit: Fit, classifier: PyTorchClassifier, part: Split, setting: Setting, run: argparse.Namespace
) -> TrainedRestorer:
    """Load the restorer, or train and save it; an interrupted fit continues."""
    path = run.out / f"{fit.name}-{run.seed}.safetensors"
    if path.exists():
        return fit.face.load(path, classifier=classifier)
    if fit.after is None:
        restorer = fit.face.for_classifier(classifier, **setting.options | fit.options)
    else:
        restorer = fit.face.load(run.out / f"{fit.after}-{run.seed}.safetensors", classifier=classifier)
    begun = time.perf_counter(), time.process_time()
    arguments = {"eps": setting.eps, "seed": run.seed, "checkpoint": run.out / f"{fit.name}-{run.seed}.part"}
    epochs = {} if run.epochs is None else {"nb_epochs": run.epochs}
    restorer.fit(part.x, part.y, **arguments | setting.fit | fit.training | epochs)
    wall, processor = (
        (end - start) / 60 for end, start in zip((time.perf_counter(), time.process_time()), begun, strict=True)
    )
    print(
        f"- {fit.title}: {wall:.1f} minutes, {processor:.1f} of processor time, validation loss "
        f"{restorer.history[-1].validation_loss:.4f}",
        flush=True,
    )
    restorer.save(path)
    return restorer


# Ablations

MIDDLES: dict[type[TrainedRestorer], tuple[Options, Options]] = {
    FeatureAutoencoder: (
        {},
        {
            "loss": RestorationLoss(pixel="l2", feature_weight=1.0),
            "inputs": ("clean", "noise", "fgsm", "pgd"),
        },
    ),
    TwoStreamRestoration: (
        {"map": "stacked", "top_k": 10, "weights": "uniform", "scale": "image"},
        {"loss": RestorationLoss(class_weight=0.1), "inputs": ("clean", "fgsm", "pgd", "bim")},
    ),
}
"""Options and training that a row does not name; the methods' defaults are the choice of the ablations."""


def autoencoders(grey: bool) -> Iterator[tuple[str, Options, Options]]:
    """Yield (name, options, training) of the feature autoencoder's ablation: losses, training inputs, sizes."""
    losses = {
        "pixels (l2)": RestorationLoss(pixel="l2"),
        "pixels (l1)": RestorationLoss(),
        "features of the classifier": RestorationLoss(pixel_weight=0.0, feature_weight=1.0),
        "l2 + features": RestorationLoss(pixel="l2", feature_weight=1.0),
        "l1 + features": RestorationLoss(feature_weight=1.0),
        "l1 + 0.1 features": RestorationLoss(feature_weight=0.1),
        "l2 + features + 0.1 class": RestorationLoss(pixel="l2", feature_weight=1.0, class_weight=0.1),
        "l1 + 0.1 class": RestorationLoss(class_weight=0.1),
        "class": RestorationLoss(pixel_weight=0.0, class_weight=1.0),
    }
    for name, loss in losses.items():
        yield f"loss: {name}", {}, {"loss": loss}
    single = ("clean",), ("noise",), ("fgsm",), ("pgd",)
    several = ("clean", "noise"), ("clean", "fgsm"), ("clean", "pgd"), ("clean", "fgsm", "pgd")
    for kinds in (*single, *several, ("clean", "noise", "fgsm", "pgd")):
        yield f"inputs: {', '.join(kinds)}", {}, {"inputs": kinds}
    if grey:
        yield "the paper's network", {"architecture": "paper"}, {}
    for width in (8, 32):
        yield f"width {width}", {"width": width}, {}
    for leak in (0.0, 0.2, 1.0):
        yield f"leak {leak:g}", {"leak": leak}, {}


def tapped(classifier: PyTorchClassifier) -> Iterator[tuple[str, Options, Options]]:
    """Yield the same for feature losses at a single convolution: all of the classifier, or the last of each fifth."""
    names = [name for name, module in classifier.model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    for at in sorted({len(names) * fifth // 5 for fifth in range(1, 6)} - {0}):
        loss = RestorationLoss(pixel="l2", feature_weight=1.0, taps=(names[at - 1],))
        yield f"tap: {names[at - 1]}", {}, {"loss": loss}


def two_streams() -> Iterator[tuple[str, Options, Options]]:
    """Yield the same for TRN: gradient maps, then losses with the chosen map."""
    yield "image only", {"gradient_stream": "zero"}, {}
    for scale in ("image", "channel"):
        yield f"predicted class, by {scale}", {"map": "predicted", "scale": scale}, {}
        yield f"stacked, by {scale}", {"map": "stacked", "scale": scale}, {}
    yield (
        "stacked, softmax, by image",
        {"map": "stacked", "weights": "softmax"},
        {},
    )  # scaling by channel cancels weights
    yield "stacked, top 3, uniform, by channel", {"map": "stacked", "top_k": 3, "scale": "channel"}, {}
    yield "sum of all, uniform", {"map": "sum"}, {}
    yield "sum of top 3, uniform", {"map": "sum", "top_k": 3}, {}
    yield "sum of top 3, softmax", {"map": "sum", "top_k": 3, "weights": "softmax"}, {}
    losses = {
        "l1": RestorationLoss(),
        "l1 + class": RestorationLoss(class_weight=1.0),
        "l1 + features": RestorationLoss(feature_weight=1.0),
        "class": RestorationLoss(pixel_weight=0.0, class_weight=1.0),
    }
    for name, loss in losses.items():
        yield f"loss: {name}", {"map": "sum", "top_k": 3}, {"loss": loss}


def print_ablation(
    title: str,
    face: type[TrainedRestorer],
    variants: list[tuple[str, Options, Options]],
    classifier: PyTorchClassifier,
    dataset: Dataset,
    setting: Setting,
    seed: int,
) -> None:
    """Print short fits, measured on validation images; the criterion is the mean of the papers' columns."""
    part = Split(dataset.train.x[: setting.ablation_images], dataset.train.y[: setting.ablation_images])
    held_out = Split(dataset.validation.x[:1000], dataset.validation.y[:1000])
    sets = gray_box(classifier, held_out, setting, ("FGSM", "PGD-40"))
    print(
        f"\n## {title}: fits on {len(part.x)} images, accuracy % on {len(held_out.x)} validation images, seed {seed}\n"
    )
    print(f"| | {' | '.join(sets)} | mean of the three | PGD-20 end to end, exact |")
    print("|---" * (len(sets) + 3) + "|", flush=True)
    usual_options, usual_training = MIDDLES[face]
    for name, options, training in variants:
        restorer = face.for_classifier(classifier, **setting.options | usual_options | options)
        arguments = {"eps": setting.eps, "seed": seed, "progress": False, "validation_split": 0.0} | usual_training
        restorer.fit(part.x, part.y, **arguments | setting.ablation_fit | training)
        defended = defend(classifier, restorer)
        rates = [accuracy(defended, x, held_out.y).rate for x in sets.values()]
        attacked = slice(0, 300)
        attack = MarginPGD(defended, np.inf, setting.eps, max_iter=20, gradient_mode="exact", seed=seed)
        x_adv = attack.generate(held_out.x[attacked], held_out.y[attacked])
        end_to_end = accuracy(defended, x_adv, held_out.y[attacked]).rate
        cells = [f"{100 * rate:.1f}" for rate in (*rates, float(np.mean(rates)), end_to_end)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def adversarial_stages(setting: Setting) -> Iterator[tuple[str, Options]]:
    """Yield (name, training) of the adversarial stage's ablation; other arguments are the setting's."""
    for rate in (1e-3, 3e-3, 1e-2):
        yield f"learning rate {rate:g}", {"learning_rate": rate}
    yield "batches of 64", {"batch_size": 64}
    yield (
        "no clean images, half the epochs",
        {
            "inputs": setting.adversarial["inputs"][1:],
            "nb_epochs": setting.adversarial["nb_epochs"] // 2,
        },
    )


def print_adversarial_ablation(
    classifier: PyTorchClassifier, dataset: Dataset, setting: Setting, run: argparse.Namespace
) -> None:
    """Print short adversarial stages of the feature autoencoder, measured on validation images."""
    part = Split(dataset.train.x[: setting.ablation_images], dataset.train.y[: setting.ablation_images])
    held_out = Split(dataset.validation.x[:1000], dataset.validation.y[:1000])
    attacked = slice(0, 500)
    print(
        f"\n## Feature autoencoder, adversarial stage: fits on {len(part.x)} images, accuracy % on {len(held_out.x)} "
        f"validation images ({attacked.stop} under attack), seed {run.seed}\n"
    )
    print("| | clean | APGD on margin and cross-entropy, 50 steps each, exact |\n|---|---|---|", flush=True)
    for name, training in adversarial_stages(setting):
        restorer = FeatureAutoencoder.load(run.out / f"autoencoder-{run.seed}.safetensors", classifier=classifier)
        arguments = {"eps": setting.eps, "seed": run.seed, "progress": False, "validation_split": 0.0}
        restorer.fit(part.x, part.y, adversarial=True, **arguments | setting.adversarial | training)
        defended = defend(classifier, restorer)
        robust = np.ones(attacked.stop, dtype=bool)
        for loss in ("margin", "cross_entropy"):
            attack = AutoPGD(defended, np.inf, setting.eps, max_iter=50, loss=loss, seed=run.seed)
            x = attack.generate(held_out.x[attacked], held_out.y[attacked])
            robust &= predict(defended, x).classes == held_out.y[attacked]
        clean = accuracy(defended, held_out.x, held_out.y).rate
        print(f"| {name} | {100 * clean:.1f} | {100 * robust.mean():.1f} |", flush=True)


# Measurements


def gray_box(
    classifier: PyTorchClassifier, part: Split, setting: Setting, names: tuple[str, ...] | None = None
) -> dict[str, FloatArray]:
    """Return clean images, and those of the papers' attacks on the undefended classifier."""
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[part.y]
    sets = {"clean": part.x}
    for spec in paper_specs(TwoStreamRestoration):
        name = spec.name.split(",")[0]
        if names is None or name in names:
            np.random.seed(0)  # noqa: NPY002 (ART draws its random starts from there)
            attack = spec.build(classifier, Linf(setting.eps), 0)
            attack.set_params(batch_size=256)
            sets[name] = attack.generate(part.x, one_hot)
    return sets


def accuracy(classifier: PyTorchClassifier, x: FloatArray, y: np.ndarray) -> Proportion:
    return Proportion.of((predict(classifier, x)[0] == y).tolist())


def print_gray_box(
    classifier: PyTorchClassifier, restorers: dict[str, TrainedRestorer], part: Split, setting: Setting
) -> None:
    """Print the papers' setting, with controls of TRN's second stream: zero and shuffled."""
    sets = gray_box(classifier, part, setting)
    print(f"\n## The papers' setting, {len(part.x)} test images, attacks on the undefended classifier: accuracy %\n")
    print(f"| | {' | '.join(sets)} |")
    print("|---" * (len(sets) + 1) + "|", flush=True)
    print_row("undefended", classifier, sets, part.y)
    for title, restorer in restorers.items():
        print_row(title, defend(classifier, restorer), sets, part.y)
        if isinstance(restorer, TwoStreamRestoration) and restorer.gradient_stream == "estimated":
            for stream in ("zero", "shuffled"):
                restorer.set_params(gradient_stream=stream)
                print_row(f"{title}, its gradient map {stream}", defend(classifier, restorer), sets, part.y)
            restorer.set_params(gradient_stream="estimated")


def print_row(title: str, classifier: PyTorchClassifier, sets: dict[str, FloatArray], y: np.ndarray) -> None:
    print(f"| {title} | {' | '.join(str(accuracy(classifier, x, y)) for x in sets.values())} |", flush=True)


BETAS = (3.0, 10.0, 20.0, 40.0)
"""Beta of the softplus in the compared surrogates; the methods' default is among them."""


def print_surrogates(
    classifier: PyTorchClassifier, restorers: dict[str, TrainedRestorer], part: Split, setting: Setting, seed: int
) -> None:
    """Print accuracy under attacks along the exact derivative and along smooth ones of several widths."""
    print(
        f"\n## Surrogates: accuracy % on {len(part.x)} validation images, seed {seed}, under Auto-PGD on the margin, "
        "100 steps, and annealed, five times 100 steps from that width on\n"
    )
    print("| | derivative | Auto-PGD | annealed |\n|---|---|---|---|", flush=True)
    for title, restorer in restorers.items():
        defended = defend(classifier, restorer)
        options = {"norm": np.inf, "eps": setting.eps, "seed": seed, "loss": "margin"}
        print(f"| {title} | exact | {accuracy_under(AutoPGD(defended, **options), part)} | |", flush=True)
        own = getmodule(type(restorer)).BETA  # type: ignore[union-attr]
        for beta in BETAS:
            with surrogate_width(defended, own / beta):
                attacks = [attack(defended, gradient_mode="smooth", **options) for attack in (AutoPGD, AnnealedPGD)]
                cells = " | ".join(str(accuracy_under(attack, part)) for attack in attacks)
            print(f"| {title} | softplus, beta {beta:g} | {cells} |", flush=True)


def accuracy_under(attack: TensorAttack, part: Split) -> Proportion:
    """Return the accuracy under an attack."""
    return accuracy(attack.estimator, attack.generate(part.x, part.y), part.y)


def print_adaptive(
    classifier: PyTorchClassifier,
    restorers: dict[str, TrainedRestorer],
    part: Split,
    setting: Setting,
    run: argparse.Namespace,
) -> None:
    """Print robust accuracy under the suite ``standard``, with its checks."""
    print(f"\n## Adaptive attacks, suite standard, {len(part.x)} test images, seed {run.seed}: robust accuracy %\n")
    print("| | clean accuracy | under the paper's attacks | robust accuracy | established | broken by |")
    print("|---" * 6 + "|", flush=True)
    for title, restorer in restorers.items():
        folder = run.out / f"report_{title.replace(' ', '_').replace(',', '').replace('(', '').replace(')', '')}"
        report = evaluate(
            defend(classifier, restorer), (part.x, part.y), Linf(setting.eps), "standard",
            seed=run.seed, curve_samples=0, check_samples=run.checks, out=folder, overwrite=True, progress=False,
        )  # fmt: skip
        summary = report.summary
        broke = [f"{row.key} {row.broke}" for row in summary.rows if row.broke and row.source == "suite"]
        failed = [check.name for check in summary.checks if check.verdict == "failed"]
        cells = [
            title,
            summary.clean,
            summary.paper,
            f"{'at most ' * bool(failed)}**{summary.worst_case}**",
            f"no: {', '.join(failed)}" if failed else "yes",
        ]
        print(f"| {' | '.join(map(str, cells))} | {'; '.join(broke)} |", flush=True)


def main(setting: Setting, description: str) -> None:
    """Run the command of an example."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets, and of weights/")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder of the fits, which are loaded if present, and of reports"
    )
    parser.add_argument("--only", choices=("ablation", "fit", "surrogates", "papers", "adaptive"), action="append")
    parser.add_argument("--fits", help="comma-separated names of fits; default: all")
    parser.add_argument("--rows", default="", help="rows of the ablation whose name contains this")
    parser.add_argument("--weights", type=Path, help="weights of the classifier")
    parser.add_argument("--epochs", type=int, help="epochs of every fit; default: the example's own")
    parser.add_argument("--measure", type=int, default=10_000, help="test images of the papers' setting")
    parser.add_argument("--adaptive", type=int, default=1_000, help="test images for the adaptive attacks")
    parser.add_argument("--checks", type=int, default=100, help="images for the checks of the adaptive attacks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dataset", default=setting.dataset, help="another data set of the same shape, with --weights")
    run = parser.parse_args()
    if run.dataset != setting.dataset and run.weights is None:
        parser.error(f"--dataset {run.dataset} needs --weights: the default ones are for {setting.dataset}")
    setting = replace(setting, dataset=run.dataset)
    logging.getLogger("art").setLevel(logging.ERROR)
    if run.threads:
        torch.set_num_threads(run.threads)
    run.out.mkdir(parents=True, exist_ok=True)
    stages = run.only or ["ablation", "fit", "papers", "adaptive"]
    dataset = load_dataset(setting.dataset, run.data)
    weights = run.weights or (run.data / setting.weights if setting.weights else None)
    classifier = load_classifier(dataset, setting.model, weights, device=run.device, seed=run.seed)
    wanted = None if run.fits is None else run.fits.split(",")
    if "ablation" in stages and (wanted is None or "autoencoder" in wanted):
        variants = [*autoencoders(setting.dataset in ("mnist", "fashion_mnist")), *tapped(classifier)]
        variants = [variant for variant in variants if run.rows in variant[0]]
        print_ablation("Feature autoencoder", FeatureAutoencoder, variants, classifier, dataset, setting, run.seed)
    if "ablation" in stages and (wanted is None or "two_stream" in wanted):
        variants = [variant for variant in two_streams() if run.rows in variant[0]]
        print_ablation("TRN", TwoStreamRestoration, variants, classifier, dataset, setting, run.seed)
    if "ablation" in stages and "autoencoder_adversarial" in (wanted or ()):  # continues a fit
        print_adversarial_ablation(classifier, dataset, setting, run)
    chosen = [fit for fit in fits(setting) if wanted is None or fit.name in wanted]
    chosen += [fit for fit in setting.tried if wanted is not None and fit.name in wanted]
    if stages == ["ablation"]:
        return
    print("\n## Fits\n", flush=True)
    restorers = {fit.title: trained(fit, classifier, dataset.train, setting, run) for fit in chosen}
    if "surrogates" in stages:
        part = Split(dataset.validation.x[: run.adaptive], dataset.validation.y[: run.adaptive])
        print_surrogates(classifier, restorers, part, setting, run.seed)
    test = dataset.test
    if "papers" in stages:
        print_gray_box(classifier, restorers, Split(test.x[: run.measure], test.y[: run.measure]), setting)
    if "adaptive" in stages:
        part = Split(test.x[: run.adaptive], test.y[: run.adaptive])
        print_adaptive(classifier, restorers, part, setting, run)


def end_to_end(eps: float, nb_steps: int) -> list[Any]:
    """Return the training inputs of the adversarial stage: half clean, half end-to-end PGD."""
    return ["clean", pgd(eps, nb_steps, through="defence")]
