"""What a fixed set of small runs says of each image: whatever is rearranged in the package, these verdicts stay.

    python tests/verdicts.py [NAME ...]            compares with tests/expected/verdicts.json
    python tests/verdicts.py --write [NAME ...]    writes that file anew

On the machine that wrote the file all verdicts are equal. On another one rounding differs, and with it what is trained.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import (
    L2,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    TwoStreamRestoration,
    defend,
    evaluate,
    rejecting,
)
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, STANDARD
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

EXPECTED = Path(__file__).parent / "expected" / "verdicts.json"
SAMPLES = 12
EPS = 0.1

Verdicts = dict[str, str]
"""By attack, and for clean images, a letter an image: 1 right or broken, 0 not, - not attacked."""

FAST = tuple(spec for spec in STANDARD if spec.name not in ("APGD staged, long", "APGD annealed"))
"""The suite without the two attacks that take longest; those run on the undefended model and on JumpReLU."""

Run = tuple[PyTorchClassifier, dict[str, Any]]


class Noise(PreprocessorPyTorch):
    """Gaussian noise: makes a random defence."""

    params: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1), y


class GreyLevels(PreprocessorPyTorch):
    """Rounds to nine grey levels, a preprocessor of no defence of ours whose derivative is zero."""

    params: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return torch.round(x * 8) / 8, y


class Runs:
    """The runs, by name; each a classifier and what else :func:`evaluate` is given."""

    def __init__(self) -> None:
        self.data: Dataset = load_dataset("digits")
        self.classifier = load_classifier(self.data, "digits_cnn", epochs=20)

    def undefended(self) -> Run:
        return self.classifier, {}

    def jump_relu(self) -> Run:
        return JumpReLU(self.classifier, jump=0.5)(), {"curve_samples": 4}

    def jump_relu_l2(self) -> Run:
        return JumpReLU(self.classifier, jump=0.5)(), {"threat": L2(0.5)}

    def jump_relu_naive(self) -> Run:
        return JumpReLU(self.classifier, jump=0.5)(), {"adaptive": False, "check_samples": 0}

    def heat_and_blur(self) -> Run:
        return defend(self.classifier, HeatAndBlur.for_classifier(self.classifier)), {"attacks": "papers"}

    def heat_and_blur_adaptively(self) -> Run:
        return defend(self.classifier, HeatAndBlur.for_classifier(self.classifier)), {"attacks": FAST}

    def feature_autoencoder(self) -> Run:
        return defend(self.classifier, self._autoencoder()), {"attacks": FAST}

    def two_stream_restoration(self) -> Run:
        restorer = TwoStreamRestoration.for_classifier(self.classifier)
        restorer.fit(self.data.train.x, self.data.train.y, nb_epochs=2, batch_size=64, progress=False)
        return defend(self.classifier, restorer), {"attacks": "papers"}

    def explanation_reconstructor(self) -> Run:
        return rejecting(self.classifier, self._detector()), {"attacks": FAST + DETECTOR_SUITE[:1]}

    def autoencoder_before_jump_relu(self) -> Run:
        return defend(JumpReLU(self.classifier, jump=0.5)(), self._autoencoder()), {"attacks": FAST}

    def autoencoder_beside_detector(self) -> Run:
        return defend(self.classifier, self._autoencoder()), {"detector": self._detector(), "attacks": "papers"}

    def random_noise(self) -> Run:
        return defend(self.classifier, Noise()), {"attacks": FAST, "undefended": self.classifier}

    def foreign_preprocessor(self) -> Run:
        return defend(self.classifier, GreyLevels()), {"attacks": FAST}

    def _autoencoder(self) -> FeatureAutoencoder:
        restorer = FeatureAutoencoder.for_classifier(self.classifier)
        restorer.fit(self.data.train.x, self.data.train.y, nb_epochs=5, batch_size=64, progress=False)
        return restorer

    def _detector(self) -> ExplanationReconstructor:
        detector = ExplanationReconstructor(self.classifier)
        detector.fit(self.data.train.x, nb_epochs=3, validation_split=0.25, progress=False)
        return detector

    def named(self) -> Iterator[tuple[str, Callable[[], Run]]]:
        """All runs."""
        for name, method in vars(type(self)).items():
            if not name.startswith("_") and name not in ("named", "report"):
                yield name, method.__get__(self)

    def report(self, build: Callable[[], Run]) -> Report:
        """The report of a run."""
        classifier, options = build()
        settings = {"threat": Linf(EPS), "attacks": "standard", "curve_samples": 0, "check_samples": 4}
        settings |= {"undefended_suite": "papers"} | options
        x, y = self.data.test.x[:SAMPLES], self.data.test.y[:SAMPLES]
        return evaluate(classifier, (x, y), block_size=8, progress=False, **settings)


def verdicts(report: Report) -> Verdicts:
    """What a report's records say of each image."""
    keys = dict.fromkeys(key for record in report.records for key in record.attacks)
    rows = {"clean": "".join(str(int(record.correct)) for record in report.records)}
    for key in keys:
        outcomes = [record.attacks.get(key) for record in report.records]
        rows[key] = "".join("-" if outcome is None else str(int(outcome.success)) for outcome in outcomes)
    rows["robust"] = "".join(str(int(record.robust())) for record in report.records)
    return rows


def made_verdicts(names: Collection[str]) -> Iterator[tuple[str, Verdicts]]:
    """The verdicts of the runs with these names, of all if there are none, as each run ends."""
    torch.set_num_threads(1)
    runs = Runs()
    for name, build in runs.named():
        if name in names or not names:
            begin = time.perf_counter()
            yield name, verdicts(runs.report(build))
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)


def differences(run: str, actual: Verdicts, expected: Verdicts) -> list[str]:
    """Where two sets of verdicts differ, a line each."""
    keys = dict.fromkeys([*expected, *actual])
    return [
        f"{run}, {key}: {actual.get(key)}, expected {expected.get(key)}"
        for key in keys
        if actual.get(key) != expected.get(key)
    ]


def main() -> int:
    """Compare, or write."""
    names = [argument for argument in sys.argv[1:] if argument != "--write"]
    unknown = set(names) - {name for name, _ in Runs().named()}
    if unknown:
        print(f"no such run: {', '.join(sorted(unknown))}")
        return 2
    expected: dict[str, Verdicts] = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    lines: list[str] = []
    for name, actual in made_verdicts(names):
        lines += differences(name, actual, expected.get(name, {}))
        if "--write" in sys.argv:
            expected[name] = actual
            EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    print("\n".join(lines) or "all verdicts are equal")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
