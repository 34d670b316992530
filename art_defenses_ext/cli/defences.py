"""A defended classifier from names: what the command line may put on a classifier, and with which options.

A detector comes joined to the classifier, as one that rejects: then all is one classifier, whatever the defence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.validation import InputError, check_choice, check_flag, check_inner_share
from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.estimator.defend import defend
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.preprocessor.feature_autoencoder import FeatureAutoencoder
from art_defenses_ext.preprocessor.heat_and_blur import HeatAndBlur
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.preprocessor.two_stream_restoration import TwoStreamRestoration
from art_defenses_ext.training.inputs import mixture
from art_defenses_ext.training.loop import Settings
from art_defenses_ext.transformer.jump_relu import JumpReLU
from art_defenses_ext.zoo.datasets import NB_CLASSES, Dataset


@dataclass(frozen=True)
class Wishes:
    """What the user asked of a defence.

    Attributes:
        jump: of the JumpReLU; None: tuned.
        max_accuracy_drop: what tuning may cost.
        options: further options of the defence's constructor and of its training, by name.
        eps: what a defence is trained against, as a share of the clip range, unless an option says otherwise.
        fitted: the file of a trained defence; None: trained.
        seed: of the training.
    """

    jump: float | None
    max_accuracy_drop: float
    options: dict[str, Any]
    eps: float
    fitted: Path | None
    seed: int


Defend = Callable[[PyTorchClassifier, Dataset, Wishes], PyTorchClassifier]
"""(classifier, data set, wishes) -> the classifier with the defence on it; with a detector one that rejects."""


def _anything_goes(wishes: Wishes, dataset: str) -> None:
    """Refuses nothing."""


@dataclass(frozen=True)
class Choice:
    """A defence on the command line.

    Attributes:
        title: the method and its paper.
        put_on: makes the defended classifier.
        options: what --option may name.
        check: refuses what cannot be done for a data set of that name, before any work.
        trained: whether it is trained, or read from a file.
    """

    title: str
    put_on: Defend
    options: tuple[str, ...] = ()
    check: Callable[[Wishes, str], object] = _anything_goes
    trained: bool = False


DECIDED = ("apply_fit", "apply_predict", "channels", "nb_classes", "batch_size")
"""Of a restorer's constructor, what the classifier decides, and what would mean two things."""

TRAINING = ("eps", "inputs", "adversarial", "attack_mode", "nb_epochs", "batch_size", "learning_rate")
"""What --option may name of a restorer's training."""

RESTORER_TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"nb_epochs": 60, "batch_size": 32},
    "mnist": {"nb_epochs": 2},
    "fashion_mnist": {"nb_epochs": 2},
}
"""Seconds for digits, minutes for the others on a CPU."""

DETECTOR_OPTIONS = ("nb_epochs", "batch_size", "validation_split")
"""What --option may name of a detector's training."""

DETECTOR_TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"nb_epochs": 60, "validation_split": 0.25},  # of a hundred images a class: the thresholds need nineteen
    "mnist": {},
    "fashion_mnist": {},
    "cifar10": {},
}
"""Where its own settings take no more than minutes on a CPU."""


def _jump_relu(classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> PyTorchClassifier:
    defence = JumpReLU(classifier, jump=0.0 if wishes.jump is None else wishes.jump)
    if wishes.jump is None:
        defence.fit(dataset.validation.x, dataset.validation.y, max_accuracy_drop=wishes.max_accuracy_drop)
    return defence()


def _heat_and_blur(classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> PyTorchClassifier:
    return defend(classifier, HeatAndBlur.for_classifier(classifier, **wishes.options))


def _restorer(face: type[TrainedRestorer], title: str) -> Choice:
    """A defence that is trained on the training images, or comes from a file."""
    own = tuple(name for name in face.params if name not in DECIDED)

    def put_on(classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> PyTorchClassifier:
        if wishes.fitted is not None:
            return defend(classifier, face.load(wishes.fitted, classifier=classifier))
        made, training = _parted(wishes, dataset.name, own)
        restorer = face.for_classifier(classifier, **made)
        adversarial = training.pop("adversarial")
        restorer.fit(dataset.train.x, dataset.train.y, **training)
        if adversarial:
            training.pop("inputs", None)  # the first stage's; the second's are made through the defence
            restorer.fit(dataset.train.x, dataset.train.y, **training, adversarial=True)
        return defend(classifier, restorer)

    def check(wishes: Wishes, dataset: str) -> None:
        if wishes.fitted is not None:
            return
        made, training = _parted(wishes, dataset, own)
        _check_affordable(face.defence_name, dataset, "nb_epochs" in training)
        grey = dataset in ("digits", "mnist", "fashion_mnist")
        classes = (
            {"nb_classes": 1000 if dataset == "image_folder" else NB_CLASSES} if "nb_classes" in face.params else {}
        )
        face(nn.Conv2d(1, 1, 1), channels=1 if grey else 3, **classes, **made)
        _check_training(face, training)

    return Choice(title, put_on, own + TRAINING, check, trained=True)


def _parted(wishes: Wishes, dataset: str, own: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a restorer's constructor, and those of its training."""
    usual = {"eps": wishes.eps, "seed": wishes.seed, "adversarial": False} | RESTORER_TRAINING.get(dataset, {})
    made = {name: value for name, value in wishes.options.items() if name in own}
    return made, usual | {name: value for name, value in wishes.options.items() if name in TRAINING}


def _check_affordable(defence: str, dataset: str, known: bool) -> None:
    """Refuse a training of which nobody said how long it may take."""
    if not known:
        raise InputError(
            f"defence {defence} must be trained, which takes long on {dataset}; "
            "--fitted FILE, or -o nb_epochs=NUMBER, was expected"
        )


def _check_training(face: type[TrainedRestorer], training: dict[str, Any]) -> None:
    Settings(**{name: training[name] for name in ("nb_epochs", "batch_size", "learning_rate") if name in training})
    mixture(training.get("inputs", face.usual_inputs), training["eps"])
    check_choice("attack_mode", training.get("attack_mode", "exact"), face.gradient_modes)
    check_flag("adversarial", training["adversarial"])


def _explanation_reconstructor() -> Choice:
    """A detector that is fitted on the training images, or comes from a file."""
    own = tuple(ExplanationReconstructor.defence_params)

    def parted(wishes: Wishes, dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
        made = {name: value for name, value in wishes.options.items() if name in own}
        training = {name: value for name, value in wishes.options.items() if name not in own}
        return made, {"seed": wishes.seed} | DETECTOR_TRAINING.get(dataset, {}) | training

    def put_on(classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> PyTorchClassifier:
        if wishes.fitted is not None:
            return rejecting(classifier, ExplanationReconstructor.load(wishes.fitted, classifier=classifier))
        made, training = parted(wishes, dataset.name)
        detector = ExplanationReconstructor(classifier, **made)
        detector.fit(dataset.train.x, **training)
        return rejecting(classifier, detector)

    def check(wishes: Wishes, dataset: str) -> None:
        if wishes.fitted is not None:
            return
        made, training = parted(wishes, dataset)
        _check_affordable("explanation_reconstructor", dataset, dataset in DETECTOR_TRAINING or "nb_epochs" in training)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, NB_CLASSES))  # any will do
        classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 2, 2), NB_CLASSES, device_type="cpu")
        ExplanationReconstructor(classifier, **made)
        told: dict[str, Any] = {"nb_epochs": 1}  # the fit has a default, which needs no check
        told |= {name: training[name] for name in ("nb_epochs", "batch_size") if name in training}
        Settings(**told)
        check_inner_share("validation_split", training.get("validation_split", 0.1))

    return Choice(
        "Explanation reconstructor: a detector of explanations that look like no benign one's (Ko, Lim 2021)",
        put_on,
        own + DETECTOR_OPTIONS,
        check,
        trained=True,
    )


def _bare(classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> PyTorchClassifier:
    return classifier


DEFENCES: dict[str, Choice] = {
    "jump_relu": Choice("JumpReLU: a jump retrofitted to every ReLU (Erichson et al. 2019)", _jump_relu),
    "heat_and_blur": Choice(
        "Heat and Blur: what the network found irrelevant is blurred (Brama, Grinshpoun 2020)",
        _heat_and_blur,
        tuple(name for name in HeatAndBlur.params if not name.startswith("apply_")),
        lambda wishes, _: HeatAndBlur(nn.Conv2d(1, 1, 1), **wishes.options),  # any network with a convolution
    ),
    "feature_autoencoder": _restorer(
        FeatureAutoencoder, "Feature autoencoder: a denoiser trained on feature losses (Sivamani 2019)"
    ),
    "two_stream_restoration": _restorer(
        TwoStreamRestoration, "TRN: restores from the image and an estimate of the gradient (Hong et al. 2022)"
    ),
    "explanation_reconstructor": _explanation_reconstructor(),
    "none": Choice("the bare classifier", _bare),
}


def put_on(classifier: PyTorchClassifier, dataset: Dataset, wishes: dict[str, Wishes]) -> PyTorchClassifier:
    """The classifier with defences by name, put on in their order, each fitted to what stands already.

    Images meet preprocessors in that order, whatever stands between them.
    """
    for name, one in wishes.items():
        classifier = DEFENCES[name].put_on(classifier, dataset, one)
    return classifier
