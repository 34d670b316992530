"""The classifier of a run: every edit that changes an image's answers changes the key, and nothing else does."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, Linf, Surrogate, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.evaluate import run_key
from art_defenses_ext.evaluation.run.identity import Behaviour, Identity
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.testing import assertions
from art_defenses_ext.testing.assertions import Suite

pytestmark = pytest.mark.usefixtures("without_pictures")

SCALE = 1.0
FILTER = torch.ones(1, 1, 3, 3) / 9
log = logging.getLogger(__name__)

X = np.random.default_rng(0).uniform(0.2, 0.8, (6, 1, 6, 6)).astype(np.float32)
Y = np.arange(6) % 3


def activation(z: Tensor) -> Tensor:
    return torch.tanh(z)


class Closed:
    """A callable that is no module."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, z: Tensor) -> Tensor:
        return z * self.gain


def scaled_by(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: module(z)


class Network(nn.Module):
    """A network with every kind of state and code that a key must cover."""

    shift = 0.25

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect")
        self.leaky, self.norm, self.dropout = nn.LeakyReLU(0.1), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.head = nn.Linear(108, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self.temperature = 2.0
        self.weights = torch.tensor([1.0, 1.0, 1.1])
        self.array = np.array([0.0, 0.1, 0.2])
        self.options = {"power": 1.0, "steps": [1, 2]}
        self.aside = [nn.Linear(3, 3)]
        self.aside[0].load_state_dict({"weight": torch.eye(3) * 1.5, "bias": torch.zeros(3)})
        self.pair = (nn.LeakyReLU(0.5), "x")
        self.closure = scaled_by(nn.LeakyReLU(0.7))
        self.callable = Closed(1.5)
        self.log, self.where = log, "cpu"
        self.calls, self.kept, self.mask = 0, None, None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        z = self.norm(self.leaky(self.convolution(x * SCALE)))
        self.kept = z
        if self.mask is None:
            self.mask = torch.ones(1, 3, 1, 1)
        z = self.head(self.dropout(z * self.mask).flatten(1)) / self.temperature * self.weights.to(x)
        z = z + torch.as_tensor(self.array, dtype=x.dtype) + self.shift
        z = self.callable(self.closure(self.pair[0](self.aside[0](activation(z))))) * self.options["power"]
        return z + torch.nn.functional.conv2d(x, FILTER).mean(dim=(1, 2, 3))[:, None]


class Shading(PreprocessorPyTorch):
    """A user's preprocessor that declares one of its parameters."""

    params = ["strength"]  # noqa: RUF012 (ART's convention)
    bias = 0.01

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
        self.strength, self.undeclared = 0.9, 0.02
        self.tensor, self.array = torch.full((6,), 0.01), np.full(6, 0.01, np.float32)
        self.inner = [nn.Hardtanh(0.0, 0.9)]
        self.seen = 0

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        self.seen += 1
        shaded = x * self.strength * SCALE + self.undeclared + self.bias + self.tensor + torch.from_numpy(self.array)
        return self.inner[0](shaded), y


def straight(x: Tensor) -> Tensor:
    return x


def steep(x: Tensor) -> Tensor:
    return 2 * x


def classifier(network: nn.Module | None = None, shading: Any = None) -> PyTorchClassifier:
    network = Network() if network is None else network
    shading = Surrogate(Shading(), straight) if shading is None else shading
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        (1, 6, 6),
        3,
        clip_values=(0, 1),
        preprocessing_defences=[shading],
        device_type="cpu",
    )


PGD = AttackSpec("PGD", lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=2, seed=seed), "a", kind="white-box")
OPTIONS: dict[str, Any] = {"curve_samples": 0, "check_samples": 0}


def key(target: PyTorchClassifier) -> str:
    return run_key(target, (X, Y), Linf(0.05), [PGD], **OPTIONS)


@pytest.fixture(scope="module")
def original_key() -> str:
    return key(classifier())


def network_of(target: PyTorchClassifier) -> Network:
    network: Network = target.model
    return network


def shading_of(target: PyTorchClassifier) -> Shading:
    shading: Shading = target.preprocessing_defences[0].wrapped
    return shading


def another_forward(self: Network, x: Tensor) -> Tensor:
    return -FORWARD(self, x)


FORWARD = Network.forward


class Turned(torch.autograd.Function):
    """The identity with another sign backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def replace_attribute(target: PyTorchClassifier, name: str, value: Any) -> None:
    target.preprocessing_defences[0].__dict__[name] = value


Edit = Callable[[PyTorchClassifier, pytest.MonkeyPatch], Any]

EDITS: dict[str, Edit] = {
    "code of forward": lambda c, m: m.setattr(Network, "forward", another_forward),
    "float attribute": lambda c, m: setattr(network_of(c), "temperature", 3.0),
    "tensor attribute": lambda c, m: setattr(network_of(c), "weights", torch.tensor([1.0, 1.0, 1.2])),
    "tensor written in place": lambda c, m: network_of(c).weights.mul_(1.001),
    "entry of an option": lambda c, m: network_of(c).options.update(power=1.5),
    "class attribute": lambda c, m: m.setattr(Network, "shift", 0.5),
    "global number": lambda c, m: m.setitem(globals(), "SCALE", 1.1),
    "global tensor": lambda c, m: m.setitem(globals(), "FILTER", FILTER * 2),
    "global function": lambda c, m: m.setitem(globals(), "activation", torch.sin),
    "forward hook": lambda c, m: network_of(c).leaky.register_forward_hook(lambda _, __, out: out * 1.01),
    "forward pre-hook": lambda c, m: network_of(c).leaky.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,)),
    "backward hook": lambda c, m: network_of(c).leaky.register_full_backward_hook(lambda _, into, out: (into[0] * 2,)),
    "weights of a module in a list": lambda c, m: network_of(c).aside[0].bias.data.add_(0.1),
    "attribute of a module in a tuple": lambda c, m: setattr(network_of(c).pair[0], "negative_slope", 0.4),
    "module in a closure": lambda c, m: setattr(network_of(c), "closure", scaled_by(nn.LeakyReLU(0.6))),
    "attribute of a callable": lambda c, m: setattr(network_of(c).callable, "gain", 1.6),
    "slope of a LeakyReLU": lambda c, m: setattr(network_of(c).leaky, "negative_slope", 0.2),
    "another activation": lambda c, m: setattr(network_of(c), "leaky", nn.ReLU()),
    "a weight": lambda c, m: network_of(c).head.bias.data.add_(0.01),
    "loss": lambda c, m: setattr(c, "_loss", nn.CrossEntropyLoss(label_smoothing=0.1)),
    "undeclared number of a preprocessor": lambda c, m: setattr(shading_of(c), "undeclared", 0.03),
    "tensor of a preprocessor": lambda c, m: setattr(shading_of(c), "tensor", torch.full((6,), 0.02)),
    "array of a preprocessor": lambda c, m: shading_of(c).array.__setitem__(0, 0.5),
    "module that a preprocessor holds": lambda c, m: setattr(shading_of(c).inner[0], "max_val", 0.7),
    "code of a preprocessor": lambda c, m: m.setattr(Shading, "forward", lambda self, x, y=None: (1 - x, y)),
    "another backward of a surrogate": lambda c, m: replace_attribute(c, "backward_rule", steep),
    "gradient of an operation alone": lambda c, m: network_of(c).register_forward_hook(
        lambda _, __, out: Turned.apply(out)
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_every_edit_that_an_image_can_meet_changes_the_key(
    edit: Edit, original_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = classifier()
    edit(target, monkeypatch)
    assert key(target) != original_key


def run_passes(target: PyTorchClassifier) -> PyTorchClassifier:
    target.predict(X)
    target.loss_gradient(X[:2], np.eye(3, dtype=np.float32)[Y[:2]])
    return target


def run_prediction(target: PyTorchClassifier) -> PyTorchClassifier:
    """Predict without gradients: torch could not copy activations that have a graph."""
    target.predict(X)
    return target


def run_evaluation(target: PyTorchClassifier) -> PyTorchClassifier:
    evaluate(target, (X, Y), Linf(0.05), [PGD], **OPTIONS, progress=False)
    return target


def add_and_remove_hook(target: PyTorchClassifier) -> PyTorchClassifier:
    network_of(target).head.register_forward_hook(lambda *_: None).remove()
    return target


def add_optimizer(target: PyTorchClassifier) -> None:
    target._optimizer = torch.optim.SGD(target.model.parameters(), 0.1)
    target.optimizer.zero_grad()


def apply_change(target: PyTorchClassifier, change: Callable[[PyTorchClassifier], Any]) -> PyTorchClassifier:
    change(target)
    return target


UNCHANGED: dict[str, Callable[[], PyTorchClassifier]] = {
    "made again": classifier,
    "a deepcopy after a pass": lambda: classifier(deepcopy(run_prediction(classifier()).model)),
    "training mode": lambda: apply_change(classifier(), lambda c: c.model.train()),
    "a pass before, and its gradients": lambda: run_passes(classifier()),
    "an evaluation before": lambda: run_evaluation(classifier()),
    "a hook that went": lambda: add_and_remove_hook(classifier()),
    "another memory format": lambda: classifier(Network().to(memory_format=torch.channels_last)),
    "the name of a device": lambda: apply_change(classifier(), lambda c: setattr(c.model, "where", "cuda:1")),
    "the level of a log": lambda: apply_change(classifier(), lambda c: log.setLevel(logging.ERROR)),
    "another gradient mode in force": lambda: apply_change(
        classifier(), lambda c: setattr(c.preprocessing_defences[0], "gradient_mode", "surrogate")
    ),
    "an optimizer and its state": lambda: apply_change(classifier(), add_optimizer),
}


@pytest.mark.parametrize("make", UNCHANGED.values(), ids=UNCHANGED)
def test_changes_that_no_image_meets_keep_the_key(make: Callable[[], PyTorchClassifier], original_key: str) -> None:
    assert key(make()) == original_key


class Plain(nn.Module):
    """A network that pickle can store."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.others, self.gain = nn.Linear(36, 3), [nn.Linear(3, 3)], {"a": 0.5, "b": (1, {"x", "y"})}
        for number, parameter in enumerate([*self.parameters(), *self.others[0].parameters()]):
            parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) / (number + 1)

    def forward(self, x: Tensor) -> Tensor:
        return activation(self.others[0](self.layer(x.flatten(1)))) * self.gain["a"] * SCALE


def test_a_pickled_network_has_the_key_of_its_original() -> None:
    network = Plain()
    assert key(classifier(pickle.loads(pickle.dumps(network)))) == key(classifier(network))


# What only logits and gradients show


class FromFile(nn.Module):
    """A network whose scale stands in a file: no hash of code sees it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.layer = path, nn.Linear(36, 3)
        self.layer.weight.data = torch.linspace(-1, 1, 108).reshape(3, 36)

    def forward(self, x: Tensor) -> Tensor:
        forwards, backwards = map(float, self.path.read_text().split())
        return FileScaled.apply(self.layer(x.flatten(1)), forwards, backwards)


class FileScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, forwards: float, backwards: float) -> Tensor:
        ctx.factor = backwards
        return z * forwards

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.factor, None, None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1.1 1", "the defended classifier's logits on the first images differ"),
        ("-1 1", "the defended classifier's logits on the first images differ"),
        ("1 -1", "the gradient in mode 'exact' on the first images differ"),
    ],
)
def test_logits_and_gradients_are_part_of_the_identity(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "scale"
    file.write_text("1 1")
    target = classifier(FromFile(file))
    before = key(target)
    out = tmp_path / "run"
    evaluate(target, (X, Y), Linf(0.05), [PGD], out=out, **OPTIONS, progress=False)
    records = (out / "records.jsonl").read_bytes()
    evaluate(target, (X, Y), Linf(0.05), [PGD], out=out, **OPTIONS, progress=False)  # goes on
    file.write_text(content)
    assert key(target) != before
    with pytest.raises(InputError, match=f"another run: {words}"):
        evaluate(target, (X, Y), Linf(0.05), [PGD], out=out, **OPTIONS, progress=False)
    assert (out / "records.jsonl").read_bytes() == records


def test_a_run_of_an_edited_network_is_not_continued(tmp_path: Path) -> None:
    target = classifier()
    evaluate(target, (X, Y), Linf(0.05), [PGD], out=tmp_path, **OPTIONS, progress=False)
    network_of(target).leaky.negative_slope = 0.100001
    with pytest.raises(InputError, match="another run: the code or the attributes of the network differ"):
        evaluate(target, (X, Y), Linf(0.05), [PGD], out=tmp_path, **OPTIONS, progress=False)


# How much noise is tolerated


def make_identity(noise: float = 0.0, images: int = 8, gradient: float = 0.0) -> Identity:
    """An identity whose logits change relatively on the first ``images`` images, and whose gradients change on all."""
    generator = np.random.default_rng(0)
    logits, gradients = generator.normal(size=(8, 3)), generator.normal(size=(4, 3))
    logits[:images] *= 1 + noise
    rows = [array.tolist() for array in (logits, gradients * (1 + gradient))]
    return Identity({"network": "1"}, Behaviour(rows[0], None, {"exact": rows[1]}))


@pytest.mark.parametrize(
    ("other", "same_place", "elsewhere"),
    [
        (make_identity(), False, False),
        (make_identity(1e-5), False, False),
        (make_identity(gradient=1e-3), False, False),
        (make_identity(5e-3), True, False),  # TF32 on another device
        (make_identity(0.5, images=1), True, False),  # an activation that jumps
        (make_identity(0.5, images=3), True, True),
        (make_identity(0.5), True, True),
        (make_identity(gradient=-2.0), True, True),
    ],
)
def test_numerical_noise_of_a_machine_is_not_another_network(
    other: Identity, same_place: bool, elsewhere: bool
) -> None:
    for place, differs in ((True, same_place), (False, elsewhere)):
        words = make_identity().difference(other, same_place=place, same_code=True, random=False)
        assert (words is not None) == differs
        assert words is None or words.endswith("on the first images differ")


def test_code_is_compared_only_under_the_same_versions() -> None:
    """Compiled code differs from one version of Python to the next; the weights' hashes and the answers remain."""
    edited = replace(make_identity(), code={"network": "2"})
    assert make_identity().difference(edited, same_place=False, same_code=False, random=False) is None
    words = make_identity().difference(edited, same_place=False, same_code=True, random=False)
    assert words == "the code or the attributes of the network differ"


class Drawing(nn.Module):
    """A random network; of its own generator, or of torch's."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.plain, self.generator = Plain(), torch.Generator() if own else None
        if self.generator is not None:
            self.generator.seed()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.plain(x)
        return logits + torch.randn(logits.shape, generator=self.generator)


@pytest.mark.parametrize("own", [False, True])
def test_a_random_network_has_one_key(own: bool) -> None:
    assert key(classifier(Drawing(own))) == key(run_evaluation(classifier(Drawing(own))))


# A suite of pytest


class Ranking(nn.Module):
    """A network with a ReLU whose answers can be turned without a change of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)
        self.layer.weight.data = torch.linspace(-1, 1, 108).reshape(3, 36)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x.flatten(1)))


def test_a_cached_evaluation_is_reused_until_the_network_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(assertions, "evaluate", lambda *a, **k: calls.append(k) or evaluate(*a, **k))
    suite = Suite(tmp_path)
    base_classifier = PyTorchClassifier(
        Ranking(), nn.CrossEntropyLoss(), (1, 6, 6), 3, clip_values=(0, 1), device_type="cpu"
    )
    labels = base_classifier.predict(X).argmax(axis=1)

    def clean_accuracy() -> float:
        target = JumpReLU(base_classifier, 0.1)()
        return suite.evaluated("a", target, (X, labels), Linf(0.01), "papers", check_samples=0)[0].summary.clean.rate

    assert [clean_accuracy(), clean_accuracy(), len(calls)] == [1.0, 1.0, 1]
    monkeypatch.setattr(Ranking, "forward", lambda self, x: -torch.relu(self.layer(x.flatten(1))))
    assert [clean_accuracy(), clean_accuracy(), len(calls)] == [0.0, 0.0, 2]
