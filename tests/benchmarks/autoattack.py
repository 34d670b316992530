"""The suite ``standard`` beside the published AutoAttack: robust accuracy, passes and seconds on the same images.

    python tests/benchmarks/autoattack.py --data DIR [--seeds 0 1 2] [--only NAME ...] [--art] [--threads 1]
        [--samples N]

The published one is that of Croce, Hein 2020 (arXiv:2003.01690) in its authors' package ``pyautoattack``, which
``pip install "art-defenses-ext[autoattack]"`` brings. DIR holds MNIST and CIFAR-10 as torchvision lays them out, and
the weights under weights/. A setting takes about five minutes a seed on one thread. The two take turns in going first
from seed to seed, so that neither always meets a cold processor.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import pyautoattack
import torch
from art.attacks.evasion import AutoAttack as ArtsEnsemble
from art.estimators.classification import PyTorchClassifier
from timing import device_name

from art_defenses_ext import L1, Linf, as_module, evaluate
from art_defenses_ext.attack.ball import Ball
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

BATCH = 256
ART = "ART's ensemble"  # never by its class's name, which is that of the published one
POINTS, POOLED_POINTS = 0.6, 0.2  # how far above the published robust accuracy ours may lie: a setting, all of them
TIME = 0.5  # what share of the published seconds ours may take


@dataclass(frozen=True)
class Setting:
    """A network with published weights, a ball, and how many of the first test images."""

    title: str
    dataset: str
    model: str
    weights: str
    ball: Ball
    samples: int


BASE = ("mnist", "lenet_like", "erichson_mnist_lenet_baseline.pkl")
ROBUST = ("mnist", "lenet_like", "erichson_mnist_lenet_robust.pkl")
PGD_TRAINED = ("mnist", "wong_kolter", "fastadv_mnist_pgd.pth")
ROBUST_RESNET = ("cifar10", "resnet20", "erichson_cifar10_resnet20_robust.pkl")
SETTINGS = {
    "base-0.1": Setting("base LeNet, eps 0.1", *BASE, ball=Linf(0.1), samples=500),
    "base-0.2": Setting("base LeNet, eps 0.2", *BASE, ball=Linf(0.2), samples=500),
    "robust-0.1": Setting("robust LeNet, eps 0.1", *ROBUST, ball=Linf(0.1), samples=500),
    "robust-0.2": Setting("robust LeNet, eps 0.2", *ROBUST, ball=Linf(0.2), samples=500),
    "pgd-0.3": Setting("PGD-trained MNIST CNN, eps 0.3", *PGD_TRAINED, ball=Linf(0.3), samples=500),
    "robust-l1": Setting("robust LeNet, l1 10", *ROBUST, ball=L1(10), samples=200),
    "resnet-2/255": Setting("robust CIFAR-10 ResNet-20, eps 2/255", *ROBUST_RESNET, ball=Linf(2 / 255), samples=200),
}

LINF = [name for name, setting in SETTINGS.items() if isinstance(setting.ball, Linf)]
"""The settings of the table in docs/evaluation.md."""


@dataclass(frozen=True)
class Run:
    """What one attacker left of a setting under one seed, or of several settings pooled, and its cost."""

    robust: Proportion
    cost: Cost


Attacker = Callable[[PyTorchClassifier, FloatArray, IntArray, Ball, int], Run]
"""(classifier, images (N, C, H, W) in [0, 1], labels (N,), ball, seed) -> run."""


def ours(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
    """The suite; its cost includes the judging of each attack's images, which the others' does not."""
    with measured(classifier) as cost:
        report = evaluate(
            classifier, (x, y), ball, seed=seed, curve_samples=0, check_samples=0, block_size=512, progress=False
        )
    return Run(report.summary.worst_case, cost)


def published(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
    images, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    options = {"norm": ball.norm_name.capitalize(), "eps": ball.eps, "version": "standard", "device": classifier.device}
    with measured(classifier) as cost:
        attack = pyautoattack.AutoAttack(as_module(classifier), seed=seed, **options)
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=BATCH)
    return Run(judged(classifier, x, y, adversarial.cpu().numpy(), ball), cost)


def arts_ensemble(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
    """ART's class of the same name, another set: no targets, five Auto-PGD restarts, l2 DeepFool in place of FAB."""
    ensemble = ArtsEnsemble(classifier, ball.norm, eps=ball.eps, eps_step=ball.eps / 4, batch_size=BATCH)
    for attack in ensemble.attacks:
        attack.set_params(verbose=False)
    with seeded(seed), measured(classifier) as cost:
        adversarial = ensemble.generate(x, y)
    return Run(judged(classifier, x, y, adversarial, ball), cost)


def judged(
    classifier: PyTorchClassifier, x: FloatArray, y: IntArray, adversarial: FloatArray, ball: Ball
) -> Proportion:
    """Robust accuracy by the rules of :func:`evaluate`: only images in the ball and in [0, 1] count as successes."""
    sizes = ball.sizes(x, adversarial, classifier.clip_values)
    in_range = ((adversarial >= 0) & (adversarial <= 1)).reshape(len(x), -1).all(axis=1)
    in_ball = np.array([ball.allows(size) for size in sizes])
    broken = in_range & in_ball & (predict(classifier, adversarial).classes != y)
    return Proportion.of(((predict(classifier, x).classes == y) & ~broken).tolist())


def warm_up(classifier: PyTorchClassifier, x: FloatArray) -> None:
    """One pass there and back, so that whoever goes first does not pay for what torch sets up once."""
    images = torch.tensor(x[:BATCH], device=classifier.device, requires_grad=True)
    torch.autograd.grad(as_module(classifier)(images).sum(), images)


def pool(runs: Sequence[Run]) -> Run:
    """All images of several settings under one seed."""
    robust, costs = [run.robust for run in runs], [run.cost for run in runs]
    forward, backward = sum(cost.forward for cost in costs), sum(cost.backward for cost in costs)
    return Run(
        Proportion(sum(one.count for one in robust), sum(one.total for one in robust)),
        Cost(forward, backward, sum(cost.seconds for cost in costs)),
    )


def accuracy(runs: list[Run]) -> float:
    return 100 * mean(run.robust.rate for run in runs)


def seconds(runs: list[Run]) -> float:
    return mean(run.cost.seconds for run in runs)


def cells(runs: list[Run]) -> list[str]:
    """Robust accuracy over the seeds, mean (least–most); seconds; images passed forwards / backwards per image."""
    rates = [100 * run.robust.rate for run in runs]
    total = runs[0].robust.total
    forward, backward = (mean(getattr(run.cost, name) for run in runs) / total for name in ("forward", "backward"))
    spread = f" ({min(rates):.2f}–{max(rates):.2f})" if len(runs) > 1 else ""
    return [f"{accuracy(runs):.2f}{spread}", f"{seconds(runs):.1f}", f"{forward:,.0f} / {backward:,.0f}"]


def print_header(with_art: bool) -> None:
    columns = ["setting", "images", "ours: robust %", "s", "passes", "published: robust %", "s", "passes"]
    columns += ["difference, points", "holds", "ratio of seconds", "holds"]
    columns += [f"{ART}: robust %", "s", "passes"] if with_art else []
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)


def print_line(title: str, runs: dict[str, list[Run]], points: float, time: float | None) -> None:
    """A line of the table with what it holds of the bars; ``time`` None: no bar on the seconds."""
    mine, theirs = runs["ours"], runs["published"]
    difference, ratio = accuracy(mine) - accuracy(theirs), seconds(mine) / seconds(theirs)
    line = [title, f"{mine[0].robust.total:,}", *cells(mine), *cells(theirs)]
    line += [f"{difference:+.2f}", verdict(difference, points)]
    line += [f"{ratio:.2f}", "" if time is None else verdict(ratio, time)]
    line += cells(runs[ART]) if ART in runs else []
    print(f"| {' | '.join(line)} |", flush=True)


def verdict(value: float, bar: float) -> str:
    return f"{'yes' if value <= bar + 1e-9 else 'NO'} (<= {bar:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets and of weights/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=LINF, metavar="NAME", help=str([*SETTINGS]))
    parser.add_argument("--art", action="store_true", help=f"also {ART}, under the first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, help="at most so many images a setting, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("art").setLevel(logging.ERROR)

    machine = device_name(torch.device("cpu"))
    print(f"torch {torch.__version__}, {options.threads} thread(s), {machine}, seeds {options.seeds}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print("Robust accuracy: mean over seeds (least–most). Passes: images forwards / backwards per image.\n")
    print_header(options.art)

    data: dict[str, Dataset] = {name: load_dataset(name, options.data) for name in ("mnist", "cifar10")}
    attackers: dict[str, Attacker] = {"ours": ours, "published": published}
    found: list[dict[str, list[Run]]] = []
    for setting in (SETTINGS[name] for name in SETTINGS if name in options.only):
        dataset = data[setting.dataset]
        classifier = load_classifier(dataset, setting.model, options.data / "weights" / setting.weights)
        rows = slice(min(setting.samples, options.samples or setting.samples))
        attacked = classifier, dataset.test.x[rows], dataset.test.y[rows], setting.ball
        warm_up(classifier, dataset.test.x)
        runs: dict[str, list[Run]] = {name: [] for name in attackers}
        for turn, seed in enumerate(options.seeds):
            for name in list(attackers)[:: -1 if turn % 2 else 1]:
                runs[name].append(attackers[name](*attacked, seed))
                last = runs[name][-1]  # a setting can take hours: what was found is not lost with a late line
                found_here = f"{setting.title}, seed {seed}, {name}: {last.robust}, {last.cost.seconds:.1f} s"
                print(found_here, file=sys.stderr, flush=True)
        if options.art:
            runs[ART] = [arts_ensemble(*attacked, options.seeds[0])]
        found.append(runs)
        print_line(setting.title, runs, POINTS, TIME)
    pooled = {name: [pool(one) for one in zip(*(runs[name] for runs in found), strict=True)] for name in found[0]}
    print_line("**all, pooled**", pooled, POOLED_POINTS, None)
    intervals = [f"{name} {runs[0].robust}" for name, runs in pooled.items()]
    print(f"\nPooled, seed {options.seeds[0]}, with Wilson's 95 % interval over the images: {'; '.join(intervals)}.")


if __name__ == "__main__":
    main()
