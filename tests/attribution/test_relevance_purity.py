"""Relevance only reads: nothing stays behind in the model or in x, and nothing is remembered of former weights."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from art_defenses_ext.attribution.relevance import (
    Composite,
    Layer,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    relevance,
)
from art_defenses_ext.attribution.rules import Z_PLUS, AlphaBeta, Epsilon, Flat, WSquare
from art_defenses_ext.base.errors import InputError

NB_CLASSES = 5
COMPOSITES: dict[str, Composite] = {
    "epsilon-plus": epsilon_plus(),
    "alpha 2, beta 1": epsilon_alpha2_beta1(),
    "gamma and z-box": epsilon_gamma_box(-4.0, 4.0),
    "flat first": epsilon_plus_flat(),
    "w-square first": Composite(Z_PLUS, Epsilon(), WSquare()),
    "alpha 2, beta 1 everywhere": Composite(AlphaBeta(), AlphaBeta(), scale=AlphaBeta()),
    "flat everywhere": Composite(Flat(), Flat(), scale=Flat()),
}
composites = pytest.mark.parametrize("rules", COMPOSITES.values(), ids=COMPOSITES.keys())


class Net(nn.Module):
    """A residual network with everything that behaves differently in training mode."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.cumulative = nn.BatchNorm2d(6, momentum=None)
        self.depth = StochasticDepth(0.5, "row")
        self.relu = nn.ReLU(inplace)
        self.lone = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5, inplace)
        self.head = nn.Linear(6 * 4 * 4, NB_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.norm(self.first(x)))
        z = self.relu(x + self.depth(self.cumulative(self.second(x))))
        logits = self.head(self.drop(self.lone(F.max_pool2d(z, 2)).flatten(1)))
        return (logits, x) if self.training else logits


def net(dtype: torch.dtype = torch.float64) -> Net:
    return Net().to(dtype).eval()


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64)


# Nothing is left behind.


@pytest.mark.parametrize(
    ("rules", "training", "requires_grad"),
    [*((rules, True, True) for rules in COMPOSITES.values()), (epsilon_plus(), False, False)],
)
def test_model_and_x_stay_as_they_were(
    rules: Composite,
    training: bool,
    requires_grad: bool,
    only_read: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    model, x = net(), images().requires_grad_(requires_grad)
    model.train(training)
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    values = x.detach().clone()
    expected = relevance(copy.deepcopy(model).eval(), values, 1, rules)
    with only_read(model):
        for start in (1, Layer("second")):
            actual = relevance(model, x, start, rules)
            if start == 1:
                assert torch.equal(actual.detach(), expected)  # no dropout, no statistics of the batch
            assert actual.requires_grad == requires_grad
            if requires_grad:
                torch.autograd.grad(actual.square().sum(), x)
    assert torch.equal(x, values)
    assert x.grad is None
    assert x.requires_grad == requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_autograd_is_off_and_afterwards(context: Any) -> None:
    model, x = net(), images()
    expected = relevance(model, x)
    for inputs in (x, x.clone().requires_grad_()):
        with context():
            for actual in (relevance(model, inputs), relevance(model, inputs * 1)):
                assert not actual.requires_grad
                assert torch.equal(actual, expected)
    live = x.clone().requires_grad_()
    actual = relevance(model, live)
    assert torch.equal(actual.detach(), expected)
    assert torch.autograd.grad(actual.sum(), live)[0].abs().max() > 0


@composites
def test_an_image_does_not_notice_its_neighbours(rules: Composite) -> None:
    model, x = net(), images(4)
    together = relevance(model, x, "predicted", rules)
    for row in range(len(x)):
        single = relevance(model, x[row : row + 1], "predicted", rules)
        assert (together[row] - single[0]).abs().max() <= 1e-12 * single.abs().max()


# Operations in place.


class Written(nn.Module):
    """A network that is written as somebody likes."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 8 * 8, NB_CLASSES)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def out_of_place(net: Written, x: Tensor) -> Tensor:
    z = F.relu(net.conv(x))
    z = net.norm(net.mix(z)) + z
    return net.head(F.relu(z).flatten(1))  # type: ignore[no-any-return]


def modules_in_place(net: Written, x: Tensor) -> Tensor:
    z = nn.ReLU(inplace=True)(net.conv(x))
    y = net.norm(net.mix(z))
    y += z
    return net.head(nn.Dropout(inplace=True).eval()(nn.ReLU(inplace=True)(y).flatten(1)))  # type: ignore[no-any-return]


def methods_in_place(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    z.relu_()
    y = net.norm(net.mix(z))
    y.add_(z).relu_()
    return net.head(y.view(len(y), -1))  # type: ignore[no-any-return]


def functions_in_place(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    F.relu(z, inplace=True)
    y = net.norm(net.mix(z))
    first, y = y, y.__iadd__(z)  # two names for the same
    torch.relu_(first)
    return net.head(y.flatten(1))  # type: ignore[no-any-return]


def a_constant_is_written_to(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x).relu()
    y = torch.zeros(z.shape, dtype=z.dtype)
    y.add_(net.norm(net.mix(z)))
    y += z
    return net.head(F.relu(y).flatten(1))  # type: ignore[no-any-return]


def a_view_of_a_constant_is_written_to_and_read(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x).relu()
    y = torch.zeros(len(z), 8, *z.shape[2:], dtype=z.dtype)[:, :4]
    y.add_(net.norm(net.mix(z)))
    y += z
    return net.head(F.relu(y).flatten(1))  # type: ignore[no-any-return]


def copied_into_place(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    rectified = z.clone().relu()
    z.copy_(rectified)
    y = torch.empty(z.shape, dtype=z.dtype)
    y.copy_(net.norm(net.mix(z)))
    rectified.relu_()  # a copy stays as it is
    y += z
    return net.head(F.relu(y).flatten(1))  # type: ignore[no-any-return]


def what_stood_for_it_is_written_to(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    rectified = F.relu(z, inplace=True)
    y = net.norm(net.mix(rectified))
    dropped = F.dropout(y, 0.0, False)
    y += z
    dropped.relu_()
    return net.head(y.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward",
    [
        modules_in_place,
        methods_in_place,
        functions_in_place,
        a_constant_is_written_to,
        a_view_of_a_constant_is_written_to_and_read,
        copied_into_place,
        what_stood_for_it_is_written_to,
    ],
)
@pytest.mark.parametrize("softplus", [None, 3.0])
def test_in_place_is_as_out_of_place(forward: Callable[[Written, Tensor], Tensor], softplus: float | None) -> None:
    reference = Written(out_of_place).double().eval()
    in_place = Written(forward).double().eval()
    in_place.load_state_dict(reference.state_dict())
    x = images()
    if softplus is None:
        torch.testing.assert_close(in_place(x.clone()), reference(x), msg="the test's networks differ")
    for start in (1, "last_conv", Layer("conv"), Layer("norm"), Layer("mix")):
        for rules in (epsilon_plus(), epsilon_alpha2_beta1()):
            expected = relevance(reference, x, start, rules, softplus=softplus)
            assert expected.abs().max() > 0
            torch.testing.assert_close(relevance(in_place, x, start, rules, softplus=softplus), expected)


def view_then_base(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    z[:, :2].relu_()
    return net.head(z.flatten(1))  # type: ignore[no-any-return]


def base_then_view(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    flat = z.view(len(z), -1)
    z.relu_()
    return net.head(flat)  # type: ignore[no-any-return]


def view_of_what_was_overwritten(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x)
    z.relu_()
    z.view(len(z), -1).add_(1.0)
    return net.head(z.flatten(1))  # type: ignore[no-any-return]


def view_of_a_constant(net: Written, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), 4, 8, 8, dtype=x.dtype)
    z[:, :2].add_(net.conv(x)[:, :2])
    return net.head(net.mix(z).flatten(1) + x.mean())  # type: ignore[no-any-return]


def piece_of_a_constant(net: Written, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), 4, 8, 8, dtype=x.dtype)
    first, _ = z.chunk(2, dim=1)
    first.copy_(net.conv(x)[:, :2])
    return net.head((net.conv(x) + z).flatten(1))  # type: ignore[no-any-return]


def constant_with_a_view(net: Written, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), 4, 8, 8, dtype=x.dtype)
    flat = z.view(len(x), -1)
    z.add_(net.conv(x))
    return net.head(flat) + net.head(net.conv(x).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward",
    [
        view_then_base,
        base_then_view,
        view_of_what_was_overwritten,
        view_of_a_constant,
        piece_of_a_constant,
        constant_with_a_view,
    ],
)
def test_memory_that_was_overwritten_through_another_view_is_refused(
    forward: Callable[[Written, Tensor], Tensor],
) -> None:
    with pytest.raises(InputError, match="reads what was overwritten in place through another view of it"):
        relevance(Written(forward).double(), images())


def item_is_set(net: Written, x: Tensor) -> Tensor:
    z = net.conv(x).relu()
    z[:, 0] = 0.0
    return net.head(z.flatten(1))  # type: ignore[no-any-return]


def item_of_x_is_set(net: Written, x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return net.head(net.conv(x).flatten(1))  # type: ignore[no-any-return]


def clamped_in_place(net: Written, x: Tensor) -> Tensor:
    return net.head(net.conv(x.clamp_(0, 1)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [item_is_set, item_of_x_is_set, clamped_in_place])
def test_other_writes_are_refused_before_they_happen(forward: Callable[[Written, Tensor], Tensor]) -> None:
    x = images()
    values = x.clone()
    with pytest.raises(
        InputError, match=r"the model \(Written\) calls (__setitem__|clamp_), which relevance cannot be"
    ):
        relevance(Written(forward).double(), x)
    assert torch.equal(x, values)


# Nothing is remembered of weights that have changed.


def optimiser_step(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Net], object]:
    def change(model: Net) -> None:
        model(images().to(model.head.weight.dtype)).square().sum().backward()
        kind(model.parameters(), lr=0.3, **options).step()

    return change


def other_state(model: Net) -> object:
    return model.load_state_dict(Net().to(model.head.weight.dtype).state_dict())


def other_tensors(model: Net) -> object:
    return model.load_state_dict(Net().to(model.head.weight.dtype).state_dict(), assign=True)


def other_mean(model: Net) -> None:
    assert model.norm.running_mean is not None
    model.norm.running_mean += 1


def other_eps(model: Net) -> None:
    model.norm.eps = 0.5


def through_data(model: Net) -> None:
    model.second.weight.data.mul_(-1)


CHANGES: dict[str, Callable[[Net], object]] = {
    "SGD": optimiser_step(torch.optim.SGD),
    "fused Adam": optimiser_step(torch.optim.Adam, fused=True),
    "load_state_dict": other_state,
    "load_state_dict, assigned": other_tensors,
    "running mean": other_mean,
    "eps of batch norm": other_eps,
    "data": through_data,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_weights_shows(change: Callable[[Net], object]) -> None:
    rules = epsilon_alpha2_beta1()
    model, x = net(), images()
    before = relevance(model, x, 1, rules)
    change(model)
    after = relevance(model, x, 1, rules)
    assert torch.equal(after, relevance(copy.deepcopy(model), x, 1, rules))
    assert not torch.equal(after, before)


def test_nothing_outlives_the_model_and_the_result() -> None:
    model, x = net(), images().requires_grad_()
    result = relevance(model, x, Layer("second"))
    torch.autograd.grad(result.square().sum(), x)
    watched = [weakref.ref(tensor) for tensor in (*model.parameters(), *model.buffers(), x, result)]
    assert all(reference() is not None for reference in watched)
    del model, x, result
    gc.collect()
    assert all(reference() is None for reference in watched)
