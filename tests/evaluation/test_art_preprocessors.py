"""ART's own preprocessors and postprocessors in an evaluation, against a BPDA attack that is written out here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import (
    ClassLabels,
    GaussianNoise,
    HighConfidence,
    Postprocessor,
    ReverseSigmoid,
    Rounded,
)
from art.defences.preprocessor import (
    Cutout,
    CutoutPyTorch,
    FeatureSqueezing,
    GaussianAugmentation,
    JpegCompression,
    LabelSmoothing,
    SpatialSmoothing,
    ThermometerEncoding,
    TotalVarMin,
)
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.expectation_over_transformation.image_rotation.pytorch import EoTImageRotationPyTorch
from art.preprocessing.expectation_over_transformation.natural_corruptions.brightness.pytorch import (
    EoTBrightnessPyTorch,
)
from art.preprocessing.expectation_over_transformation.natural_corruptions.gaussian_noise.pytorch import (
    EoTGaussianNoisePyTorch,
)
from art.preprocessing.expectation_over_transformation.natural_corruptions.zoom_blur.pytorch import EoTZoomBlurPyTorch
from torch import Tensor, nn

from art_defenses_ext import AttackSpec, Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.checks import binarization
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite import attacker, vote
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

SAMPLES, EPS = 8, 0.2


def make_suite(steps: int) -> list[AttackSpec]:
    def white_box(classifier: PyTorchClassifier, threat: Any, seed: int) -> AutoPGD:
        return AutoPGD(classifier, threat.norm, threat.eps, loss="margin", max_iter=steps, seed=seed)

    return [AttackSpec("APGD", white_box, "white-box", kind="white-box", modes="all")]


@pytest.fixture(autouse=True)
def _fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the binarization test sends a thousand images through numpy for each one, and a gradient takes 16."""
    monkeypatch.setattr(attacker, "EOT_DRAWS", 4)
    monkeypatch.setattr(vote, "MOST_PASSES", 64)
    monkeypatch.setattr(binarization, "INNER_POINTS", 49)
    monkeypatch.setattr(binarization, "RANDOM_DRAWS", 20)


class Behind(nn.Module):
    """A network for images with their channels behind, as ART's total variation minimisation takes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.movedim(-1, 1))
        return logits


def channels_behind(classifier: PyTorchClassifier) -> PyTorchClassifier:
    channels, *rows = classifier.input_shape
    model = Behind(classifier.model).eval()
    return rebuild(classifier, model=model, input_shape=(*rows, channels), channels_first=False)


def jpeg(quality: int = 50) -> JpegCompression:
    return JpegCompression(clip_values=(0, 1), quality=quality, channels_first=True)


def squeezing() -> FeatureSqueezing:
    return FeatureSqueezing(clip_values=(0, 1), bit_depth=2)


FIXED = (JpegCompression, FeatureSqueezing, SpatialSmoothing, LabelSmoothing, TotalVarMin, ThermometerEncoding)
"""Preprocessors without randomness; total variation minimisation has none where it keeps every pixel."""

DRAWN: dict[str, Any] = {"nb_samples": 1, "clip_values": (0.0, 1.0), "apply_predict": True}

CHAINS: dict[str, Callable[[], list[Preprocessor]]] = {
    "JPEG": lambda: [jpeg()],
    "squeezing": lambda: [squeezing()],
    "smoothing": lambda: [SpatialSmoothing(channels_first=True)],
    "noise": lambda: [GaussianAugmentation(0.1, augmentation=False, apply_predict=True)],
    "cutout": lambda: [Cutout(3, channels_first=True, apply_predict=True)],
    "labels": lambda: [LabelSmoothing()],
    "total variation": lambda: [TotalVarMin(prob=1.0, lamb=0.1, max_iter=1)],
    "thermometer": lambda: [ThermometerEncoding(clip_values=(0, 1), num_space=4, channels_first=True)],
    "cutout, torch": lambda: [CutoutPyTorch(3, channels_first=True, apply_predict=True, device_type="cpu")],
    "brightness, torch": lambda: [EoTBrightnessPyTorch(delta=0.1, **DRAWN)],
    "noise, torch": lambda: [EoTGaussianNoisePyTorch(std=0.1, **DRAWN)],
    "zoom blur, torch": lambda: [EoTZoomBlurPyTorch(zoom=(1.0, 1.1), **DRAWN)],
    "rotation, torch": lambda: [EoTImageRotationPyTorch(angles=5.0, **DRAWN)],
    "torch, numpy, numpy": lambda: [EoTZoomBlurPyTorch(zoom=(1.0, 1.1), **DRAWN), squeezing(), jpeg(80)],
    "numpy, torch, numpy": lambda: [
        LabelSmoothing(),
        jpeg(90),
        CutoutPyTorch(2, channels_first=True, apply_predict=True, device_type="cpu"),
        squeezing(),
    ],
}


@pytest.fixture(scope="module")
def encoded_classifier(digits: Dataset) -> tuple[PyTorchClassifier, FloatArray]:
    """A network trained on digits of 4 x 4 pixels in thermometer encoding with four levels, and such digits."""
    small = nn.functional.avg_pool2d(torch.from_numpy(digits.train.x), 2)
    encoded = (small > torch.tensor([-1.0, 0.25, 0.5, 0.75]).reshape(1, 4, 1, 1)).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(encoded), torch.from_numpy(digits.train.y)).backward()
            optimizer.step()
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 10, clip_values=(0, 1), device_type="cpu")
    return classifier, nn.functional.avg_pool2d(torch.from_numpy(digits.test.x[:SAMPLES]), 2).numpy()


def logits_of(classifier: PyTorchClassifier, images: FloatArray) -> tuple[Tensor, Tensor]:
    """The logits of preprocessed images, and the images as a leaf of their graph."""
    leaf = torch.tensor(images, dtype=torch.float32, requires_grad=True)
    scaled = leaf if classifier.preprocessing is None else classifier.preprocessing.forward(leaf)[0]
    return classifier.model.eval()(scaled), leaf


def preprocessed(chain: Sequence[Preprocessor], x: FloatArray) -> FloatArray:
    for step in chain:
        x = step(x.astype(np.float32))[0] if step.apply_predict else x
    return x


def accuracy(classifier: PyTorchClassifier, chain: Sequence[Preprocessor], x: FloatArray, y: Any) -> float:
    """The accuracy of the class that most of nine passes predict, or the only one where nothing is random."""
    count = 1 if all(isinstance(step, FIXED) for step in chain) else 9
    passes = [logits_of(classifier, preprocessed(chain, x))[0].argmax(dim=1).numpy() for _ in range(count)]
    votes = np.stack([np.bincount(column, minlength=10).argmax() for column in np.array(passes).T])
    return float((votes == y).mean())


def bpda(
    classifier: PyTorchClassifier, chain: Sequence[Preprocessor], x: FloatArray, y: Any, eps: float, steps: int = 20
) -> float:
    """The accuracy under PGD that runs the preprocessors forwards and the identity, or their own rule, backwards."""
    adversarial, labels = x.copy(), torch.from_numpy(y)
    with seeded(0):
        for _ in range(steps):
            logits, leaf = logits_of(classifier, preprocessed(chain, adversarial))
            nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
            gradient = leaf.grad.numpy()  # type: ignore[union-attr]
            if isinstance(chain[0], ThermometerEncoding):
                gradient = chain[0].estimate_gradient(adversarial, gradient)
            stepped = adversarial + 2.5 * eps / steps * np.sign(gradient)
            adversarial = np.clip(stepped, x - eps, x + eps).clip(0, 1).astype(np.float32)
        return accuracy(classifier, chain, adversarial, y)


def make_report(
    classifier: PyTorchClassifier, chain: Sequence[Preprocessor], x: FloatArray, y: Any, eps: float, steps: int = 8
) -> Report:
    defended = rebuild(classifier, preprocessing_defences=list(chain))
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 1, "progress": False}
    return evaluate(defended, (x, y), Linf(eps), make_suite(steps), **options)


@pytest.mark.parametrize("name", CHAINS)
def test_robust_accuracy_is_established_or_a_check_fails_and_it_is_never_the_naive_one(
    name: str, digits: Dataset, digits_classifier: PyTorchClassifier, encoded_classifier: Any
) -> None:
    chain, classifier, x, y = CHAINS[name](), digits_classifier, digits.test.x[:SAMPLES], digits.test.y[:SAMPLES]
    if name == "total variation":
        classifier, x = channels_behind(classifier), np.moveaxis(x, 1, -1).copy()
    elif name == "thermometer":
        classifier, x = encoded_classifier
    report = make_report(classifier, chain, x, y, EPS)
    noisy = np.clip(x + EPS * np.sign(np.random.default_rng(0).normal(size=x.shape)), 0, 1).astype(np.float32)
    with seeded(0):
        naive = accuracy(classifier, chain, noisy, y)  # no gradient passes numpy: an attack stays at its start
    by_hand = bpda(classifier, chain, x, y, EPS)
    assert report.summary.clean.rate >= 0.8
    assert report.established or report.summary.failed_checks
    assert report.accuracy_after_attacks <= min(by_hand + 1 / SAMPLES, naive - 0.3)
    described = [*(defence["name"] for defence in report.summary.run.defences), *report.summary.run.foreign]
    applied = [type(step).__name__ for step in chain if step.apply_predict]
    assert sorted(text.partition("(")[0] for text in described) == sorted(applied)
    assert report.summary.run.training_alone == [type(step).__name__ for step in chain if not step.apply_predict]


POSTPROCESSORS: dict[str, Postprocessor] = {
    "rounding": Rounded(1),
    "high confidence": HighConfidence(0.25),
    "noise": GaussianNoise(0.2),
    "labels": ClassLabels(),
    "reverse sigmoid": ReverseSigmoid(),
}


@pytest.mark.parametrize("name", POSTPROCESSORS)
def test_postprocessors_give_no_robustness(name: str, digits: Dataset, digits_classifier: PyTorchClassifier) -> None:
    """The postprocessors follow probabilities, which saturate: ART's own attacks would follow no gradient."""
    network = nn.Sequential(digits_classifier.model, nn.Softmax(dim=1))
    classifier = rebuild(digits_classifier, model=network, postprocessing_defences=[POSTPROCESSORS[name]])
    x, y = digits.test.x[:SAMPLES], digits.test.y[:SAMPLES]
    with seeded(0):
        clean = float((classifier.predict(x).argmax(axis=1) == y).mean())
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 1, "progress": False}
    report = evaluate(classifier, (x, y), Linf(EPS), make_suite(10), **options)
    assert report.summary.clean.rate == clean
    assert report.accuracy_after_attacks <= 0.1
    assert report.established is (name != "labels"), report.summary.failed_checks
    assert ("batches" in report.summary.failed_checks) is (name == "labels")  # ART sets a column for all images
    assert report.summary.run.defences[0]["name"] == type(POSTPROCESSORS[name]).__name__


TWO = {"JPEG": lambda: jpeg(75), "total variation": lambda: TotalVarMin(prob=1.0, lamb=0.1, max_iter=1)}


@pytest.mark.parametrize("name", TWO)
def test_the_worst_case_is_that_of_bpda_by_hand_on_digits(
    name: str, digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    chain, classifier, x, y = [TWO[name]()], digits_classifier, digits.test.x[:20], digits.test.y[:20]
    if name == "total variation":
        classifier, x = channels_behind(classifier), np.moveaxis(x, 1, -1).copy()
    report = make_report(classifier, chain, x, y, 0.06)
    by_hand = bpda(classifier, chain, x, y, 0.06)
    assert 0.1 < by_hand < 0.9, by_hand  # else the two could not differ
    assert abs(report.accuracy_after_attacks - by_hand) <= 0.05


@pytest.mark.data
@pytest.mark.parametrize("name", TWO)
def test_the_worst_case_is_that_of_bpda_by_hand_on_natural_images(name: str, data_root: Any) -> None:
    data = load_dataset("cifar10", data_root)
    classifier = load_classifier(data, "resnet20_a", data_root / "weights" / "akamaster_resnet20-12fca82f.th")
    chain, x, y = [TWO[name]()], data.test.x[:100], data.test.y[:100]
    if name == "total variation":
        classifier, x = channels_behind(classifier), np.moveaxis(x, 1, -1).copy()
    report = make_report(classifier, chain, x, y, 1 / 255)
    by_hand = bpda(classifier, chain, x, y, 1 / 255)
    assert 0.1 < by_hand < 0.9, by_hand  # else the two could not differ
    assert abs(report.accuracy_after_attacks - by_hand) <= 0.05
