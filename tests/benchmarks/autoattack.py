"""The suites ``fast`` and ``standard`` beside the published AutoAttack, on the same images.

    python tests/benchmarks/autoattack.py --data DIR [--suite fast|standard|both] [--seeds 0 1 2] [--only NAME ...]
        [--art] [--threads 1] [--samples N]

Robust accuracy of each, and under both (images that either breaks are broken), passes and seconds. The published one
is that of Croce, Hein 2020 (arXiv:2003.01690) in its authors' package ``pyautoattack``, which
``pip install "art-defenses-ext[autoattack]"`` brings. DIR holds MNIST, Fashion-MNIST and CIFAR-10 as torchvision lays
them out, and the weights under weights/. A setting takes about five minutes a seed on one thread. The attackers take
turns in going first from seed to seed, so that none always meets a cold processor. Seconds are processor time, which
other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from statistics import mean

import numpy as np
import pyautoattack
import torch
from art.attacks.evasion import AutoAttack as ArtsEnsemble
from art.estimators.classification import PyTorchClassifier
from timing import device_name

from art_defenses_ext import L1, L2, Linf, as_module, evaluate
from art_defenses_ext.attack.ball import Ball
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.config import EvaluationOptions
from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.predictions import BoolArray, predict
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

BATCH = 256
ART = "ART's ensemble"  # never by its class's name, which is that of the published one


@dataclass(frozen=True)
class Bar:
    """What a suite of ours is held to.

    Attributes:
        points: how far its robust accuracy, pooled over the settings, may lie above the published one.
        passes: images forwards and backwards per image, at most, in each setting or pooled.
        time: its share of the published seconds, pooled.
        pooled: whether ``passes`` bounds those of all settings pooled.
    """

    points: float
    passes: tuple[int, int]
    time: float
    pooled: bool = False


BARS = {"fast": Bar(0.3, (250, 200), 0.06), "standard": Bar(0.0, (700, 350), 0.15, pooled=True)}
PUBLISHED = "published"


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
PROVABLE = ("fashion_mnist", "wong_kolter", "convex_fashion_mnist.pth")
ROBUST_RESNET = ("cifar10", "resnet20", "erichson_cifar10_resnet20_robust.pkl")
SETTINGS = {
    "base-0.1": Setting("base LeNet, eps 0.1", *BASE, ball=Linf(0.1), samples=500),
    "base-0.2": Setting("base LeNet, eps 0.2", *BASE, ball=Linf(0.2), samples=500),
    "robust-0.1": Setting("robust LeNet, eps 0.1", *ROBUST, ball=Linf(0.1), samples=500),
    "robust-0.2": Setting("robust LeNet, eps 0.2", *ROBUST, ball=Linf(0.2), samples=500),
    "pgd-0.3": Setting("PGD-trained MNIST CNN, eps 0.3", *PGD_TRAINED, ball=Linf(0.3), samples=500),
    "provable-0.1": Setting("provably trained Fashion-MNIST CNN, eps 0.1", *PROVABLE, ball=Linf(0.1), samples=500),
    "robust-l2": Setting("robust LeNet, l2 1.5", *ROBUST, ball=L2(1.5), samples=500),
    "base-l2": Setting("base LeNet, l2 1", *BASE, ball=L2(1), samples=500),
    "base-l1": Setting("base LeNet, l1 5", *BASE, ball=L1(5), samples=200),
    "robust-l1": Setting("robust LeNet, l1 10", *ROBUST, ball=L1(10), samples=200),
    "provable-l1": Setting("provably trained Fashion-MNIST CNN, l1 3", *PROVABLE, ball=L1(3), samples=200),
    "resnet-2/255": Setting("robust CIFAR-10 ResNet-20, eps 2/255", *ROBUST_RESNET, ball=Linf(2 / 255), samples=200),
    "resnet-8/255": Setting("robust CIFAR-10 ResNet-20, eps 8/255", *ROBUST_RESNET, ball=Linf(8 / 255), samples=200),
}

PARITY = [name for name, setting in SETTINGS.items() if not isinstance(setting.ball, L1)]
"""The settings of the tables in docs/evaluation.md but that of l1, which has its own."""


@dataclass(frozen=True)
class Run:
    """What one attacker left of a setting under one seed, or of several settings pooled, and its cost.

    Attributes:
        left: whether each image is classified correctly and not broken (N,).
        cost: of the attacks, with processor seconds.
    """

    left: BoolArray
    cost: Cost

    @property
    def robust(self) -> Proportion:
        return Proportion.of(self.left.tolist())


Attacker = Callable[[PyTorchClassifier, FloatArray, IntArray, Ball, int], Run]
"""(classifier, images (N, C, H, W) in [0, 1], labels (N,), ball, seed) -> run."""


@contextmanager
def spent(classifier: PyTorchClassifier) -> Iterator[Cost]:
    """Count the passes of a network, and the processor seconds meanwhile."""
    begin = time.process_time()
    with measured(classifier) as cost:
        yield cost
    cost.seconds = time.process_time() - begin


def ours(suite: str | Sequence[AttackSpec]) -> Attacker:
    """A suite of ours; its cost includes the judging of each attack's images, which the others' does not."""

    def attack(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
        options: EvaluationOptions = {"seed": seed, "curve_samples": 0, "check_samples": 0, "block_size": 512}
        with spent(classifier) as cost:
            report = evaluate(classifier, (x, y), ball, suite, progress=False, **options)
        return Run(np.array([record.robust() for record in report.records]), cost)

    return attack


def published(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
    images, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    options = {"norm": ball.norm_name.capitalize(), "eps": ball.eps, "version": "standard", "device": classifier.device}
    with spent(classifier) as cost:
        attack = pyautoattack.AutoAttack(as_module(classifier), seed=seed, **options)
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=BATCH)
    return Run(judged(classifier, x, y, adversarial.cpu().numpy(), ball), cost)


def arts_ensemble(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
    """ART's class of the same name, another set: no targets, five Auto-PGD restarts, l2 DeepFool in place of FAB."""
    ensemble = ArtsEnsemble(classifier, ball.norm, eps=ball.eps, eps_step=ball.eps / 4, batch_size=BATCH)
    for attack in ensemble.attacks:
        attack.set_params(verbose=False)
    with seeded(seed), spent(classifier) as cost:
        adversarial = ensemble.generate(x, y)
    return Run(judged(classifier, x, y, adversarial, ball), cost)


def judged(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, adversarial: FloatArray, ball: Ball) -> BoolArray:
    """Which images (N,) are left, by the rules of :func:`evaluate`: what leaves the ball or [0, 1] breaks nothing."""
    sizes = ball.sizes(x, adversarial, classifier.clip_values)
    in_range = ((adversarial >= 0) & (adversarial <= 1)).reshape(len(x), -1).all(axis=1)
    in_ball = np.array([ball.allows(size) for size in sizes])
    broken = in_range & in_ball & (predict(classifier, adversarial).classes != y)
    left: BoolArray = (predict(classifier, x).classes == y) & ~broken
    return left


def warm_up(classifier: PyTorchClassifier, x: FloatArray) -> None:
    """One pass there and back, so that whoever goes first does not pay for what torch sets up once."""
    images = torch.tensor(x[:BATCH], device=classifier.device, requires_grad=True)
    torch.autograd.grad(as_module(classifier)(images).sum(), images)


def pool(runs: Sequence[Run]) -> Run:
    """All images of several settings under one seed."""
    return Run(np.concatenate([run.left for run in runs]), reduce(add, [run.cost for run in runs]))


def accuracy(runs: list[Run]) -> float:
    return 100 * mean(run.robust.rate for run in runs)


def seconds(runs: list[Run]) -> float:
    return mean(run.cost.seconds for run in runs)


def passes(runs: list[Run]) -> tuple[float, float]:
    """Images passed forwards and backwards per image, mean over the seeds."""
    forward, backward = (mean(getattr(run.cost, name) for run in runs) for name in ("forward", "backward"))
    total = runs[0].robust.total
    return forward / total, backward / total


def cells(runs: list[Run]) -> list[str]:
    """Robust accuracy over the seeds, mean (least–most); seconds; passes."""
    rates = [100 * run.robust.rate for run in runs]
    forward, backward = passes(runs)
    spread = f" ({min(rates):.2f}–{max(rates):.2f})" if len(runs) > 1 else ""
    return [f"{accuracy(runs):.2f}{spread}", f"{seconds(runs):.1f}", f"{forward:,.0f} / {backward:,.0f}"]


def print_header(suites: Sequence[str], beside: bool, with_art: bool) -> None:
    columns = ["setting", "images", *(["published: robust %", "s", "passes"] if beside else [])]
    for suite in suites:
        columns += [f"{suite}: robust %", "s", "passes"]
        columns += ["difference, points", "both: robust %", "ratio of seconds"] if beside else []
    columns += [f"{ART}: robust %", "s", "passes"] if with_art else []
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)


def print_line(title: str, runs: dict[str, list[Run]]) -> None:
    """A line of the table."""
    theirs = runs.get(PUBLISHED)
    line = [title, f"{next(iter(runs.values()))[0].robust.total:,}", *(cells(theirs) if theirs else [])]
    for suite in [suite for suite in BARS if suite in runs]:
        mine = runs[suite]
        if theirs is None:
            line += cells(mine)
            continue
        both = [Run(one.left & other.left, one.cost) for one, other in zip(mine, theirs, strict=True)]
        line += [*cells(mine), f"{accuracy(mine) - accuracy(theirs):+.2f}", f"{accuracy(both):.2f}"]
        line += [f"{seconds(mine) / seconds(theirs):.3f}"]
    line += cells(runs[ART]) if ART in runs else []
    print(f"| {' | '.join(line)} |", flush=True)


def print_bars(suite: str, settings: dict[str, dict[str, list[Run]]], pooled: dict[str, list[Run]]) -> None:
    """What a suite is held to, and what it holds."""
    bar, mine, theirs = BARS[suite], pooled[suite], pooled.get(PUBLISHED)
    bounded = [mine] if bar.pooled else [runs[suite] for runs in settings.values()]
    dearest = [max(passes(runs)[way] for runs in bounded) for way in range(2)]
    which = "pooled" if bar.pooled else "most"
    held = {}
    if theirs is not None:
        held["pooled difference in points"] = verdict(accuracy(mine) - accuracy(theirs), bar.points)
        held["pooled ratio of seconds"] = verdict(seconds(mine) / seconds(theirs), bar.time)
    held |= {
        f"{which} passes forwards": verdict(dearest[0], bar.passes[0]),
        f"{which} passes backwards": verdict(dearest[1], bar.passes[1]),
    }
    print(f"\n`{suite}`: {'; '.join(f'{what} {how}' for what, how in held.items())}.")


def verdict(value: float, bar: float) -> str:
    return f"{value:,.3g}: {'holds' if value <= bar + 1e-9 else 'DOES NOT HOLD'} (<= {bar:g})"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets and of weights/")
    parser.add_argument("--suite", choices=[*BARS, "both"], default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=PARITY, metavar="NAME", help=str([*SETTINGS]))
    parser.add_argument("--alone", action="store_true", help="leave out the published attack, which takes longest")
    parser.add_argument("--art", action="store_true", help=f"also {ART}, under the first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, help="at most so many images a setting, for a quick look")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    logging.getLogger("art").setLevel(logging.ERROR)

    machine = device_name(torch.device("cpu"))
    print(f"torch {torch.__version__}, {options.threads} thread(s), {machine}, seeds {options.seeds}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print("Robust accuracy: mean over seeds (least–most). Passes: images forwards / backwards per image.\n")
    suites = [suite for suite in BARS if options.suite in (suite, "both")]
    print_header(suites, not options.alone, options.art)

    data: dict[str, Dataset] = {
        name: load_dataset(name, options.data) for name in ("mnist", "fashion_mnist", "cifar10")
    }
    attackers: dict[str, Attacker] = {suite: ours(suite) for suite in suites}
    if not options.alone:
        attackers[PUBLISHED] = published
    results: dict[str, dict[str, list[Run]]] = {}
    for chosen in (name for name in SETTINGS if name in options.only):
        setting = SETTINGS[chosen]
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
                done = f"{setting.title}, seed {seed}, {name}: {last.robust}, {last.cost.seconds:.1f} s"
                print(done, file=sys.stderr, flush=True)
        if options.art:
            runs[ART] = [arts_ensemble(*attacked, options.seeds[0])]
        results[chosen] = runs
        print_line(setting.title, runs)
    everything = list(results.values())
    pooled = {
        name: [pool(at) for at in zip(*(runs[name] for runs in everything), strict=True)] for name in everything[0]
    }
    print_line("**all, pooled**", pooled)
    for suite in suites:
        print_bars(suite, results, pooled)
    intervals = [f"{name} {runs[0].robust}" for name, runs in pooled.items()]
    print(f"\nPooled, seed {options.seeds[0]}, with Wilson's 95 % interval over the images: {'; '.join(intervals)}.")


if __name__ == "__main__":
    main()
