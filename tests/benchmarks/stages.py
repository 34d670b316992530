"""The stages of the suite ``fast``: images that its variants leave, and their passes, on validation images.

    python tests/benchmarks/stages.py --data DIR [--samples 300] [--seed 0]

The settings of MNIST in ``autoattack.py``, with the first validation images. A variant takes about two minutes on one
thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from autoattack import SETTINGS, Run, ours, passes, pool

from art_defenses_ext.attack.staged_pgd import STAGES, Stage, StagedPGD
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import FAST
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

NAMES = ("base-0.1", "base-0.2", "robust-0.1", "robust-0.2", "pgd-0.3")


def later(change: Callable[[Stage], Stage]) -> tuple[Stage, ...]:
    """The stages, the first as it is."""
    return (STAGES[0], *map(change, STAGES[1:]))


VARIANTS: dict[str, tuple[Stage, ...]] = {
    "**as they are**": STAGES,
    "first stage on the margin of logits": (replace(STAGES[0], loss="margin"), *STAGES[1:]),
    "later stages from the best points": later(lambda stage: replace(stage, from_best=True)),
    "later stages on a third of the images": later(lambda stage: replace(stage, share=stage.share / 3)),
    "later stages on two thirds of the images": later(lambda stage: replace(stage, share=2 * stage.share / 3)),
    "later stages on 1.5 times the images": later(lambda stage: replace(stage, share=1.5 * stage.share)),
    "first stage alone": STAGES[:1],
}


def suite_with(stages: tuple[Stage, ...]) -> list[AttackSpec]:
    """Return ``fast`` with other stages."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        return StagedPGD(classifier, threat.norm, threat.eps, stages=stages, seed=seed)

    return [replace(spec, build=build) if spec.name == "APGD staged" else spec for spec in FAST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets and of weights/")
    parser.add_argument("--samples", type=int, default=300, help="validation images a setting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mnist = load_dataset("mnist", options.data)
    images = mnist.validation.x[: options.samples], mnist.validation.y[: options.samples]
    print(f"| stages | {' | '.join(NAMES)} | all, of {len(NAMES) * len(images[0]):,} | passes |")
    print("|---" * (len(NAMES) + 3) + "|", flush=True)
    for title, stages in VARIANTS.items():
        runs: list[Run] = []
        for name in NAMES:
            setting = SETTINGS[name]
            classifier = load_classifier(mnist, setting.model, options.data / "weights" / setting.weights)
            runs.append(ours(suite_with(stages))(classifier, *images, setting.ball, options.seed))
        whole = pool(runs)
        forward, backward = passes([whole])
        left = " | ".join(str(int(run.left.sum())) for run in runs)
        print(f"| {title} | {left} | {int(whole.left.sum())} | {forward:.0f} / {backward:.0f} |", flush=True)


if __name__ == "__main__":
    main()
