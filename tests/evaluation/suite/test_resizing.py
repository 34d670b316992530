"""Preprocessors that change the images' size: the attacker is given the derivative of the resize."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import art
import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, Linf, Surrogate, as_module, defend, evaluate, gradient_mode, gradient_modes
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.attacker import with_surrogates
from art_defenses_ext.evaluation.suite.suites import WHITE_BOX


def load_art_s_resize() -> Any:
    """ART's class, from its file: its package wants OpenCV, which this class does not."""
    path = Path(art.__file__).parent / "preprocessing" / "image" / "image_resize" / "pytorch.py"
    spec = importlib.util.spec_from_file_location("art_image_resize", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ImageResizePyTorch


ImageResizePyTorch = load_art_s_resize()

CHANNELS, SIDE, LARGER = 3, 5, 8
SHAPE = (CHANNELS, SIDE, SIDE)


def interpolation(small: int, large: int) -> Any:
    """Rows of weights (large, small): where each new pixel's centre falls between the centres of the old ones."""
    matrix = np.zeros((large, small))
    for new in range(large):
        centre = np.clip((new + 0.5) * small / large - 0.5, 0, small - 1)
        left = min(int(centre), small - 2)
        matrix[new, left], matrix[new, left + 1] = 1 - (centre - left), centre - left
    return matrix


class Resize(PreprocessorPyTorch):
    """The same resize without a derivative: through numpy, or rounded to so many levels."""

    def __init__(self, levels: int | None = None) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)
        self.levels = levels

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        rows = interpolation(SIDE, LARGER)
        large = np.einsum("hi,nciw->nchw", rows, np.einsum("wj,ncij->nciw", rows, x.detach().numpy()))
        if self.levels is None:
            return torch.from_numpy(large.astype(np.float32)), y
        scaled = torch.nn.functional.interpolate(x, size=(LARGER, LARGER), mode="bilinear")
        return torch.round(self.levels * scaled) / self.levels, y


class Flatten(PreprocessorPyTorch):
    """Images as rows of numbers, without a derivative."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x.detach().flatten(1), y


RESIZES: dict[str, Callable[[], PreprocessorPyTorch]] = {
    "ART's": lambda: ImageResizePyTorch(LARGER, LARGER, interpolation="bilinear", apply_predict=True),
    "without a derivative": Resize,
    "rounded": lambda: Resize(levels=10_000),
}


@pytest.fixture
def problem() -> tuple[PyTorchClassifier, Any]:
    """A linear network of two classes on large images, and its effective weights (2, C, H, W) on small ones.

    With R the matrix of the interpolation the logits are <W, R x R^T>, so the weights on x are R^T W R.
    """
    weight = np.random.default_rng(0).normal(size=(2, CHANNELS, LARGER, LARGER))
    linear = nn.Linear(CHANNELS * LARGER**2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.reshape(2, -1)))
    model = nn.Sequential(nn.Flatten(), linear)
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 2, clip_values=(0.0, 1.0), device_type="cpu")
    rows = interpolation(SIDE, LARGER)
    return classifier, np.einsum("hi,kchw,wj->kcij", rows, weight, rows)


def at_distances(effective: Any, eps: float) -> tuple[FloatArray, Any, Any]:
    """Sixteen images inside the clip range, their labels, and their linf distances to the boundary.

    A step of eps along the sign changes the gap of the logits by eps times the l1 norm of their weights' difference.
    """
    direction = effective[0] - effective[1]
    distances = eps * np.array([0.5, 0.8, 0.95, 1.05, 1.2, 2.0, 0.9, 1.1] * 2)
    y = np.arange(16) % 2
    x = 0.5 + 0.1 * np.random.default_rng(1).uniform(-1, 1, size=(16, *SHAPE))
    gap = np.where(y == 0, 1, -1) * distances * np.abs(direction).sum()
    current_gap = np.einsum("ncij,cij->n", x, direction)
    x += ((gap - current_gap) / (direction**2).sum())[:, None, None, None] * direction
    assert x.min() > eps
    assert x.max() < 1 - eps
    return x.astype(np.float32), y, distances


@pytest.mark.parametrize("resize", RESIZES)
def test_robust_accuracy_behind_a_resize_agrees_with_the_closed_form(resize: str, problem: Any) -> None:
    classifier, effective = problem
    x, y, distances = at_distances(effective, 0.02)
    report = evaluate(
        defend(classifier, RESIZES[resize]()),
        (x, y),
        Linf(0.02),
        [WHITE_BOX],
        curve_samples=0,
        check_samples=2,
        progress=False,
    )
    assert report.summary.clean.rate == 1
    broken = np.array([not record.robust() for record in report.records])
    np.testing.assert_array_equal(broken, distances < 0.02)
    assert report.robust_accuracy == (distances > 0.02).mean() == 0.5


@pytest.mark.parametrize("resize", RESIZES)
def test_the_gradient_is_the_adjoint_of_the_interpolation(resize: str, problem: Any) -> None:
    classifier, effective = problem
    exposed = with_surrogates(defend(classifier, RESIZES[resize]()))
    modes = gradient_modes(exposed)
    assert modes == (("exact",) if resize == "ART's" else ("exact", "surrogate"))
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with gradient_mode(exposed, modes[-1]):
        logits = as_module(exposed)(x)
        (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
    np.testing.assert_allclose(gradient[0], effective[0] - effective[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient[1], gradient[0])


def test_a_user_s_surrogate_around_a_resize_has_both_modes(problem: Any) -> None:
    classifier, effective = problem
    defended = defend(classifier, Surrogate(RESIZES["ART's"]()))
    x = np.random.default_rng(2).random((3, *SHAPE), dtype=np.float32)
    gradients = []
    for mode in ("exact", "surrogate"):
        with gradient_mode(defended, mode):
            gradients.append(defended.class_gradient(x, label=0)[:, 0])
    np.testing.assert_allclose(gradients[0], np.stack([effective[0]] * 3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_a_preprocessor_without_a_surrogate_is_named(problem: Any) -> None:
    linear = nn.Linear(CHANNELS * SIDE**2, 2)
    classifier = PyTorchClassifier(
        linear, nn.CrossEntropyLoss(), SHAPE, 2, clip_values=(0.0, 1.0), device_type="cpu", preprocessing=None
    )
    message = r"preprocessor Flatten, which makes \(2, 75\) of \(2, 3, 5, 5\) and passes no gradient; Surrogate"
    with pytest.raises(InputError, match=message):
        with_surrogates(defend(classifier, Flatten()))


def test_a_network_behind_a_resize_is_given_the_jump(problem: Any) -> None:
    """The ReLUs are counted on what the network is shown."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * LARGER**2, 4), nn.ReLU(), nn.Linear(4, 2))
    classifier = defend(
        PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 2, clip_values=(0.0, 1.0), device_type="cpu"),
        RESIZES["ART's"](),
    )
    x = np.random.default_rng(3).random((4, *SHAPE), dtype=np.float32)
    transformed = JumpReLU(classifier, 0.2)()
    large = torch.nn.functional.interpolate(torch.from_numpy(x), size=(LARGER, LARGER), mode="bilinear")
    with torch.no_grad():
        hidden = model[1](large.flatten(1))
        expected = model[3](torch.where(hidden > 0.2, hidden, 0.0))
    np.testing.assert_allclose(transformed.predict(x), expected, rtol=1e-4, atol=1e-5)
