"""Explanations by gradients: closed forms, loops, differences and captum; second order; nothing left behind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import JumpReLU, as_module, gradient_mode
from art_defenses_ext.attribution.gradient import (
    gradient_x_input,
    input_gradient,
    integrated_gradients,
    loss_gradient,
    smooth_grad,
    weighted_loss_gradient,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo.networks import DigitsCNN, ResNet20

NB_CLASSES = 5
SHAPES = [(8,), (4, 6), (3, 8, 8)]

Explain = Callable[..., Tensor]
EXPLANATIONS: dict[str, Explain] = {
    "input gradient": input_gradient,
    "loss gradient": lambda model, x, classes=None, **options: loss_gradient(model, x, classes, **options),
    "gradient x input": gradient_x_input,
    "SmoothGrad": lambda *args, **options: smooth_grad(*args, **({"sigma": 0.3, "samples": 3} | options)),
    "integrated gradients": lambda *args, **options: integrated_gradients(*args, **({"steps": 4} | options)),
}

explanations = pytest.mark.parametrize("explain", EXPLANATIONS.values(), ids=EXPLANATIONS.keys())
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def smooth_net(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with derivatives of every order."""
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.Softplus(), nn.Linear(12, NB_CLASSES)).to(dtype)


def linear_net(shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A network whose logits are linear in x, and its weights (K, *shape)."""
    linear = nn.Linear(int(np.prod(shape)), NB_CLASSES).double()
    return nn.Sequential(nn.Flatten(), linear), linear.weight.detach().reshape(NB_CLASSES, *shape)


class ConvNet(nn.Module):
    """Batch norm with statistics of its own, dropout, and a first layer that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 3 * 3, NB_CLASSES)
        with torch.no_grad():
            for tensor in self.norm.state_dict().values():
                tensor.copy_(torch.rand_like(tensor.float()) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.softplus(self.norm(self.conv(self.first(x)))), 2)
        return self.head(self.drop(x.flatten(1)))  # type: ignore[no-any-return]


class Power(nn.Module):
    """Logit k is the sum over x of x^k / k, so that its gradient is x^(k - 1)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.stack([(x**k / max(k, 1)).sum(dim=1) for k in range(4)], dim=1)


def by_backward(model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of an objective of the logits, the plain way, on copies."""
    x = x.detach().clone().requires_grad_()
    objective(copy.deepcopy(model).eval()(x.clone())).backward()
    assert x.grad is not None
    return x.grad


def by_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """d sum(function) / dx by central differences."""
    result = torch.zeros_like(x)
    for place in range(x.numel()):
        shift = torch.zeros_like(x)
        shift.view(-1)[place] = step
        result.view(-1)[place] = (function(x + shift).sum() - function(x - shift).sum()) / (2 * step)
    return result


# What the functions return.


@shapes
def test_of_a_linear_network_everything_has_a_closed_form(shape: tuple[int, ...]) -> None:
    model, weight = linear_net(shape)
    x, baseline = torch.randn(2, 3, *shape, dtype=torch.float64)
    y = torch.tensor([4, 0, 2])
    residuals = model(x).softmax(dim=1).detach() - F.one_hot(y, NB_CLASSES)
    torch.testing.assert_close(input_gradient(model, x, y), weight[y])
    torch.testing.assert_close(input_gradient(model, x, 3), weight[[3, 3, 3]])
    torch.testing.assert_close(input_gradient(model, x), weight[model(x).argmax(dim=1)])
    torch.testing.assert_close(input_gradient(model, x, "all"), weight.expand(3, *weight.shape))
    torch.testing.assert_close(loss_gradient(model, x, y), torch.einsum("nk,k...->n...", residuals, weight))
    torch.testing.assert_close(gradient_x_input(model, x, y), weight[y] * x)
    torch.testing.assert_close(smooth_grad(model, x, y, sigma=0.7, samples=3), weight[y])
    for steps in (1, 7):
        torch.testing.assert_close(integrated_gradients(model, x, y, steps=steps), weight[y] * x)
        actual = integrated_gradients(model, x, "all", baseline=baseline, steps=steps)
        torch.testing.assert_close(actual, weight * (x - baseline)[:, None])


@pytest.mark.parametrize(
    ("shape", "dtype", "count"), [((8,), torch.float32, 1), ((4, 6), torch.float64, 3), ((3, 8, 8), torch.float32, 3)]
)
def test_the_gradient_is_the_one_that_backward_fills_in(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> None:
    model, x = smooth_net(shape, dtype), torch.randn(count, *shape, dtype=dtype)
    y = torch.arange(count) % NB_CLASSES
    for actual, objective in (
        (input_gradient(model, x, y), lambda logits: logits.gather(1, y[:, None]).sum()),
        (input_gradient(model, x), lambda logits: logits.amax(dim=1).sum()),
        (loss_gradient(model, x, y), lambda logits: F.cross_entropy(logits, y, reduction="sum")),
        (loss_gradient(model, x, None), lambda logits: -logits.log_softmax(dim=1).amax(dim=1).sum()),
    ):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, by_backward(model, x, objective))


@explanations
def test_several_classes_are_those_of_one_after_the_other(explain: Explain) -> None:
    model, x = smooth_net((4, 6)), torch.randn(3, 4, 6, dtype=torch.float64)
    one_by_one = torch.stack([explain(model, x, k) for k in range(NB_CLASSES)], dim=1)
    torch.testing.assert_close(explain(model, x, "all"), one_by_one)
    several = torch.tensor([[1, 3], [0, 0], [4, 2]])
    expected = torch.stack([one_by_one[n, several[n]] for n in range(3)])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        torch.testing.assert_close(explain(model, x, several.to(dtype)), expected)
    torch.testing.assert_close(explain(model, x, several[:, :1]), expected[:, :1])
    torch.testing.assert_close(explain(model, x, several[:, 0]), expected[:, 0])


@pytest.mark.parametrize("explain", [EXPLANATIONS["SmoothGrad"], EXPLANATIONS["integrated gradients"]])
@pytest.mark.parametrize("shape", [(3,), (8, 8)], ids=str)
def test_passes_of_any_size_see_the_same_points(
    explain: Explain, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = smooth_net(shape, torch.float32), torch.randn(4, *shape)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    expected = explain(model, x, "all")
    for rows in (1, 4, 9):
        sizes.clear()
        monkeypatch.setattr("art_defenses_ext.attribution.gradient.ROWS_AT_ONCE", rows)
        torch.testing.assert_close(explain(model, x, "all"), expected)
        assert max(sizes) == max(4, rows // 4 * 4)


@pytest.mark.parametrize(("build", "shape"), [(ConvNet, (3, 8, 8)), (ResNet20, (3, 32, 32))])
def test_all_classes_of_real_networks_share_one_backward_pass(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = build().eval(), torch.rand(2, *shape)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    passes: list[int] = []
    hook = head.register_full_backward_hook(lambda *_: passes.append(1))
    together = input_gradient(model, x, "all")
    assert len(passes) == 1
    hook.remove()
    loop = torch.stack([input_gradient(model, x, k) for k in range(together.shape[1])], dim=1)
    torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-6)


# The mean over noise, the mean over a path.


def test_smooth_grad_tends_to_the_gradient_of_the_smoothed_network() -> None:
    """E[1] = 1, E[x + n] = x, E[(x + n)^2] = x^2 + sigma^2."""
    x, sigma, samples = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3), 0.5, 20_000
    actual = smooth_grad(Power(), x, "all", sigma=sigma, samples=samples)
    for k, expected in enumerate((0 * x, 0 * x + 1, x, x**2 + sigma**2)):
        spread = 5 * sigma * 2 / samples**0.5  # five standard errors of the widest of them
        torch.testing.assert_close(actual[:, k], expected, rtol=0, atol=spread if k > 1 else 1e-12)


def test_the_noise_is_repeatable_and_nobody_else_s() -> None:
    model, x = smooth_net((8,)), torch.randn(3, 8, dtype=torch.float64)
    before = torch.get_rng_state()
    first, repeated, reseeded = (smooth_grad(model, x, samples=4, seed=seed) for seed in (1, 1, 2))
    generator = torch.Generator().manual_seed(1)
    from_generator, next_from_generator = (smooth_grad(model, x, samples=4, seed=generator) for _ in range(2))
    assert torch.equal(first, repeated)
    assert torch.equal(first, from_generator)
    assert not torch.allclose(first, reseeded)
    assert not torch.allclose(first, next_from_generator)
    assert torch.equal(torch.get_rng_state(), before)


@shapes
def test_integrated_gradients_are_complete(shape: tuple[int, ...]) -> None:
    model = smooth_net(shape)
    x, baseline = torch.randn(2, 3, *shape, dtype=torch.float64)
    for start in (torch.zeros_like(x), baseline):
        logit_change = (model(x) - model(start)).detach()  # (N, K)
        errors = []
        for steps in (25, 50, 100):
            attributions = integrated_gradients(model, x, "all", baseline=start, steps=steps)
            errors.append((attributions.flatten(2).sum(dim=2) - logit_change).abs().max())
        assert errors[-1] < 1e-4 * logit_change.abs().max()
        # The midpoint rule: a quarter of the error at twice the steps.
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


# Second order.


@explanations
@pytest.mark.parametrize("classes", [None, "all"])
def test_each_explanation_has_the_derivative_that_differences_show(explain: Explain, classes: Any) -> None:
    model = smooth_net((2, 2))
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: explain(model, x, classes), (x,), eps=1e-6, atol=1e-6)


def test_the_hessian_of_batch_norm_and_pooling_is_exact() -> None:
    model = ConvNet().double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)  # the first layer's kink is at zero
    weight = torch.randn(1, NB_CLASSES, 3, 8, 8, dtype=torch.float64)

    def weighted(x: Tensor) -> Tensor:
        return (weight * input_gradient(model, x, "all")).flatten(1).sum(dim=1)

    (actual,) = torch.autograd.grad(weighted(x).sum(), x)
    torch.testing.assert_close(actual, by_differences(weighted, x.detach()), rtol=1e-5, atol=1e-6)


# Nothing is left behind.


@explanations
@pytest.mark.parametrize("requires_grad", [False, True])
def test_model_and_x_stay_as_they_were(
    explain: Explain, requires_grad: bool, only_read: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    classes = "all"
    model = ConvNet().train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, requires_grad=requires_grad)
    values = x.detach().clone()
    expected = explain(copy.deepcopy(model).eval(), values, classes)
    with only_read(model):
        actual = explain(model, x, classes)
    torch.testing.assert_close(actual.detach(), expected)  # no dropout, no statistics of the batch
    assert actual.requires_grad == requires_grad
    assert torch.equal(x, values)
    assert x.requires_grad == requires_grad
    assert x.grad is None


@explanations
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_autograd_is_off(explain: Explain, context: Any) -> None:
    classes = "all"
    model, x = smooth_net((8,)), torch.randn(3, 8, dtype=torch.float64)
    expected = explain(model, x, classes)
    for inputs in (x, x.clone().requires_grad_()):
        with context():
            actual = explain(model, inputs, classes)
            intermediate = explain(model, inputs * 1, classes)  # a tensor made inside, as a preprocessor makes one
            assert not torch.is_grad_enabled()
        for attribution in (actual, intermediate):
            assert not attribution.requires_grad
            torch.testing.assert_close(attribution, expected)


# Weighted sums of cross-entropies.


def random_weights(logits: Tensor) -> Tensor:
    """The weights (N, 3, K) of three sums, not of one sign and not summing up to one."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(len(logits), 3, NB_CLASSES, generator=generator, dtype=torch.float64)
    return weights.to(logits.dtype)


def bent(logits: Tensor) -> Tensor:
    """Weights (N, 2, K) that depend on the logits, of another sum each."""
    return torch.stack([logits.sin(), (2 * logits).softmax(dim=1) * logits], dim=1)


@shapes
@pytest.mark.parametrize("weights", [random_weights, bent])
def test_a_weighted_sum_has_the_gradient_of_its_cross_entropies(
    shape: tuple[int, ...], weights: Callable[[Tensor], Tensor]
) -> None:
    model, x = smooth_net(shape), torch.randn(3, *shape, dtype=torch.float64)
    constant = weights(model(x)).detach()
    actual = weighted_loss_gradient(model, x, weights)
    assert actual.shape == (3, constant.shape[1], *shape)

    def objective(m: int, logits: Tensor) -> Tensor:
        losses = [F.cross_entropy(logits, torch.full((3,), k), reduction="none") for k in range(NB_CLASSES)]
        return (constant[:, m] * torch.stack(losses, dim=1)).sum()

    for m in range(constant.shape[1]):
        expected = by_backward(model, x, lambda logits, m=m: objective(m, logits))
        torch.testing.assert_close(actual[:, m], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("build", [smooth_net, lambda shape: nn.Sequential(ConvNet().double())])
def test_the_sum_weighted_by_the_softmax_vanishes_where_single_classes_do_not(build: Callable[..., nn.Module]) -> None:
    """sum_k p_k (p - e_k) = p - p."""
    model, x = build((3, 8, 8)), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    vanishing = weighted_loss_gradient(model, x, lambda logits: logits.softmax(dim=1)[:, None])
    single = weighted_loss_gradient(model, x, lambda logits: logits.softmax(dim=1).diag_embed())
    assert vanishing.abs().max() < 1e-12
    assert single.flatten(2).abs().amax(dim=2).min() > 1e-4
    torch.testing.assert_close(single.sum(dim=1, keepdim=True), vanishing, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [random_weights, bent])
def test_a_weighted_sum_has_the_derivative_that_differences_show_with_that_of_its_weights(
    weights: Callable[[Tensor], Tensor],
) -> None:
    model = smooth_net((2, 2))
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: weighted_loss_gradient(model, x, weights), (x,), eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: weighted_loss_gradient(model, x, weights), (x,))
    if weights is bent:
        constant = weights(model(x)).detach()
        full, without_weights = (
            torch.autograd.grad(weighted_loss_gradient(model, x, chosen).sum(), x)[0]
            for chosen in (weights, lambda logits: constant)
        )
        assert not torch.allclose(full, without_weights, rtol=1e-2)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_weighted_sum_costs_one_backward_pass(requires_grad: bool) -> None:
    passes: list[tuple[int, ...]] = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
            passes.append(tuple(grad_outputs[0].shape))
            return grad_outputs[0]

    model = nn.Sequential(Applied(Counted.apply), smooth_net((8,)))
    forwards: list[int] = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=requires_grad)
    gradient = weighted_loss_gradient(model, x, lambda logits: logits.softmax(dim=1).roll(1, dims=1)[:, None])
    assert passes == [(3, 8)]
    assert len(forwards) == 1
    assert gradient.requires_grad == requires_grad


# Operations that cannot be vectorised, and other people's networks.


class NumpyCube(torch.autograd.Function):
    """x^3 with a backward pass that vmap cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad_outputs[0].detach().numpy() * 3 * x.detach().numpy() ** 2)


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@explanations
@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_cannot_be_vectorised_is_looped_over(explain: Explain, requires_grad: bool) -> None:
    head = smooth_net((8,))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = explain(nn.Sequential(Applied(NumpyCube.apply), head), x, "all")
    expected = explain(nn.Sequential(Applied(lambda x: x**3), head), x, "all")
    torch.testing.assert_close(actual, expected)


def test_running_out_of_memory_is_not_hidden_by_the_loop() -> None:
    passes: list[int] = []

    def exhausted(gradient: Tensor) -> None:
        passes.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def watched(x: Tensor) -> Tensor:
        x = x * 1
        x.register_hook(exhausted)
        return x

    with pytest.raises(torch.OutOfMemoryError):
        input_gradient(nn.Sequential(Applied(watched), smooth_net((8,), torch.float32)), torch.randn(2, 8), "all")
    assert len(passes) == 1


@pytest.mark.parametrize("mode", ["exact", "relu", "smooth"])
def test_defended_networks_are_explained_under_their_gradient_mode(mode: str) -> None:
    classifier = PyTorchClassifier(DigitsCNN(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    defended = JumpReLU(classifier, 0.02)()
    x = torch.rand(4, 1, 8, 8)
    with gradient_mode(defended, mode):
        together = input_gradient(as_module(defended), x, "all")
        expected = defended.class_gradient(x.numpy())
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(together.numpy(), expected, rtol=1e-4, atol=1e-6)


# Refusals.


X = torch.zeros(3, 8)
GIVEN = ("model", "x", "classes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.sigmoid}, "model is .*; an nn.Module"),
        ({"model": nn.Identity(), "x": X[None]}, r"model gives torch.float32 of shape \(1, 3, 8\)"),
        ({"model": nn.Flatten(0)}, r"model gives torch.float32 of shape \(24,\)"),
        ({"model": Applied(lambda x: (x, x))}, "model gives "),
        ({"model": Applied(lambda x: x.detach())}, "model passes no gradient to x"),
        *(({"x": x}, "x is .*; a floating-point tensor") for x in (np.zeros((3, 8), np.float32), X.long(), X[0])),
        ({"classes": 5}, "(classes|y) is 5; class indices from 0 to 4"),
        ({"classes": torch.tensor([0, 5, 2])}, "(classes|y) holds indices from 0 to 5; class indices from 0 to 4"),
        *(
            ({"classes": classes}, r"(classes|y) is .*; a class index, indices \(3,\) or \(3, M\)")
            for classes in (
                True,
                1.0,
                torch.zeros(3),
                torch.tensor([0, 1]),
                torch.zeros(3, 0, dtype=torch.long),
                torch.zeros(3, dtype=torch.long, device="meta"),
            )
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments: dict[str, Any], message: str) -> None:
    call = {"model": nn.Linear(8, 5), "x": X, "classes": None} | arguments
    for explain in (input_gradient, loss_gradient):
        with pytest.raises(InputError, match=message):
            explain(call["model"], call["x"], call["classes"], **{k: call[k] for k in arguments.keys() - {*GIVEN}})


@explanations
def test_each_explanation_refuses_a_class_that_there_is_not(explain: Explain) -> None:
    with pytest.raises(InputError, match=r"(classes|y) is 5; class indices from 0 to 4"):
        explain(nn.Linear(8, 5), X, 5)


@pytest.mark.parametrize(
    ("explain", "arguments", "message"),
    [
        (smooth_grad, {"sigma": 0.0}, "sigma is 0.0; a finite number > 0"),
        (smooth_grad, {"samples": 0}, "samples is 0; a whole number"),
        (smooth_grad, {"seed": -1}, "seed is -1"),
        (integrated_gradients, {"steps": 0}, "steps is 0; a whole number"),
        *(
            (integrated_gradients, {"baseline": baseline}, r"baseline is .*; a tensor like x, torch.float32 of shape")
            for baseline in (0.5, X[:1], X.double(), X.to("meta"))
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(explain: Explain, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(nn.Linear(8, 5), X, **arguments)


@pytest.mark.parametrize("shape", [(3, 5), (3, 0, 5), (), None], ids=str)
def test_weights_of_another_shape_are_refused(shape: Any) -> None:
    weights: Any = None if shape is None else torch.ones(shape)
    with pytest.raises(InputError, match=r"weights gives .*; shape \(3, M, 5\) was expected"):
        weighted_loss_gradient(nn.Linear(8, 5), X, lambda logits: weights)


# Another device.


@pytest.mark.gpu
@explanations
@pytest.mark.parametrize("classes", [None, 2, "all"])
def test_a_cuda_device_agrees(cuda: torch.device, explain: Explain, classes: Any) -> None:
    model, x = ConvNet(), torch.rand(4, 3, 8, 8)
    results = []
    for device in (torch.device("cpu"), cuda):
        # A generator on the CPU draws the same noise for both.
        noise = {"seed": torch.Generator().manual_seed(3)} if explain is EXPLANATIONS["SmoothGrad"] else {}
        on_device, images = copy.deepcopy(model).to(device), x.to(device).requires_grad_()
        explanation = explain(on_device, images, classes, **noise)
        (gradient,) = torch.autograd.grad(explanation.square().sum(), images)
        assert explanation.device == gradient.device == device
        results.append((explanation.detach().cpu(), gradient.cpu()))
        assert explain(on_device, images, torch.zeros(4, dtype=torch.long, device=device)).device == device
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("margin", [5.0, 16.0, 18.0, 25.0, 40.0])
def test_the_loss_gradient_of_a_confident_prediction_is_that_of_float64(margin: float) -> None:
    """In float32 the probability of a class is 1 from a margin of 17 on, and the gradient of its own logit 0."""
    network, x = nn.Linear(6, 2), torch.linspace(-1, 1, 6)[None]
    with torch.no_grad():
        logits = network(x)[0]
        network.bias[0] += margin - (logits[0] - logits[1])
    gradient = loss_gradient(network, x, 0)
    expected = loss_gradient(network.double(), x.double(), 0)
    assert torch.allclose(gradient.double(), expected, rtol=1e-5, atol=0)
