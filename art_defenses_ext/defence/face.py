"""What every defence offers beside ART's conventions, whatever its kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.paper_attack import PaperAttack


class DefenceFace:
    """Mix-in for the class by which users know a defence: ART's preprocessor, detector or transformer.

    An option of the constructor is an attribute with a declared kind, such as ``levels: Count``; one of the training
    is an argument of ``fit`` with a declared kind. From these two declarations follow what is refused, what
    ``set_params`` sets, what a file holds and what ``-o NAME=VALUE`` may name on the command line.

    Attributes:
        name: in records, reports, files and on the command line, such as ``"jump_relu"``.
        title: the method and its paper, in a line.
        paper: where the paper is.
        gradient_modes: the backward passes that an attacker may be given; ``"exact"`` comes first.
        fitted_on: the images that ``fit`` takes: ``"train"`` or ``"validation"``; None where nothing is fitted.
        chosen_by_fit: options that ``fit`` chooses; where the user gives one of them, the command line does not fit.
        from_classifier: options that the classifier decides, and that nobody types.
        usual_training: by data set the arguments of a training that takes no more than minutes on a CPU. On other data
            sets the command line trains only where the number of epochs is given.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    gradient_modes: ClassVar[tuple[str, ...]]
    fitted_on: ClassVar[Literal["train", "validation"] | None] = None
    chosen_by_fit: ClassVar[tuple[str, ...]] = ()
    from_classifier: ClassVar[tuple[str, ...]] = ()
    fit: Callable[..., None]
    """``fit(x, y, batch_size=, ...)``: images, their class labels, and how many images make a step or a pass."""
    usual_training: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    @classmethod
    def options(cls) -> dict[str, Kind]:
        """The options of the constructor by name, and what each may be."""
        return declared_of(cls)  # type: ignore[arg-type]

    @classmethod
    def training_options(cls) -> dict[str, Kind]:
        """The options of ``fit`` by name, and what each may be."""
        return {} if cls.fitted_on is None else declared_of(cls.fit)

    @classmethod
    def stages(cls, training: dict[str, Any]) -> list[dict[str, Any]]:
        """The arguments of each ``fit``, one after the other, that together make the training asked for."""
        return [training]

    @classmethod
    @abstractmethod
    def for_classifier(cls, classifier: PyTorchClassifier, **options: Any) -> Self:
        """The defence for a classifier, not fitted yet."""

    @abstractmethod
    def apply(self, classifier: PyTorchClassifier) -> PyTorchClassifier:
        """The defended classifier; of a detector one that rejects."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the defence to one file, with a hash of the network that it was made for."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, *, classifier: PyTorchClassifier) -> Self:
        """The defence that was saved to ``path``, for the classifier that it was saved with."""

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """What the method's own authors attacked it with; none by default."""
        return ()
