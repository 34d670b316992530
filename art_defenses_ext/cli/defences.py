"""Defended classifiers from typed names, options and files of defences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import check_choice
from art_defenses_ext.defence.face import DefenceFace
from art_defenses_ext.defence.registry import installed, load_face
from art_defenses_ext.zoo.catalogue import DEFAULT_MODEL, MODELS
from art_defenses_ext.zoo.datasets import NB_CLASSES, Dataset

NONE = "none"
"""The name, in place of a defence's, of the undefended model."""

NOT_TYPED = ("progress",)
"""Declared options that the command line does not have."""


@dataclass(frozen=True)
class DefenceSpec:
    """The options of a defence, as typed.

    Attributes:
        options: options of the defence's constructor and of its training, by name.
        eps: eps of the training, as a share of the clip range, unless an option sets another.
        seed: seed of the training, unless an option sets another.
        fitted: the file of a fitted defence; None if it is to be fitted.
    """

    options: dict[str, Any]
    eps: float
    seed: int
    fitted: Path | None = None


def defence_names() -> list[str]:
    """Return the names of all defences; nothing is imported."""
    return [*installed(), NONE]


def face_of(name: str) -> type[DefenceFace] | None:
    """Return the class of a defence; None for ``none``."""
    return None if name == NONE else load_face(name)


def option_names(name: str) -> list[str]:
    """Return the names of a defence's options: those of its constructor, then those of its training."""
    face = face_of(name)
    if face is None:
        return []
    own = [option for option in face.options() if option not in face.from_classifier]
    return list(dict.fromkeys([*own, *(option for option in face.training_options() if option not in NOT_TYPED)]))


def is_detector(name: str) -> bool:
    """Return whether a defence rejects images."""
    face = face_of(name)
    return face is not None and issubclass(face, BinaryInputDetector)


def check_spec(name: str, spec: DefenceSpec, dataset: str) -> None:
    """Check the specification of a defence for a data set, before any work.

    Raises:
        InputError: for an invalid option, and for a long training without a number of epochs.
    """
    face = face_of(name)
    if face is None or spec.fitted is not None:
        return
    constructor_options, training = _split_options(face, spec, dataset)
    kinds = face.training_options()
    tuned = [option for option in face.chosen_by_fit if option in constructor_options]
    for option in [option for option in spec.options if tuned and option not in constructor_options]:
        raise InputError(
            f"option is {option!r}, but {tuned[0]} is given, which a fit would choose; one of both was expected"
        )
    if "nb_epochs" in kinds and "nb_epochs" not in training and dataset not in face.usual_training:
        raise InputError(
            f"defence {name} must be trained, which takes long on {dataset}; "
            "--fitted FILE, or -o nb_epochs=NUMBER, was expected"
        )
    face.check_options(_stand_in(dataset), **constructor_options)
    for option, value in training.items():
        kinds[option].checked(option, value)


def apply_defences(classifier: PyTorchClassifier, dataset: Dataset, specs: dict[str, DefenceSpec]) -> PyTorchClassifier:
    """Return the classifier with the defences applied in their order, each fitted to the classifier before it.

    Images pass through the preprocessors in this order, whatever other defences lie between them.
    """
    for name, spec in specs.items():
        face = face_of(name)
        if face is not None:
            classifier = _make(face, classifier, dataset, spec).apply(classifier)
    return classifier


def _make(face: type[DefenceFace], classifier: PyTorchClassifier, dataset: Dataset, spec: DefenceSpec) -> DefenceFace:
    """Return the defence for a classifier, loaded from its file or fitted."""
    if spec.fitted is not None:
        return face.load(spec.fitted, classifier=classifier)
    constructor_options, training = _split_options(face, spec, dataset.name)
    defence = face.for_classifier(classifier, **constructor_options)
    if face.fitted_on is not None and not any(option in constructor_options for option in face.chosen_by_fit):
        images = getattr(dataset, face.fitted_on)
        for stage in face.stages(training):
            defence.fit(images.x, images.y, **stage)
    return defence


def _split_options(face: type[DefenceFace], spec: DefenceSpec, dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a defence's constructor, and those of its training."""
    kinds = face.training_options()
    usual = {"eps": spec.eps, "seed": spec.seed} | dict(face.usual_training.get(dataset, {}))
    training = usual | {name: value for name, value in spec.options.items() if name in kinds}
    constructor_options = {name: value for name, value in spec.options.items() if name not in kinds}
    return constructor_options, {name: value for name, value in training.items() if name in kinds}


def _stand_in(dataset: str) -> PyTorchClassifier:
    """Return a small, untrained classifier for images of a data set, with which a defence checks its options."""
    shape = MODELS[DEFAULT_MODEL[dataset]].input_shape
    nb_classes = 1000 if dataset == "image_folder" else NB_CLASSES
    layers = nn.Conv2d(shape[0], 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(2, nb_classes)).eval()
    return PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, nb_classes, clip_values=(0.0, 1.0), device_type="cpu"
    )


def check_defences(names: Sequence[str]) -> list[str]:
    """Return the names of defences, if they can be applied one after the other.

    Raises:
        InputError: for an unknown or repeated name, ``none`` beside others, or a defence after a detector.
    """
    for name in names:
        check_choice("defence", name, defence_names())
        if names.count(name) > 1:
            raise InputError(f"defence is {name!r} twice; each defence once was expected")
    if NONE in names and len(names) > 1:
        raise InputError(f"defence is {', '.join(names)}; 'none' alone was expected")
    if any(map(is_detector, names[:-1])):
        raise InputError(f"defence is {', '.join(names)}; the detector in the last place was expected")
    return list(names)


def options_of(names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each defence, from ``NAME=VALUE``, or ``DEFENCE.NAME=VALUE`` where there are several.

    A value is a number, true, false, null or a list where it reads as one in JSON, else text.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pair in given:
        path, equals, text = pair.partition("=")
        defence, dot, option = path.rpartition(".")
        owner = names[0] if len(names) == 1 and not dot else defence
        if not equals or owner not in names or option not in option_names(owner):
            raise InputError(f"option is {pair!r}; {_expected(names)} was expected")
        try:
            options[owner][option] = json.loads(text)
        except json.JSONDecodeError:
            options[owner][option] = text
    return options


def _expected(names: Sequence[str]) -> str:
    if len(names) > 1:
        known = [f"{name}.{option}" for name in names for option in option_names(name)]
        return f"DEFENCE.NAME=VALUE with one of {', '.join(known)}"
    known = option_names(names[0])
    return f"NAME=VALUE with one of {', '.join(known)}" if known else f"none, since {names[0]} has no options,"


def files_of(names: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """Return the files of fitted defences, from ``FILE``, or ``DEFENCE=FILE`` where there are several."""
    files: dict[str, Path] = {}
    for text in given:
        defence, equals, path = text.partition("=")
        if not equals or defence not in defence_names():
            fitted = [name for name in names if _is_fitted(name)] or list(names)
            if len(fitted) > 1 or len(given) > 1:
                raise InputError(f"fitted is {text}; DEFENCE=FILE was expected")
            defence, path = fitted[0], text
        if defence not in names:
            raise InputError(f"fitted is {text}, but {defence} is not among the defences; one of them was expected")
        if defence in files:
            raise InputError(f"fitted is {files[defence]} and {path} for {defence}; one file was expected")
        files[defence] = Path(path)
    return files


def check_file(name: str, spec: DefenceSpec) -> None:
    """Refuse a file that is missing or that the defence cannot use, and options beside a file."""
    if spec.fitted is None:
        return
    if not _is_fitted(name):
        raise InputError(f"fitted is {spec.fitted}, but defence {name} is not fitted; no file was expected")
    if spec.options:
        raise InputError(
            f"fitted is {spec.fitted} and option is {next(iter(spec.options))!r}; a file holds its own options"
        )
    if not spec.fitted.is_file():
        raise InputError(f"fitted is {spec.fitted}; an existing file was expected")


def _is_fitted(name: str) -> bool:
    face = face_of(name)
    return face is not None and face.fitted_on is not None
