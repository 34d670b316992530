"""How often an image must seem broken before a run of Auto-PGD ends: the ablation behind ``attack.base.CONFIRMATIONS``.

    python tests/benchmarks/confirmations.py [--samples 100]

Validation images of the digits under the first attack of the suite ``standard``, judged by the vote of an evaluation.
The defences are Gaussian noise on the image, and on the logits; the latter leaves the most probable class of every
image unchanged, so that the figure without noise, printed first, is known to be right.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import Linf, as_module, defend, evaluate
from art_defenses_ext.attack import base
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Split, load_dataset

EPS = 0.15
TIMES = (1, 4, 8, 16, 1000)
"""Numbers of gradients in a row; with the last no run ends early."""


class NoisyImages(PreprocessorPyTorch):
    """Gaussian noise on the image."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x + 0.2 * torch.randn_like(x), y


class NoisyLogits(nn.Module):
    """A network with independent Gaussian noise on its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits + 6 * torch.randn_like(logits)


def line(name: str, times: str, classifier: PyTorchClassifier, part: Split) -> None:
    """Attack, and print a line of the table."""
    attack = replace(STANDARD[0], curve=False)
    report = evaluate(
        classifier, (part.x, part.y), Linf(EPS), [attack], curve_samples=0, check_samples=0, progress=False
    )
    summary = report.summary
    undecided = "" if summary.randomness is None else summary.randomness.undecided.count
    rows = [row for row in summary.rows if row.key.startswith(attack.name) and row.attacked]
    forward, backward = (
        sum(getattr(row, name) * row.attacked for row in rows) / len(part.x) for name in ("forward", "backward")
    )
    print(
        f"| {name} | {times} | {summary.worst_case} | {undecided} | {forward:,.0f} / {backward:,.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_dataset("digits")
    classifier = load_classifier(digits)
    part = Split(digits.validation.x[: options.samples], digits.validation.y[: options.samples])
    print("| defence | in a row | accuracy after the attack | undecided images | passes per image |")
    print("|---|---|---|---|---|")
    line("none", "1", classifier, part)
    noisy_logits = PyTorchClassifier(
        NoisyLogits(as_module(classifier)).eval(), nn.CrossEntropyLoss(), classifier.input_shape,
        classifier.nb_classes, clip_values=classifier.clip_values, device_type="cpu",
    )  # fmt: skip
    for name, defended in (
        ("noise on the logits", noisy_logits),
        ("noise on the image", defend(classifier, NoisyImages())),
    ):
        for times in TIMES:
            base.CONFIRMATIONS = times
            line(name, str(times) if times < TIMES[-1] else "never ends", defended, part)


if __name__ == "__main__":
    main()
