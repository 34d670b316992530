"""The training loop: the same weights for the same seed, nothing of the caller's disturbed, no image left out."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_defenses_ext.datasets import Dataset, load_dataset
from art_defenses_ext.models import MODELS, build_model
from art_defenses_ext.training import accuracy, train_classifier
from art_defenses_ext.validation import FloatArray, InputError, IntArray

SPEC = MODELS["digits_cnn"]
NORMALISATION: dict[str, Any] = {"mean": SPEC.mean, "std": SPEC.std}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def few(digits: Dataset) -> tuple[FloatArray, IntArray]:
    return digits.train.x[:60], digits.train.y[:60]


class Dropped(nn.Module):
    """A linear network on 8x8 images that draws random numbers of its own in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Recorder(nn.Module):
    """A linear network that keeps the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.append(x.detach())
        return self.layers(x)  # type: ignore[no-any-return]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_network_for_digits_learns_them(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = build_model("digits_cnn")
    losses = train_classifier(
        model, digits.train.x, digits.train.y, nb_epochs=30, batch_size=64, progress=False, **NORMALISATION
    )
    assert len(losses) == 30
    assert losses[-1] < 0.1 < losses[0]
    assert accuracy(model, digits.test.x, digits.test.y, **NORMALISATION) >= 0.97


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(few: tuple[FloatArray, IntArray]) -> None:
    runs = []
    for seed in (1, 1, 2):
        model = Dropped()
        losses = train_classifier(model, *few, nb_epochs=2, batch_size=16, seed=seed, progress=False, **NORMALISATION)
        runs.append((losses, weights(model)))
        torch.rand(5)  # what the caller draws in between has no say
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_the_random_numbers_of_the_caller_are_left_alone(few: tuple[FloatArray, IntArray]) -> None:
    model = Dropped()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    train_classifier(model, *few, nb_epochs=1, progress=False, **NORMALISATION)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_each_epoch_sees_each_image_once_normalised_in_even_batches_of_another_order(
    few: tuple[FloatArray, IntArray],
) -> None:
    model = Recorder()
    train_classifier(model, *few, nb_epochs=2, batch_size=59, progress=False, **NORMALISATION)
    assert [len(batch) for batch in model.batches] == [30, 30, 30, 30]
    normalised = (torch.from_numpy(few[0]) - SPEC.mean[0]) / SPEC.std[0]
    epochs = [torch.cat(model.batches[:2]), torch.cat(model.batches[2:])]
    for epoch in epochs:
        torch.testing.assert_close(epoch.flatten(1).sort(dim=0).values, normalised.flatten(1).sort(dim=0).values)
    assert not torch.equal(epochs[0], epochs[1])


def test_each_channel_has_a_normalisation_of_its_own() -> None:
    x = np.full((2, 3, 4, 4), 0.5, dtype=np.float32)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # its logits are the normalised channels
    mean, std = (0.5, 0.1, 0.3), (1.0, 0.5, 0.1)  # the channels become 0, 0.8 and 2
    assert accuracy(model, x, np.array([2, 2]), mean, std) == 1
    assert accuracy(model, x, np.array([2, 0]), mean, std) == 0.5


def test_the_reported_loss_is_the_mean_over_the_images(few: tuple[FloatArray, IntArray]) -> None:
    """With a step size of next to nothing the loss stays that of the initial weights."""
    model = Recorder()
    x = (torch.from_numpy(few[0]) - SPEC.mean[0]) / SPEC.std[0]
    expected = nn.functional.cross_entropy(model.eval()(x), torch.from_numpy(few[1])).item()
    losses = train_classifier(
        model, *few, nb_epochs=1, batch_size=7, learning_rate=1e-12, progress=False, **NORMALISATION
    )
    assert losses == [pytest.approx(expected, rel=1e-5)]


def test_training_ends_in_evaluation_mode_without_gradients_and_spares_frozen_parameters(
    few: tuple[FloatArray, IntArray],
) -> None:
    model = Recorder()
    model.layers[1].bias.requires_grad_(False)
    bias = model.layers[1].bias.clone()
    train_classifier(model, *few, nb_epochs=1, progress=False, **NORMALISATION)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.layers[1].bias, bias)


def test_training_that_breaks_off_ends_in_evaluation_mode_too(few: tuple[FloatArray, IntArray]) -> None:
    class Breaks(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Breaks()
    with pytest.raises(KeyboardInterrupt):
        train_classifier(model, *few, nb_epochs=1, progress=False, **NORMALISATION)
    assert not model.training


def test_one_hot_labels_train_as_class_indices_do(few: tuple[FloatArray, IntArray]) -> None:
    x, y = few
    one, other = Dropped(), Dropped()
    x = x[::-1]  # a view that torch cannot take as it is
    train_classifier(one, x, y, nb_epochs=1, progress=False, **NORMALISATION)
    train_classifier(other, x, np.eye(10)[y], nb_epochs=1, progress=False, **NORMALISATION)
    assert torch.equal(weights(one), weights(other))


def test_a_bar_says_nothing_where_nobody_watches(
    few: tuple[FloatArray, IntArray], capsys: pytest.CaptureFixture[str]
) -> None:
    train_classifier(Dropped(), *few, nb_epochs=1, progress=True, **NORMALISATION)
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_the_loss_on_a_terminal(
    few: tuple[FloatArray, IntArray], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    losses = train_classifier(Dropped(), *few, nb_epochs=2, progress=True, **NORMALISATION)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"loss {losses[-1]:.4f}" in shown.err


def test_accuracy_leaves_the_modes_of_the_modules_alone(few: tuple[FloatArray, IntArray]) -> None:
    model = Dropped().train()
    model.layers[1].eval()
    shares = {accuracy(model, *few, **NORMALISATION, batch_size=size) for size in (7, 60, 512)}
    assert len(shares) == 1  # without dropout, whatever the batches
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


# Errors


def image(**changes: Any) -> FloatArray:
    x = np.zeros((4, 1, 8, 8), dtype=np.float32)
    for value in changes.values():
        x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [[0.0]]}, "x is a list; a numpy array was expected"),
        ({"x": image().astype(np.uint8)}, "x has dtype uint8 and shape (4, 1, 8, 8); float32 and (N, C, H, W) with"),
        ({"x": image()[0]}, "x has dtype float32 and shape (1, 8, 8); float32 and (N, C, H, W) with N > 0 were exp"),
        ({"x": image()[:0]}, "x has dtype float32 and shape (0, 1, 8, 8); float32"),
        ({"x": image(value=1.5)}, "x ranges from 0 to 1.5; values inside [0, 1] were expected"),
        ({"x": image(value=-0.5)}, "x ranges from -0.5 to 0; values inside [0, 1] were expected"),
        ({"x": image(value=np.nan)}, "x ranges from nan to nan; values inside [0, 1] were expected"),
        ({"x": np.zeros((4, 1, 9, 9), np.float32)}, "x has images of shape (1, 9, 9), which the Dropped cannot take"),
        ({"y": np.arange(3)}, "y has 3 labels for 4 images"),
        ({"y": np.array([0, 1, 2, 10])}, "y holds labels from 0 to 10; 0 to 9 were expected"),
        ({"mean": (0.1, 0.2)}, "mean is (0.1, 0.2); finite numbers, 1 for as many channels, were expected"),
        ({"std": (0.0,)}, "std is (0.0,); finite numbers above 0, 1 for as many channels, were expected"),
        ({"mean": 0.1}, "mean is 0.1; finite numbers"),
        ({"model": len}, "model is a builtin_function_or_method; an nn.Module was expected"),
        ({"mean": (math.nan,)}, "mean is (nan,); finite numbers"),
        ({"batch_size": 0}, "batch_size is 0; a whole number from 1 was expected"),
        ({"model": nn.Conv2d(1, 10, 3)}, "model is a Conv2d that returns (1, 10, 6, 6) for an image; logits"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": Dropped(), "x": image(), "y": np.arange(4), **NORMALISATION, **changes}
    model = arguments["model"]
    before = weights(model) if isinstance(model, nn.Module) else None
    for call in (lambda: train_classifier(**arguments, nb_epochs=1, progress=False), lambda: accuracy(**arguments)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    assert before is None or torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nb_epochs": 0}, "nb_epochs is 0; a whole number from 1 was expected"),
        ({"nb_epochs": 1.5}, "nb_epochs is 1.5; a whole number from 1 was expected"),
        ({"seed": -1}, "seed is -1; a whole number from 0 was expected"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; a finite number above 0 was expected"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; a finite number above 0 was expected"),
        ({"learning_rate": math.inf}, "learning_rate is inf; a finite number above 0 was expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"nb_epochs": 1, **NORMALISATION, **changes}
    with pytest.raises(InputError) as caught:
        train_classifier(Dropped(), image(), np.arange(4), **settings)
    assert str(caught.value) == message


def test_a_network_with_nothing_to_train_is_refused() -> None:
    model = Dropped().requires_grad_(False)
    with pytest.raises(
        InputError, match=r"^model is a Dropped without a parameter to train; at least one was expected$"
    ):
        train_classifier(model, image(), np.arange(4), nb_epochs=1, **NORMALISATION)
