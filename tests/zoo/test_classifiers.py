"""A classifier from a name: trained, loaded or one's own, with the normalisation and the wrapper that it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, Split
from art_defenses_ext.zoo.models import build_model


def weights_of(classifier: PyTorchClassifier) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in classifier.model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def unread() -> Split:
    raise AssertionError("no image may be read")


@pytest.fixture
def unread_digits(digits: Dataset) -> Dataset:
    """The digits as far as they are known without an image: what must be refused needs none."""
    return Dataset("digits", digits.input_shape, digits.nb_classes, 300, unread, unread)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of an untrained network for the digits."""
    path = tmp_path / "digits.safetensors"
    save_file(build_model("digits_cnn").state_dict(), path)
    return path


SOURCE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.seen = []
    def forward(self, x):
        self.seen.append(self.training)
        return self.linear(x.flatten(1))

class Fails(Own):
    def forward(self, x):
        raise self.error

def failing(error):
    network = Fails()
    network.error = error
    return network

def own(): return Own()
def five(): return Own(5)
def colour(): return nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(36, 10))
def flat(): return nn.Linear(8, 10)
def pair():
    network = Own()
    network.forward = lambda x: (x, x)
    return network
def text(): return "network"
def asserts(): return failing(AssertionError("images of 32 x 32 only"))
def without_a_word(): return failing(ValueError())
def two_lines(): return failing(RuntimeError("shapes differ\\nExpected 3"))
not_a_function = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current directory."""
    name = "own_networks"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


# Training


def test_the_network_for_the_digits_is_trained_to_95_percent(digits: Dataset) -> None:
    classifier = load_classifier(digits, progress=False)
    assert np.mean(classifier.predict(digits.test.x).argmax(axis=1) == digits.test.y) >= 0.95
    assert not any(module.training for module in classifier.model.modules())


def test_the_same_seed_gives_the_same_weights(digits: Dataset) -> None:
    """Whatever the state of the global generator, which goes on as if nothing had been drawn."""
    trained = []
    for outside, seed in ((1, 0), (2, 0), (1, 1)):
        with torch.random.fork_rng():
            torch.manual_seed(outside)
            before = torch.get_rng_state()
            trained.append(weights_of(load_classifier(digits, epochs=1, seed=seed, progress=False)))
            assert torch.equal(torch.get_rng_state(), before)
    assert equal(trained[0], trained[1])
    assert not any(torch.equal(trained[0][key], trained[2][key]) for key in trained[0])


# The wrapper


@pytest.mark.parametrize("normalisation_given", [False, True], ids=["the network's own normalisation", "another"])
def test_logits_are_those_of_the_network_on_normalised_images(
    normalisation_given: bool, weights: Path, digits: Dataset, unread_digits: Dataset
) -> None:
    mean, std = ([0.25], [0.5]) if normalisation_given else (MODELS["digits_cnn"].mean, MODELS["digits_cnn"].std)
    options: dict[str, Any] = {"mean": mean, "std": std} if normalisation_given else {}
    classifier = load_classifier(unread_digits, weights=weights, **options)
    x = digits.test.x[:8]
    with torch.no_grad():
        expected = classifier.model((torch.from_numpy(x) - mean[0]) / std[0])
    assert np.allclose(classifier.predict(x), expected.numpy(), atol=1e-5)


@pytest.mark.gpu
def test_on_cuda_it_is_the_same_network(cuda: torch.device, weights: Path, digits: Dataset) -> None:
    logits = [
        load_classifier(digits, weights=weights, device=device).predict(digits.test.x[:8]) for device in ("cpu", "cuda")
    ]
    assert np.allclose(*logits, atol=1e-4)


# Weights


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_are_loaded_and_not_trained(ending: str, tmp_path: Path, unread_digits: Dataset) -> None:
    state = build_model("digits_cnn").state_dict()
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    for source in (path, str(path)):
        assert equal(weights_of(load_classifier(unread_digits, weights=source)), state)


# Folders of images


def image_folder(
    nb_classes: int, open_classes: bool, size: int = 224, read_training: Callable[[], Split] = unread
) -> Dataset:
    return Dataset("image_folder", (3, size, size), nb_classes, 2, read_training, unread, unread, open_classes)


@pytest.fixture
def squeezenet(tmp_path: Path) -> Path:
    path = tmp_path / "squeezenet.pt"
    torch.save(build_model("squeezenet1_1").half().state_dict(), path)
    return path


def test_the_network_for_images_is_imagenets_and_knows_its_classes(squeezenet: Path) -> None:
    """Half-precision weights come out as float32; the labels may stop short of the last class."""
    classifier = load_classifier(image_folder(996, True), weights=squeezenet)
    assert (classifier.input_shape, classifier.nb_classes) == ((3, 224, 224), 1000)
    assert {value.dtype for value in weights_of(classifier).values()} == {torch.float32}
    assert classifier.predict(np.zeros((1, 3, 224, 224), np.float32)).shape == (1, 1000)


def test_the_class_folders_give_the_number_of_classes(squeezenet: Path) -> None:
    with pytest.raises(InputError, match=r"returns shape \(2, 1000\) for two images; \(2, 996\) was expected"):
        load_classifier(image_folder(996, False), weights=squeezenet)


def test_a_label_that_the_network_does_not_know_is_refused(squeezenet: Path) -> None:
    with pytest.raises(InputError, match=r"returns shape \(2, 1000\) .*; \(2, 1001 or more\) was expected"):
        load_classifier(image_folder(1001, True), weights=squeezenet)


def test_without_weights_the_published_ones_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Any, ...]] = []

    def listen(network: nn.Module, name: str, progress: bool) -> None:
        loaded.append((name, progress))
        nn.init.constant_(network.get_submodule("classifier.1").bias, 3.0)

    monkeypatch.setattr("art_defenses_ext.zoo.classifiers.load_published", listen)
    classifier = load_classifier(image_folder(996, True), "squeezenet1_1", progress=False)
    assert loaded == [("squeezenet1_1", False)]
    assert (weights_of(classifier)["classifier.1.bias"] == 3).all()


def test_images_of_another_size_are_refused(squeezenet: Path) -> None:
    with pytest.raises(InputError, match=r"squeezenet1_1 takes images \(3, 224, 224\); image_folder has \(3, 32, 32\)"):
        load_classifier(image_folder(1000, True, size=32), weights=squeezenet)


# A network of one's own


def test_a_network_of_ones_own_is_taken_as_it_is(module: str, digits: Dataset, unread_digits: Dataset) -> None:
    """Without training, without normalisation, in evaluation mode."""
    classifier = load_classifier(unread_digits, f"{module}:own")
    x = digits.test.x[:4]
    with torch.no_grad():
        expected = classifier.model.linear(torch.from_numpy(x).flatten(1)).numpy()
    assert np.allclose(classifier.predict(x), expected, atol=1e-6)
    assert not any(classifier.model.seen)


def test_it_takes_weights_and_normalisation(module: str, tmp_path: Path, digits: Dataset) -> None:
    state = {"linear.weight": torch.ones(10, 64), "linear.bias": torch.arange(10.0)}
    torch.save(state, tmp_path / "own.pt")
    classifier = load_classifier(digits, f"{module}:own", tmp_path / "own.pt", mean=[0.5], std=[0.25])
    x = digits.test.x[:4]
    expected = ((x - 0.5) / 0.25).reshape(4, -1).sum(axis=1)[:, None] + np.arange(10)
    assert np.allclose(classifier.predict(x), expected, atol=1e-3)


NETWORKS_THAT_DO_NOT_FIT = {
    "five": r"returns shape \(2, 5\) for two images; \(2, 10\) was expected",
    "flat": r"returns shape \(2, 1, 8, 10\) for two images; \(2, 10\) was expected",
    "colour": "does not take images",
    "pair": "model .*:pair",
    "text": "returns a str",
    "asserts": "does not take images .* images of 32 x 32 only",
    "without_a_word": "does not take images",
    "two_lines": "does not take images .*shapes differ",
    "not_a_function": r"which failed \(TypeError: 'int' object is not callable",
    "missing": "has no attribute 'missing'",
}


@pytest.mark.parametrize(("function", "message"), NETWORKS_THAT_DO_NOT_FIT.items(), ids=NETWORKS_THAT_DO_NOT_FIT)
def test_a_network_that_does_not_fit_the_data_is_refused(
    function: str, message: str, module: str, unread_digits: Dataset
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_classifier(unread_digits, f"{module}:{function}", epochs=1, progress=False)
    assert len(str(error.value).splitlines()) == 1
    assert f"{module}:{function}" in str(error.value)


# What is refused


def _cuda(path: Path) -> dict[str, Any]:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    return {"device": "cuda"}


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "unknown network": (lambda path: {"model": "alexnet"}, "model is 'alexnet'; one of .* was expected"),
    "network for other images": (lambda path: {"model": "lenet_like"}, "lenet_like takes images .* digits has"),
    "unknown device": (lambda path: {"device": "tpu"}, "device is 'tpu'; cpu, or cuda where there is one, was"),
    "no CUDA": (_cuda, "device is 'cuda'; cpu, or cuda where there is one, was expected"),
    "weights and epochs": (lambda path: {"epochs": 3}, "weights and epochs were both given"),
    "no weights there": (lambda path: {"weights": path.parent / "none.pt"}, "weights is .*none.pt"),
    "weights is a folder": (lambda path: {"weights": path.parent}, "weights is .*; an existing file"),
    "weights is text": (lambda path: {"weights": Path(__file__)}, "weights is .*test_classifiers.py"),
    "two means": (lambda path: {"mean": [0.1, 0.2]}, r"mean is \[0.1, 0.2\]; 1 finite number"),
    "infinite std": (lambda path: {"std": [np.inf]}, r"std is \[inf\]; 1 finite number"),
    "std 0": (lambda path: {"std": [0.0]}, r"std is \[0.0\]; 1 finite number\(s\) > 0, one a channel"),
    "epochs 0": (lambda path: {"weights": None, "epochs": 0}, "epochs is 0"),
    "negative seed": (lambda path: {"weights": None, "seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    make: Callable[[Path], dict[str, Any]], message: str, weights: Path, digits: Dataset
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_classifier(digits, progress=False, **({"weights": weights} | make(weights)))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_a_network_for_colours_without_weights_is_not_trained_unasked(name: str) -> None:
    colours = Dataset(name, (3, 32, 32), 10, 5_000, unread, unread)
    with pytest.raises(InputError, match="resnet20 has no weights; weights, or a number of epochs to train, was expec"):
        load_classifier(colours)
