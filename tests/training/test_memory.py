"""A step's memory is counted on two images, and a batch that does not fit is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext import FeatureAutoencoder, TwoStreamRestoration
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.training import loop, memory
from art_defenses_ext.training.memory import peak_of_saved
from art_defenses_ext.zoo.datasets import Dataset

SIZE = 1000
"""Values of the closed forms, of 4 bytes each."""


def exponentials(x: Tensor) -> Tensor:
    """Each exponential keeps its result."""
    return x.exp().exp().exp()


def reshaped(x: Tensor) -> Tensor:
    """Both products keep views of one tensor."""
    return x.exp().view(10, -1) * x.exp().detach().view(10, -1)


def differentiated_in_turn(x: Tensor) -> Tensor:
    """What a gradient kept is released before the next, as in an attack during training."""
    for _ in range(4):
        x = torch.autograd.grad(x.exp().exp().sum(), x)[0].detach().requires_grad_()
    return x


def differentiated_twice(x: Tensor) -> Tensor:
    """The gradient has a graph of its own: exp keeps its result, and its gradient g * exp(x) keeps g as well."""
    return torch.autograd.grad(x.exp(), x, torch.ones_like(x), create_graph=True)[0]


@pytest.mark.parametrize(
    ("compute", "nb_kept"),
    [(exponentials, 3), (reshaped, 2), (differentiated_in_turn, 2), (differentiated_twice, 2), (Tensor.detach, 0)],
)
def test_the_peak_is_what_autograd_keeps_at_once(compute: Callable[[Tensor], Tensor], nb_kept: int) -> None:
    x = torch.zeros(SIZE, requires_grad=True)
    assert peak_of_saved(lambda: compute(x)) == nb_kept * SIZE * 4


def test_the_results_of_a_counted_pass_are_those_of_another() -> None:
    x = torch.linspace(-1, 1, SIZE, dtype=torch.float64, requires_grad=True)
    second: list[Tensor] = []

    def compute() -> Tensor:
        gradient = torch.autograd.grad(x.sin().exp().sum(), x, create_graph=True)[0]
        second.append(torch.autograd.grad(gradient.square().sum(), x)[0])
        return gradient

    peak_of_saved(compute)
    compute()
    torch.testing.assert_close(second[0], second[1], rtol=0, atol=0)


def set_available(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: count)


@pytest.mark.parametrize("face", [FeatureAutoencoder, TwoStreamRestoration])
def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(
    face: Any, digits_classifier: PyTorchClassifier, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = face.for_classifier(digits_classifier)
    fit = {"nb_epochs": 1, "validation_split": 0.0, "progress": False}
    set_available(monkeypatch, 2**20)
    steps: list[Any] = []
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda *arguments: (steps.append(0), step(*arguments)))
    cost = r"a training step takes at least .* MiB, .* KiB for each image, of 1\.0 MiB available on cpu"
    message = rf"batch_size makes batches of 128 images, and {cost}; at most \d+ was expected"
    with pytest.raises(InputError, match=message) as refusal:
        restorer.fit(digits.train.x[:256], digits.train.y[:256], batch_size=128, **fit)
    assert not steps
    largest = int(str(refusal.value).rsplit(maxsplit=3)[-3])
    few = slice(2 * (largest + 1))
    with pytest.raises(InputError, match=f"batches of {largest + 1} images"):
        restorer.fit(digits.train.x[few], digits.train.y[few], batch_size=2 * largest + 1, **fit)
    restorer.fit(digits.train.x[:64], digits.train.y[:64], batch_size=largest, **fit)
    assert steps


@pytest.mark.parametrize("face", [FeatureAutoencoder, TwoStreamRestoration])
def test_nothing_is_refused_where_the_free_memory_is_unknown(
    face: Any, digits_classifier: PyTorchClassifier, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_available(monkeypatch, None)
    restorer = face.for_classifier(digits_classifier)
    restorer.fit(digits.train.x[:64], digits.train.y[:64], nb_epochs=1, validation_split=0.0, progress=False)
    assert len(restorer.history) == 1
