"""Networks and data in every form, against a classifier that is written by hand for it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from art_defenses_ext import (
    AttackSpec,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    TwoStreamRestoration,
    as_classifier,
    defend,
    evaluate,
    rejecting,
)
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.report.content import document
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.sections import Row
from art_defenses_ext.evaluation.report.wording import worded

from ..conftest import FinishedRun

PGD = AttackSpec(
    "PGD",
    lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=4, seed=seed),
    "gradients",
    kind="white-box",
    modes="all",
)
QUICK: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
COUNT = 12
RGB, BACK = (3, 8, 8), (8, 8, 3)


class Wrapped(nn.Module):
    """A network between two functions, by hand."""

    def __init__(self, network: nn.Module, after: Callable[[Any], Any], before: Callable[[Any], Any] | None = None):
        super().__init__()
        self.network, self.after, self.before = network, after, before or (lambda x: x)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.network(self.before(x)))


class Last(nn.Module):
    """A network with a layer behind it."""

    def __init__(self, network: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.network(x))


class Outputs(NamedTuple):
    """Outputs such as those of Inception in training mode."""

    logits: Tensor
    aux_logits: Tensor


@dataclass
class ModelOutput:
    """Outputs such as those of Hugging Face's models."""

    logits: Tensor
    hidden_states: Any = None


class WithForward(nn.Sequential):
    """A forward of its own, which ART ignores."""

    def forward(self, x: Tensor) -> Any:
        return 2 * super().forward(x)


def small(shape: tuple[int, ...] = (1, 8, 8), outputs: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of random weights, of which a small change of an input changes the class; all classes are likely."""
    torch.manual_seed(1)
    first = nn.Conv2d(shape[0], 4, 3) if len(shape) == 3 else nn.Linear(shape[-1], 16)
    network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.LazyLinear(outputs))
    with torch.no_grad():
        logits = network(torch.rand(200, *shape))
        network[-1].bias -= logits.mean(dim=0)
    return network.to(dtype).eval()


def move_channels_behind(network: nn.Module) -> nn.Module:
    """The network for images with their channels behind."""
    return Wrapped(network, identity, lambda x: x.permute(0, 3, 1, 2))


def identity(z: Any) -> Any:
    return z


def log_softmax(z: Tensor) -> Tensor:
    """Log-probabilities, whose explanations differ from those of the logits."""
    return F.log_softmax(z, dim=1)


def split_logit(z: Tensor) -> Tensor:
    return F.linear(z.reshape(-1, 1), torch.tensor([[-0.5], [0.5]]))


@dataclass
class Kind:
    """A network in some form, and what is written by hand for it.

    Attributes:
        model: the network.
        by_hand: a module of images to logits that says the same.
        shape: of an image.
        scale, shift: of the pixels, from those of 0 to 1.
        outputs: what is said of its outputs; empty for nothing.
        clip_values: those that are found.
        channels_first: whether they are in front.
        eps: under which some verdicts change, as a share of the range.
        options: of ``evaluate``.
    """

    model: Callable[[], nn.Module]
    by_hand: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 8, 8)
    scale: float = 1.0
    shift: float = 0.0
    outputs: str = ""
    clip_values: Any = (0.0, 1.0)
    channels_first: bool = True
    eps: float = 0.02
    options: dict[str, Any] = field(default_factory=dict)

    def images(self, count: int = COUNT) -> FloatArray:
        x = np.random.default_rng(0).random((count, *self.shape), dtype=np.float32)
        x = np.round(255 * x) if self.scale == 255 else self.scale * x + self.shift
        return x.astype(np.float32)

    def hand_written(self) -> PyTorchClassifier:
        mean, std = self.options.get("mean"), self.options.get("std", 1.0)
        network = self.by_hand().eval()
        nb_classes = network(torch.tensor(self.images(1)).to(next(network.parameters()).dtype)).shape[1]
        preprocessing = None if "std" not in self.options else (np.float32(mean or 0), np.float32(std))
        return PyTorchClassifier(
            network,
            nn.CrossEntropyLoss(),
            self.shape,
            nb_classes,
            clip_values=self.clip_values,
            channels_first=self.channels_first,
            preprocessing=preprocessing,
            device_type="cpu",
        )


def in_dtype(dtype: torch.dtype) -> Kind:
    def by_hand() -> nn.Module:
        return Wrapped(small(dtype=dtype), lambda z: z.float(), lambda x: x.to(dtype))

    return Kind(lambda: small(dtype=dtype), by_hand)


def make_kind(
    after: Callable[[Any], Any],
    by_hand: Callable[[Any], Any] = identity,
    outputs: int = 3,
    words: str = "",
    declared_outputs: str | None = None,
) -> Kind:
    networks = [lambda f=f: Wrapped(small(outputs=outputs), f) for f in (after, by_hand)]
    return Kind(*networks, outputs=words, options={} if declared_outputs is None else {"outputs": declared_outputs})


def make_layer_kind(
    layer: nn.Module, by_hand: Callable[[Any], Any] = identity, outputs: int = 3, words: str = ""
) -> Kind:
    networks = lambda: Last(small(outputs=outputs), layer), lambda: Wrapped(small(outputs=outputs), by_hand)
    return Kind(*networks, outputs=words)


LOG = "log-probabilities, which are logits up to a constant of each image"
LEFT_OUT = " layer; attacked on the logits before it"
ONE = "one logit z; attacked as the logits -z/2 and z/2 of two classes"

MODELS: dict[str, Kind] = {
    "logits": Kind(small, small),
    "a dictionary": make_kind(lambda z: {"logits": z, "features": z[:, :1]}),
    "a dictionary of one": make_kind(lambda z: {"out": z}),
    "a tuple": make_kind(lambda z: (z, z[:, :2])),
    "auxiliary outputs": make_kind(lambda z: Outputs(z, z[:, :2])),
    "an object with logits": make_kind(ModelOutput),
    "softmax layer": make_layer_kind(nn.Softmax(dim=1), words="probabilities of a Softmax" + LEFT_OUT),
    "softmax function": make_kind(
        lambda z: F.softmax(z, dim=1), log_softmax, words="probabilities; attacked on their logarithm"
    ),
    "log-softmax layer": make_layer_kind(nn.LogSoftmax(dim=1), words="log-probabilities of a LogSoftmax" + LEFT_OUT),
    "log-softmax function": make_kind(lambda z: F.log_softmax(z, dim=1), log_softmax, words=LOG),
    "sigmoids layer": make_layer_kind(nn.Sigmoid(), words="sigmoids of a Sigmoid" + LEFT_OUT),
    "sigmoids function": make_kind(
        torch.sigmoid, words="a probability for each class; attacked on their logits", declared_outputs="sigmoids"
    ),
    "logits between 0 and 1": make_kind(*[lambda z: 0.5 + z / 20] * 2),
    "one logit": make_kind(identity, split_logit, outputs=1, words=ONE),
    "one logit without an axis": make_kind(lambda z: z[:, 0], split_logit, outputs=1, words=ONE),
    "sigmoid layer": make_layer_kind(nn.Sigmoid(), split_logit, outputs=1, words="probability of a Sigmoid" + LEFT_OUT),
    "sigmoid function": make_kind(
        torch.sigmoid, split_logit, outputs=1, words="one probability; attacked on its logit"
    ),
    "a Sequential with a forward": Kind(lambda: WithForward(*small()), lambda: Wrapped(small(), lambda z: 2 * z)),
    "float64": in_dtype(torch.float64),
    "float16": in_dtype(torch.float16),
    "bfloat16": in_dtype(torch.bfloat16),
    "colour": Kind(lambda: small(RGB), lambda: small(RGB), RGB),
    "channels behind": Kind(
        lambda: move_channels_behind(small(RGB)), lambda: move_channels_behind(small(RGB)), BACK, channels_first=False
    ),
    "channels behind, network in front": Kind(
        lambda: small(RGB), lambda: move_channels_behind(small(RGB)), BACK, channels_first=False
    ),
    "channels in front, network behind": Kind(lambda: move_channels_behind(small(RGB)), lambda: small(RGB), RGB),
    "mean and deviation": Kind(small, small, options={"mean": 0.1, "std": 0.8}),
    "pixels to 255": Kind(small, small, scale=255, clip_values=(0.0, 255.0), options={"mean": 0.0, "std": 255.0}),
    "no clip values": Kind(small, small, scale=1.2, shift=-0.1, clip_values=None),
    "features": Kind(lambda: small((10,)), lambda: small((10,)), (10,), clip_values=None),
    "a series": Kind(lambda: small((2, 12)), lambda: small((2, 12)), (2, 12), clip_values=None),
}
"""What a network may be, and the classifier that says the same."""


def make_report(kind: Kind, model: Any, data: Any, **options: Any) -> Report:
    eps = kind.eps * (255 if kind.scale == 255 else 1)
    return evaluate(model, data, Linf(eps), [PGD], **QUICK, **options)


def verdicts(report: Report) -> list[tuple[int, list[bool]]]:
    return [(record.clean, [attack.success for attack in record.attacks.values()]) for record in report.records]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_each_kind_is_judged_as_a_classifier_written_by_hand(name: str) -> None:
    kind = MODELS[name]
    by_hand, x = kind.hand_written(), kind.images()
    y = by_hand.predict(x).argmax(axis=1)
    expected = make_report(kind, by_hand, (x, y))
    report = make_report(kind, kind.model(), (x, y), **kind.options)
    assert verdicts(report) == verdicts(expected)
    assert 0 < expected.accuracy_after_attacks < 1, expected.accuracy_after_attacks
    assert report.summary.run.clip_values == kind.clip_values
    assert report.summary.run.outputs == kind.outputs
    assert report.summary.run.dtype == str(next(by_hand.model.parameters()).dtype).removeprefix("torch.")


def jump_relu(classifier: PyTorchClassifier, other: PyTorchClassifier, x: FloatArray) -> Any:
    return [JumpReLU(undefended, 0.1)() for undefended in (classifier, other)]


def heat_and_blur(classifier: PyTorchClassifier, other: PyTorchClassifier, x: FloatArray) -> Any:
    return [defend(undefended, HeatAndBlur.for_classifier(undefended, sigma=1.0)) for undefended in (classifier, other)]


def trained(restorer: Any, classifier: PyTorchClassifier, other: PyTorchClassifier, x: FloatArray) -> Any:
    """A restorer fitted before ``classifier``, and its copy rebound to ``other``."""
    defence = restorer.for_classifier(classifier, width=2)
    labels = np.arange(16) % classifier.nb_classes
    defence.fit(x[:16], labels, eps=0.1, nb_epochs=1, batch_size=8, progress=False)
    rebound = copy.copy(defence)
    rebound.rebind(other)
    return defend(classifier, defence), defend(other, rebound)


def detector(classifier: PyTorchClassifier, other: PyTorchClassifier, x: FloatArray) -> Any:
    defended = []
    for undefended in (classifier, other):
        watcher = ExplanationReconstructor(undefended, false_positive_rate=0.5, hidden=4)
        watcher.fit(x, nb_epochs=1, batch_size=32, validation_split=0.3, progress=False)
        defended.append(rejecting(undefended, watcher))
    return defended


DEFENCES: dict[str, Callable[[PyTorchClassifier, PyTorchClassifier, FloatArray], Any]] = {
    "JumpReLU": jump_relu,
    "HeatAndBlur": heat_and_blur,
    "FeatureAutoencoder": partial(trained, FeatureAutoencoder),
    "TwoStreamRestoration": partial(trained, TwoStreamRestoration),
    "ExplanationReconstructor": detector,
}
RESTORERS = ("HeatAndBlur", "FeatureAutoencoder", "TwoStreamRestoration")
ROWS = dict.fromkeys(
    ("HeatAndBlur", "FeatureAutoencoder", "TwoStreamRestoration", "ExplanationReconstructor"),
    "looks at rows and columns; images",
)
REFUSED: dict[str, dict[str, str]] = {
    "features": ROWS,
    "a series": ROWS,
    "no clip values": dict.fromkeys(RESTORERS, "classifier has no clip_values"),
    "softmax function": {"HeatAndBlur": "calls clamp, which relevance cannot be sent through"},
    "log-softmax function": {"HeatAndBlur": "calls log_softmax, which relevance cannot be sent through"},
    "sigmoids function": {"HeatAndBlur": "calls clamp, which relevance cannot be sent through"},
    "sigmoid function": {"HeatAndBlur": "calls clamp, which relevance cannot be sent through"},
    "float16": dict.fromkeys(RESTORERS[1:], "model is in float16, in which small gradients become zero"),
}
"""The defences that refuse a kind of model, and the words of the refusal."""


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("name", MODELS)
def test_a_defence_takes_a_model_of_each_kind_or_says_why_not(name: str, defence: str) -> None:
    kind = MODELS[name]
    x = kind.images(100)
    classifiers = as_classifier(kind.model(), x, **kind.options), kind.hand_written()
    words = REFUSED.get(name, {}).get(defence)
    if words is not None:
        with pytest.raises(InputError, match=words):
            DEFENCES[defence](*classifiers, x)[0].predict(x[:2])
        return
    defended_classifiers = DEFENCES[defence](*classifiers, x)
    clean_images, eps = x[:6], 0.1 * (255 if kind.scale == 255 else 1)
    labels = classifiers[1].predict(clean_images).argmax(axis=1)
    adversarial = [
        MarginPGD(defended, np.inf, eps, max_iter=2).generate(clean_images, labels) for defended in defended_classifiers
    ]
    verdicts = [
        defended.predict(images).argmax(axis=1)
        for defended, images in zip(defended_classifiers, adversarial, strict=True)
    ]
    np.testing.assert_array_equal(verdicts[0], verdicts[1])
    assert np.abs(adversarial[1] - clean_images).max() > 0


# Data


class Items:
    """A map-style data set of items."""

    def __init__(self, items: Callable[[int], Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> Any:
        if row >= COUNT:
            raise IndexError(row)
        return self.items(row)


class Stream(IterableDataset[Any]):
    """Items one after the other, without places."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


X = Kind(small, small).images()
Y = np.arange(COUNT) % 3
PAIRS = TensorDataset(torch.tensor(X), torch.tensor(Y))
ONE_HOT = np.eye(3, dtype=np.float32)[Y]

DATA: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (torch.tensor(X), torch.tensor(Y)),
    "tensors that require gradients": lambda: (torch.tensor(X, requires_grad=True), torch.tensor(Y)),
    "a list of labels": lambda: [X, Y.tolist()],
    "float64 and a column": lambda: (X.astype(np.float64), Y[:, None]),
    "one-hot": lambda: (X, ONE_HOT),
    "whole numbers in floats": lambda: (X, torch.tensor(Y).float()),
    "a DataLoader": lambda: DataLoader(PAIRS, batch_size=5),
    "a DataLoader of items": lambda: DataLoader(PAIRS, batch_size=None),
    "a DataLoader of dictionaries": lambda: DataLoader(
        Items(lambda row: {"pixel_values": X[row], "labels": Y[row]}),
        batch_size=5,  # type: ignore[arg-type]
    ),
    "a DataLoader of a stream": lambda: DataLoader(Stream(list(zip(X, Y, strict=True))), batch_size=5),
    "batches": lambda: iter([(X[:5], Y[:5]), (X[5:], Y[5:])]),
    "a list of two batches": lambda: [(X[:5], Y[:5]), (X[5:], Y[5:])],
    "a list of three batches": lambda: [(X[:5], Y[:5]), (X[5:6], Y[5:6]), [torch.tensor(X[6:]), torch.tensor(Y[6:])]],
    "a tuple of dictionaries": lambda: ({"image": X[:5], "label": Y[:5]}, {"image": X[5:], "label": Y[5:]}),
    "a list of items": lambda: list(zip(X, Y, strict=True)),
    "a Dataset": lambda: PAIRS,
    "an iterable Dataset": lambda: Stream(list(zip(X, Y, strict=True))),
    "a MAITE data set": lambda: Items(lambda row: (X[row], ONE_HOT[row], {"id": row})),
}


@pytest.fixture(scope="module")
def expected_verdicts() -> list[tuple[int, list[bool]]]:
    """The verdicts on two numpy arrays."""
    return verdicts(make_report(Kind(small, small), small(), (X, Y)))


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_of_each_kind_give_the_verdicts_of_arrays(
    data: Callable[[], Any], expected_verdicts: list[tuple[int, list[bool]]]
) -> None:
    report = make_report(Kind(small, small), small(), data())
    assert verdicts(report) == expected_verdicts
    assert [record.label for record in report.records] == Y.tolist()


# What cannot be used


def draw_item(row: int) -> Any:
    return torch.rand(1, 8, 8), Y[row]


WRONG_DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "images alone": (lambda: X, "data is float32 of shape .*; a pair"),
    "no data": (lambda: 7, "data is 7; a pair"),
    "nothing": (lambda: iter([]), "yields nothing; at least one image"),
    "a shuffling DataLoader": (lambda: DataLoader(PAIRS, shuffle=True), "RandomSampler, which yields another order"),
    "random transforms": (lambda: Items(draw_item), "first item is another image each time"),
    "no labels": (
        lambda: DataLoader(TensorDataset(torch.tensor(X))),
        "batches of the kind list of 1; images and labels",
    ),
    "images without labels": (lambda: Items(lambda row: X[row]), "items of the kind ndarray; images and labels"),
    "other keys": (lambda: Items(lambda row: {"pixels": 1}), "items with the keys 'pixels'; images under one of"),
    "two shapes": (lambda: iter([(X[:5], Y[:5]), (X[5:, :, 1:], Y[5:])]), "images of several shapes or kinds"),
    "fewer labels": (lambda: (X, Y[1:]), "y has 11 labels for 12 images"),
    "labels out of range": (lambda: (X, Y + 1), "y holds labels from 1 to 3; 0 to 2 were expected"),
    "soft labels": (lambda: (X, ONE_HOT / 2), "one-hot rows"),
    "labels between classes": (lambda: (X, Y + 0.5), "array of class indices"),
    "NaN": (lambda: (X * np.nan, Y), "NaN or infinite"),
    "three arrays": (lambda: [X, Y, Y], "data is .*; a pair"),
    "nested lists": (lambda: (X.tolist(), Y.tolist()), "x is .*; a numpy array or a tensor"),
    "text": (lambda: (["a"] * COUNT, Y), "x is .*; a numpy array or a tensor"),
}


@pytest.mark.parametrize(("data", "words"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_data_that_cannot_be_used_are_refused_in_a_sentence(
    data: Callable[[], Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evaluate(small(), data(), Linf(0.02), [PGD], out=tmp_path / "run", **QUICK)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


WRONG_MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no network": (lambda: len, {}, "classifier is a builtin_function_or_method"),
    "maps of classes": (lambda: Wrapped(small(), lambda z: z[:, :, None]), {}, r"shape \(12, 3, 1\) for 12 images"),
    "classes": (lambda: Wrapped(small(), lambda z: z.argmax(dim=1)), {}, "torch.int64 of shape"),
    "one row for all": (lambda: Wrapped(small(), lambda z: z[:1]), {}, r"shape \(1, 3\) for 12 images"),
    "a dictionary of others": (lambda: Wrapped(small(), lambda z: {"a": z, "b": z}), {}, "the keys 'a', 'b' for 12"),
    "other images": (lambda: small((3, 8, 8)), {}, r"model cannot take images \(1, 8, 8\) \(RuntimeError"),
    "a std of zero": (small, {"std": 0.0}, "std > 0"),
    "a mean in words": (small, {"mean": "imagenet"}, "mean is 'imagenet'"),
    "unknown outputs": (small, {"outputs": "scores"}, "outputs is 'scores'"),
    "outputs that do not fit": (small, {"outputs": "logit"}, "outputs is 'logit', but model returns"),
    "a classifier with a mean": (lambda: as_classifier(small(), X), {"mean": 0.5}, "mean given beside a PyTorchCl"),
    "clip values that leave images out": (small, {"clip_values": (0.0, 0.5)}, "x ranges from"),
}


@pytest.mark.parametrize(("model", "options", "words"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_models_that_cannot_be_used_are_refused_in_a_sentence(
    model: Callable[[], Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evaluate(model(), (X, Y), Linf(0.02), [PGD], out=tmp_path / "run", **QUICK, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_normalisation_in_other_units_than_the_pixels_is_refused() -> None:
    with pytest.raises(InputError, match=r"mean is 0.485 and std 0.229 for pixel values up to 255; both in the units"):
        as_classifier(small(), np.round(255 * X), mean=0.485, std=0.229)


@pytest.mark.parametrize("scale", [0.1, -0.1])
def test_one_number_that_may_be_a_probability_or_a_logit_is_asked_for(scale: float) -> None:
    """All are on one side of a half, as probabilities of one class, or as logits between 0 and 1."""
    one = Wrapped(small(), lambda z: 0.5 + scale * torch.sigmoid(z[:, :1]))
    with pytest.raises(InputError, match='which may be probabilities or logits; outputs="probability" or outputs="log'):
        as_classifier(one, X)
    for outputs, classes in (("logit", {1}), ("probability", {int(scale > 0)})):
        assert set(as_classifier(one, X, outputs=outputs).predict(X).argmax(axis=1)) == classes


def test_rounded_probabilities_give_a_warning() -> None:
    """A gradient is masked where a softmax in float32 is 0 or 1, and only a layer can be left out."""
    saturated = Wrapped(small(), lambda z: F.softmax(1e4 * z, dim=1))
    with pytest.warns(UserWarning, match=r"of 12 of 12 images are rounded to 0 or 1 and have no gradient"):
        classifier = as_classifier(saturated, X)
    assert "gradients are masked" in classifier.model.remark
    layer = Last(Wrapped(small(), lambda z: 1e4 * z), nn.Softmax(dim=1))
    logits = as_classifier(layer, X).predict(X)
    np.testing.assert_allclose(logits, 1e4 * small()(torch.tensor(X)).detach(), rtol=1e-5)


def test_the_network_itself_stays_as_it_is() -> None:
    """No layer is taken out of the user's network, its mode stays, and its tensors are shared."""
    network = Last(small(), nn.Softmax(dim=1)).train()
    classifier = as_classifier(network, X)
    assert isinstance(network.layer, nn.Softmax)
    assert network.training
    assert {id(p) for p in classifier.model.parameters()} == {id(p) for p in network.parameters()}
    assert as_classifier(small(), X).model.__class__ is nn.Sequential


def test_a_standard_suite_runs_on_vectors_without_clip_values_and_speaks_of_features(tmp_path: Path) -> None:
    """The check that needs the grey image is not run, and did not fail."""
    kind = MODELS["features"]
    x = kind.images(4)
    y = kind.hand_written().predict(x).argmax(axis=1)
    report = evaluate(kind.model(), (x, y), Linf(0.02), check_samples=2, curve_samples=2, progress=False, out=tmp_path)
    (check,) = [check for check in report.summary.checks if check.name == "larger eps"]
    assert check.verdict == "not run"
    assert "without clip values" in check.finding
    assert report.robust_accuracy is not None
    page = re.sub(
        r"<style>.*?</style>|<img[^>]*>|<[^>]*>", " ", (tmp_path / "report.html").read_text(), flags=re.DOTALL
    )
    assert re.findall(r".*\b(?:pixels?|images?)\b.*", page) == []
    assert "each feature may change by at most 0.02" in page


def test_words_follow_the_shape_of_an_input() -> None:
    text = "Images: an image whose pixel values, each pixel value, can be turned grey"
    assert worded(text, (3, 8, 8)) == worded(text, ()) == text
    assert worded(text, (10,)) == "Samples: a sample whose features, each feature, can be changed into one and the same"
    row = Row("one pixel", ("12 images",))
    assert worded(row, (2, 12)) == Row("one pixel", ("12 samples",))


def test_what_a_run_recorded_is_not_reworded() -> None:
    """A command must stay as it can be typed, and a link must lead to its page."""
    command = "python /home/images/train.py --data image"
    text = f"{command} attacks an image; `evaluate --data pixel` and https://a.org/images too, by Pixel\nattack."
    assert worded(text, (10,), [command, "pixel attack", "image"]) == text.replace("an image", "a sample")
    assert worded("images", (10,), ["images"]) == "samples", "such a name is a word of the prose too"


def test_the_report_on_vectors_quotes_the_command(finished_run: FinishedRun) -> None:
    summary = finished_run.report.summary
    command = "art-defenses evaluate --model images.py:image --out pixels"
    run = replace(summary.run, command=command, options={"dataset": "digits"}, input_shape=[10], model="pixel image")
    report = document(replace(summary, run=run, lacking="the paper's attacks ran alone"))
    assert command in str(report.sections[-1])
    assert "`art-defenses evaluate --model images.py:image --attacks standard --out NEW`" in str(report)
    assert report.heading.endswith("on pixel image")


def test_the_undefended_model_may_be_a_network_or_a_classifier() -> None:
    defended = JumpReLU(as_classifier(small(), X), 0.1)()
    network = small()
    reports = [
        evaluate(defended, (X, Y), Linf(0.02), [PGD], undefended=undefended, **QUICK)
        for undefended in (network, as_classifier(network, X))
    ]
    assert reports[0].summary.run.undefended_sha256 == reports[1].summary.run.undefended_sha256
    assert reports[0].records == reports[1].records
