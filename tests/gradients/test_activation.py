"""Replacing rectifiers: each way to write one is answered, nothing else is, and no trace is left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.activation import (
    Rectifier,
    ReplaceRectifiers,
    check_replaceable,
    count_rectifiers,
    softplus_for_kinks,
)

Activation = Callable[[Tensor], Tensor]

FORMS: dict[str, Activation] = {
    "nn.ReLU": nn.ReLU(),
    "F.relu": F.relu,
    "F.relu(input=)": lambda z: F.relu(input=z),
    "torch.relu": torch.relu,
    "torch.relu(input=)": lambda z: torch.relu(input=z),
    "Tensor.relu": lambda z: z.relu(),
}
INPLACE: dict[str, Activation] = {
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu(inplace)": lambda z: F.relu(z, inplace=True),
    "F.relu(z, True)": lambda z: F.relu(z, True),
    "F.relu_": F.relu_,
    "torch.relu_": torch.relu_,
    "Tensor.relu_": lambda z: z.relu_(),
}
# With an upper limit of 1.5.
CLIPPED: dict[str, Activation] = {
    "nn.Hardtanh": nn.Hardtanh(0, 1.5),
    "F.hardtanh": lambda z: F.hardtanh(z, 0, 1.5),
    "F.hardtanh(keywords)": lambda z: F.hardtanh(max_val=1.5, min_val=0.0, input=z),
}
CLIPPED_INPLACE: dict[str, Activation] = {
    "nn.Hardtanh(inplace)": nn.Hardtanh(0, 1.5, inplace=True),
    "F.hardtanh_": lambda z: F.hardtanh_(z, 0.0, 1.5),
}
# With an upper limit of 6.
RELU6: dict[str, Activation] = {"nn.ReLU6": nn.ReLU6(), "F.relu6": F.relu6}
RELU6_INPLACE: dict[str, Activation] = {
    "nn.ReLU6(inplace)": nn.ReLU6(inplace=True),
    "F.relu6(inplace)": lambda z: F.relu6(z, inplace=True),
}
OTHERS: dict[str, Activation] = {
    "clamp": lambda z: z.clamp(min=0),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "maximum": lambda z: torch.maximum(z, torch.zeros(())),
    "nn.Tanh": nn.Tanh(),
    "nn.Sigmoid": nn.Sigmoid(),
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "nn.Softmax": nn.Softmax(1),
    "nn.Softshrink": nn.Softshrink(),
    "SiLU by arithmetic": lambda z: z * z.sigmoid(),
    "a random RReLU": lambda z: F.rrelu(z, training=True).sign(),
    "nn.Hardtanh": nn.Hardtanh(),
    "F.hardtanh_": lambda z: F.hardtanh_(z),
    "nn.Threshold": nn.Threshold(0, 0),
}


def phi(z: Any) -> Any:
    """The standard normal distribution function."""
    return np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2


# Each with the function that its definition gives, and whether it is linear on either side of zero.
RECTIFIERS: dict[str, tuple[Activation, Callable[[Any], Any], bool]] = {
    "nn.LeakyReLU": (nn.LeakyReLU(0.1), lambda z: np.where(z > 0, z, 0.1 * z), True),
    "F.leaky_relu": (lambda z: F.leaky_relu(z, 0.2), lambda z: np.where(z > 0, z, 0.2 * z), True),
    "nn.PReLU": (nn.PReLU(init=0.3), lambda z: np.where(z > 0, z, 0.3 * z), True),
    "Tensor.prelu": (lambda z: z.prelu(torch.tensor([0.3])), lambda z: np.where(z > 0, z, 0.3 * z), True),
    "nn.RReLU": (nn.RReLU(0.1, 0.3).eval(), lambda z: np.where(z > 0, z, 0.2 * z), True),
    "nn.GELU": (nn.GELU(), lambda z: z * phi(z), False),
    "nn.GELU(tanh)": (
        nn.GELU("tanh"),
        lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        False,
    ),
    "nn.SiLU": (nn.SiLU(), lambda z: z / (1 + np.exp(-z)), False),
    "nn.Mish": (nn.Mish(), lambda z: z * np.tanh(np.log1p(np.exp(z))), False),
    "nn.Hardswish": (nn.Hardswish(), lambda z: z * np.clip(z + 3, 0, 6) / 6, False),
    "nn.Softplus": (nn.Softplus(2.0), lambda z: np.log1p(np.exp(2 * z)) / 2, False),
    "nn.ELU": (nn.ELU(0.7), lambda z: np.where(z > 0, z, 0.7 * np.expm1(z)), False),
    "nn.CELU": (nn.CELU(0.7), lambda z: np.where(z > 0, z, 0.7 * np.expm1(z / 0.7)), False),
    "nn.SELU": (nn.SELU(), lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)), False),
}
IN_PLACE: dict[str, tuple[Activation, str]] = {
    "nn.LeakyReLU(inplace)": (nn.LeakyReLU(0.1, inplace=True), "nn.LeakyReLU"),
    "F.leaky_relu(z, slope, True)": (lambda z: F.leaky_relu(z, 0.1, True), "nn.LeakyReLU"),
    "F.leaky_relu_": (lambda z: F.leaky_relu_(z, 0.1), "nn.LeakyReLU"),
    "F.rrelu_": (lambda z: F.rrelu_(z, 0.1, 0.3), "nn.RReLU"),
    "F.silu(z, True)": (lambda z: F.silu(z, True), "nn.SiLU"),
    "nn.Mish(inplace)": (nn.Mish(inplace=True), "nn.Mish"),
    "nn.Hardswish(inplace)": (nn.Hardswish(inplace=True), "nn.Hardswish"),
    "F.elu_": (lambda z: F.elu_(z, 0.7), "nn.ELU"),
    "nn.CELU(inplace)": (nn.CELU(0.7, inplace=True), "nn.CELU"),
    "F.selu_": (F.selu_, "nn.SELU"),
}

WEIGHT_1 = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
WEIGHT_2 = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
X = 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(3))


class TwoLayers(nn.Module):
    """W2 a(W1 x) + the mean of what the activation left in its own input."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        z = x @ WEIGHT_1.T
        out = self.activation(z) @ WEIGHT_2.T
        return out + z.mean(dim=1, keepdim=True)


def numpy_two_layers(activation: Callable[[Any], Any], inplace: bool) -> Any:
    z = X.numpy() @ WEIGHT_1.numpy().T
    a = activation(z)
    return a @ WEIGHT_2.numpy().T + (a if inplace else z).mean(axis=1, keepdims=True)


def jump(rectifier: Rectifier, z: Tensor, call: int) -> Tensor:
    return torch.where(z > 0.7, rectifier.function(z), 0)


def numpy_jump(z: Any) -> Any:
    return z * (z > 0.7)


def run(model: nn.Module, x: Tensor = X, replacement: Any = jump) -> tuple[Tensor, int]:
    with ReplaceRectifiers(replacement) as mode:
        out = model(x)
    return out, mode.calls


# What is answered


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_answered(form: str) -> None:
    out, calls = run(TwoLayers(FORMS[form]))
    assert calls == 1
    np.testing.assert_allclose(out, numpy_two_layers(numpy_jump, inplace=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", INPLACE)
def test_an_inplace_form_still_overwrites_its_input(form: str) -> None:
    out, calls = run(TwoLayers(INPLACE[form]))
    assert calls == 1
    np.testing.assert_allclose(out, numpy_two_layers(numpy_jump, inplace=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "activation", "ceiling", "inplace"),
    [
        *((form, CLIPPED[form], 1.5, False) for form in CLIPPED),
        *((form, CLIPPED_INPLACE[form], 1.5, True) for form in CLIPPED_INPLACE),
        *((form, RELU6[form], 6.0, False) for form in RELU6),
        *((form, RELU6_INPLACE[form], 6.0, True) for form in RELU6_INPLACE),
    ],
)
def test_a_clipped_relu_keeps_its_ceiling(form: str, activation: Activation, ceiling: float, inplace: bool) -> None:
    assert (ceiling < X @ WEIGHT_1.T).any()  # or nothing would be clipped
    out, calls = run(TwoLayers(activation))
    assert calls == 1
    expected = numpy_two_layers(lambda z: np.minimum(numpy_jump(z), ceiling), inplace)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS | INPLACE | CLIPPED | CLIPPED_INPLACE | RELU6 | RELU6_INPLACE)
def test_the_relu_itself_as_the_answer_changes_no_bit(form: str) -> None:
    model = TwoLayers((FORMS | INPLACE | CLIPPED | CLIPPED_INPLACE | RELU6 | RELU6_INPLACE)[form])
    replaced, plain = (X.clone().requires_grad_() for _ in range(2))
    out, _ = run(model, replaced, lambda rectifier, z, _: rectifier.function(z))
    expected = model(plain)
    assert torch.equal(out, expected)
    assert torch.equal(
        torch.autograd.grad(out.square().sum(), replaced)[0], torch.autograd.grad(expected.square().sum(), plain)[0]
    )


@pytest.mark.parametrize("form", RECTIFIERS)
def test_other_rectifiers_are_answered_with_their_function_and_their_kink(form: str) -> None:
    activation, numpy_form, has_kink = RECTIFIERS[form]
    kinks: list[bool] = []

    def keep_kink(rectifier: Rectifier, z: Tensor, call: int) -> Tensor:
        kinks.append(rectifier.has_kink)
        return jump(rectifier, z, call)

    with torch.no_grad():
        out, _ = run(TwoLayers(activation), replacement=keep_kink)
    expected = numpy_two_layers(lambda z: numpy_form(z) * (z > 0.7), inplace=False)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert kinks == [has_kink]


@pytest.mark.parametrize("form", IN_PLACE)
def test_an_inplace_rectifier_still_overwrites_its_input(form: str) -> None:
    activation, rectifier = IN_PLACE[form]
    out, calls = run(TwoLayers(activation))
    assert calls == 1
    expected = numpy_two_layers(lambda z: RECTIFIERS[rectifier][1](z) * (z > 0.7), inplace=True)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["nn.ReLU", *RECTIFIERS])
def test_softplus_smooths_what_has_a_kink_and_nothing_else(form: str) -> None:
    activation = FORMS["nn.ReLU"] if form == "nn.ReLU" else RECTIFIERS[form][0]
    has_kink = form == "nn.ReLU" or RECTIFIERS[form][2]
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    activation = copy.deepcopy(activation).double() if isinstance(activation, nn.Module) else activation
    if form == "Tensor.prelu":
        activation = RECTIFIERS["nn.PReLU"][0].double()  # type: ignore[attr-defined]
    with torch.no_grad():
        exact, beta = activation(z), 10.0
        with softplus_for_kinks(beta):
            smooth = activation(z)
        below = activation(torch.tensor([[-1.0]], dtype=torch.float64))
    expected = F.softplus(z, beta=beta) + below * F.softplus(-z, beta=beta) if has_kink else exact
    torch.testing.assert_close(smooth, expected)


@pytest.mark.parametrize("form", OTHERS)
def test_other_activations_are_left_alone(form: str) -> None:
    model = TwoLayers(OTHERS[form])
    out, calls = run(model)
    assert calls == 0
    assert torch.equal(out, model(X))


def test_calls_are_numbered_in_the_order_of_execution() -> None:
    """One module may serve several calls, and each call has its own number."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.relu = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(x) - 1
            x = F.relu(x) - 1
            x = self.relu(x) - 1
            return self.last(x)

    numbers: list[int] = []

    def scaled(rectifier: Rectifier, z: Tensor, call: int) -> Tensor:
        numbers.append(call)
        return z.clamp(min=0) * (call + 1)

    x = torch.linspace(-3, 9, 25)
    out, calls = run(Shared(), x, scaled)
    expected = x.numpy()
    for call in range(4):
        expected = (call + 1) * np.maximum(expected if call == 0 else expected - 1, 0)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert numbers == [0, 1, 2, 3]
    assert calls == 4
    assert run(Shared(), x, scaled)[1] == 4  # a new pass counts from the start
    assert numbers[4:] == [0, 1, 2, 3]


def test_a_transformer_layer_is_seen_on_its_fast_path_too() -> None:
    """Without gradients torch fuses the whole layer, ReLU included, unless a mode is active."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
        x = torch.randn(2, 5, 8)
    assert count_rectifiers(layer, x) == 1
    with torch.no_grad():
        without_gradient = run(layer, x)[0]
    assert torch.equal(without_gradient, run(layer, x.clone().requires_grad_())[0])


# What is left behind


def assert_no_mode_is_active() -> None:
    z = torch.tensor([-1.0, 0.5, 2.0])
    assert F.relu(z).tolist() == [0.0, 0.5, 2.0]
    assert F.relu6(4 * z).tolist() == [0.0, 2.0, 6.0]


def test_after_the_pass_a_relu_is_a_relu_again() -> None:
    run(TwoLayers(F.relu))
    assert_no_mode_is_active()
    count_rectifiers(TwoLayers(F.relu), X)
    assert_no_mode_is_active()


def test_an_exception_inside_the_pass_leaves_no_mode_behind() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise FloatingPointError(F.relu(x).sum().item())

    with pytest.raises(FloatingPointError):
        run(Failing())
    assert_no_mode_is_active()
    with pytest.raises(FloatingPointError):
        count_rectifiers(Failing(), X)
    assert_no_mode_is_active()


# What is refused


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


def traced() -> nn.Module:
    module: nn.Module = torch.jit.trace(Plain(), X)
    return module


def scripted() -> nn.Module:
    module: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("build", [traced, scripted])
def test_torchscript_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match="the model is compiled TorchScript"):
        check_replaceable(build())
    with pytest.raises(InputError, match=r"layer '1' is compiled TorchScript"):
        check_replaceable(nn.Sequential(nn.Flatten(), build()))


def test_a_fused_recurrent_relu_is_refused() -> None:
    with pytest.raises(InputError, match=r"the model is a .*recurrent layer"):
        check_replaceable(nn.RNN(4, 4, nonlinearity="relu"))
    with pytest.raises(InputError, match=r"layer 'body.1' is a .*recurrent layer"):
        check_replaceable(nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.RNN(4, 4, nonlinearity="relu"))}))


def test_a_network_in_worker_threads_is_refused() -> None:
    with pytest.raises(InputError, match=r"is a DataParallel; its \.module was expected"):
        check_replaceable(nn.DataParallel(Plain()))
    with pytest.raises(InputError, match="layer '0' is a DataParallel"):
        check_replaceable(nn.Sequential(nn.DataParallel(Plain())))
