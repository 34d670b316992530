"""The strength of each attack as a number: its optimality, beside the attacks of the same name in other libraries.

    python tests/benchmarks/optimality.py --data DIR [--samples 50] [--seed 0]

Optimality as in AttackBench (Cinà et al. 2024, arXiv:2404.19460, section 3): the accuracy under an attack as a curve
over the radius; the area by which the attack lowers the clean accuracy, in shares of the area by which all attacks
together lower it. 0 is an attack that breaks nothing, 1 one that breaks every image at the smallest radius known.

Two LeNets with published weights, the first test images of MNIST, six radii in linf. An image that an attack breaks at
a radius counts as broken at the larger ones. Each attack runs alone, with the options of its suite, or those of its
library with the number of steps given here. Libraries that are missing are left out: foolbox comes with
``pip install "art-defenses-ext[examples]"``, torchattacks as examples/other_toolboxes.py says. A network takes about
ten minutes on one thread.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from autoattack import BASE, BATCH, ROBUST, Attacker, Run, judged, ours, passes, spent
from torch import Tensor

from art_defenses_ext import Linf, as_module
from art_defenses_ext.attack.ball import Ball
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.suite.predictions import BoolArray
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.evaluation.suite.suites import FAST, STANDARD
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

STEPS, QUERIES = 100, 1000


@dataclass(frozen=True)
class Case:
    """A network with published weights, and the radii of its curve, from the smallest on."""

    title: str
    model: str
    weights: str
    radii: tuple[float, ...]


CASES = (
    Case("base LeNet", *BASE[1:], radii=(0.02, 0.05, 0.08, 0.11, 0.14, 0.2)),
    Case("robust LeNet", *ROBUST[1:], radii=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
)

Generate = Callable[[PyTorchClassifier, Tensor, Tensor, Ball, int], Any]
"""(classifier, images (N, C, H, W) in [0, 1], labels (N,), ball, seed) -> adversarial images."""


def attacker(generate: Generate) -> Attacker:
    """Return an attack of another library as the benchmark runs it, with its cost."""

    def attack(classifier: PyTorchClassifier, x: FloatArray, y: IntArray, ball: Ball, seed: int) -> Run:
        with seeded(seed), spent(classifier) as cost:
            adversarial = generate(classifier, torch.tensor(x), torch.tensor(y, dtype=torch.int64), ball, seed)
        images = np.clip(np.asarray(torch.as_tensor(adversarial).detach()), 0, 1)
        return Run(judged(classifier, x, y, images.astype(np.float32), ball), cost)

    return attack


def of_suites() -> Iterator[tuple[str, Attacker]]:
    """Yield each white-box attack of ``fast`` and ``standard`` alone, then both suites."""
    for name, spec in {spec.name: spec for spec in (*STANDARD, *FAST)}.items():
        if spec.kind == "white-box" and "estimation" not in name:
            yield f"{name}, here", ours([spec])
    yield from ((f"suite `{name}`, here", ours(name)) for name in ("fast", "standard"))


def of_art() -> Iterator[tuple[str, Attacker]]:
    """Yield ART's attacks."""

    def run(build: Callable[[PyTorchClassifier, float], EvasionAttack]) -> Attacker:
        return attacker(lambda classifier, x, y, ball, _: build(classifier, ball.eps).generate(x.numpy(), y.numpy()))

    steps: dict[str, Any] = {"max_iter": STEPS, "batch_size": BATCH, "verbose": False}
    yield "FGSM, ART", run(lambda c, eps: FastGradientMethod(c, eps=eps, batch_size=BATCH))
    yield "PGD, ART", run(lambda c, eps: ProjectedGradientDescent(c, eps=eps, eps_step=eps / 10, **steps))
    for loss in ("cross_entropy", "difference_logits_ratio"):
        options: dict[str, Any] = {"loss_type": loss, "nb_random_init": 1, **steps}
        name = {"cross_entropy": "cross-entropy"}.get(loss, "DLR")
        yield (
            f"Auto-PGD {name}, ART",
            run(lambda c, eps, o=options: AutoProjectedGradientDescent(c, eps=eps, eps_step=2 * eps, **o)),
        )
    square: dict[str, Any] = {"max_iter": QUERIES, "batch_size": BATCH, "verbose": False}
    yield "Square, ART", run(lambda c, eps: SquareAttack(c, eps=eps, **square))


def of_authors() -> Iterator[tuple[str, Attacker]]:
    """Yield the parts of the published AutoAttack, and the whole."""

    def run(*names: str) -> Attacker:
        def generate(classifier: PyTorchClassifier, x: Tensor, y: Tensor, ball: Ball, seed: int) -> Tensor:
            options: dict[str, Any] = {"eps": ball.eps, "seed": seed, "device": classifier.device}
            options |= {"version": "custom", "attacks_to_run": list(names)} if names else {"version": "standard"}
            attack = pyautoattack.AutoAttack(as_module(classifier), norm=ball.norm_name.capitalize(), **options)
            attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
            attack.square.n_queries = 5 * QUERIES
            adversarial: Tensor = attack.run_standard_evaluation(x, y, batch_size=BATCH)[0]
            return adversarial

        return attacker(generate)

    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        yield f"{name}, its authors", run(name)
    yield "AutoAttack, its authors", run()


def of_foolbox() -> Iterator[tuple[str, Attacker]]:
    """Yield foolbox's attacks, if it is installed."""
    try:
        foolbox: Any = import_module("foolbox")
    except ImportError:
        return

    def run(attack: Any) -> Attacker:
        def generate(classifier: PyTorchClassifier, x: Tensor, y: Tensor, ball: Ball, _: int) -> Tensor:
            model = foolbox.PyTorchModel(as_module(classifier).eval(), bounds=(0, 1), device=classifier.device)
            clipped: Tensor = attack(model, x, y, epsilons=ball.eps)[1]
            return clipped

        return attacker(generate)

    yield "FGSM, foolbox", run(foolbox.attacks.LinfFastGradientAttack())
    yield "PGD, foolbox", run(foolbox.attacks.LinfPGD(steps=STEPS, rel_stepsize=0.1))


def of_torchattacks() -> Iterator[tuple[str, Attacker]]:
    """Yield torchattacks' attacks, if it is installed."""
    try:
        torchattacks: Any = import_module("torchattacks")
    except ImportError:
        return

    def run(name: str, **options: Any) -> Attacker:
        def generate(classifier: PyTorchClassifier, x: Tensor, y: Tensor, ball: Ball, seed: int) -> Tensor:
            chosen = {"alpha": ball.eps / 10} if name == "PGD" else {"seed": seed}
            adversarial: Tensor = getattr(torchattacks, name)(as_module(classifier), eps=ball.eps, **chosen, **options)(
                x, y
            )
            return adversarial

        return attacker(generate)

    yield "PGD, torchattacks", run("PGD", steps=STEPS)
    yield "APGD, torchattacks", run("APGD", steps=STEPS)
    yield "APGDT, torchattacks", run("APGDT", steps=STEPS)
    yield "Square, torchattacks", run("Square", n_queries=QUERIES)


def area(left: BoolArray, radii: FloatArray) -> float:
    """Return the area below the accuracy (R,) over the radii (R,), for images left (R, N) at each radius."""
    accuracy = np.logical_and.accumulate(left, axis=0).mean(axis=1)
    return float(np.trapezoid(accuracy, radii))


def optimality(left: BoolArray, best: BoolArray, radii: FloatArray) -> float:
    """Return the share of the area that an attack takes, of what all attacks together take.

    Args:
        left: images left (R, N) at each radius; the first radius is 0, with the clean images.
        best: those that no attack broke (R, N).
        radii: the radii (R,), increasing.
    """
    clean = area(np.broadcast_to(left[0], left.shape), radii)
    return (clean - area(left, radii)) / (clean - area(best, radii))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of MNIST and of weights/")
    parser.add_argument("--samples", type=int, default=50, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("art").setLevel(logging.ERROR)
    mnist = load_dataset("mnist", options.data)
    x, y = mnist.test.x[: options.samples], mnist.test.y[: options.samples]
    for case in CASES:
        classifier = load_classifier(mnist, case.model, options.data / "weights" / case.weights)
        clean = classifier.predict(x).argmax(axis=1) == y
        results: dict[str, tuple[BoolArray, list[Run]]] = {}
        for source in (of_suites, of_art, of_authors, of_foolbox, of_torchattacks):
            for name, attack in source():
                runs = [attack(classifier, x, y, Linf(radius), options.seed) for radius in case.radii]
                results[name] = np.stack([clean, *(run.left for run in runs)]), runs
                print(f"{case.title}: {name}", file=sys.stderr, flush=True)  # an attack takes up to minutes
        radii = np.array([0.0, *case.radii])
        best = np.logical_and.reduce([left for left, _ in results.values()])
        best = np.logical_and.accumulate(best, axis=0)
        shares = " / ".join(f"{100 * share:.0f}" for share in best.mean(axis=1))
        print(f"\n{case.title}, {len(x)} images; under all attacks {shares} % are left at radii {radii.tolist()}\n")
        print("| attack | optimality | passes |")
        print("|---|---|---|")
        ranked = sorted(results.items(), key=lambda item: -optimality(item[1][0], best, radii))
        for name, (left, runs) in ranked:
            per_radius = [passes([run]) for run in runs]
            forward, backward = (float(np.mean(side)) for side in zip(*per_radius, strict=True))
            print(f"| {name} | {optimality(left, best, radii):.3f} | {forward:,.0f} / {backward:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
