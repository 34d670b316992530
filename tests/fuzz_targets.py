"""The public API and the command as valid calls, with what each argument may be, declared independently.

What is legitimate is said here by the documentation, not by the product's checks; where this says more than those, a
case that they accept counts as silent.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from click.testing import CliRunner
from fuzz_pool import CLASSES, SHAPE
from safetensors.torch import save_file
from torch import Tensor, nn

from art_defenses_ext import (
    L1,
    L2,
    AttackSpec,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    RestorationLoss,
    Surrogate,
    TwoStreamRestoration,
    as_module,
    compare,
    defend,
    evaluate,
    gradient_mode,
    gradient_modes,
    rejecting,
)
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attack.warm_start import CrossedPGD, WarmSquare
from art_defenses_ext.attribution.relevance import Composite
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.traps import examine
from art_defenses_ext.evaluation.evaluate import evaluate_shard, run_key
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.publish.leaderboard import Entry, leaderboard
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.preprocessor.heat_and_blur import MIXES, RULES, SCALES, STARTS
from art_defenses_ext.preprocessor.two_stream_restoration import MAPS, STREAMS, WEIGHTS
from art_defenses_ext.testing.assertions import Suite
from art_defenses_ext.training.inputs import INPUTS
from art_defenses_ext.zoo.datasets import load_dataset
from art_defenses_ext.zoo.models import build_model
from art_defenses_ext.zoo.weights import load_weights

COSTLY = ("a large number", "a huge number", "a number without digits")
"""Legitimate numbers of steps that nobody waits for."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        holds: whether a value is legitimate; what it raises means no.
        leaves_out: values of the pool that would be legitimate and take for ever.
    """

    holds: Callable[[Any], bool]
    leaves_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A valid call.

    Attributes:
        name: of what is called.
        arguments: those that may be replaced, each with what it may be.
        valid: makes the arguments of a call that works.
        call: makes the call.
        weight: how often it is drawn, for each argument.
    """

    name: str
    arguments: Mapping[str, Kind]
    valid: Callable[[], dict[str, Any]]
    call: Callable[[dict[str, Any]], Any]
    weight: float = 1.0


# What an argument may be


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(float(value))


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least


def number(holds: Callable[[float], bool]) -> Kind:
    return Kind(lambda value: _real(value) and holds(float(value)))


def count(least: int = 1, *, costly: bool = False) -> Kind:
    return Kind(lambda value: _whole(value, least), COSTLY if costly else ())


def choice(*words: str) -> Kind:
    return Kind(lambda value: isinstance(value, str) and value in words)


def optional(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.holds(value), kind.leaves_out)


def either(*kinds: Kind) -> Kind:
    return Kind(
        lambda value: any(_safely(kind, value) for kind in kinds), tuple({x for kind in kinds for x in kind.leaves_out})
    )


def _safely(kind: Kind, value: Any) -> bool:
    try:
        return kind.holds(value)
    except Exception:
        return False


def instance(*types: type) -> Kind:
    return Kind(lambda value: isinstance(value, types))


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _images(value: Any, *, clipped: bool = True) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.float32
        and value.dtype.isnative
        and value.ndim == 4
        and value.shape[1:] == SHAPE
        and len(value) > 0
        and bool(np.isfinite(value).all())
        and (not clipped or bool(((value >= 0) & (value <= 1 + 1e-6)).all()))
    )


def _labels(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or len(value) != 4:
        return False
    if value.ndim == 2:
        return value.shape[1] == CLASSES and bool(
            ((value == 0) | (value == 1)).all() and (value.sum(axis=1) == 1).all()
        )
    return value.ndim == 1 and value.dtype.kind in "iu" and bool(((value >= 0) & (value < CLASSES)).all())


def _threat(value: Any) -> bool:
    return isinstance(value, Linf | L2 | L1)


def _path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and os.fspath(value) not in ("", b"") and "\0" not in os.fspath(value)


def _writable(value: Any) -> bool:
    return _path(value) and Path(value).parent.is_dir() and not Path(value).is_dir()


def _folder(value: Any) -> bool:
    return _path(value) and not Path(value).is_file()


def _file(value: Any) -> bool:
    return _path(value) and Path(value).is_file()


def _clip(value: Any) -> bool:
    low, high = value
    return float(np.min(low)) < float(np.max(high))


FLAG = instance(bool, np.bool_)
SEED = count(0)
POSITIVE = number(lambda value: value > 0)
NOT_NEGATIVE = number(lambda value: value >= 0)
SHARE = number(lambda value: 0 <= value <= 1)
BELOW_ONE = number(lambda value: 0 <= value < 1)
INNER = number(lambda value: 0 < value < 1)
TEXT = Kind(_text)
IMAGES = Kind(_images)
LABELS = Kind(_labels)
OPTIONAL_LABELS = optional(LABELS)
THREAT = Kind(_threat)
NORM = Kind(
    lambda value: (
        value in (1, 2, "1", "2", np.inf, "inf", "linf", "l1", "l2") if not isinstance(value, np.ndarray) else False
    )
)
CLASSIFIER = Kind(
    lambda value: type(value) is PyTorchClassifier and value.input_shape == SHAPE and value.nb_classes == CLASSES
)
ANY_CLASSIFIER = Kind(lambda value: type(value) is PyTorchClassifier)
DETECTOR = instance(BinaryInputDetector)
MODULE = instance(nn.Module)
WRITABLE, FOLDER, FILE = Kind(_writable), Kind(_folder), Kind(_file)
ATTACKS = either(
    choice("papers", "standard", "full"),
    Kind(lambda value: len(value) > 0 and all(isinstance(spec, AttackSpec) for spec in value)),
)
TENSOR_IMAGES = Kind(
    lambda value: (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and tuple(value.shape[1:]) == SHAPE
        and len(value) > 0
        and bool(((value >= 0) & (value <= 1 + 1e-6)).all())
    )
)
RESTORED = either(
    TENSOR_IMAGES, IMAGES, Kind(lambda value: isinstance(value, np.ndarray) and _images(value.astype("f4")))
)
TAPS = optional(Kind(lambda value: isinstance(value, list | tuple) and all(_text(layer) for layer in value)))
KINDS_OF_INPUTS = optional(
    Kind(
        lambda value: (
            len(value) > 0 and all(callable(item) or item in INPUTS for item in value if isinstance(value, list))
        )
    )
)
MEAN = Kind(lambda value: np.isfinite(np.asarray(value, dtype=float)).all() and np.asarray(value).size == 1)
STD = Kind(lambda value: MEAN.holds(value) and float(np.asarray(value).min()) > 0)


def _network() -> nn.Sequential:
    """1 x 4 x 4 to three classes, each of which some random images are predicted as."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)).eval()
    x = torch.rand(600, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(x)
        network[3].bias -= logits.mean(dim=0)
        network[3].weight *= 10
        network[3].bias *= 10
    return network


class World:
    """What cases are made of: classifiers, defences, files and folders of runs, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "a folder").mkdir()
        (folder / "plain.txt").write_text("plain\n")
        self._paths = 0
        # Two levels below, since texts such as ../.. are paths too.
        self.working = folder / "one" / "two"
        self.working.mkdir(parents=True)
        self._network = _network()
        random = np.random.default_rng(0)
        self.x = random.random((4, *SHAPE), dtype=np.float32)
        self.y = np.array([0, 1, 2, 0])
        self.many = random.random((120, *SHAPE), dtype=np.float32)
        with torch.no_grad():
            self.many_y = self._network(torch.tensor(self.many)).argmax(dim=1).numpy()

    def new_path(self) -> Path:
        self._paths += 1
        return self.folder / f"new-{self._paths}"

    def classifier(self, **options: Any) -> PyTorchClassifier:
        arguments = {"input_shape": SHAPE, "nb_classes": CLASSES, "clip_values": (0.0, 1.0), "device_type": "cpu"}
        network = copy.deepcopy(self._network)
        return PyTorchClassifier(network, nn.CrossEntropyLoss(), **(arguments | options))

    def other_classifier(self) -> PyTorchClassifier:
        network = nn.Sequential(nn.Flatten(), nn.Linear(75, 5))
        return PyTorchClassifier(
            network, nn.CrossEntropyLoss(), (3, 5, 5), 5, clip_values=(0.0, 1.0), device_type="cpu"
        )

    def heat_and_blur(self) -> HeatAndBlur:
        return HeatAndBlur.for_classifier(self.classifier())

    def spec(self) -> AttackSpec:
        return AttackSpec("FGSM", _fgsm, "a step", kind="single step")

    def threat(self) -> Threat:
        return Linf(0.1)

    def loss(self) -> RestorationLoss:
        return RestorationLoss()

    def forget(self) -> None:
        """Remove what the last case made."""
        for number in range(self._paths, 0, -1):
            path = self.folder / f"new-{number}"
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._paths = 0

    @cached_property
    def _fitted(self) -> dict[str, Any]:
        classifier = self.classifier()
        autoencoder = FeatureAutoencoder.for_classifier(classifier, width=2, stem=1)
        restorer = TwoStreamRestoration.for_classifier(classifier, width=2, blocks=1, stem=1)
        for defence in (autoencoder, restorer):
            defence.fit(self.many[:16], self.many_y[:16], nb_epochs=1, progress=False)
        detector = ExplanationReconstructor(classifier, reconstructor="statistics", false_positive_rate=0.5)
        detector.fit(self.many, nb_epochs=1, validation_split=0.5, progress=False)
        blur = HeatAndBlur.for_classifier(classifier)
        named = {"feature_autoencoder": autoencoder, "two_stream_restoration": restorer}
        return named | {"explanation_reconstructor": detector, "heat_and_blur": blur}

    def detector(self) -> ExplanationReconstructor:
        return copy.copy(self._fitted["explanation_reconstructor"])

    @cached_property
    def files(self) -> dict[str, Path]:
        """A file of each defence that can be saved."""
        paths = {}
        for name, defence in self._fitted.items():
            paths[name] = self.folder / f"{name}.safetensors"
            defence.save(paths[name])
        return paths

    @cached_property
    def runs(self) -> list[Path]:
        """Folders of finished runs of the same images."""
        folders = [self.folder / "run-1", self.folder / "run-2"]
        for bias, folder in enumerate(folders):
            self._evaluate(folder, bias)
        return folders

    def _evaluate(self, folder: Path, bias: int, attacks: Any = None) -> None:
        options = {"check_samples": 2, "curve_samples": 0, "progress": False, "block_size": 2}
        attacks = [self.spec()] if attacks is None else attacks
        classifier = self.classifier()
        with torch.no_grad():
            classifier.model[-1].bias[0] += bias
        evaluate(classifier, (self.x, self.y), Linf(0.1), attacks, out=folder, **options)

    @cached_property
    def published_run(self) -> Path:
        """One whose attacks were checked, so that it makes an entry."""
        folder = self.folder / "published"
        self._evaluate(folder, 0, "standard")
        return folder

    @cached_property
    def entries(self) -> Path:
        folder = self.folder / "entries"
        folder.mkdir()
        Entry.of(Report.load(self.published_run), "digits").save(folder / "entry.json")
        return folder

    @cached_property
    def shards(self) -> Path:
        """A folder with two parts of a run."""
        folder = self.folder / "parts"
        for part in (1, 2):
            options = {"check_samples": 0, "curve_samples": 0, "progress": False, "block_size": 2}
            evaluate_shard(
                self.classifier(),
                (self.x, self.y),
                Linf(0.1),
                [self.spec()],
                shard=Shard(part, 2),
                out=folder,
                **options,
            )
        return folder

    @cached_property
    def images_folder(self) -> Path:
        from PIL import Image

        folder = self.folder / "images"
        for label in ("cat", "dog"):
            (folder / label).mkdir(parents=True)
            for name in ("a", "b"):
                Image.new("RGB", (8, 8), (10, 20, 30)).save(folder / label / f"{name}.png")
        return folder

    @cached_property
    def weights(self) -> Path:
        path = self.folder / "weights.safetensors"
        save_file(self._network.state_dict(), path)
        return path

    @cached_property
    def digits_weights(self) -> Path:
        path = self.folder / "digits.safetensors"
        save_file(build_model("digits_cnn").state_dict(), path)
        return path

    def copied(self, folder: Path) -> Path:
        """A copy that a case may spoil."""
        target = self.new_path()
        if folder.is_dir():
            shutil.copytree(folder, target)
            return target
        target.mkdir()
        return Path(shutil.copy(folder, target / folder.name))

    def targets(self) -> list[Target]:
        groups = (_faces, _methods, _wrappers, _data, _attacks, _evaluations, _results, _mutations, _commands)
        return [target for group in groups for target in group(self)]


def _fgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> Any:
    return IterativeFGSM(classifier, threat.eps, 1, norm=threat.norm)


def as_target(
    name: str,
    arguments: Mapping[str, Kind],
    valid: Callable[[], dict[str, Any]],
    call: Callable[..., Any],
    **options: Any,
) -> Target:
    """A call whose arguments are all named."""
    return Target(name, arguments, valid, lambda values: call(**values), **options)


# The defences


COMMON = {
    "mean": MEAN,
    "std": STD,
    "clip_values": Kind(_clip),
    "chunk_size": count(),
    "apply_fit": FLAG,
    "apply_predict": FLAG,
}
BLUR = {
    "start": choice(*STARTS),
    "top_k": count(),
    "rules": either(choice(*RULES), instance(Composite)),
    "scale": choice(*SCALES),
    "heat_sigma": NOT_NEGATIVE,
    "floor": BELOW_ONE,
    "mix": choice(*MIXES),
    "sigma": optional(POSITIVE),
    "sharp_sigma": POSITIVE,
    "gain": POSITIVE,
    "passes": count(costly=True),
}
TRAINED = {"channels": count(costly=True), "leak": SHARE}
AUTOENCODER = TRAINED | {
    "architecture": choice("unet", "paper"),
    "width": count(costly=True),
    "stem": count(costly=True),
}
TRN = TRAINED | {
    "nb_classes": count(costly=True),
    "map": choice(*MAPS),
    "top_k": optional(count()),
    "weights": choice(*WEIGHTS),
    "scale": choice("image", "channel"),
    "gradient_stream": choice(*STREAMS),
    "width": count(costly=True),
    "blocks": count(costly=True),
    "stem": count(costly=True),
}
DETECTION = {
    "explanation": either(choice("input_gradient"), Kind(lambda value: isinstance(value, list | tuple))),
    "scaling": choice("image", "benign"),
    "score": choice("above_median", "l1", "l2"),
    "hidden": count(costly=True),
    "reconstructor": choice("autoencoder", "convolutional", "statistics"),
    "false_positive_rate": INNER,
}
JUMP = either(NOT_NEGATIVE, Kind(lambda value: isinstance(value, list | tuple) and len(value) == 1 and value[0] >= 0))


def _faces(world: World) -> Iterator[Target]:
    """Constructors."""

    def model() -> dict[str, Any]:
        return {"model": copy.deepcopy(world._network)}

    def classifier() -> dict[str, Any]:
        return {"classifier": world.classifier()}

    def small(**options: Any) -> Callable[[], dict[str, Any]]:
        return lambda: model() | options

    yield as_target("HeatAndBlur", {"model": MODULE} | COMMON | BLUR, model, HeatAndBlur)
    yield as_target(
        "FeatureAutoencoder",
        {"model": MODULE} | COMMON | AUTOENCODER,
        small(channels=1, width=2),
        FeatureAutoencoder,
    )
    yield as_target(
        "TwoStreamRestoration",
        {"model": MODULE} | COMMON | TRN,
        small(channels=1, nb_classes=3, width=2, blocks=1),
        TwoStreamRestoration,
    )
    yield as_target(
        "JumpReLU",
        {"classifier": ANY_CLASSIFIER, "jump": JUMP, "width": optional(POSITIVE), "copy": FLAG},
        classifier,
        JumpReLU,
    )
    yield as_target(
        "ExplanationReconstructor",
        {"classifier": ANY_CLASSIFIER} | DETECTION,
        lambda: classifier() | {"reconstructor": "statistics"},
        ExplanationReconstructor,
    )
    for face in (HeatAndBlur, FeatureAutoencoder, TwoStreamRestoration):
        yield as_target(
            f"{face.__name__}.for_classifier", {"classifier": ANY_CLASSIFIER}, classifier, face.for_classifier
        )
    weights = {"pixel_weight": NOT_NEGATIVE, "feature_weight": NOT_NEGATIVE, "class_weight": NOT_NEGATIVE}
    network = either(choice("classifier", "vgg16"), MODULE)
    yield as_target(
        "RestorationLoss",
        {"pixel": choice("l1", "l2"), "network": network, "taps": TAPS} | weights,
        lambda: {"class_weight": 1.0},
        RestorationLoss,
    )


FIT = {
    "x": Kind(lambda value: _images(value)),
    "eps": POSITIVE,
    "inputs": KINDS_OF_INPUTS,
    "loss": optional(instance(RestorationLoss)),
    "adversarial": FLAG,
    "attack_mode": choice("exact", "identity", "smooth", "frozen"),
    "nb_epochs": count(costly=True),
    "batch_size": count(),
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": optional(POSITIVE),
    "patience": optional(count()),
    "validation_split": BELOW_ONE,
    "seed": SEED,
    "mixed_precision": optional(FLAG),
    "checkpoint": optional(WRITABLE),
    "progress": FLAG,
}


def _methods(world: World) -> Iterator[Target]:
    """What fitted and unfitted defences do."""
    for name, options in (
        ("feature_autoencoder", AUTOENCODER),
        ("two_stream_restoration", TRN),
        ("heat_and_blur", BLUR),
    ):
        face = type(world._fitted[name])
        own_options = {key: kind for key, kind in {**COMMON, **options}.items() if key in world._fitted[name].params}
        fitted = world._fitted[name]

        def set_params(values: dict[str, Any], fitted: Any = fitted) -> None:
            copy.copy(fitted).set_params(**values)

        def valid(own_options: Any = own_options, fitted: Any = fitted) -> dict[str, Any]:
            return {key: getattr(fitted, key) for key in own_options}

        yield Target(f"{face.__name__}.set_params", own_options, valid, set_params, weight=0.3)
        yield as_target(
            f"{face.__name__}.__call__",
            {"x": RESTORED},
            lambda: {"x": world.x},
            lambda x, fitted=fitted: fitted(x),
            weight=6,
        )
        yield as_target(
            f"{face.__name__}.save", {"path": WRITABLE}, lambda: {"path": world.new_path()}, fitted.save, weight=3
        )
        yield as_target(
            f"{face.__name__}.load",
            {"path": FILE, "classifier": CLASSIFIER},
            lambda name=name: {"path": world.files[name], "classifier": world.classifier()},
            face.load,
            weight=2,
        )
        yield as_target(
            f"{face.__name__}.rebind",
            {"classifier": CLASSIFIER},
            lambda: {"classifier": world.classifier()},
            lambda classifier, fitted=fitted: copy.copy(fitted).rebind(classifier),
            weight=2,
        )
    yield as_target(
        "FeatureAutoencoder.fit", FIT | {"y": _many(LABELS)}, lambda: _fit(world), lambda **v: _fit_one(world, v)
    )
    detector = world._fitted["explanation_reconstructor"]
    yield as_target(
        "ExplanationReconstructor.fit",
        {
            "x": IMAGES,
            "y": _many(LABELS),
            "batch_size": optional(count()),
            "nb_epochs": count(costly=True),
            "learning_rate": POSITIVE,
            "validation_split": INNER,
            "seed": SEED,
            "checkpoint": optional(WRITABLE),
            "progress": FLAG,
        },
        lambda: {"x": world.many, "validation_split": 0.5, "progress": False},
        lambda **values: ExplanationReconstructor(
            world.classifier(), reconstructor="statistics", false_positive_rate=0.5
        ).fit(**values),
    )
    for method in ("detect", "scores"):
        yield as_target(
            f"ExplanationReconstructor.{method}",
            {"x": IMAGES, "batch_size": count()},
            lambda: {"x": world.x},
            getattr(detector, method),
        )
    yield as_target(
        "ExplanationReconstructor.set_params",
        {"false_positive_rate": INNER},
        lambda: {"false_positive_rate": 0.5},
        lambda **values: ExplanationReconstructor(world.classifier()).set_params(**values),
    )
    yield as_target(
        "ExplanationReconstructor.save", {"path": WRITABLE}, lambda: {"path": world.new_path()}, detector.save, weight=2
    )
    yield as_target(
        "ExplanationReconstructor.load",
        {"path": FILE, "classifier": CLASSIFIER},
        lambda: {"path": world.files["explanation_reconstructor"], "classifier": world.classifier()},
        ExplanationReconstructor.load,
    )
    yield as_target(
        "JumpReLU.fit",
        {
            "x": IMAGES,
            "y": LABELS,
            "max_accuracy_drop": BELOW_ONE,
            "jumps": optional(Kind(lambda value: len(value) > 0 and all(float(jump) > 0 for jump in value))),
            "batch_size": count(),
        },
        lambda: {"x": world.x, "y": world.y, "jumps": [0.1, 0.2]},
        lambda **values: JumpReLU(world.classifier()).fit(**values),
    )
    yield as_target(
        "JumpReLU.set_params",
        {"jump": JUMP, "width": optional(POSITIVE), "copy": FLAG},
        lambda: {"jump": 1.0},
        lambda **values: JumpReLU(world.classifier()).set_params(**values),
    )
    yield as_target(
        "JumpReLU.__call__",
        {"transformed_classifier": optional(CLASSIFIER)},
        lambda: {"transformed_classifier": None},
        lambda **values: JumpReLU(world.classifier())(**values),
        weight=2,
    )


def _many(labels: Kind) -> Kind:
    return optional(Kind(lambda value: isinstance(value, np.ndarray) and len(value) == 16 and labels.holds(value[:4])))


def _fit(world: World) -> dict[str, Any]:
    return {"x": world.many[:16], "y": world.many_y[:16], "nb_epochs": 1, "progress": False}


def _fit_one(world: World, values: dict[str, Any]) -> None:
    FeatureAutoencoder.for_classifier(world.classifier(), width=2, stem=1).fit(**values)


def _wrappers(world: World) -> Iterator[Target]:
    """What is put around classifiers."""
    preprocessor = instance(PreprocessorPyTorch)
    yield as_target(
        "defend",
        {"classifier": ANY_CLASSIFIER, "preprocessor": preprocessor},
        lambda: {"classifier": world.classifier(), "preprocessor": world.heat_and_blur()},
        lambda classifier, preprocessor: defend(classifier, preprocessor),
        weight=2,
    )
    yield as_target(
        "as_module",
        {"classifier": ANY_CLASSIFIER, "detector": optional(DETECTOR)},
        lambda: {"classifier": world.classifier(), "detector": None},
        as_module,
        weight=2,
    )
    yield as_target(
        "rejecting",
        {"classifier": CLASSIFIER, "detector": DETECTOR},
        lambda: {"classifier": world.classifier(), "detector": world.detector()},
        rejecting,
        weight=2,
    )
    yield as_target(
        "Surrogate",
        {
            "wrapped": either(preprocessor, MODULE),
            "backward": either(choice("identity", "estimated"), Kind(callable)),
            "sigma": POSITIVE,
            "samples": count(),
        },
        lambda: {"wrapped": nn.ReLU()},
        Surrogate,
    )
    target = either(ANY_CLASSIFIER, MODULE)
    yield as_target(
        "gradient_modes", {"target": target}, lambda: {"target": world.classifier()}, gradient_modes, weight=2
    )
    yield as_target(
        "gradient_mode",
        {"target": target, "mode": choice("exact")},
        lambda: {"target": world.classifier(), "mode": "exact"},
        lambda target, mode: gradient_mode(target, mode).__enter__(),
        weight=2,
    )
    yield as_target(
        "examine", {"classifier": instance(PyTorchClassifier)}, lambda: {"classifier": world.classifier()}, examine
    )


def _data(world: World) -> Iterator[Target]:
    """Data sets, networks and weights."""
    yield as_target(
        "load_dataset",
        {"name": choice("digits", "image_folder"), "root": optional(FOLDER), "size": optional(count(costly=True))},
        lambda: {"name": "image_folder", "root": world.images_folder, "size": 8},
        lambda **values: load_dataset(**values).test,
    )
    yield as_target("build_model", {"model": choice("digits_cnn")}, lambda: {"model": "digits_cnn"}, build_model)
    yield as_target(
        "load_weights",
        {"model": MODULE, "path": FILE},
        lambda: {"model": copy.deepcopy(world._network), "path": world.weights},
        load_weights,
        weight=2,
    )

    def saved(value: Any) -> None:
        path = world.copied(world.weights)
        state = world._network.state_dict() | {"0.weight": value}
        path = path.with_suffix(".pt")
        try:
            torch.save(state, path)
        except Exception as error:  # what cannot be saved cannot be loaded
            raise InputError("cannot be saved") from error
        load_weights(copy.deepcopy(world._network), path)

    weights = Kind(lambda value: isinstance(value, Tensor) and tuple(value.shape) == (4, 1, 2, 2))
    yield as_target("load_weights of", {"value": weights}, lambda: {"value": torch.zeros(4, 1, 2, 2)}, saved, weight=4)
    dtypes = {
        str(dtype): dtype for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8)
    }

    def of_dtype(name: Any) -> None:
        if not isinstance(name, str):
            draw = Random(repr(type(name)))
            saved(torch.zeros(4, 1, 2, 2).to(dtypes[draw.choice(sorted(dtypes))]))
        else:
            raise InputError("a word is no dtype")

    yield as_target(
        "load_weights of a dtype", {"value": Kind(lambda _: False)}, dict, lambda value: of_dtype(value), weight=2
    )


# Attacks


GRADIENT_MODE = optional(choice("exact"))
SHARED = {"gradient_mode": GRADIENT_MODE, "batch_size": count(), "seed": SEED, "verbose": FLAG}
FACTORS = Kind(lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(factor > 0 for factor in value))
EXACT = Kind(lambda value: isinstance(value, list | tuple) and len(value) > 0 and set(value) == {"exact"})
STEPS = {"max_iter": count(costly=True)}
BALL = {"norm": NORM, "eps": POSITIVE}
LOSSES = choice(
    "cross_entropy", "margin", "probability_margin", "dlr", "margin_targeted", "dlr_targeted"
)  # those of three classes among them
ATTACK_ARGUMENTS: dict[type, dict[str, Kind]] = {
    AutoPGD: BALL
    | STEPS
    | {"loss": LOSSES, "nb_runs": count(costly=True), "eot": count(costly=True), "targeted": FLAG},
    AnnealedPGD: BALL | STEPS | {"factors": FACTORS, "loss": LOSSES},
    CrossedPGD: BALL | STEPS | {"modes": EXACT, "nb_donors": count(costly=True)},
    WarmSquare: BALL | STEPS | {"max_queries": count(costly=True)},
    MarginPGD: BALL
    | STEPS
    | {"eps_step": optional(POSITIVE), "nb_starts": count(costly=True), "stop_when_broken": FLAG},
    IterativeFGSM: STEPS
    | {"eps_step": POSITIVE, "norm": NORM, "scale": Kind(lambda value: np.all(np.asarray(value) > 0))},
    DeepFoolLp: STEPS
    | {
        "norm": NORM,
        "overshoot": NOT_NEGATIVE,
        "nb_grads": count(2),
        "scale": Kind(lambda v: np.all(np.asarray(v) > 0)),
    },
    RandomNoise: BALL | {"nb_draws": count(costly=True)},
    Square: BALL
    | {"max_queries": count(costly=True), "p_init": number(lambda value: 0 < value <= 1), "targeted": FLAG},
}
REJECTION = (
    BALL
    | STEPS
    | {
        "eps_step": optional(POSITIVE),
        "random_start": FLAG,
        "stop_below": Kind(
            lambda value: isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
        ),
        "switch_margin": NOT_NEGATIVE,
        "factors": FACTORS,
        "targeted": FLAG,
    }
)
SHORT = {"max_iter": 2, "nb_runs": 1, "nb_draws": 2, "max_queries": 3, "factors": (1.0,), "nb_grads": 2}


def _attacks(world: World) -> Iterator[Target]:
    """Constructors, with a run, and what is attacked."""
    for attack, arguments in ATTACK_ARGUMENTS.items():
        short = {name: value for name, value in SHORT.items() if name in arguments}

        def call(values: dict[str, Any], attack: Any = attack) -> None:
            attack(**values).generate(world.x, world.y)

        def valid(short: Any = short) -> dict[str, Any]:
            return {"estimator": world.classifier()} | short

        yield Target(attack.__name__, {"estimator": CLASSIFIER} | SHARED | arguments, valid, call)

        def generate(values: dict[str, Any], attack: Any = attack, short: Any = short) -> None:
            attack(world.classifier(), **short).generate(values["x"], values["y"])

        yield Target(
            f"{attack.__name__}.generate",
            {"x": IMAGES, "y": OPTIONAL_LABELS},
            lambda: {"x": world.x, "y": world.y},
            generate,
        )
    for attack in (SelectivePGD, OrthogonalPGD, LagrangianPGD):
        extra = {"weights": FACTORS} if attack is LagrangianPGD else {}

        def rejection(values: dict[str, Any], attack: Any = attack) -> None:
            attack(**values).generate(world.x, world.y)

        yield Target(
            attack.__name__,
            {"estimator": Kind(lambda value: False)} | SHARED | REJECTION | extra,
            lambda: {"estimator": rejecting(world.classifier(), world.detector()), "max_iter": 2, "factors": (1.0,)},
            rejection,
            weight=0.4,
        )


# Evaluations


EVALUATION = {
    "classifier": CLASSIFIER,
    "x": IMAGES,
    "y": LABELS,
    "threat": THREAT,
    "attacks": ATTACKS,
    "undefended": optional(CLASSIFIER),
    "detector": optional(DETECTOR),
    "seed": SEED,
    "block_size": count(),
    "curve_samples": count(0),
    "check_samples": count(0),
    "adaptive": FLAG,
}
QUICK = {"check_samples": 0, "curve_samples": 0}


def _evaluations(world: World) -> Iterator[Target]:
    def valid() -> dict[str, Any]:
        return {
            "classifier": world.classifier(),
            "x": world.x,
            "y": world.y,
            "threat": Linf(0.1),
            "attacks": [world.spec()],
            **QUICK,
        }

    yield as_target(
        "evaluate",
        EVALUATION | {"out": optional(FOLDER), "overwrite": FLAG, "progress": FLAG},
        lambda: valid() | {"progress": False},
        _on_pair(evaluate),
    )
    yield as_target(
        "evaluate again",
        {"overwrite": FLAG},
        lambda: valid() | {"progress": False, "out": world.copied(world.runs[0]), "seed": 5},
        _on_pair(evaluate),
        weight=4,
    )
    yield as_target(
        "evaluate_shard",
        EVALUATION | {"out": FOLDER, "overwrite": FLAG, "progress": FLAG, "shard": instance(Shard)},
        lambda: valid() | {"progress": False, "out": world.new_path(), "shard": Shard(1, 1)},
        _on_pair(evaluate_shard),
        weight=0.5,
    )
    yield as_target("run_key", EVALUATION, valid, _on_pair(run_key), weight=0.5)
    yield as_target("Shard", {"number": count(), "count": count()}, lambda: {"number": 1, "count": 2}, Shard)
    for threat in (Linf, L2, L1):
        yield as_target(threat.__name__, {"eps": POSITIVE}, lambda: {"eps": 0.1}, threat, weight=3)
    spec = {
        "name": TEXT,
        "build": Kind(callable),
        "purpose": Kind(lambda value: isinstance(value, str) and value.isprintable()),
        "source": choice("paper", "suite"),
        "kind": choice("white-box", "single step", "transfer", "queries", "noise", "other"),
        "crafted_on": choice("defended", "undefended", "smoothed"),
        "modes": choice("exact", "all", "annealable", "smoothest"),
        "samples": choice("all", "unbroken", "few"),
        "curve": FLAG,
        "bounded": FLAG,
        "labels": choice("true", "predicted"),
    }
    yield as_target("AttackSpec", spec, lambda: {"name": "a", "build": _fgsm, "purpose": "b"}, AttackSpec)

    def suite() -> Suite:
        return Suite(world.folder / "cache")

    options = {name: kind for name, kind in EVALUATION.items() if name not in ("undefended", "detector")}
    yield as_target(
        "Suite.is_robust",
        options | {"at_least": SHARE, "established": FLAG},
        lambda: valid() | {"at_least": 0.0, "established": False},
        lambda **values: _stated(suite().is_robust, values),
    )
    yield as_target(
        "Suite.masks_nothing", options, valid, lambda **values: _stated(suite().masks_nothing, values), weight=0.3
    )
    yield as_target(
        "Suite.is_not_worse_than",
        {"baseline": FOLDER, "classifier": CLASSIFIER, "x": IMAGES, "y": LABELS},
        lambda: {
            "baseline": world.runs[0],
            "classifier": world.classifier(),
            "x": world.x,
            "y": world.y,
            "attacks": [world.spec()],
            "check_samples": 2,
            "curve_samples": 0,
            "block_size": 2,
            "established": False,
        },
        lambda **values: _stated(suite().is_not_worse_than, values),
        weight=0.5,
    )


def _on_pair(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a model and of data, given a classifier, images and labels that are drawn one by one."""

    def call(*, classifier: Any, x: Any, y: Any, **values: Any) -> Any:
        return function(model=classifier, data=(x, y), **values)

    return call


def _stated(statement: Callable[..., Any], values: dict[str, Any]) -> None:
    """A statement may be wrong, which is an answer; its words are for a terminal."""
    try:
        _on_pair(partial(statement, "name"))(**values)
    except AssertionError as error:
        if not all(line.isprintable() for line in str(error).splitlines()):
            raise ValueError("an assertion's words are not printable") from error


# Results


def _results(world: World) -> Iterator[Target]:
    folders = Kind(lambda value: len(value) > 0 and all((Path(folder) / "records.jsonl").exists() for folder in value))
    yield as_target(
        "compare", {"folders": folders}, lambda: {"folders": world.runs}, lambda folders: compare(folders), weight=4
    )
    yield as_target(
        "compare(one)",
        {"folder": FOLDER},
        lambda: {"folder": world.runs[0]},
        lambda folder: compare([world.runs[1], folder]),
    )
    yield as_target(
        "merge",
        {"folders": folders, "out": FOLDER, "overwrite": FLAG, "mixed": FLAG},
        lambda: {"folders": [world.shards], "out": world.new_path()},
        merge,
    )
    yield as_target("Report.load", {"folder": FOLDER}, lambda: {"folder": world.runs[0]}, Report.load, weight=2)
    yield as_target(
        "Report.save",
        {"folder": FOLDER},
        lambda: {"folder": world.new_path()},
        lambda folder: Report.load(world.runs[0]).save(folder),
        weight=0.2,
    )
    share = optional(number(lambda value: 0 <= value <= 100))
    link = optional(Kind(lambda value: value.startswith(("http://", "https://"))))
    entry = {"dataset": TEXT, "name": optional(TEXT), "link": link, "reported": share, "external": share}
    report = cached(lambda: Report.load(world.published_run))
    yield as_target(
        "Entry.of",
        entry | {"command": optional(TEXT)},
        lambda: {"dataset": "digits"},
        lambda **values: Entry.of(report(), **values),
    )
    yield as_target(
        "Entry.save",
        {"path": Kind(lambda value: _path(value) and not Path(value).is_dir())},
        lambda: {"path": world.new_path()},
        lambda path: Entry.of(report(), "digits").save(path),
        weight=2,
    )
    yield as_target("Entry.read", {"path": FILE}, lambda: {"path": world.entries / "entry.json"}, Entry.read, weight=2)
    yield as_target("leaderboard", {"folder": FOLDER}, lambda: {"folder": world.entries}, leaderboard, weight=3)


def cached(make: Callable[[], Any]) -> Callable[[], Any]:
    values: list[Any] = []

    def get() -> Any:
        if not values:
            values.append(make())
        return values[0]

    return get


# Files with other bytes


@dataclass
class Mutation:
    """A change of a file's bytes or of a value in its JSON."""

    draw: Random
    notes: list[str] = field(default_factory=list)

    def bytes_of(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        kind = self.draw.choice(("flip", "cut", "insert", "empty", "twice"))
        place = self.draw.randrange(len(content)) if content else 0
        if kind == "flip" and content:
            content[place] ^= 1 << self.draw.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = self.draw.choice((b"\xff", b"\x1b[2J", b"null", b"[" * 5000, b"\0"))
        elif kind == "empty":
            content = bytearray()
        else:
            content += bytes(content)
        path.write_bytes(bytes(content))

    def json_of(self, path: Path) -> None:
        """A value somewhere in it is another one."""
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = self.draw.randrange(len(lines))
        entry = json.loads(lines[number])
        places = list(_places(entry))
        container, key = self.draw.choice(places)
        container[key] = self.draw.choice(JSON_VALUES)
        lines[number] = json.dumps(entry)
        path.write_text("\n".join(lines) + "\n")


JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2, 10**30, 0.5, float("nan"), float("inf"), "", "a", "\x1b]0;x\x07", "../..", [], {},
    [[]], {"a": 1}, [1, 2], ["a"],
)  # fmt: skip


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    items = (
        container.items()
        if isinstance(container, dict)
        else enumerate(container)
        if isinstance(container, list)
        else ()
    )
    for key, value in items:
        yield container, key
        yield from _places(value)


def _mutations(world: World) -> Iterator[Target]:
    """Folders and files of which somebody has changed something; the replaced argument is only the seed of it."""
    fresh = Random(0)
    original = cached(lambda: _figures(Report.load(world.runs[0])))

    def run_folder(in_json: bool, use: Callable[[Path], Any]) -> Callable[..., None]:
        def call(value: Any = None) -> None:
            folder = world.copied(world.runs[0])
            names = ("manifest.json", "records.jsonl", "costs.jsonl", "findings.json")
            examples = [str(file.relative_to(folder)) for file in folder.glob("examples/*.npz")]
            path = folder / fresh.choice(names if in_json else (*names, *examples))
            mutation = Mutation(fresh)
            mutation.json_of(path) if in_json else mutation.bytes_of(path)
            result = use(folder)
            harmless = path.name == "costs.jsonl" or path.suffix == ".npz" or result is None or result == original()
            if harmless:
                raise InputError("nothing that counts has changed")

        return call

    evil = Kind(lambda value: False, ())
    for in_json, what in ((True, "values"), (False, "bytes")):
        yield as_target(f"Report.load of other {what}", {"value": evil}, dict,
                   run_folder(in_json, lambda folder: _figures(Report.load(folder))), weight=8)  # fmt: skip
        yield as_target(f"compare of other {what}", {"value": evil}, dict,
                   run_folder(in_json, lambda folder: compare([folder, world.runs[1]]).as_dict() and None))  # fmt: skip
        yield as_target(f"merge of other {what}", {"value": evil}, dict,
                   run_folder(in_json, lambda folder: _figures(merge([folder], world.new_path()))))  # fmt: skip
        yield as_target(f"evaluate on other {what}", {"value": evil}, dict,
                   run_folder(in_json, lambda folder: world._evaluate(folder, 0)), weight=2)  # fmt: skip

    def entry(value: Any = None) -> None:
        path = world.copied(world.entries / "entry.json")
        Mutation(fresh).json_of(path)
        leaderboard(path.parent)
        raise InputError("an entry says what it says")

    yield as_target("leaderboard of other values", {"value": evil}, dict, entry, weight=5)
    for name, defence in world._fitted.items():

        def file(value: Any = None, name: str = name, defence: Any = defence) -> None:
            path = world.copied(world.files[name])
            Mutation(fresh).bytes_of(path)
            type(defence).load(path, classifier=world.classifier())
            raise InputError("weights are what they are")

        yield as_target(f"{name} of other bytes", {"value": evil}, dict, file, weight=4)

        def settings(value: Any = None, name: str = name, defence: Any = defence) -> None:
            path = world.copied(world.files[name])
            _other_settings(path, fresh)
            type(defence).load(path, classifier=world.classifier())
            raise InputError("another setting is another defence")

        yield as_target(f"{name} of other settings", {"value": evil}, dict, settings, weight=4)

    def weights(value: Any = None) -> None:
        path = world.copied(world.weights)
        Mutation(fresh).bytes_of(path)
        load_weights(copy.deepcopy(world._network), path)
        raise InputError("weights are what they are")

    yield as_target("load_weights of other bytes", {"value": evil}, dict, weights, weight=2)

    def image(value: Any = None) -> None:
        folder = world.copied(world.images_folder)
        Mutation(fresh).bytes_of(folder / "cat" / "a.png")
        _ = load_dataset("image_folder", folder, size=8).test.x
        raise InputError("pixels are what they are")

    yield as_target("load_dataset of other bytes", {"value": evil}, dict, image, weight=2)


def _figures(report: Report) -> str:
    return json.dumps(report.summary.worst_case.as_dict(), sort_keys=True)


def _other_settings(path: Path, draw: Random) -> None:
    """The file of a defence with another value among its settings or its training, or tensors of another kind."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors and draw.random() < 0.3:
        name = draw.choice(sorted(tensors))
        kinds = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float16)
        tensors[name] = tensors[name].to(draw.choice(kinds))
    else:
        key = draw.choice(("settings", "training", "format", "kind", "model"))
        if key in ("settings", "training"):
            settings = {"": json.loads(metadata[key])}
            container, place = draw.choice(list(_places(settings)))
            container[place] = draw.choice(JSON_VALUES)
            metadata[key] = json.dumps(settings[""])
        else:
            metadata[key] = str(draw.choice(JSON_VALUES))
    save_file(tensors, path, metadata)


# The command


def network_of_ones_own() -> PyTorchClassifier:
    """What ``doctor --classifier`` calls."""
    return PyTorchClassifier(_network(), nn.CrossEntropyLoss(), SHAPE, CLASSES, clip_values=(0, 1), device_type="cpu")


TYPED: tuple[str, ...] = (
    "", " ", "a", "-1", "0", "1", "2.5", "nan", "inf", "1e400", "99999999999999999999", "\x1b]0;x\x07",
    "\x9b2J", "a\u202e", "a\nb", "a,b", "0.5,", "../..", "/proc", "/proc/nothing/file", "x" * 5000, "[red]",
    "=1", "a=b", "{}", "[]", "null", "os:system", "os:getcwd", "no.such:thing", "fuzz_pool:POOL",
    "javascript:alert(1)", "1/0", "0/1", "3/2", "true",
)  # fmt: skip
"""What somebody might type for any option."""


def _commands(world: World) -> Iterator[Target]:
    any_text = Kind(lambda value: True)
    runner = CliRunner()

    def typed(*command: Any, weight: float = 1.0) -> Target:
        """A command of which one option, or argument, has another text."""
        options = {
            str(place): any_text for place, word in enumerate(command) if not str(word).startswith("--") and place
        }

        def call(values: dict[str, Any]) -> None:
            words = [str(word) for word in command]
            for place in options:
                if values[place] is not command[int(place)]:  # the pool's value chooses the text
                    words[int(place)] = Random(f"{place} {type(values[place])} {_short(values[place])}").choice(TYPED)
            result = runner.invoke(app, words)
            if result.exit_code == 2 and isinstance(result.exception, SystemExit):
                raise InputError("usage")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert all(line.isprintable() for line in result.stdout.splitlines()), result.stdout

        name = f"art-defenses {command[0]}"
        return Target(name, options, lambda: {place: command[int(place)] for place in options}, call, weight=weight)

    run, other_run = str(world.runs[0]), str(world.runs[1])
    quick = ("--check-samples", 0, "--curve-samples", 0, "--samples", 1, "--attacks", "papers")
    yield typed("evaluate", "--dataset", "digits", "--defence", "jump_relu", "--norm", "inf", "--eps", 0.1,
                *quick, "-o", "jump=0.5",
                "--epochs", 1, "--seed", 0, "--block-size", 2, "--shard", "1/1", "--device", "cpu", "--threads", 1,
                "-o", "width=0.1", weight=0.1)  # fmt: skip
    yield typed("evaluate", "--model", "digits_cnn", "--weights", world.digits_weights, "--data", world.folder,
                "--mean", 0, "--std", 1, "--out", world.folder / "out", *quick, weight=0.1)  # fmt: skip
    yield typed("evaluate", "--defence", "heat_and_blur", "-o", "sigma=0.5", *quick, weight=0.1)
    yield typed("compare", run, other_run, "--out", world.folder / "compared")
    yield typed("merge", world.shards, "--out", world.folder / "merged", weight=0.5)
    entry = (
        "entry",
        world.published_run,
        "--out",
        world.folder / "entry.json",
        "--dataset",
        "digits",
        "--name",
        "name",
    )
    publication = ("--link", "https://example.org", "--reported", 50, "--external", 10, "--command", "command")
    yield typed(*entry, *publication, weight=0.5)
    yield typed("leaderboard", world.entries, "--out", world.folder / "page.md")
    yield typed("doctor", "--classifier", "fuzz_targets:network_of_ones_own", "--data", world.folder, weight=0.5)


def _short(value: Any) -> str:
    try:
        return repr(value)[:80]
    except Exception:
        return "?"
