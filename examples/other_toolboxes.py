"""One defended network under the attacks of four libraries, by gradient mode.

    python examples/other_toolboxes.py [--defence heat_and_blur] [--eps 0.1] [--samples 100] [--steps 40]
    python examples/other_toolboxes.py --dataset mnist --data DIR [--weights FILE]

`as_module` turns a defended classifier into one network from images to logits, as other libraries expect.
Each attack runs under each gradient mode of the defence, on the same images, in the same ball, for the same number of
steps. PGD from the image itself is deterministic, so three libraries must break the same images; Auto-PGD starts at
random, so its libraries agree approximately.

On digits it takes half a minute on one core. Foolbox comes with `pip install "art-defenses-ext[examples]"`.
torchattacks requires an old version of requests, for downloads that no attack needs, and would replace the newer one:
`pip install --no-deps torchattacks`. Missing libraries are listed and left out of the table.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import HeatAndBlur, JumpReLU, as_module, defend, gradient_mode, gradient_modes
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

os.environ.setdefault(
    "GIT_PYTHON_REFRESH", "quiet"
)  # Foolbox imports GitPython, which otherwise requires the program git

DEFENCES: dict[str, Callable[[PyTorchClassifier], PyTorchClassifier]] = {
    "jump_relu": lambda classifier: JumpReLU(classifier, 1.0)(),
    "heat_and_blur": lambda classifier: defend(classifier, HeatAndBlur.for_classifier(classifier)),
}

INSTALL = {
    "torchattacks": "pip install --no-deps torchattacks",
    "foolbox": 'pip install "art-defenses-ext[examples]"',
}
"""Commands that install the optional libraries."""


@dataclass(frozen=True)
class Target:
    """The attacked classifier, its images, and the attacks' budget.

    Args:
        classifier: the defended classifier, for ART's attacks and ours.
        module: the same as one network, for everybody else's.
        x: images (N, C, H, W).
        y: labels (N,).
        eps: largest change of a pixel.
        steps: gradients an image.
    """

    classifier: PyTorchClassifier
    module: nn.Module
    x: np.ndarray
    y: np.ndarray
    eps: float
    steps: int

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels on the network's device."""
        device = self.classifier.device
        return torch.tensor(self.x, device=device), torch.tensor(self.y, device=device)

    def robust(self, adversarial: np.ndarray) -> np.ndarray:
        """Return which images (N,) are classified correctly; images outside the ball count as the clean ones."""
        ball = Linf(self.eps)
        sizes = ball.sizes(self.x, adversarial, self.classifier.clip_values)
        inside = np.array([ball.allows(float(size)) for size in sizes])
        clean, attacked = (self.classifier.predict(x).argmax(axis=1) == self.y for x in (self.x, adversarial))
        return clean & (attacked | ~inside)


def torchattacks_pgd(target: Target) -> np.ndarray:
    attacks = import_module("torchattacks")
    attack = attacks.PGD(target.module, target.eps, target.eps / 4, target.steps, random_start=False)
    return attack(*target.tensors).detach().cpu().numpy()


def foolbox_pgd(target: Target) -> np.ndarray:
    foolbox = import_module("foolbox")
    model = foolbox.PyTorchModel(target.module, bounds=(0, 1), device=target.classifier.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=target.eps / 4, steps=target.steps, random_start=False)
    return attack(model, *target.tensors, epsilons=target.eps)[0].detach().cpu().numpy()


def art_pgd(target: Target) -> np.ndarray:
    attack = ProjectedGradientDescent(
        target.classifier, np.inf, target.eps, target.eps / 4, max_iter=target.steps, batch_size=256, verbose=False
    )
    return attack.generate(target.x, target.y)


def our_pgd(target: Target) -> np.ndarray:
    return MarginPGD(target.classifier, np.inf, target.eps, max_iter=target.steps).generate(target.x, target.y)


def torchattacks_auto_pgd(target: Target) -> np.ndarray:
    attacks = import_module("torchattacks")
    attack = attacks.APGD(target.module, norm="Linf", eps=target.eps, steps=target.steps, n_restarts=1, loss="ce")
    return attack(*target.tensors).detach().cpu().numpy()


def art_auto_pgd(target: Target) -> np.ndarray:
    attack = AutoProjectedGradientDescent(
        target.classifier,
        eps=target.eps,
        eps_step=2 * target.eps,
        max_iter=target.steps,
        nb_random_init=1,
        batch_size=256,
        verbose=False,
    )
    return attack.generate(target.x, target.y)


def our_auto_pgd(target: Target) -> np.ndarray:
    attack = AutoPGD(target.classifier, np.inf, target.eps, max_iter=target.steps, loss="cross_entropy")
    return attack.generate(target.x, target.y)


Attack = Callable[[Target], np.ndarray]

ATTACKS: dict[str, dict[str, Attack]] = {
    "PGD": {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd},
    "PGD on the margin, random start": {"ours": our_pgd},
    "Auto-PGD": {"torchattacks": torchattacks_auto_pgd, "ART": art_auto_pgd, "ours": our_auto_pgd},
}
"""The attacks by algorithm and library; the libraries of one algorithm should agree. Foolbox has no Auto-PGD."""


def missing_libraries() -> list[str]:
    """Return the libraries that cannot be imported."""
    missing = []
    for name in INSTALL:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def verdicts(target: Target, attack: Attack, mode: str) -> np.ndarray:
    """Return which images (N,) are robust to an attack under a gradient mode."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (ART draws from the global generator)
    with gradient_mode(target.classifier, mode):
        return target.robust(attack(target))


def print_table(target: Target, missing: list[str]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Print accuracy under attack by attack, library and gradient mode; return which images are robust."""
    modes = gradient_modes(target.classifier)
    print(f"| attack | library | {' | '.join(modes)} | all modes |")
    print("|---" * (len(modes) + 3) + "|")
    robust = {}
    for algorithm, libraries in ATTACKS.items():
        for library, attack in libraries.items():
            if library in missing:
                continue
            by_mode = {mode: verdicts(target, attack, mode) for mode in modes}
            robust[algorithm, library] = by_mode
            shares = [*by_mode.values(), np.all(list(by_mode.values()), axis=0)]
            cells = " | ".join(str(Proportion.of(share)) for share in shares)
            print(f"| {algorithm} | {library} | {cells} |", flush=True)
    return robust


def print_agreement(robust: dict[tuple[str, str], dict[str, np.ndarray]]) -> None:
    """Print on how many images two libraries disagree about one algorithm."""
    print("\nImages on which two libraries disagree, by gradient mode:\n")
    for algorithm, libraries in ATTACKS.items():
        for first, second in combinations([library for library in libraries if (algorithm, library) in robust], 2):
            pairs = {mode: (left, robust[algorithm, second][mode]) for mode, left in robust[algorithm, first].items()}
            counts = [f"{mode} {(left != right).sum()} of {len(left)}" for mode, (left, right) in pairs.items()]
            print(f"- {algorithm}, {first} and {second}: {', '.join(counts)}")


def print_gain(robust: dict[tuple[str, str], dict[str, np.ndarray]]) -> None:
    """Print the accuracy under the exact gradient and under all modes."""
    exact = [by_mode["exact"].mean() for by_mode in robust.values()]
    worst = [np.all(list(by_mode.values()), axis=0).mean() for by_mode in robust.values()]
    print(
        f"\nAccuracy under attack along the exact gradient: {100 * min(exact):.1f} to {100 * max(exact):.1f} %, "
        f"under all modes: {100 * min(worst):.1f} to {100 * max(worst):.1f} %."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--data", type=Path, help="folder of MNIST, where that is attacked")
    parser.add_argument("--weights", type=Path, help="weights of the network, which is trained without them")
    parser.add_argument("--defence", default="jump_relu", choices=tuple(DEFENCES))
    parser.add_argument("--eps", type=float, default=0.1, help="largest change of a pixel")
    parser.add_argument("--samples", type=int, default=100, help="test images")
    parser.add_argument("--steps", type=int, default=40, help="gradients an image, in each attack")
    parser.add_argument("--epochs", type=int, help="passes of training; by default the data set's usual number")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)

    data = load_dataset(options.dataset, options.data)
    plain = load_classifier(data, weights=options.weights, epochs=options.epochs, device=options.device)
    defended = DEFENCES[options.defence](plain)
    x, y = data.test.x[: options.samples], data.test.y[: options.samples]
    target = Target(defended, as_module(defended), x, y, options.eps, options.steps)
    clean = Proportion.of(defended.predict(x).argmax(axis=1) == y)
    missing = missing_libraries()
    for name in missing:
        print(f"{name} is missing and left out: {INSTALL[name]}")

    print(f"\n{options.defence} on {options.dataset}, linf, eps {options.eps:g}, first {len(x)} test images, ", end="")
    print(f"{options.steps} steps: accuracy under attack [95 % interval] by gradient mode; clean {clean}\n")
    robust = print_table(target, missing)
    print_agreement(robust)
    print_gain(robust)


if __name__ == "__main__":
    main()
