"""How many pixel values a step in l1 should change: the ablation behind ``attack.ball.STEP_DENSITY``.

    python tests/benchmarks/l1_step.py [--samples 300] [--data DIR]

PGD on the margin, 40 steps, one start, on validation images of the digits and, where --data names a folder with MNIST
and weights/, of MNIST with the JumpReLU authors' LeNet; undefended, and with a JumpReLU under its gradient mode
``relu``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import L1, JumpReLU, as_module, gradient_mode
from art_defenses_ext.attack.margin_pgd import margin_pgd
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

DENSITIES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Over the square root of the number of pixel values; a step changes one at least."""

MNIST_WEIGHTS = "erichson_mnist_lenet_baseline.pkl"


def ball_of(density: float) -> type[L1]:
    """L1 with another number of pixel values a step."""

    class Ball(L1):
        @classmethod
        def step(cls, gradient: Tensor, share: Tensor | None = None) -> Tensor:
            return super().step(gradient, torch.full((len(gradient),), density * gradient[0].numel() ** -0.5))

    return Ball


def robust(classifier: PyTorchClassifier, mode: str, x: Tensor, y: Tensor, ball: L1) -> Proportion:
    """The accuracy under the attack."""
    module = as_module(classifier)
    with gradient_mode(classifier, mode):
        adv = margin_pgd(
            lambda images, _: module(images), x, y, ball, generator=torch.Generator().manual_seed(0), clip_values=(0, 1)
        )
    with torch.no_grad():
        right = (module(x).argmax(dim=1) == y) & (module(adv).argmax(dim=1) == y)
    return Proportion.of(right.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_dataset("digits")
    subjects = {"digits, eps 2": (digits, load_classifier(digits, progress=False), 2.0, 0.7)}
    if options.data is not None:
        mnist = load_dataset("mnist", options.data)
        lenet = load_classifier(mnist, weights=options.data / "weights" / MNIST_WEIGHTS)
        subjects["MNIST, eps 8"] = (mnist, lenet, 8.0, 0.5)
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`: accuracy in per cent under PGD-40 in l1\n")
    print(
        f"| pixel values a step, over the square root of all | {' | '.join(f'{density:g}' for density in DENSITIES)} |"
    )
    print("|---" * (len(DENSITIES) + 1) + "|")
    for name, (dataset, undefended, eps, jump) in subjects.items():
        part = dataset.validation
        x, y = torch.tensor(part.x[: options.samples]), torch.tensor(part.y[: options.samples])
        for title, target, mode in (("", undefended, "exact"), (", JumpReLU", JumpReLU(undefended, jump)(), "relu")):
            cells = [str(robust(target, mode, x, y, ball_of(density)(eps))) for density in DENSITIES]
            print(f"| {name}{title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
