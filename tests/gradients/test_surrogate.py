"""Surrogate: the same forward pass to the last bit, the backward pass that was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import defend, gradient_mode, gradient_modes
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.surrogate import Surrogate
from art_defenses_ext.zoo.datasets import Dataset


class Rounding(PreprocessorPyTorch):
    """Five grey levels: the derivative is zero almost everywhere."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return (x * 4).round() / 4, y


class WinnersTakeAll(nn.Module):
    """The largest quarter of the units keeps its value, the rest is silenced: a discontinuous activation."""

    def forward(self, z: Tensor) -> Tensor:
        threshold = z.flatten(1).topk(z[0].numel() // 4, dim=1)[0][:, -1]
        return torch.where(z >= threshold.reshape(-1, *[1] * (z.ndim - 1)), z, 0)


def accuracy(classifier: PyTorchClassifier, x: Any, y: Any) -> float:
    return float((classifier.predict(x).argmax(axis=1) == y).mean())


@pytest.mark.parametrize("backward", ["identity", "estimated", torch.sigmoid])
@pytest.mark.parametrize("mode", ["exact", "surrogate"])
def test_the_forward_pass_is_the_wrapped_one_s(backward: Any, mode: str) -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for wrapped in (Rounding(), nn.Hardshrink(0.4)):
        surrogate = Surrogate(wrapped, backward, samples=2)
        surrogate.gradient_mode = mode
        actual = surrogate(x) if isinstance(wrapped, nn.Module) else surrogate(x, "labels")[0]
        expected = wrapped(x) if isinstance(wrapped, nn.Module) else wrapped.forward(x)[0]
        assert torch.equal(actual, expected)


def test_the_identity_hands_the_gradient_on() -> None:
    x, upstream = torch.rand(2, 6, requires_grad=True), torch.rand(2, 6)
    surrogate = Surrogate(Rounding())
    surrogate.gradient_mode = "surrogate"
    (gradient,) = torch.autograd.grad(surrogate.forward(x)[0], x, upstream)
    assert torch.equal(gradient, upstream)


def test_a_function_is_differentiated_in_its_place() -> None:
    z, upstream = torch.linspace(-2, 2, 8).reshape(2, 4).requires_grad_(), torch.rand(2, 4)
    layer = Surrogate(nn.Hardshrink(1.0), torch.tanh)
    layer.gradient_mode = "surrogate"
    (gradient,) = torch.autograd.grad(layer(z), z, upstream)
    torch.testing.assert_close(gradient, upstream * (1 - torch.tanh(z.detach()) ** 2))


def test_the_estimate_converges_to_the_derivative_of_the_smoothed_function() -> None:
    """A step at t, smoothed with a Gaussian, has that Gaussian's density as its derivative."""
    sigma, z = 0.5, torch.tensor([[-0.6, -0.1, 0.0, 0.3, 0.9]]).requires_grad_()
    layer = Surrogate(nn.Threshold(0.0, 0.0), "estimated", sigma=sigma, samples=20_000)
    step = Surrogate(Step(), "estimated", sigma=sigma, samples=20_000)
    normal = torch.distributions.Normal(0.0, sigma)
    expected = {layer: normal.cdf(z.detach()), step: normal.log_prob(z.detach()).exp()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for surrogate, derivative in expected.items():
            surrogate.gradient_mode = "surrogate"
            (gradient,) = torch.autograd.grad(surrogate(z).sum(), z)
            torch.testing.assert_close(gradient, derivative, atol=0.06, rtol=0)


class Step(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)


def test_rounding_falls_to_the_identity(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Autograd finds no gradient through rounding, so the naive attacker gets nowhere: masking, not robustness."""
    x, y = digits.test.x[:60], digits.test.y[:60]
    defended = defend(digits_classifier, Surrogate(Rounding()))
    assert gradient_modes(defended) == ("exact", "surrogate")
    accuracies = {
        mode: accuracy(defended, MarginPGD(defended, np.inf, 0.15, gradient_mode=mode).generate(x, y), y)
        for mode in gradient_modes(defended)
    }
    assert accuracies["exact"] > 0.6
    assert accuracies["surrogate"] < 0.3
    with gradient_mode(defended, "surrogate"):  # ART's own attacks take the same way
        adversarial = ProjectedGradientDescent(defended, eps=0.15, eps_step=0.02, max_iter=20, verbose=False).generate(
            x
        )
    assert accuracy(defended, adversarial, y) < 0.4


def test_winners_take_all_falls_to_the_estimate(digits: Dataset) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = nn.Linear(64, 128)
        output = nn.Linear(128, 10)
    model = nn.Sequential(nn.Flatten(), hidden, Surrogate(WinnersTakeAll(), "estimated", sigma=0.3, samples=16), output)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.from_numpy(digits.train.x), torch.from_numpy(digits.train.y)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    images, labels = digits.test.x[:60], digits.test.y[:60]
    assert accuracy(classifier, images, labels) > 0.85
    with torch.random.fork_rng():
        torch.manual_seed(0)
        accuracies = {
            mode: accuracy(
                classifier, MarginPGD(classifier, np.inf, 0.1, gradient_mode=mode).generate(images, labels), labels
            )
            for mode in gradient_modes(classifier)
        }
    assert accuracies["surrogate"] < accuracies["exact"]


def test_a_surrogate_never_turns_into_the_original_without_a_word() -> None:
    """Under torch.func a tensor does not say that a gradient is wanted of it."""
    layer = Surrogate(nn.Hardshrink(1.0), torch.tanh)
    layer.gradient_mode = "surrogate"
    z = torch.linspace(-2, 2, 8)
    for gradient in (
        torch.func.grad(lambda z: layer(z).sum()),
        torch.func.grad(lambda z: torch.func.vmap(layer)(z).sum()),
        torch.func.vmap(torch.func.grad(layer)),
    ):
        torch.testing.assert_close(gradient(z), 1 - torch.tanh(z) ** 2)


def test_a_report_tells_settings_apart() -> None:
    """A run is continued, or found in a cache, by what the defences say of themselves."""

    class Levels(Rounding):
        params = ["levels", "apply_fit"]  # noqa: RUF012 (ART's convention)

        def __init__(self, levels: int) -> None:
            super().__init__()
            self.levels = levels

    described = [Surrogate(Levels(levels)).describe() for levels in (2, 3)]
    assert [description["levels"] for description in described] == [2, 3]
    estimates = [Surrogate(nn.ReLU(), "estimated", sigma=sigma, samples=4).describe() for sigma in (0.1, 0.2)]
    assert estimates[0] != estimates[1]
    assert estimates[0]["samples"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wrapped": torch.sigmoid}, "wrapped is a builtin_function_or_method"),
        ({"backward": "straight"}, "backward is 'straight'"),
        ({"sigma": 0}, "sigma is 0"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Surrogate(**({"wrapped": Rounding()} | arguments))


def test_a_stand_in_of_another_shape_is_refused() -> None:
    layer = Surrogate(nn.Flatten())
    layer.gradient_mode = "surrogate"
    with pytest.raises(InputError, match="the same shape was expected"):
        layer(torch.zeros(2, 3, 4, requires_grad=True))
