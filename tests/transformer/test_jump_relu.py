"""JumpReLU: the network against independent references, and the ART face."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from art_defenses_ext import JumpReLU, as_module
from art_defenses_ext.attribution.relevance import epsilon_plus, relevance
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import undefended
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.gradients.activation import ReplaceRectifiers, count_rectifiers, softplus_for_kinks
from art_defenses_ext.gradients.modes import gradient_mode, surrogate_width
from art_defenses_ext.transformer.jump_relu import JumpReLUNetwork, jump_relu

MODES = ("exact", "relu", "smooth")


def derivative(z: Tensor, jump: float, mode: str, width: float | None = None) -> Tensor:
    """What each mode's backward rule is by definition."""
    if mode == "exact":
        return (z > jump).to(z.dtype)
    if mode == "relu" or jump == 0:
        return (z > 0).to(z.dtype)
    w = jump / 4 if width is None else width
    s = 1 / (1 + torch.exp(-(z - jump) / w))
    return s + z * s * (1 - s) / w


def gradient_of(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(z).sum(), z)
    return gradient


# The network against a reference


class Functional(nn.Module):
    """A linear layer, a ReLU, and so on; with a residual connection and an in-place ReLU whose input is read again."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two, self.three = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x.flatten(1))
        h = self.relu(z) + 0.5 * z  # z is overwritten, so 1.5 times the activation
        h = self.two(h) + h
        return self.three(h.relu())


def numpy_functional(model: Functional, x: Any, jumps: tuple[float, float]) -> Any:
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    z = x.reshape(len(x), -1).astype(np.float64) @ state["one.weight"].T + state["one.bias"]
    h = 1.5 * np.where(z > jumps[0], z, 0)
    h = h @ state["two.weight"].T + state["two.bias"] + h
    return np.where(h > jumps[1], h, 0) @ state["three.weight"].T + state["three.bias"]


def wrap(model: nn.Module, **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | arguments
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 2, 2), 4, **settings)


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).random((9, 3, 2, 2), dtype=np.float32)


@pytest.mark.parametrize("jump", [0.0, 0.1, 0.4, (0.4, 0.1), [0.0, 0.3], np.float32(0.25), 1])
def test_predictions_are_those_of_the_network_with_the_jump(jump: Any, x: Any) -> None:
    model = Functional()
    per_call = tuple(jump) if isinstance(jump, (tuple, list)) else (float(jump), float(jump))
    transformed = JumpReLU(wrap(model), jump)()
    np.testing.assert_allclose(transformed.predict(x), numpy_functional(model, x, per_call), rtol=1e-4, atol=1e-5)
    assert transformed.model.jumps == per_call


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.LeakyReLU(0.1)])
@pytest.mark.parametrize("mode", ["exact", "relu"])  # the smooth rule of a ReLU has a second derivative of its own
def test_a_mode_around_the_network_sees_its_rectifiers(mode: str, rectifier: nn.Module, x: Any) -> None:
    """The second derivative of a piecewise linear network is zero, and that of its softplus is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), rectifier, nn.Linear(16, 4))
    network = JumpReLU(wrap(model), 0.1)().model
    network.gradient_mode = mode
    images = torch.from_numpy(x)
    plain = network(images)

    def curvature(beta: float | None) -> float:
        z = images.clone().requires_grad_()
        with softplus_for_kinks(beta):
            (slope,) = torch.autograd.grad(network(z).square().sum(dim=1).mean(), z, create_graph=True)
        return float(slope.detach().square().sum())

    assert curvature(5.0) != pytest.approx(curvature(None), rel=1e-3)
    with softplus_for_kinks(5.0), torch.no_grad():
        assert not torch.equal(network(images), plain)
    assert torch.equal(network(images), plain)


@pytest.mark.parametrize("mode", MODES)
def test_relevance_passes_a_network_with_a_jump(mode: str, x: Any) -> None:
    """It equals that of the network with the gates written down."""

    class Gated(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.relu(z) * GATE

    first, last = nn.Linear(12, 16), nn.Linear(16, 4)
    transformed = JumpReLU(wrap(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)), 0.1)().model.eval()
    transformed.gradient_mode = mode
    images = torch.from_numpy(x)
    GATE = (first(images.flatten(1)) > 0.1).float()
    written = nn.Sequential(nn.Flatten(), first, Gated(), last).eval()
    torch.testing.assert_close(
        relevance(transformed, images, rules=epsilon_plus()), relevance(written, images, rules=epsilon_plus())
    )


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_the_mode_layer_by_layer(mode: str, x: Any) -> None:
    """The chain rule written out, in float64."""
    model = Functional().double()
    network = JumpReLUNetwork(model, (0.2, 0.1), nb_rectifiers=2).eval()
    network.gradient_mode = mode
    images = torch.from_numpy(x).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images)[:, 1].sum(), images)
    w1, w2, w3 = (layer.weight.detach() for layer in (model.one, model.two, model.three))
    with torch.no_grad():
        z1 = model.one(images.flatten(1))
        h = 1.5 * torch.where(z1 > 0.2, z1, 0)
        z2 = model.two(h) + h
        into_h = (w3[1] * derivative(z2, 0.1, mode)) @ (w2 + torch.eye(16))
        expected = (1.5 * into_h * derivative(z1, 0.2, mode)) @ w1
    torch.testing.assert_close(gradient.flatten(1), expected)


def zoo() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Torchvision's networks and how many ReLUs an evaluation pass of each calls."""
    models = torchvision.models
    return {
        "resnet18": (models.resnet18, 17),
        "squeezenet1_1": (models.squeezenet1_1, 26),
        "mobilenet_v2": (models.mobilenet_v2, 35),  # ReLU6
    }


@contextmanager
def patched_relus(jump: float) -> Iterator[None]:
    """The functions that nn.ReLU and nn.ReLU6 call, replaced by hand."""

    def relu(z: Tensor, inplace: bool = False) -> Tensor:
        return z.mul_(z > jump) if inplace else z * (z > jump)

    def hardtanh(z: Tensor, low: float, high: float, inplace: bool = False) -> Tensor:
        assert low == 0
        return relu(z, inplace).clamp(max=high)

    with mock.patch.multiple(F, relu=relu, hardtanh=hardtanh, relu6=lambda z, inplace=False: hardtanh(z, 0, 6)):
        yield


def settle_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Give the untrained network the statistics of ``x``, or its signal would fade away with depth."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average, here of one batch
    with torch.no_grad():
        model.train()(x)


@pytest.mark.parametrize("name", zoo())
def test_networks_of_torchvision(name: str) -> None:
    build, nb_rectifiers = zoo()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        x = torch.rand(2, 3, 64, 64)
        settle_batch_norm(model, x)
    model.eval()
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (3, 64, 64), 1000, clip_values=(0, 1), device_type="cpu"
    )
    with torch.no_grad():
        plain = model(x)
    assert count_rectifiers(model, x) == nb_rectifiers

    unchanged = JumpReLU(classifier, 0.0)()
    assert unchanged.model.nb_rectifiers == nb_rectifiers
    np.testing.assert_array_equal(unchanged.predict(x.numpy()), plain.numpy())

    changed = JumpReLU(classifier, 0.03)()
    with torch.no_grad(), patched_relus(0.03):
        expected = model(x)
    assert (expected - plain).std() > 0.01 * plain.std()  # or nothing would have jumped
    torch.testing.assert_close(torch.from_numpy(changed.predict(x.numpy())), expected, rtol=1e-5, atol=1e-6)

    assert_same_storage(changed.model, model)
    with torch.no_grad():
        assert torch.equal(model(x), plain)  # the original goes on as before


def assert_same_storage(actual: nn.Module, original: nn.Module) -> None:
    """The same state under the same keys, in the same memory."""
    state, expected = actual.state_dict(), original.state_dict()
    assert list(state) == list(expected)
    assert all(state[key].data_ptr() == expected[key].data_ptr() for key in state)


def assert_no_shared_storage(actual: nn.Module, original: nn.Module) -> None:
    assert not {value.data_ptr() for value in actual.state_dict().values()} & {
        value.data_ptr() for value in original.state_dict().values()
    }


class Checkpointed(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpointed_network_has_the_gradient_of_a_plain_one_or_is_refused(mode: str, x: Any) -> None:
    """Activation checkpointing runs the network a second time in the backward pass, after ``forward`` has returned."""
    plain = JumpReLU(wrap(Functional()), 0.2)().model
    try:
        checkpointed = JumpReLU(wrap(Checkpointed()), 0.2)().model
    except InputError:
        return
    plain.gradient_mode = checkpointed.gradient_mode = mode
    expected = gradient_of(lambda x: plain(x).logsumexp(dim=1), torch.from_numpy(x))
    torch.testing.assert_close(gradient_of(lambda x: checkpointed(x).logsumexp(dim=1), torch.from_numpy(x)), expected)


class RandomDepth(nn.Module):
    """Calls as many ReLUs as the size of the batch says."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = F.relu(x - 0.1)
        return x.flatten(1)[:, :4]


def test_a_network_of_varying_depth_takes_one_jump_but_no_list(x: Any) -> None:
    assert JumpReLU(wrap(RandomDepth()), 0.3)().model.nb_rectifiers == 1
    expected = x
    for _ in range(9):
        expected = np.where(expected - np.float32(0.1) > 0.3, expected - np.float32(0.1), 0)
    np.testing.assert_allclose(
        JumpReLUNetwork(RandomDepth(), 0.3, 2).eval()(torch.from_numpy(x)), expected.reshape(9, -1)[:, :4]
    )
    with pytest.raises(InputError, match="calls more than 2 rectifiers; as many as jumps were expected"):
        JumpReLUNetwork(RandomDepth(), (0.3, 0.2), 2).eval()(torch.from_numpy(x))


class Mixed(nn.Module):
    """A SiLU, a gate as in squeeze-and-excitation, and a leaky ReLU; the gate is no rectifier."""

    def forward(self, x: Tensor) -> Tensor:
        z = 4 * x.flatten(1) - 2
        h = F.silu(z) * F.hardsigmoid(z.flip(1))
        return F.leaky_relu(h - 0.2, 0.1)[:, :4]


def test_rectifiers_are_mixed_and_gates_stay(x: Any) -> None:
    z = 4.0 * x.reshape(9, -1) - 2
    h = np.where(z > 0.3, z / (1 + np.exp(-z)), 0) * np.clip(z[:, ::-1] / 6 + 0.5, 0, 1)
    expected = np.where(h - 0.2 > 0.1, h - 0.2, 0)[:, :4]
    assert (expected > 0).any()
    np.testing.assert_allclose(JumpReLU(wrap(Mixed()), (0.3, 0.1))().predict(x), expected, rtol=1e-5, atol=1e-6)


def test_after_an_exception_inside_the_network_a_relu_is_a_relu_again() -> None:
    network = JumpReLUNetwork(Functional(), 1.0, 2).eval()
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 5))
    assert F.relu(torch.tensor([0.5])).item() == 0.5


def test_in_training_mode_the_network_is_the_plain_one(x: Any) -> None:
    model = nn.Sequential(Functional(), nn.BatchNorm1d(4), nn.ReLU())
    network = JumpReLUNetwork(copy.deepcopy(model), 0.3, 3)
    images = torch.from_numpy(x)
    assert torch.equal(network.train()(images), model.train()(images))
    assert torch.equal(network.network[1].running_mean, model[1].running_mean)
    assert not torch.equal(network.eval()(images), model.eval()(images))
    assert network.training is network.network[0].training is False


@pytest.mark.parametrize(("width", "factor"), [(None, 0.1), (None, 3.0), (0.4, 0.5)])
def test_an_attacker_who_anneals_makes_the_smooth_rule_wider_or_narrower_and_no_other(
    width: float | None, factor: float, x: Any
) -> None:
    """By default each jump's width is a quarter of it, and a factor is of that."""
    network = JumpReLUNetwork(Functional(), (0.2, 0.4), 2, width=width).eval()
    images = torch.from_numpy(x)
    for mode in MODES:
        network.gradient_mode = mode
        before, logits = gradient_of(network, images), network(images)
        with surrogate_width(network, factor):
            annealed = gradient_of(network, images)
            assert torch.equal(network(images), logits)
        assert torch.equal(gradient_of(network, images), before)
        assert torch.equal(annealed, before) == (mode != "smooth")
    jumps, widths = network.jumps, [factor * (jump / 4 if width is None else width) for jump in network.jumps]

    def reference(z: Tensor) -> Tensor:
        with ReplaceRectifiers(lambda _, z, call: jump_relu(z, jumps[call], "smooth", widths[call])):
            return network.network(z)  # type: ignore[no-any-return]

    torch.testing.assert_close(annealed, gradient_of(reference, images))


# State


@pytest.mark.parametrize(
    "outer", [lambda net: net, lambda net: nn.ModuleDict({"a": nn.Sequential(net), "b": Functional()})]
)
def test_states_pass_between_the_plain_network_and_the_jump_network(outer: Any, x: Any) -> None:
    def filled(value: float, jump: bool) -> nn.Module:
        model = nn.Sequential(Functional(), nn.BatchNorm1d(4))
        network: nn.Module = outer(JumpReLUNetwork(model, 0.2, 2) if jump else model)
        with torch.no_grad():
            for tensor in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
                tensor.fill_(value)
        return network

    for from_jump in (False, True):
        source, target = filled(2.0, from_jump), filled(3.0, not from_jump)
        stream = io.BytesIO()
        torch.save(source.state_dict(), stream)
        stream.seek(0)
        result = target.load_state_dict(torch.load(stream))
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert all((value == 2).all() for value in target.state_dict().values() if value.is_floating_point())


def test_a_state_that_does_not_fit_is_refused_by_torch() -> None:
    for network in (JumpReLUNetwork(Functional(), 0.2, 2), nn.Sequential(JumpReLUNetwork(Functional(), 0.2, 2))):
        state = network.state_dict()
        missing = dict(list(state.items())[1:])
        with pytest.raises(RuntimeError, match="Missing key"):
            network.load_state_dict(missing)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            network.load_state_dict(state | {f"{next(iter(state))}.more": torch.zeros(1)})


# The transformer


def full_classifier(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(
        model,
        nn.MultiMarginLoss(),
        (3, 2, 2),
        4,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5),
        channels_first=False,
        clip_values=(-1.0, 3.0),
        preprocessing_defences=[StandardisationMeanStdPyTorch(mean=0.1, std=3.0, device_type="cpu")],
        preprocessing=(0.25, 0.5),
        device_type="cpu",
    )


@pytest.mark.parametrize("full_copy", [False, True])
def test_everything_but_the_network_is_carried_over(full_copy: bool, x: Any) -> None:
    classifier = full_classifier(Functional())
    transformed = JumpReLU(classifier, 0.2, copy=full_copy)()
    for name in ("loss", "preprocessing", "preprocessing_defences", "nb_classes", "input_shape", "channels_first"):
        assert getattr(transformed, name) == getattr(classifier, name)
    assert transformed.device == classifier.device
    np.testing.assert_array_equal(transformed.clip_values, classifier.clip_values)
    normalised = ((x - 0.1) / 3 - 0.25) / 0.5
    expected = numpy_functional(classifier.model, normalised, (0.2, 0.2))
    np.testing.assert_allclose(transformed.predict(x), expected, rtol=1e-4, atol=1e-5)
    assert undefended(transformed) is classifier


def test_modules_are_separate_and_parameters_and_buffers_shared(x: Any) -> None:
    model = nn.Sequential(Functional(), nn.BatchNorm1d(4))
    classifier = wrap(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    transformed = JumpReLU(classifier, 0.2)()
    assert not set(transformed.model.modules()) & set(model.modules())
    assert_same_storage(transformed.model, model)
    assert not isinstance(transformed.optimizer, torch.optim.Optimizer)
    model.train()
    assert not any(module.training for module in transformed.model.modules())
    before = transformed.predict(x)
    with torch.no_grad():
        model[1].bias.add_(1)
    np.testing.assert_allclose(transformed.predict(x), before + 1, rtol=1e-5)


def test_the_shared_copy_cannot_be_trained(x: Any) -> None:
    model = nn.Sequential(Functional(), nn.BatchNorm1d(4))
    transformed = JumpReLU(wrap(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5)), 0.2)()
    before = copy.deepcopy(model.state_dict())
    sentence = (
        r"shares its parameters with the undefended one and cannot be trained; "
        r"JumpReLU\(classifier, copy=True\) was expected"
    )
    for training_call in (
        lambda: transformed.fit(x, np.arange(9) % 4, nb_epochs=1),
        lambda: transformed.predict(x, training_mode=True),
        transformed.model.train,
    ):
        with pytest.raises(InputError, match=sentence):
            training_call()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    np.testing.assert_array_equal(transformed.predict(x), transformed.predict(x))


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_full_copy_is_trained_and_the_original_stays(kind: str, x: Any) -> None:
    model = nn.Sequential(Functional(), nn.BatchNorm1d(4))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.05)
    classifier = wrap(model, optimizer=optimizer)
    y = np.arange(9) % 4
    with seeded(0):
        classifier.fit(x, y, nb_epochs=1)  # so that the optimizer has a state
    transformed = JumpReLU(classifier, 0.2, copy=True)()
    assert_no_shared_storage(transformed.model, model)
    optimised = {id(parameter) for group in transformed.optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in transformed.model.parameters()}
    assert type(transformed.optimizer) is type(optimizer)
    before, predicted = copy.deepcopy(model.state_dict()), classifier.predict(x)
    loss = transformed.compute_loss(x, y, reduction="mean")
    with seeded(0):  # ART shuffles
        transformed.fit(x, y, nb_epochs=20)
    assert transformed.compute_loss(x, y, reduction="mean") < loss
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    np.testing.assert_array_equal(undefended(transformed).predict(x), predicted)


def test_another_classifier_may_be_transformed(x: Any) -> None:
    first, second = wrap(Functional()), wrap(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(12, 4)))
    transformer = JumpReLU(first, 0.3)
    transformed = transformer(x, transformed_classifier=second)
    assert undefended(transformed) is second
    assert_same_storage(transformed.model, second.model)
    assert transformed.model.nb_rectifiers == 1
    assert undefended(transformer()) is first
    with pytest.raises(InputError, match="transformed_classifier is a Linear"):
        transformer(transformed_classifier=nn.Linear(12, 4))
    with pytest.raises(InputError, match="jump has 2 values"):
        JumpReLU(first, (0.3, 0.1))(transformed_classifier=second)


def deep_copied(classifier: PyTorchClassifier) -> PyTorchClassifier:
    return copy.deepcopy(classifier)


def pickled(classifier: PyTorchClassifier) -> PyTorchClassifier:
    twin: PyTorchClassifier = pickle.loads(pickle.dumps(classifier))
    return twin


@pytest.mark.parametrize("twin_of", [deep_copied, pickled])
def test_copies_are_independent(twin_of: Callable[[PyTorchClassifier], PyTorchClassifier], x: Any) -> None:
    model = Functional()
    original = JumpReLU(wrap(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5)), 0.2)()
    original.model.gradient_mode = "relu"
    twin = twin_of(original)
    before = original.predict(x)
    np.testing.assert_array_equal(twin.predict(x), before)
    assert twin.model.gradient_mode == "relu"
    assert_no_shared_storage(twin.model, original.model)
    twin.model.gradient_mode, twin.model.width, twin.model.jumps = "smooth", 0.7, (0.1, 0.1)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert (original.model.gradient_mode, original.model.width, original.model.jumps) == ("relu", None, (0.2, 0.2))
    np.testing.assert_array_equal(original.predict(x), before)
    assert_same_storage(original.model, model)


@pytest.mark.parametrize("twin_of", [deep_copied, pickled])
def test_training_a_copy_never_changes_its_undefended_classifier(
    twin_of: Callable[[PyTorchClassifier], PyTorchClassifier], x: Any
) -> None:
    """A copy of the pair shares parameters within the pair just as the original does."""
    model = Functional()
    twin = twin_of(JumpReLU(wrap(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5)), 0.2)())
    before = undefended(twin).predict(x)
    with contextlib.suppress(InputError):  # to refuse is fine
        twin.fit(x, np.arange(9) % 4, nb_epochs=3)
    np.testing.assert_array_equal(undefended(twin).predict(x), before)


# Gradients through ART


@pytest.mark.parametrize("preprocessing", [None, (np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7]))])
@pytest.mark.parametrize("mode", MODES)
def test_art_s_gradients_are_autograd_s_in_every_mode(mode: str, preprocessing: Any, x: Any) -> None:
    transformed = JumpReLU(wrap(Functional(), preprocessing=preprocessing), 0.2)()
    module = as_module(transformed)
    y = np.arange(9) % 4
    predicted = transformed.predict(x)
    with gradient_mode(transformed, mode):
        images = torch.from_numpy(x).requires_grad_()
        logits = module(images)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.from_numpy(y)), images, retain_graph=True)
        np.testing.assert_array_equal(transformed.loss_gradient(x, np.eye(4, dtype=np.float32)[y]), gradient.numpy())
        per_class = [torch.autograd.grad(column.sum(), images, retain_graph=True)[0] for column in logits.T]
        np.testing.assert_array_equal(transformed.class_gradient(x), torch.stack(per_class, dim=1).numpy())
        np.testing.assert_array_equal(transformed.predict(x), predicted)
        np.testing.assert_array_equal(logits.detach().numpy(), predicted)


# Compilation


def assert_compiled_agrees(network: JumpReLUNetwork, compiled: Any, x: Tensor, tolerance: float) -> None:
    eager_x, compiled_x = (x.clone().requires_grad_() for _ in range(2))
    eager_out, compiled_out = network(eager_x), compiled(compiled_x)
    torch.testing.assert_close(compiled_out, eager_out, rtol=tolerance, atol=tolerance)
    (expected,) = torch.autograd.grad(eager_out.logsumexp(dim=1).sum(), eager_x)
    (gradient,) = torch.autograd.grad(compiled_out.logsumexp(dim=1).sum(), compiled_x)
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


def test_the_network_compiles_into_one_graph(x: Any) -> None:
    """And follows a change of the gradient mode or the jump."""
    torch.compiler.reset()
    network = JumpReLUNetwork(Functional(), 0.2, 2).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for mode in MODES:
        network.gradient_mode = mode
        assert_compiled_agrees(network, compiled, torch.from_numpy(x), 1e-6)
    network.jumps = (0.1, 0.3)
    assert_compiled_agrees(network, compiled, torch.from_numpy(x), 1e-6)


# What is refused


@pytest.mark.parametrize(
    ("jump", "message"),
    [
        (-0.1, "jump is -0.1; a finite number >= 0 was expected"),
        (float("nan"), "jump is nan"),
        (True, "jump is True"),
        (None, "jump is None"),
        ([0.1, -0.2], r"jump is \[0.1, -0.2\]"),
        ([0.1, "a"], r"jump is \[0.1, 'a'\]"),
        ([], "jump has 0 values; one, or one for each of the 2 rectifiers, was expected"),
        ([0.1], "jump has 1 values"),
        ((0.1, 0.2, 0.3), "jump has 3 values"),
    ],
)
def test_a_bad_jump_is_refused_wherever_it_is_set(jump: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JumpReLU(wrap(Functional()), jump)
    transformer = JumpReLU(wrap(Functional()), 0.25)
    with pytest.raises(InputError, match=message):
        transformer.set_params(width=0.5, jump=jump)
    assert (transformer.jump, transformer.width) == (0.25, None)
    with pytest.raises(InputError, match=message):
        JumpReLUNetwork(Functional(), jump, 2)


def test_a_value_that_an_option_does_not_declare_is_refused(wrong_values: Callable[[Kind], list[Any]]) -> None:
    for name, kind in declared_of(JumpReLU).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                JumpReLU(wrap(Functional()), **{name: value})
            with pytest.raises(InputError, match=rf"^{name} is "):
                JumpReLU(wrap(Functional())).set_params(**{name: value})
    transformer = JumpReLU(wrap(Functional()))
    for name, kind in declared_of(JumpReLU.fit).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                transformer.fit(np.zeros((9, 3, 2, 2), np.float32), np.arange(9) % 4, **{name: value})


def test_a_parameter_that_does_not_exist_is_refused() -> None:
    """ART's own transformers drop it without a word."""
    transformer = JumpReLU(wrap(Functional()), 0.1)
    with pytest.raises(InputError, match="kappa: no parameter of JumpReLU; it has "):
        transformer.set_params(jump=0.2, kappa=0.3)
    assert transformer.jump == 0.1
    transformer.set_params(jump=(0.2, 0.3), width=0.5, copy=True)
    assert (transformer.jump, transformer.width, transformer.copy) == ([0.2, 0.3], 0.5, True)
    assert transformer().model.jumps == (0.2, 0.3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), "calls no rectifier such as ReLU, GELU or SiLU; at least"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh()), "calls no rectifier"),
        (nn.Sequential(nn.Flatten(), nn.DataParallel(nn.Sequential(nn.Linear(12, 4), nn.ReLU()))), "DataParallel"),
        (nn.Sequential(nn.Flatten(), nn.RNN(12, 4, nonlinearity="relu")), "recurrent"),
    ],
)
def test_a_network_without_a_relu_to_replace_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JumpReLU(wrap(model), 0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU()))
    with pytest.raises(InputError, match="TorchScript"):
        JumpReLU(wrap(scripted), 0.1)


def test_a_jump_network_is_not_given_a_second_jump() -> None:
    with pytest.raises(InputError, match="JumpReLUNetwork has a jump already"):
        JumpReLU(JumpReLU(wrap(Functional()), 0.1)(), 0.1)


def test_a_network_that_cannot_be_copied_is_refused(x: Any) -> None:
    """torch's old weight_norm leaves a computed tensor among the attributes once the network has run."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(12, 4))
    classifier = wrap(nn.Sequential(nn.Flatten(), layer, nn.ReLU()))
    classifier.model(torch.from_numpy(x))
    with pytest.raises(InputError, match="cannot be copied"):
        JumpReLU(classifier)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_plain_functions_is_refused(reentrant: bool) -> None:
    class Checkpoints(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(torch.relu, super().forward(x), use_reentrant=reentrant)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match="checkpointing"):
        JumpReLU(wrap(Checkpoints()))
