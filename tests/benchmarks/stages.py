"""The stages of a suite: images that its variants leave, and their passes, on validation images.

    python tests/benchmarks/stages.py --data DIR [--suite fast|standard] [--only NAME ...] [--first 0] [--samples 300]

The settings of MNIST in ``autoattack.py``, with validation images. A variant takes about two minutes on one thread,
five for ``standard``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from autoattack import SETTINGS, Run, ours, passes, pool

from art_defenses_ext.attack.staged_pgd import STAGES, Stage, StagedPGD
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import FAST, LONG_STAGES, STANDARD
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

NAMES = ("base-0.1", "base-0.2", "robust-0.1", "robust-0.2", "pgd-0.3")


Stages = tuple[Stage, ...]


def later(stages: Stages, change: Callable[[Stage], Stage]) -> Stages:
    """The stages, the first as it is."""
    return (stages[0], *map(change, stages[1:]))


def scaled(stages: Stages, factor: float) -> Stages:
    """The later stages on more or fewer images."""

    def change(stage: Stage) -> Stage:
        return replace(stage, share=min(1.0, factor * stage.share), least=math.ceil(factor * stage.least))

    return later(stages, change)


VARIANTS: dict[str, dict[str, Stages]] = {
    "fast": {
        "**as they are**": STAGES,
        "first stage on the margin of logits": (replace(STAGES[0], loss="margin"), *STAGES[1:]),
        "later stages from the best points": later(STAGES, lambda stage: replace(stage, from_best=True)),
        "later stages on a third of the images": scaled(STAGES, 1 / 3),
        "later stages on two thirds of the images": scaled(STAGES, 2 / 3),
        "later stages on 1.5 times the images": scaled(STAGES, 1.5),
        "first stage alone": STAGES[:1],
    },
    "standard": {
        "**as they are**": LONG_STAGES,
        "without the restarts": LONG_STAGES[:2],
        "without the targets": (LONG_STAGES[0], *LONG_STAGES[2:]),
        "later stages on half as many images": scaled(LONG_STAGES, 0.5),
        "later stages on twice as many images": scaled(LONG_STAGES, 2),
        "nine targets, 100 steps each, on all images": (replace(LONG_STAGES[1], share=1.0),),
        "first stage alone": LONG_STAGES[:1],
    },
}
SUITES = {"fast": FAST, "standard": STANDARD}


def suite_with(suite: str, stages: Stages, white_box: bool) -> list[AttackSpec]:
    """Return a suite with other stages, or its white-box attacks alone."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        return StagedPGD(classifier, threat.norm, threat.eps, stages=stages, seed=seed)

    specs = [spec for spec in SUITES[suite] if spec.kind == "white-box" or not white_box]
    return [replace(spec, build=build) if spec.name.startswith("APGD staged") else spec for spec in specs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets and of weights/")
    parser.add_argument("--suite", choices=VARIANTS, default="fast")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=str([*NAMES]))
    parser.add_argument(
        "--white-box", action="store_true", help="leave out the attacks that are the same in all variants"
    )
    parser.add_argument("--first", type=int, default=0, help="the first validation image")
    parser.add_argument("--samples", type=int, default=300, help="validation images a setting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mnist = load_dataset("mnist", options.data)
    rows = slice(options.first, options.first + options.samples)
    images = mnist.validation.x[rows], mnist.validation.y[rows]
    print(f"| stages | {' | '.join(options.only)} | all, of {len(options.only) * len(images[0]):,} | passes |")
    print("|---" * (len(options.only) + 3) + "|", flush=True)
    for title, stages in VARIANTS[options.suite].items():
        runs: list[Run] = []
        for name in options.only:
            setting = SETTINGS[name]
            classifier = load_classifier(mnist, setting.model, options.data / "weights" / setting.weights)
            attack = ours(suite_with(options.suite, stages, options.white_box))
            runs.append(attack(classifier, *images, setting.ball, options.seed))
            print(f"{title}: {setting.title}, {int(runs[-1].left.sum())} left", file=sys.stderr, flush=True)
        whole = pool(runs)
        forward, backward = passes([whole])
        left = " | ".join(str(int(run.left.sum())) for run in runs)
        print(f"| {title} | {left} | {int(whole.left.sum())} | {forward:.0f} / {backward:.0f} |", flush=True)


if __name__ == "__main__":
    main()
