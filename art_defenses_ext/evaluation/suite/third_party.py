"""Attacks of other libraries as attacks of an evaluation, with one entry of a table for each library.

A library's attack is called with the defended classifier as one network (:func:`.as_module`), under the gradient mode
that the evaluation sets, and with the threat's norm and radius if the attack takes them. For libraries that take images
in [0, 1] only, images and network are rescaled. The images of the attack are treated like those of any other attack.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from torch import Tensor, nn

from art_defenses_ext.attack.by_class import ByClass
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_labels, one_line, within_clip_values
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Kind, Modes
from art_defenses_ext.evaluation.threat import Threat

Options = Mapping[str, Any]


class Target(NamedTuple):
    """The inputs of a library's attack.

    Attributes:
        network: from images to logits, in evaluation mode.
        classifier: the same model as ART's classifier.
        threat: the ball, in the units of the network's images.
        low, high: least and largest pixel value.
        seed: seed of the attack.
    """

    network: nn.Module
    classifier: PyTorchClassifier
    threat: Threat
    low: float
    high: float
    seed: int


Run = Callable[[Tensor, Tensor], Tensor]
"""Images (N, ...) and labels (N,) -> adversarial images (N, ...)."""


@dataclass(frozen=True)
class Library:
    """The calling conventions of a library's attacks.

    Attributes:
        module: the module of its attacks.
        distribution: its name on the package index.
        install: the command that installs it.
        find: returns the attack of a name in the module; raises ``AttributeError`` for an unknown name.
        prepare: returns the attack as one function; None for ART's attacks, which need none.
        unit: whether it takes images in [0, 1] only.
    """

    module: str
    distribution: str
    install: str
    find: Callable[[ModuleType, str], Any]
    prepare: Callable[[Any, Target, Options], Run] | None
    unit: bool = True


def _named(module: ModuleType, name: str) -> Any:
    attack = getattr(module, name)
    if not callable(attack) or isinstance(attack, ModuleType):
        raise AttributeError(name)
    return attack


VERSIONS = ("standard", "plus", "rand")
SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
"""The ensemble of AutoAttack's authors in its versions, and its attacks."""

NEEDS_FOUR_LOGITS = ("apgd-dlr", "apgd-t")


def _find_ensemble(module: ModuleType, name: str) -> Any:
    if name not in (*VERSIONS, *SINGLE):
        raise AttributeError(name)
    return partial(_ensemble, module.AutoAttack, name)


def _ensemble(build: Any, name: str, network: nn.Module, *, eps: float, **options: Any) -> Any:
    """Return the ensemble in a version, or a single attack of the standard version."""
    ensemble = build(network, eps=eps, version=name if name in VERSIONS else VERSIONS[0], **options)
    if name in SINGLE:
        ensemble.attacks_to_run = [name]
    return ensemble


def _autoattack(build: Any, target: Target, options: Options) -> Run:
    """Return a run of AutoAttack.

    **Departure**: with at most ten classes each other class is a target, and attacks whose loss needs a fourth logit
    are left out without one; the authors' code raises an error.
    """
    count, device = target.classifier.nb_classes, target.classifier.device
    norm = target.threat.norm_name.capitalize()
    ensemble = build(target.network, norm=norm, eps=target.threat.eps, seed=target.seed, device=device)
    for attack in (ensemble.apgd_targeted, ensemble.fab):
        attack.n_target_classes = min(attack.n_target_classes, count - 1)
    for path, value in options.items():
        owner, _, name = path.rpartition("__")
        part = getattr(ensemble, owner) if owner else ensemble
        getattr(part, name)  # a misspelt one would have no effect
        setattr(part, name, value)
    if count < 4:
        attacks = [name for name in ensemble.attacks_to_run if name not in NEEDS_FOUR_LOGITS]
        ensemble.attacks_to_run = attacks or ["apgd-ce"]

    def run(x: Tensor, y: Tensor) -> Tensor:
        adversarial: Tensor = ensemble.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return adversarial

    return run


def _foolbox(attack: Any, target: Target, options: Options) -> Run:
    import foolbox

    instance = attack(**options)
    model = foolbox.PyTorchModel(target.network, bounds=(target.low, target.high), device=target.classifier.device)
    # The smallest perturbation of the attack, of any size; the evaluation decides whether it counts.
    bounded = isinstance(instance, foolbox.attacks.base.FixedEpsilonAttack)

    def run(x: Tensor, y: Tensor) -> Tensor:
        adversarial: Tensor = instance(model, x, y, epsilons=target.threat.eps if bounded else None)[1]
        return adversarial

    return run


def _torchattacks(attack: Any, target: Target, options: Options) -> Run:
    norm = {"norm": target.threat.norm_name.capitalize()}
    instance = attack(target.network, **_taken(attack, norm | {"eps": target.threat.eps, "seed": target.seed}, options))

    def run(x: Tensor, y: Tensor) -> Tensor:
        adversarial: Tensor = instance(x, y)
        return adversarial

    return run


def _adv_lib(attack: Any, target: Target, options: Options) -> Run:
    threat = target.threat
    ball = {"norm": float(threat.norm), "eps": threat.eps, "ε": threat.eps}

    def run(x: Tensor, y: Tensor) -> Tensor:
        adversarial: Tensor = attack(target.network, x, y, **_taken(attack, ball, options))
        return adversarial

    return run


def _art(attack: Any, target: Target, options: Options) -> EvasionAttack:
    threat = target.threat
    ball = {"norm": threat.norm, "eps": threat.eps, "eps_step": threat.eps / 4, "verbose": False}
    instance: EvasionAttack = attack(target.classifier, **_taken(attack, ball, options))
    return instance


def _taken(attack: Any, defaults: Options, options: Options) -> dict[str, Any]:
    """Return the options, and those defaults for which the attack has a parameter."""
    parameters = signature(attack).parameters
    return {name: value for name, value in defaults.items() if name in parameters} | dict(options)


LIBRARIES: dict[str, Library] = {
    "autoattack": Library(
        "pyautoattack", "pyautoattack", 'pip install "art-defenses-ext[autoattack]"', _find_ensemble, _autoattack
    ),
    "foolbox": Library("foolbox.attacks", "foolbox", "pip install foolbox", _named, _foolbox, unit=False),
    "torchattacks": Library(
        "torchattacks", "torchattacks", "pip install --no-deps torchattacks", _named, _torchattacks
    ),
    "adv_lib": Library("adv_lib.attacks", "adv-lib", "pip install adv-lib", _named, _adv_lib),
    "art": Library(
        "art.attacks.evasion", "adversarial-robustness-toolbox", "pip install adversarial-robustness-toolbox",
        _named, None, unit=False,
    ),
}  # fmt: skip
"""The libraries by their names in :func:`ThirdParty`."""


def ThirdParty(
    attack: str,
    *,
    name: str | None = None,
    kind: Kind | None = None,
    modes: Modes | None = None,
    options: Options | None = None,
) -> AttackSpec:
    """Return an attack of another library as an attack of an evaluation.

    Args:
        attack: ``"autoattack"``, the ensemble of its authors in version ``standard``; ``"autoattack:rand"`` or another
            version, or one of its attacks alone, such as ``"autoattack:apgd-t"``; ``"foolbox:CLASS"``,
            ``"torchattacks:CLASS"``, ``"art:CLASS"`` and ``"adv_lib:FUNCTION"``, named as in the library.
        name: name of the attack in records and reports; None for ``attack`` itself.
        kind: kind of the attack, as in :class:`AttackSpec`. None for ``"white-box"`` with AutoAttack, and ``"other"``
            with other libraries, which do not declare it.
        modes: the gradient modes to run it under; None for all modes if ``kind`` follows gradients, else the exact one.
        options: options of the library's attack, by name. Norm, radius and seed come from the evaluation if the attack
            takes them. AutoAttack's options are attributes of its attacks, such as ``{"square__n_queries": 100}``.

    Returns:
        The attack, for a list of attacks of :func:`evaluate`.

    Raises:
        InputError: for an unknown library or attack, or a library that is not installed.

    **Convention**: an attack runs on the samples that no earlier attack broke, with its own step sizes; for ART's
    attacks a step is a quarter of the radius unless an option sets another.

    >>> from art_defenses_ext import Linf, ThirdParty, evaluate
    >>> pgd = ThirdParty("art:ProjectedGradientDescent", kind="white-box", options={"max_iter": 5})
    >>> report = evaluate(classifier, (x_test, y_test), Linf(0.3), [pgd], check_samples=0, progress=False)
    >>> [row.key for row in report.summary.rows]
    ['art:ProjectedGradientDescent [exact]']
    """
    title, _, attack_name = attack.partition(":") if isinstance(attack, str) else ("", "", "")
    library = LIBRARIES.get(title)
    if library is None or not (attack_name or title == "autoattack"):
        known = ", ".join(f"{other}:NAME" for other in LIBRARIES if other != "autoattack")
        raise InputError(f"attack is {shown(attack)}; autoattack, or one of {known}, was expected")
    build = _Build(title, attack_name or VERSIONS[0], tuple((options or {}).items()))
    kind = kind or ("white-box" if title == "autoattack" else "other")
    modes = modes or ("all" if kind in ("white-box", "single step") else "exact")
    purpose = f"{kind}: {library.distribution} {version(library.distribution)}"
    name, bounded = attack if name is None else name, _keeps_to_ball(build.find())
    return AttackSpec(name, build, purpose, kind=kind, modes=modes, bounded=bounded, norms=("linf", "l2", "l1"))


def _keeps_to_ball(attack: Any) -> bool:
    """Return whether an attack takes a radius, as a parameter or, of Foolbox's, when it is called."""
    fixed = "FixedEpsilonAttack" in (base.__name__ for base in getattr(attack, "__mro__", ()))
    return fixed or bool({"eps", "ε"} & set(signature(attack).parameters))


@dataclass(frozen=True)
class _Build:
    """The builder of an attack on a classifier; a manifest hashes its fields."""

    library: str
    attack: str
    options: tuple[tuple[str, Any], ...]

    def find(self) -> Any:
        """Return the library's attack.

        Raises:
            InputError: if the library is not installed, or has no such attack.
        """
        library = LIBRARIES[self.library]
        try:
            version(library.distribution)
            return library.find(import_module(library.module), self.attack)
        except ImportError as error:
            raise InputError(
                f"attack is of {self.library}, which cannot be imported ({one_line(error)}); `{library.install}` "
                "was expected"
            ) from error
        except AttributeError:
            raise InputError(
                f"attack is {self.attack!r} of {self.library}, which has no such attack; the name of one was expected"
            ) from None

    def __call__(self, classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        if LIBRARIES[self.library].prepare is None:
            return _art(self.find(), Target(classifier.model, classifier, threat, 0, 1, seed), dict(self.options))
        if rejects(classifier):
            return ByClass(classifier, lambda view: self(view, threat, seed))
        return ForeignAttack(classifier, threat, self, seed)


class ForeignAttack(EvasionAttack):
    """Another library's attack in ART's interface.

    Args:
        estimator: the classifier under attack.
        threat: the ball.
        build: library, attack and options.
        seed: seed of the attack.
    """

    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(self, estimator: PyTorchClassifier, threat: Threat, build: _Build, seed: int) -> None:
        super().__init__(estimator=estimator)
        library = LIBRARIES[build.library]
        low, high = _pixel_range(estimator, build.library)
        self.low, self.width = (low, high - low) if library.unit else (0.0, 1.0)
        network = as_module(estimator)
        if (self.low, self.width) != (0.0, 1.0):
            network = _OfUnitImages(network, self.low, self.width).eval()
            threat = threat.at(threat.eps / self.width)
        target = Target(network, estimator, threat, low, high, seed)
        assert library.prepare is not None  # ART's attacks need no such face
        self._run = library.prepare(build.find(), target, dict(build.options))

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> FloatArray:
        """Return adversarial examples for images ``x`` (N, ...) of classes ``y``, indices or one-hot."""
        labels = check_labels(y, self.estimator.nb_classes, len(x))
        device = self.estimator.device
        images = (torch.tensor(x, device=device) - self.low) / self.width
        with torch.enable_grad(), _trace_kept():
            adversarial = self._run(images, torch.tensor(labels, dtype=torch.int64, device=device))
        pixels = (adversarial.detach() * self.width + self.low).cpu().numpy().astype(np.float32)
        return within_clip_values(pixels, self.estimator.clip_values)[0]  # the product rounds, also of 1


@contextmanager
def _trace_kept() -> Iterator[None]:
    """Restore the trace function of a debugger or of a coverage measurement, which AutoAttack removes."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)


class _OfUnitImages(nn.Module):
    """A network for images in [0, 1] around one for images in another range."""

    def __init__(self, network: nn.Module, low: float, width: float) -> None:
        super().__init__()
        self.network, self.low, self.width = network, low, width

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x * self.width + self.low)
        return logits


def _pixel_range(classifier: PyTorchClassifier, library: str) -> tuple[float, float]:
    """Return the least and the largest pixel value.

    Raises:
        InputError: for a classifier without clip values, or with different ones by channel.
    """
    if classifier.clip_values is None or any(np.size(end) > 1 for end in classifier.clip_values):
        raise InputError(
            f"classifier has the clip values {classifier.clip_values}, and {library} attacks images in a range; two "
            "numbers were expected"
        )
    low, high = (float(np.reshape(end, ())) for end in classifier.clip_values)
    return low, high
