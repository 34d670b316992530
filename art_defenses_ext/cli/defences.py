"""A defended classifier from the names, options and files that a user types."""

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
"""In place of a defence's name: the undefended model."""

NOT_TYPED = ("progress",)
"""Declared options that mean nothing on the command line."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked of a defence.

    Attributes:
        options: of the defence's constructor and of its training, by name.
        eps: what a defence is trained against, as a share of the clip range, unless an option says otherwise.
        seed: of the training, unless an option says otherwise.
        fitted: the file of a fitted defence; None: fitted here.
    """

    options: dict[str, Any]
    eps: float
    seed: int
    fitted: Path | None = None


def defence_names() -> list[str]:
    """Return what may be typed as a defence; nothing is imported."""
    return [*installed(), NONE]


def face_of(name: str) -> type[DefenceFace] | None:
    """Return the class of a defence; None for ``none``."""
    return None if name == NONE else load_face(name)


def option_names(name: str) -> list[str]:
    """Return what --option may name of a defence: of its constructor, then of its training."""
    face = face_of(name)
    if face is None:
        return []
    own = [option for option in face.options() if option not in face.from_classifier]
    return list(dict.fromkeys([*own, *(option for option in face.training_options() if option not in NOT_TYPED)]))


def is_detector(name: str) -> bool:
    """Return whether a defence rejects images."""
    face = face_of(name)
    return face is not None and issubclass(face, BinaryInputDetector)


def check_wishes(name: str, wishes: Wishes, dataset: str) -> None:
    """Refuse what cannot be done for a data set of that name, before any work.

    Raises:
        InputError: for an option that cannot be used, and a training of which nobody said how long it may take.
    """
    face = face_of(name)
    if face is None or wishes.fitted is not None:
        return
    made, training = _parted(face, wishes, dataset)
    kinds = face.training_options()
    chosen = [option for option in face.chosen_by_fit if option in made]
    for option in [option for option in wishes.options if chosen and option not in made]:
        raise InputError(f"option is {option!r}, but {chosen[0]} is given, which a fit would choose; one was expected")
    if "nb_epochs" in kinds and "nb_epochs" not in training and dataset not in face.usual_training:
        raise InputError(
            f"defence {name} must be trained, which takes long on {dataset}; "
            "--fitted FILE, or -o nb_epochs=NUMBER, was expected"
        )
    face.for_classifier(_stand_in(dataset), **made)
    for option, value in training.items():
        kinds[option].checked(option, value)


def put_on(classifier: PyTorchClassifier, dataset: Dataset, wishes: dict[str, Wishes]) -> PyTorchClassifier:
    """Return the classifier with defences by name, put on in their order, each fitted to what stands already.

    Images meet preprocessors in that order, whatever stands between them.
    """
    for name, wished in wishes.items():
        face = face_of(name)
        if face is not None:
            classifier = _make(face, classifier, dataset, wished).apply(classifier)
    return classifier


def _make(face: type[DefenceFace], classifier: PyTorchClassifier, dataset: Dataset, wishes: Wishes) -> DefenceFace:
    """Return the defence for a classifier: from its file, or fitted."""
    if wishes.fitted is not None:
        return face.load(wishes.fitted, classifier=classifier)
    made, training = _parted(face, wishes, dataset.name)
    defence = face.for_classifier(classifier, **made)
    if face.fitted_on is not None and not any(option in made for option in face.chosen_by_fit):
        images = getattr(dataset, face.fitted_on)
        for stage in face.stages(training):
            defence.fit(images.x, images.y, **stage)
    return defence


def _parted(face: type[DefenceFace], wishes: Wishes, dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a defence's constructor, and those of its training."""
    kinds = face.training_options()
    usual = {"eps": wishes.eps, "seed": wishes.seed} | dict(face.usual_training.get(dataset, {}))
    training = usual | {name: value for name, value in wishes.options.items() if name in kinds}
    made = {name: value for name, value in wishes.options.items() if name not in kinds}
    return made, {name: value for name, value in training.items() if name in kinds}


def _stand_in(dataset: str) -> PyTorchClassifier:
    """A small network for images of a data set, untrained: what a defence refuses of options, it refuses for this."""
    shape = MODELS[DEFAULT_MODEL[dataset]].input_shape
    nb_classes = 1000 if dataset == "image_folder" else NB_CLASSES
    layers = nn.Conv2d(shape[0], 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(2, nb_classes)).eval()
    return PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, nb_classes, clip_values=(0.0, 1.0), device_type="cpu"
    )


def check_defences(names: Sequence[str]) -> list[str]:
    """Return the names of defences, if they can be put on one after the other.

    Raises:
        InputError: for an unknown one, one twice, ``none`` beside others, or something after a detector.
    """
    for name in names:
        check_choice("defence", name, defence_names())
        if names.count(name) > 1:
            raise InputError(f"defence is {name!r} twice; each only once was expected")
    if NONE in names and len(names) > 1:
        raise InputError(f"defence is {', '.join(names)}; 'none' only alone was expected")
    if any(map(is_detector, names[:-1])):
        raise InputError(f"defence is {', '.join(names)}; the detector as the last was expected: it watches all others")
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
        files[defence] = Path(path)
    return files


def check_file(name: str, wishes: Wishes) -> None:
    """Refuse a file that is missing or means nothing to the defence, and options beside it."""
    if wishes.fitted is None:
        return
    if not _is_fitted(name):
        raise InputError(f"fitted is {wishes.fitted}, but defence {name} is not fitted; no file was expected")
    if wishes.options:
        raise InputError(
            f"fitted is {wishes.fitted} and option is {next(iter(wishes.options))!r}; a file holds its own options"
        )
    if not wishes.fitted.is_file():
        raise InputError(f"fitted is {wishes.fitted}; an existing file was expected")


def _is_fitted(name: str) -> bool:
    face = face_of(name)
    return face is not None and face.fitted_on is not None
