"""Networks of other dtypes: each defence gives what it gives before the network in float32, or says that it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniL2Method, FastGradientMethod, HopSkipJump
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import (
    AttackSpec,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    TwoStreamRestoration,
    as_module,
    defend,
    evaluate,
)
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.papers import ATTACKS as OF_PAPERS
from art_defenses_ext.evaluation.suite.spec import built
from art_defenses_ext.preprocessor.heat_and_blur import RULES
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset

TOLERANCE = {torch.float64: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
"""About eight units in the last place of the dtype."""


class Autocast(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            logits: Tensor = self.network(x)
        return logits


Cast = Callable[[nn.Module], nn.Module]

CASTS: dict[str, tuple[Cast, torch.dtype]] = {
    "float64": (lambda network: network.double(), torch.float64),
    "bfloat16": (lambda network: network.bfloat16(), torch.bfloat16),
    "autocast float16": (lambda network: Autocast(network, torch.float16), torch.float16),
}


def wrap(model: nn.Module, loss: nn.Module | None = None) -> PyTorchClassifier:
    spec = MODELS["digits_cnn"]
    return PyTorchClassifier(
        model,
        loss or nn.CrossEntropyLoss(),
        spec.input_shape,
        spec.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(spec.mean), np.array(spec.std)),
        device_type="cpu",
    )


@pytest.fixture(scope="module", params=list(CASTS))
def cast(request: pytest.FixtureRequest, digits_classifier: PyTorchClassifier) -> tuple[PyTorchClassifier, float]:
    """The network of the digits in another dtype, and the tolerance that this asks for."""
    change, dtype = CASTS[request.param]
    return wrap(change(copy.deepcopy(digits_classifier.model)).eval()), TOLERANCE[dtype]


@pytest.mark.parametrize("rules", list(RULES))
def test_heat_and_blur(
    rules: str, cast: tuple[PyTorchClassifier, float], digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    classifier, tolerance = cast
    x = torch.tensor(digits.test.x[:100])
    shown = HeatAndBlur.for_classifier(classifier, rules=rules)(x)[0]
    expected = HeatAndBlur.for_classifier(digits_classifier, rules=rules)(x)[0]
    assert bool(shown.isfinite().all())
    worst = (shown.float() - expected).abs().amax(dim=(1, 2, 3))
    assert worst.median() <= tolerance  # where two logits or pools tie, few images go another way
    assert (worst <= 10 * tolerance).float().mean() > 0.95


@pytest.fixture(scope="module")
def trained(digits_classifier: PyTorchClassifier, digits: Dataset) -> dict[type[TrainedRestorer], TrainedRestorer]:
    """Restorers that were trained in float32."""
    restorers = {}
    for kind in (FeatureAutoencoder, TwoStreamRestoration):
        restorers[kind] = kind.for_classifier(digits_classifier, width=4)
        restorers[kind].fit(digits.train.x[:64], digits.train.y[:64], eps=0.1, nb_epochs=1, progress=False)
    return restorers


@pytest.mark.parametrize("kind", [FeatureAutoencoder, TwoStreamRestoration])
def test_restorers_that_were_trained_in_float32(
    kind: Any,
    cast: tuple[PyTorchClassifier, float],
    trained: dict[type[TrainedRestorer], TrainedRestorer],
    digits: Dataset,
) -> None:
    classifier, tolerance = cast
    restorer = trained[kind]
    expected = restorer(torch.tensor(digits.test.x[:60]))[0]
    rebound = copy.deepcopy(restorer)
    rebound.rebind(classifier)
    restored = rebound(torch.tensor(digits.test.x[:60]))[0].float()
    assert (restored - expected).abs().amax(dim=(1, 2, 3)).median() <= tolerance
    if next(classifier.model.parameters()).dtype == torch.float16:
        with pytest.raises(InputError, match="model is in float16, in which small gradients become zero"):
            rebound.fit(digits.train.x[:64], digits.train.y[:64], eps=0.1, nb_epochs=1, progress=False)
    else:
        rebound.fit(digits.train.x[:64], digits.train.y[:64], eps=0.1, nb_epochs=1, progress=False)
        assert bool(rebound(torch.tensor(digits.test.x[:9]))[0].isfinite().all())


def test_jump_relu(
    cast: tuple[PyTorchClassifier, float], digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    classifier, tolerance = cast
    x = torch.tensor(digits.test.x[:100])
    logits, expected = (
        as_module(JumpReLU(model, 0.2)())(x).detach().float() for model in (classifier, digits_classifier)
    )
    assert (logits - expected).abs().median() <= tolerance * expected.abs().max()
    assert (logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.95


def detection_scores(classifier: PyTorchClassifier, digits: Dataset) -> FloatArray:
    """Of a detector that was fitted to the classifier."""
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.1)
    detector.fit(digits.train.x[:500], nb_epochs=1, validation_split=0.3, progress=False)
    return detector.scores(digits.test.x[:60])


@pytest.fixture(scope="module")
def scores_in_float32(digits_classifier: PyTorchClassifier, digits: Dataset) -> FloatArray:
    return detection_scores(digits_classifier, digits)


def test_explanation_reconstructor(
    cast: tuple[PyTorchClassifier, float], scores_in_float32: FloatArray, digits: Dataset
) -> None:
    classifier, tolerance = cast
    scores = detection_scores(classifier, digits)
    assert np.isfinite(scores).all()
    assert np.median(np.abs(scores - scores_in_float32)) <= 2 * tolerance * scores_in_float32.max()


ATTACKS = [
    AttackSpec(
        "PGD, gray-box",
        partial(OF_PAPERS["pgd"], max_iter=5, eps_step=0.25),
        "ART's",
        crafted_on="undefended",
        samples="all",
    ),
    AttackSpec("PGD", partial(OF_PAPERS["pgd"], max_iter=5, eps_step=0.25), "ART's", samples="all"),
    AttackSpec("FGSM", lambda target, threat, seed: FastGradientMethod(target, eps=threat.eps), "ART's"),
    AttackSpec(
        "C&W",
        lambda target, threat, seed: CarliniL2Method(target, max_iter=2, binary_search_steps=1, verbose=False),
        "ART's",
        bounded=False,
    ),
    AttackSpec(
        "HopSkipJump",
        lambda target, threat, seed: HopSkipJump(target, max_iter=1, max_eval=10, init_eval=5, verbose=False),
        "ART's",
        bounded=False,
    ),
    AttackSpec("APGD", built(AutoPGD, loss="margin", max_iter=2), "ours", kind="white-box", modes="all"),
    AttackSpec("APGD targeted", built(AutoPGD, loss="dlr_targeted", max_iter=2, nb_runs=3), "ours"),
]


def test_an_evaluation_ends_with_a_report(cast: tuple[PyTorchClassifier, float], digits: Dataset) -> None:
    classifier = cast[0]
    defended = defend(classifier, HeatAndBlur.for_classifier(classifier))
    data = digits.test.x[:2], digits.test.y[:2]
    report = evaluate(defended, data, Linf(0.2), ATTACKS, check_samples=1, curve_samples=0, progress=False)
    assert len(report.records) == 2
    assert report.accuracy_after_attacks <= report.summary.clean.rate


def outcomes(undefended: PyTorchClassifier, digits: Dataset) -> list[Any]:
    """Of ART's attacks on gradients, image by image."""
    defended, data = defend(undefended, HeatAndBlur.for_classifier(undefended)), (digits.test.x[:8], digits.test.y[:8])
    report = evaluate(defended, data, Linf(0.1), ATTACKS[:3], check_samples=0, curve_samples=0, progress=False)
    return [sorted(record.attacks.items()) for record in report.records]


@pytest.fixture(scope="module")
def outcomes_with_the_cross_entropy(digits_classifier: PyTorchClassifier, digits: Dataset) -> list[Any]:
    return outcomes(digits_classifier, digits)


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss(reduction="none"), nn.MultiMarginLoss()], ids=str
)
def test_a_loss_that_art_s_attacks_cannot_climb_does_not_end_an_evaluation(
    loss: nn.Module, digits_classifier: PyTorchClassifier, digits: Dataset, outcomes_with_the_cross_entropy: Any
) -> None:
    """They climb the cross-entropy, as before the classifier that has it."""
    assert outcomes(wrap(digits_classifier.model, loss), digits) == outcomes_with_the_cross_entropy
