"""The common interface of all defences, beside ART's conventions."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.checkpoint import Checkpoint, load_checkpoint, rebuilding, save_checkpoint
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import CheckpointError, InputError
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_classifier, differs
from art_defenses_ext.gradients.modes import Defence, find_defences

MADE_FOR = "made for"
"""The entry in a file for further properties of the classifier that must be the same."""


class DefenceFace:
    """Mix-in for the public class of a defence, which is a preprocessor, detector or transformer of ART.

    An option of the constructor is an attribute with a declared kind, such as ``levels: Count``; an option of the
    training is an argument of ``fit`` with a declared kind. Checks and errors, ``set_params``, saved files and
    ``-o NAME=VALUE`` on the command line follow from these two declarations.

    Attributes:
        name: the name in records, reports, files and on the command line, such as ``"jump_relu"``.
        title: the method and its paper, on one line.
        paper: the address of the paper.
        gradient_modes: the backward passes that an attacker may use; ``"exact"`` comes first.
        fitted_on: the images for ``fit``: ``"train"`` or ``"validation"``; None if there is no fit.
        chosen_by_fit: options that ``fit`` chooses; if one of them is given, the command line does not fit.
        from_classifier: options that the classifier determines, which the command line does not have.
        usual_training: by data set, the arguments of a training that takes minutes at most on a CPU. On other data sets
            the command line trains only if the number of epochs is given.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    gradient_modes: ClassVar[tuple[str, ...]]
    fitted_on: ClassVar[Literal["train", "validation"] | None] = None
    chosen_by_fit: ClassVar[tuple[str, ...]] = ()
    from_classifier: ClassVar[tuple[str, ...]] = ()
    fit: Callable[..., None]
    """``fit(x, y, batch_size=, ...)``: images, their class labels, and the number of images in a step or a pass."""
    usual_training: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    @classmethod
    def options(cls) -> dict[str, Kind]:
        """Return the options of the constructor by name, with their kinds."""
        return declared_of(cls)  # type: ignore[arg-type]

    @classmethod
    def training_options(cls) -> dict[str, Kind]:
        """Return the options of ``fit`` by name, with their kinds."""
        return {} if cls.fitted_on is None else declared_of(cls.fit)

    @classmethod
    def stages(cls, training: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the arguments of the successive calls of ``fit`` that make up a training."""
        return [training]

    @classmethod
    def for_classifier(cls, classifier: PyTorchClassifier, **options: Any) -> Self:
        """Return the defence for a classifier, not fitted yet; by default the constructor's result.

        Args:
            classifier: the classifier to defend.
            **options: options of the constructor.
        """
        return cls(classifier, **options)  # type: ignore[call-arg]  # a mix-in of ART's classes

    @abstractmethod
    def apply(self, classifier: PyTorchClassifier) -> PyTorchClassifier:
        """Return the defended classifier; for a detector, a classifier that rejects."""

    def save(self, path: str | Path) -> None:
        """Write options and fitted parameters to one safetensors file, with a hash of the defended network.

        Args:
            path: the file; an existing one is replaced atomically.

        Raises:
            InputError: if the defence is not fitted yet, and as :func:`.save_checkpoint`.
        """
        settings = {name: getattr(self, name) for name in self._parameters_of_file()} | {MADE_FOR: self._made_for()}
        save_checkpoint(path, self.name, settings, self._own(), self._network(), self._fits())

    @classmethod
    def load(cls, path: str | Path, *, classifier: PyTorchClassifier) -> Self:
        """Return the defence that was saved to ``path``, for the classifier that it was saved with.

        Other weights or modules are recognised by their hash. Settings of modules without a tensor, such as a slope or
        a stride, are not: they must be the same.

        Args:
            path: the file.
            classifier: the classifier that it was saved with.

        Raises:
            InputError: as :func:`.load_checkpoint` and :meth:`for_classifier`, and for a classifier with another range,
                normalisation or, if they matter, other defences.
        """
        saved = load_checkpoint(path, cls.name, cls._network_of(check_classifier(classifier)))
        settings = dict(saved.settings)
        made_for = settings.pop(MADE_FOR, None)
        with rebuilding(path, cls.__name__):
            defence = cls.for_classifier(classifier, **settings)
            defence._restore(saved, f"path is {str(path)!r}")
        if made_for != defence._made_for():
            raise CheckpointError(
                f"path is {str(path)!r}, made for {made_for}, and the classifier has {defence._made_for()} "
                f"({cls.made_for_in_words}); the same were expected"
            )
        return defence

    # What a file holds

    made_for_in_words: ClassVar[str] = "clip values, mean, std"

    @classmethod
    def _network_of(cls, classifier: PyTorchClassifier) -> nn.Module:
        """Return the network of a classifier, whose hash is in the file."""
        network: nn.Module = classifier.model
        return network

    @classmethod
    def check_options(cls, stand_in: PyTorchClassifier, **options: Any) -> None:
        """Refuse options that no network takes, on a small classifier that stands for the user's."""
        cls.for_classifier(stand_in, **options)

    @abstractmethod
    def _network(self) -> nn.Module:
        """Return the network of the defence."""

    def _parameters_of_file(self) -> Sequence[str]:
        return self.params  # type: ignore[attr-defined,no-any-return]  # of ART's class beside this mix-in

    def _made_for(self) -> list[Any]:
        """Return further properties of the classifier that must be the same, as JSON holds them."""
        return []

    def _own(self) -> nn.Module:
        """Return the module whose parameters and buffers are saved."""
        return nn.Module()

    def _fits(self) -> list[dict[str, Any]]:
        """Return the description of each fit, as plain data."""
        return []

    def _restore(self, saved: Checkpoint, subject: str) -> None:
        """Restore the saved state besides the options; ``subject`` begins the messages of errors."""

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return the attacks of the method's own paper; none by default."""
        return ()


def made_for(classifier: PyTorchClassifier) -> list[Any]:
    """Return clip values, mean, std and settings of the defences, which the weights do not determine, as plain data."""
    clip = classifier.clip_values
    numbers = [None if clip is None else [np.asarray(end).tolist() for end in clip]]
    for name in ("mean", "std"):
        value = getattr(classifier.preprocessing, name, None)
        numbers.append(None if value is None else np.asarray(value, dtype=np.float32).ravel().tolist())
    others = [step for step in classifier.preprocessing_defences or [] if not isinstance(step, Defence)]
    numbers += [[type(step).__name__, {name: getattr(step, name) for name in step.params}] for step in others]
    numbers += [[defence.name, defence.describe()] for defence in find_defences(classifier)]
    plain: list[Any] = json.loads(json.dumps(numbers, default=str))
    return plain


def check_known(face: DefenceFace, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse names that are not parameters of a defence, which ART would drop silently."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"{', '.join(unknown)}: no parameter of {type(face).__name__}; it has {list(known)}")


def check_unchanged(face: DefenceFace, params: Mapping[str, Any], fixed: Sequence[str]) -> None:
    """Refuse new values for the parameters ``fixed``, which a defence cannot change."""
    for name in fixed:
        if name in params and differs(params[name], getattr(face, name)):
            raise InputError(
                f"{name} is {shown(params[name])}, and the {type(face).__name__} was made for "
                f"{getattr(face, name)!r}; a new one was expected"
            )
