"""The training loop: the same weights for the same seed, nothing of the caller's disturbed, no image left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.training.classifier import train_classifier
from art_defenses_ext.training.loop import Objective, train
from art_defenses_ext.training.settings import Settings, SettingsOptions
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset

SPEC = MODELS["digits_cnn"]
NORMALISATION: dict[str, Any] = {"mean": SPEC.mean, "std": SPEC.std}


def test_a_setting_of_another_kind_is_refused(wrong_values: Callable[[Kind], list[Any]]) -> None:
    for name, kind in declared_of(Settings).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                Settings(**{"nb_epochs": 1, name: value})


def test_type_checkers_see_the_settings_that_are_declared() -> None:
    assert get_type_hints(SettingsOptions, include_extras=True) == get_type_hints(Settings, include_extras=True)


@pytest.fixture
def training_data(digits: Dataset) -> tuple[FloatArray, IntArray]:
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


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    training_data: tuple[FloatArray, IntArray],
) -> None:
    runs = []
    for seed in (1, 1, 2):
        model = Dropped()
        losses = train_classifier(
            model, *training_data, nb_epochs=2, batch_size=16, seed=seed, progress=False, **NORMALISATION
        )
        runs.append((losses, weights(model)))
        torch.rand(5)  # what the caller draws in between has no say
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_each_epoch_sees_each_image_once_normalised_in_even_batches_of_another_order(
    training_data: tuple[FloatArray, IntArray],
) -> None:
    model = Recorder()
    train_classifier(model, *training_data, nb_epochs=2, batch_size=59, progress=False, **NORMALISATION)
    assert [len(batch) for batch in model.batches] == [30, 30, 30, 30]
    normalised = (torch.from_numpy(training_data[0]) - SPEC.mean[0]) / SPEC.std[0]
    epochs = [torch.cat(model.batches[:2]), torch.cat(model.batches[2:])]
    for epoch in epochs:
        torch.testing.assert_close(epoch.flatten(1).sort(dim=0).values, normalised.flatten(1).sort(dim=0).values)
    assert not torch.equal(epochs[0], epochs[1])


def test_each_channel_has_a_normalisation_of_its_own() -> None:
    x = np.full((2, 3, 4, 4), 0.5, dtype=np.float32)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    means: list[Tensor] = []
    model[1].register_forward_hook(lambda _, __, output: means.append(output))
    train_classifier(model, x, np.array([2, 0]), mean=(0.5, 0.1, 0.3), std=(1.0, 0.5, 0.1), nb_epochs=1, progress=False)
    torch.testing.assert_close(means[-1], torch.tensor([[0.0, 0.8, 2.0]]).expand(2, -1))


def test_training_ends_in_evaluation_mode_without_gradients_and_spares_frozen_parameters(
    training_data: tuple[FloatArray, IntArray],
) -> None:
    model = Recorder()
    model.layers[1].bias.requires_grad_(False)
    bias = model.layers[1].bias.clone()
    train_classifier(model, *training_data, nb_epochs=1, progress=False, **NORMALISATION)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.layers[1].bias, bias)


# Any objective


class Scalar(nn.Module):
    """One weight, so that what happens to it can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))


def some_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def run(
    network: nn.Module, objective: Objective, *, count: int = 30, validation: int = 0, **options: Any
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Train on some images; the losses."""
    names = ("checkpoint", "identity")
    training_options = {name: options.pop(name) for name in names if name in options}
    held_out = some_images(validation, seed=1) if validation else None
    history = train(
        network,
        some_images(count),
        objective,
        Settings(**({"nb_epochs": 2, "batch_size": 10} | options)),
        validation=held_out,
        progress=False,
        **training_options,
    )
    return [(epoch.training, epoch.validation) for epoch in history]


def entropy(network: nn.Module) -> Objective:
    return lambda x, y, _: {"class": F.cross_entropy(network(x), y)}


@contextmanager
def every_step(look: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Have a look at the gradients just before each step."""
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: look(optimiser))
    try:
        yield
    finally:
        hook.remove()


def adam(
    weight: FloatArray, gradients: Callable[[FloatArray, int], FloatArray], steps: int, settings: Settings
) -> FloatArray:
    """Adam with its usual constants, step by step as in the paper, and the learning rate along half a cosine."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for t in range(steps):
        gradient = gradients(weight, t)
        if settings.clip_norm is not None:
            gradient = gradient * min(1, settings.clip_norm / (np.linalg.norm(gradient) + 1e-6))
        gradient = gradient + settings.weight_decay * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = settings.learning_rate * (1 + math.cos(math.pi * t / steps)) / 2
        step = (first / (1 - 0.9 ** (t + 1))) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        weight = weight - rate * step
    return weight


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"clip_norm": 0.05}], ids=str)
def test_the_weights_are_those_of_adam_written_out(options: dict[str, Any]) -> None:
    """The sum of two terms, whose gradient is known: (w x - y) x and w, averaged over the batch."""
    network, targets = nn.Linear(5, 1, bias=False).double(), torch.randn(20, dtype=torch.float64)
    images = torch.randn(20, 5, dtype=torch.float64)
    batches: list[tuple[FloatArray, FloatArray]] = []

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        batches.append((x.numpy(), y.numpy()))
        return {"fit": (network(x)[:, 0] - y).square().mean() / 2, "size": network.weight.square().sum() / 2}

    def gradients(weight: FloatArray, t: int) -> FloatArray:
        x, y = batches[t]
        return (x @ weight - y) @ x / len(x) + weight

    start = network.weight.detach().numpy()[0].copy()
    chosen = Settings(nb_epochs=3, batch_size=6, learning_rate=0.1, **options)
    train(network, (images, targets), objective, chosen, progress=False)
    assert len(batches) == 12
    np.testing.assert_allclose(network.weight.detach().numpy()[0], adam(start, gradients, 12, chosen), rtol=1e-9)


@settings(max_examples=15)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 45))
def test_an_epoch_is_as_few_even_batches_as_hold_each_image_once(count: int, batch_size: int) -> None:
    network, batches = Scalar(), []

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        assert torch.equal(x.flatten(), y.double())
        batches.append(y.tolist())
        return {"loss": network.weight * x.mean()}

    labels = torch.arange(count)
    chosen = Settings(nb_epochs=1, batch_size=batch_size)
    train(network, (labels.double().reshape(count, 1, 1, 1), labels), objective, chosen, progress=False)
    sizes = [len(batch) for batch in batches]
    assert sorted(label for batch in batches for label in batch) == list(range(count))
    assert len(sizes) == math.ceil(count / batch_size)
    assert max(sizes) - min(sizes) <= 1


def test_only_weights_that_ask_for_it_change_and_no_gradient_stays_anywhere() -> None:
    network, other_network = Dropped(), Recorder().eval()
    network.layers[2].bias.requires_grad_(False)
    before, other_weights = (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        weights(other_network),
    )

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        shown = x + network(x).mean()
        return {"class": F.cross_entropy(other_network(shown), y), "size": network.layers[2].weight.square().sum()}

    run(network, objective, validation=8, clip_norm=1.0)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"layers.2.weight"}
    assert torch.equal(weights(other_network), other_weights)
    assert all(parameter.requires_grad for parameter in other_network.parameters())
    assert all(parameter.grad is None for part in (network, other_network) for parameter in part.parameters())


def test_the_seed_decides_the_noise_which_is_another_one_each_epoch() -> None:
    def draws(seed: int) -> list[Tensor]:
        network, noises = Scalar(), []

        def objective(x: Tensor, y: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            noises.append(torch.rand(4, generator=noise))
            return {"loss": network.weight.square()}

        run(network, objective, seed=seed)
        torch.rand(3)
        return noises

    first, repeated, reseeded = draws(1), draws(1), draws(5)
    assert torch.equal(torch.stack(first), torch.stack(repeated))
    assert len({tuple(values.tolist()) for values in first + reseeded}) == 12


def test_validation_and_a_checkpoint_leave_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    network = Dropped()
    before = torch.get_rng_state()
    for _ in range(2):  # writing the file, and going on from it
        run(network, entropy(network), validation=8, checkpoint=tmp_path / "run")
        assert torch.equal(torch.get_rng_state(), before)


def test_each_validation_sees_the_held_out_images_in_order_in_evaluation_mode_with_the_same_noise() -> None:
    network, batches = Recorder(), []

    def objective(x: Tensor, y: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        values = torch.rand(3, generator=noise)
        if not network.training:
            assert not torch.is_grad_enabled()
            batches.append((x, values))
        return entropy(network)(x, y, noise)

    run(network, objective, validation=25, nb_epochs=3)
    assert [len(x) for x, _ in batches] == [9, 8, 8] * 3
    for epoch in (batches[:3], batches[3:6], batches[6:]):
        assert torch.equal(torch.cat([x for x, _ in epoch]), some_images(25, seed=1)[0])
        assert torch.equal(
            torch.stack([values for _, values in epoch]), torch.stack([values for _, values in batches[:3]])
        )


def test_the_reported_losses_are_means_over_the_images_term_by_term() -> None:
    """Batches of 4 and 3 images, whose means must not weigh the same."""
    network = Scalar()

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"images": x.mean() + 0 * network.weight, "labels": y.double().mean()}

    history = run(network, objective, count=7, validation=11, batch_size=4, nb_epochs=1)
    for terms, (images, labels) in zip(history[0], (some_images(7), some_images(11, seed=1)), strict=True):
        assert terms == {
            "images": pytest.approx(images.mean().item(), rel=1e-6),
            "labels": pytest.approx(labels.double().mean().item(), rel=1e-6),
        }


def losing(network: Scalar, losses: list[float], weights_then: list[float]) -> Objective:
    """An objective with these validation losses, epoch by epoch, which notes the weight at each of them."""

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        if network.training:
            return {"loss": -network.weight}
        weights_then.append(network.weight.item())
        return {"loss": torch.tensor(losses[len(weights_then) - 1])}

    return objective


@pytest.mark.parametrize(
    ("losses", "best_epoch"), [([3.0, 1, 2, 4], 1), ([3.0, 2, 1, 0], 3), ([0.0, 1, 2, 3], 0), ([2.0, 1, 1, 1], 1)]
)
def test_the_weights_of_the_epoch_with_the_least_validation_loss_are_kept(losses: list[float], best_epoch: int) -> None:
    network, weights_then = Scalar(), []
    history = run(network, losing(network, losses, weights_then), validation=5, nb_epochs=4)
    assert [validation["loss"] for _, validation in history] == losses
    assert sorted(set(weights_then)) == weights_then  # each epoch has another weight
    assert network.weight.item() == weights_then[best_epoch]


@pytest.mark.parametrize(("patience", "epochs"), [(2, 4), (3, 7), (None, 7)])
def test_patience_ends_with_so_many_epochs_that_are_no_better(patience: int | None, epochs: int) -> None:
    network, weights_then = Scalar(), []
    losses = [5.0, 4, 4, 4.5, 3, 2, 3]
    history = run(network, losing(network, losses, weights_then), validation=5, nb_epochs=7, patience=patience)
    assert len(history) == epochs
    assert network.weight.item() == weights_then[losses.index(min(losses[:epochs]))]


def test_no_step_follows_a_gradient_longer_than_the_clip_norm() -> None:
    def norms(**options: Any) -> list[float]:
        network, lengths = Dropped(), []

        def look(optimiser: torch.optim.Optimizer) -> None:
            gradients = [parameter.grad for group in optimiser.param_groups for parameter in group["params"]]
            lengths.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

        with every_step(look):
            run(network, lambda x, y, noise: {"loss": 10 * entropy(network)(x, y, noise)["class"]}, **options)
        return lengths

    free, clipped = norms(), norms(clip_norm=0.5)
    assert len(free) == len(clipped) == 6
    assert min(free) > 0.5
    assert clipped == [pytest.approx(0.5, rel=1e-4)] * 6
    assert norms(clip_norm=1e6) == free


@pytest.mark.parametrize(("wanted", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)])
def test_a_cpu_computes_in_bfloat16_only_if_asked(wanted: bool | None, dtype: torch.dtype) -> None:
    network, dtypes = Dropped(), set()

    def objective(x: Tensor, y: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        logits = network(x)
        dtypes.add(logits.dtype)
        return {"class": F.cross_entropy(logits, y)}

    run(network, objective, validation=8, mixed_precision=wanted)
    assert dtypes == {dtype}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# Errors


def image(**changes: Any) -> FloatArray:
    x = np.zeros((4, 1, 8, 8), dtype=np.float32)
    for value in changes.values():
        x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"x": x}, "x is ") for x in ([[0.0]], image().astype(np.uint8), image()[0], image()[:0])),
        ({"x": image(value=1.5)}, "x ranges from 0 to 1.5; values inside the clip values [0, 1] were expected"),
        ({"x": image(value=np.nan)}, "x ranges from nan to nan; values inside the clip values [0, 1] were expected"),
        ({"x": np.zeros((4, 1, 9, 9), np.float32)}, "x has images of shape (1, 9, 9), which the Dropped cannot take"),
        ({"y": np.arange(3)}, "y has 3 labels for 4 images"),
        ({"y": np.array([0, 1, 2, 10])}, "y holds labels from 0 to 10; 0 to 9 were expected"),
        ({"mean": (0.1, 0.2)}, "mean is (0.1, 0.2); 1 finite number(s), one a channel, were expected"),
        ({"std": (0.0,)}, "std is (0.0,); 1 finite number(s) > 0, one a channel, were expected"),
        ({"mean": 0.1}, "mean is 0.1; 1 finite"),
        ({"model": len}, "model is <built-in function len>; an nn.Module was expected"),
        (
            {"model": nn.Conv2d(1, 10, 3)},
            "model, a Conv2d, gives torch.float32 of shape (1, 10, 6, 6) for 1 images; logits",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": Dropped(), "x": image(), "y": np.arange(4), **NORMALISATION, **changes}
    model = arguments["model"]
    before = weights(model) if isinstance(model, nn.Module) else None
    with pytest.raises(InputError) as error:
        train_classifier(**arguments, nb_epochs=1, progress=False)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert before is None or torch.equal(weights(model), before)


def test_a_network_with_nothing_to_train_is_refused() -> None:
    model = Dropped().requires_grad_(False)
    with pytest.raises(
        InputError, match=r"(?m)^model is a Dropped without a parameter to train; at least one was expected$"
    ):
        train_classifier(model, image(), np.arange(4), nb_epochs=1, **NORMALISATION)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda w, training: {"a": w, "b": w.detach() + math.nan},
            "the training loss 'b' became nan in epoch 1; a step",
        ),
        (lambda w, training: {"a": w / (0 if training else 1)}, "the training loss 'a' became "),
        (lambda w, training: {"a": w * (1 if training else math.nan)}, "the validation loss 'a' became nan in epoch 1"),
    ],
)
def test_a_loss_that_is_not_finite_is_refused(loss: Callable[..., dict[str, Tensor]], message: str) -> None:
    network = Scalar()
    with pytest.raises(InputError) as error:
        run(network, lambda *_: loss(network.weight, network.training), validation=5)
    assert str(error.value).startswith("learning_rate is 0.001, and ")
    assert message in str(error.value)
    assert not network.training
    assert network.weight.grad is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "patience is 2 without validation images; some, or None, were expected"),
        ({"count": 0}, "images holds 0 images and 0 labels; as many of both, one at least, were expected"),
        (
            {"checkpoint": Path("no", "folder", "run")},
            "checkpoint is 'no/folder/run'; a file in an existing folder was",
        ),
        (
            {"checkpoint": Path("run"), "identity": {"a": object}},
            "checkpoint cannot hold a setting (Object of type type is not JSON",
        ),
    ],
)
def test_a_run_that_makes_no_sense_is_refused_before_any_step(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = Dropped()
    before = weights(network)
    with pytest.raises(InputError) as error:
        run(network, entropy(network), **changes)
    assert str(error.value).startswith(message)
    assert torch.equal(weights(network), before)
    assert list(tmp_path.iterdir()) == []


def test_labels_for_other_images_are_refused() -> None:
    network, (x, y) = Dropped(), some_images(8)
    for images, held_out in (((x[1:], y), (x, y)), ((x, y), (x, y[1:])), ((x, y), (x[:0], y[:0]))):
        with pytest.raises(InputError, match=r"(images|validation) holds \d images and \d labels; as many of both"):
            train(network, images, entropy(network), Settings(nb_epochs=1), validation=held_out, progress=False)
