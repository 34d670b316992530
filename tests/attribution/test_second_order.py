"""Attention, layer norm, and other operations that not every kernel differentiates twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

from art_defenses_ext import ExplanationReconstructor, HeatAndBlur, TwoStreamRestoration, as_module, defend
from art_defenses_ext.attribution.gradient import input_gradient
from art_defenses_ext.attribution.second_order import elementary_operations
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import gradient_mode

SCALE = torch.linspace(0.5, 2, 24, dtype=torch.float64).reshape(4, 6)


def transformer() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
        )
        nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model.eval()


def wrap(model: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> PyTorchClassifier:
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 5, clip_values=(0.0, 1.0), device_type="cpu")


def images(nb: int = 2, *, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 32, 32)) -> Tensor:
    return torch.rand(nb, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def directional(function: Any, x: Tensor) -> tuple[float, float]:
    """The derivative of a function of images along a random direction: by autograd, and by central differences."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(live), live)
    step = 1e-5
    with torch.no_grad():
        difference = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
    return float((gradient * direction).sum()), float(difference)


def test_the_second_derivative_of_attention_is_that_of_finite_differences() -> None:
    model, x = transformer().double(), images(dtype=torch.float64)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    exact, difference = directional(lambda points: (input_gradient(model, points, 1) * weights).sum(), x)
    assert abs(difference) > 1e-3
    assert exact == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, (4, 6), SCALE, SCALE.flip(0), 1e-3),
        nn.LayerNorm(6, dtype=torch.float64),
        F.hardsigmoid,
        lambda x: F.hardsigmoid(x.clone(), inplace=True),
    ],
    ids=["layer norm", "nn.LayerNorm", "hard sigmoid", "hard sigmoid in place"],
)
def test_elementary_operations_are_torch_s_functions_with_third_derivatives(function: Any) -> None:
    """torch's own layer norm is a fifth off here, and its hard sigmoid has no second derivative."""
    x, *weights = torch.randn(4, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = function(x)
    with elementary_operations():
        torch.testing.assert_close(function(x), expected)

        def slope(order: int, points: Tensor) -> Tensor:
            if order == 0:
                return (weights[0] * function(points).sin()).sum()
            live = points if points.requires_grad else points.clone().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(slope(order - 1, live), live, create_graph=True)
            return (weights[order] * gradient).sum()

        for order in (1, 2):
            assert np.divide(*directional(partial(slope, order), x)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("mode", ["exact", "smooth"])
def test_an_attacker_of_a_gradient_map_follows_attention(mode: str) -> None:
    """In float64, where the gradient through classifier and map is that of finite differences."""
    classifier = wrap(transformer().double())
    restorer = TwoStreamRestoration.for_classifier(classifier, width=4, blocks=1)
    x = np.random.default_rng(0).random((16, 3, 32, 32), dtype=np.float32)
    restorer.fit(x, np.arange(16) % 5, eps=0.1, nb_epochs=1, batch_size=8, progress=False)
    restorer.network.double()
    module, points = as_module(defend(classifier, restorer)), images(dtype=torch.float64)
    with gradient_mode(module, mode):
        exact, difference = directional(lambda live: module(live)[:, 2].sum(), points)
        assert np.isfinite(exact)
        assert exact == pytest.approx(difference, rel=1e-3)


def test_an_attacker_of_a_detector_follows_attention() -> None:
    classifier = wrap(transformer())
    x = np.random.default_rng(0).random((400, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():  # so that each class is predicted often enough
        logits = classifier.model(torch.tensor(x))
        classifier.model.heads.head.bias -= logits.mean(dim=0)
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.5, hidden=4)
    detector.fit(x, nb_epochs=1, validation_split=0.5, progress=False)
    live = images().requires_grad_()
    scores, _ = detector.network.scores(live)
    (gradient,) = torch.autograd.grad(scores.sum(), live)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


class Clipped(torch.autograd.Function):
    """An activation whose author allows one backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return gradient * (z > 0)


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(Clipped.apply(self.first(x)).flatten(1))
        return logits


class Fused(nn.Module):
    """It insists on a kernel that torch differentiates once."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        words = x.reshape(len(x), 1, 8, 8)
        attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(words, words, words)[0]
        logits: Tensor = self.last(attended.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (Once, r"the autograd function Clipped, which torch cannot differentiate twice"),
        (Fused, r"the operation scaled_dot_product_flash_attention_for_cpu, which torch cannot"),
    ],
)
def test_what_has_no_second_derivative_is_named_when_the_defence_is_built(model: Any, operation: str) -> None:
    classifier = wrap(model().eval(), (1, 8, 8))
    for build in (
        lambda: TwoStreamRestoration.for_classifier(classifier),
        lambda: ExplanationReconstructor(classifier),
    ):
        with pytest.raises(InputError, match=f"model is a {model.__name__} with {operation}"):
            build()


class Checkpointed(nn.Module):
    """A network that computes its first layers again in the backward pass."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=False))  # type: ignore[no-any-return]


def make_convolutional() -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.AvgPool2d(10), nn.Flatten(), nn.Linear(36, 5))).eval()


def traced(model: nn.Sequential) -> Any:
    return torch.jit.trace(model, images())


def scripted(model: nn.Sequential) -> Any:
    return torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (traced, "the model is compiled TorchScript, whose "),
        (scripted, "the model is compiled TorchScript, whose "),
        (lambda model: Checkpointed(*model), "the model keeps rectifiers from autograd"),
    ],
)
@pytest.mark.parametrize(
    "defend_with",
    [HeatAndBlur.for_classifier, TwoStreamRestoration.for_classifier, ExplanationReconstructor],
)
def test_a_network_whose_rectifiers_no_surrogate_replaces_is_refused(
    defend_with: Any, change: Any, message: str
) -> None:
    """Its gradient mode ``smooth`` would be the exact one, or the derivative of another network."""
    with pytest.raises(InputError, match=message):
        defend_with(wrap(change(make_convolutional())))
