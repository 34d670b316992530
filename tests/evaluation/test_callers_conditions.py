"""Where the caller's code runs: under no_grad or inference_mode, and over networks that write into their input."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    JumpReLU,
    Linf,
    as_module,
    defend,
    evaluate,
    rejecting,
)
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.traps import examine
from art_defenses_ext.evaluation.suite.suites import FAST
from art_defenses_ext.evaluation.suite.vote import predict_by_votes
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset

OFF = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
EPS = 0.15

ATTACKS: dict[str, Callable[[PyTorchClassifier], EvasionAttack]] = {
    "AutoPGD": lambda c: AutoPGD(c, eps=EPS, max_iter=10),
    "AnnealedPGD": lambda c: AnnealedPGD(c, eps=EPS, max_iter=5),
    "MarginPGD": lambda c: MarginPGD(c, eps=EPS, max_iter=5),
    "IterativeFGSM": lambda c: IterativeFGSM(c, max_iter=10),
    "DeepFoolLp": lambda c: DeepFoolLp(c, max_iter=5),
    "Square": lambda c: Square(c, eps=EPS, max_queries=30),
    "RandomNoise": lambda c: RandomNoise(c, eps=EPS, nb_draws=5),
}


# Gradients


@pytest.mark.parametrize("off", OFF.values(), ids=list(OFF))
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_an_attack_makes_the_same_images_under_the_caller_s_no_grad(
    attack: Callable[[PyTorchClassifier], EvasionAttack],
    off: Any,
    digits_classifier: PyTorchClassifier,
    digits: Dataset,
) -> None:
    x, y = digits.test.x[:8], digits.test.y[:8]
    expected = attack(digits_classifier).generate(x, y)
    assert (expected != x).any()
    with off():
        adversarial = attack(digits_classifier).generate(x, y)
        assert torch.is_grad_enabled() is False  # the caller's own mode is back
    np.testing.assert_array_equal(adversarial, expected)


@pytest.mark.usefixtures("short_suite")
@pytest.mark.parametrize("off", OFF.values(), ids=list(OFF))
def test_an_evaluation_gives_the_same_successes_under_the_caller_s_no_grad(
    off: Any, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    def list_successes() -> list[dict[str, Any]]:
        x, y = digits.test.x[:6], digits.test.y[:6]
        report = evaluate(
            digits_classifier, (x, y), Linf(0.1), FAST[:1], check_samples=2, curve_samples=0, progress=False
        )
        assert report.summary.checks[6].verdict == "passed"  # of the gradients
        return [{key: outcome.success for key, outcome in record.attacks.items()} for record in report.records]

    expected = list_successes()
    with off():
        assert list_successes() == expected


@pytest.mark.parametrize("off", OFF.values(), ids=list(OFF))
def test_defences_are_fitted_under_the_caller_s_no_grad(
    off: Any, own_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    x = digits.train.x
    autoencoders = [FeatureAutoencoder.for_classifier(own_classifier) for _ in range(2)]
    detectors = [ExplanationReconstructor(own_classifier, false_positive_rate=0.5) for _ in range(2)]

    def fit(autoencoder: FeatureAutoencoder, detector: ExplanationReconstructor) -> None:
        autoencoder.fit(x[:64], nb_epochs=1, validation_split=0, progress=False)
        detector.fit(x, nb_epochs=1, validation_split=0.25, progress=False)

    fit(autoencoders[0], detectors[0])
    with off():
        fit(autoencoders[1], detectors[1])
        JumpReLU(own_classifier).fit(x[:64], digits.train.y[:64], jumps=[0.1])
        assert "no gradient" not in [trap.name for trap in examine(own_classifier)]
    for first, second in (autoencoders, [detector.network for detector in detectors]):
        for tensor, expected in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected)
            assert not expected.is_inference()


def test_a_network_made_under_inference_mode_is_refused_before_any_work(digits: Dataset) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    with pytest.raises(InputError, match=r"classifier has the tensor 1\.weight, which was made under torch.inference_"):
        evaluate(classifier, (digits.test.x[:4], digits.test.y[:4]), Linf(0.1), progress=False)


@pytest.mark.usefixtures("short_suite")
def test_the_report_distinguishes_a_missing_graph_from_a_zero_gradient(digits: Dataset) -> None:
    """A forward pass under no_grad is the network's own doing, and is called by that name."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.linear(x.flatten(1))
            return logits

    classifier = PyTorchClassifier(Cut(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    x = digits.test.x[:6]
    report = evaluate(
        classifier,
        (x, classifier.predict(x).argmax(axis=1)),
        Linf(0.01),
        curve_samples=0,
        check_samples=6,
        progress=False,
    )
    (check,) = [check for check in report.summary.checks if check.name == "gradients"]
    assert "at 12 of 12 points no graph leads from the logits back to the image" in check.finding
    (trap,) = [trap for trap in examine(classifier) if trap.name == "no gradient"]
    assert "no graph leads from the logits back to the image" in trap.finding


# Networks that write into their input


class InPlace(nn.Module):
    """A network whose first act is to normalise the very tensor that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = MODELS["digits_cnn"].mean[0], MODELS["digits_cnn"].std[0]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.sub_(self.mean).div_(self.std))
        return logits


class Functional(InPlace):
    """The same function, which leaves its input alone."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


@pytest.fixture(scope="module")
def twins(digits_classifier: PyTorchClassifier) -> list[PyTorchClassifier]:
    return [
        PyTorchClassifier(
            kind(deepcopy(digits_classifier.model)),
            nn.CrossEntropyLoss(),
            (1, 8, 8),
            10,
            clip_values=(0, 1),
            device_type="cpu",
        )
        for kind in (InPlace, Functional)
    ]


def test_the_caller_s_images_stay_as_they_are(twins: list[PyTorchClassifier], digits: Dataset) -> None:
    images = torch.tensor(digits.test.x[:8])
    before = images.clone()
    logits = [as_module(classifier)(images) for classifier in twins]
    assert torch.equal(images, before)
    assert torch.equal(*logits)
    leaf = images.clone().requires_grad_()  # torch writes into no such leaf
    gradients = [
        torch.autograd.grad(as_module(classifier)(leaf).logsumexp(dim=1).sum(), leaf)[0] for classifier in twins
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_a_network_that_writes_into_its_input_is_attacked_like_its_twin(
    attack: Callable[[PyTorchClassifier], EvasionAttack], twins: list[PyTorchClassifier], digits: Dataset
) -> None:
    x = digits.test.x[:8]
    adversarial = [attack(classifier).generate(x.copy()) for classifier in twins]
    np.testing.assert_array_equal(*adversarial)
    if attack is ATTACKS["Square"]:
        assert np.abs(adversarial[0] - x).max() <= EPS * (1 + 1e-6)


@pytest.mark.usefixtures("short_suite")
def test_a_network_that_writes_into_its_input_is_judged_like_its_twin(
    twins: list[PyTorchClassifier], digits: Dataset
) -> None:
    x, y = digits.test.x[:8], twins[1].predict(digits.test.x[:8]).argmax(axis=1)
    predictions = [predict_by_votes(classifier, x.copy(), y, votes, 0) for classifier in twins for votes in (1, 3)]
    np.testing.assert_array_equal(predictions[0].softmax, predictions[2].softmax)
    np.testing.assert_array_equal(predictions[1].softmax, predictions[3].softmax)
    reports = [
        evaluate(classifier, (x.copy(), y), Linf(0.1), curve_samples=0, check_samples=0, progress=False)
        for classifier in twins
    ]
    assert reports[0].records == reports[1].records


def test_a_detector_beside_such_a_network_gives_the_same_scores(
    twins: list[PyTorchClassifier], digits: Dataset
) -> None:
    """The detector is handed the image, not what the classifier has left of it, and the other way round."""
    x, scores, adversarial = digits.test.x[:8], [], []
    for classifier in twins:
        detector = ExplanationReconstructor(classifier, explanation="input_gradient", false_positive_rate=0.5)
        detector.fit(digits.train.x, nb_epochs=1, progress=False)
        scores.append(detector.scores(x.copy()))
        rejecting_classifier = rejecting(classifier, detector)
        adversarial.append(SelectivePGD(rejecting_classifier, eps=0.1, max_iter=10).generate(x.copy()))
    np.testing.assert_array_equal(*scores)
    np.testing.assert_array_equal(*adversarial)


def test_two_networks_that_write_into_one_image_do_not_interfere(
    twins: list[PyTorchClassifier], digits: Dataset
) -> None:
    def add_detector(classifier: PyTorchClassifier) -> PyTorchClassifier:
        binary_classifier = PyTorchClassifier(
            nn.Sequential(deepcopy(classifier.model), nn.Linear(10, 2)), nn.CrossEntropyLoss(), (1, 8, 8), 2,
            clip_values=(0, 1), device_type="cpu",
        )  # fmt: skip
        return rejecting(classifier, BinaryInputDetector(binary_classifier))

    torch.manual_seed(1)
    first = add_detector(twins[0])
    torch.manual_seed(1)
    second = add_detector(twins[1])
    images = torch.tensor(digits.test.x[:8])
    assert torch.equal(as_module(first)(images), as_module(second)(images))


def test_a_restorer_before_such_a_network_gives_the_same_logits(
    twins: list[PyTorchClassifier], digits: Dataset
) -> None:
    logits = []
    for classifier in twins:
        restorer = FeatureAutoencoder.for_classifier(classifier)
        restorer.fit(digits.train.x[:32], nb_epochs=1, validation_split=0, progress=False)
        logits.append(as_module(defend(classifier, restorer))(torch.tensor(digits.test.x[:4])))
    assert torch.equal(*logits)
