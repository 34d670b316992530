"""The training loop: Adam with a cosine schedule; the same seed gives the same weights, interrupted or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import fingerprint
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.validation import (
    check_count,
    check_differentiable_tensors,
    check_flag,
    check_labels,
    check_number,
    check_outputs,
    check_positive,
    check_seed,
    check_target,
    one_line,
)
from art_defenses_ext.estimator.rebuild import evaluation_mode, gradients_enabled
from art_defenses_ext.training.state import Epoch, TrainingState, as_plain, load_state, save_state

Objective = Callable[[Tensor, Tensor, torch.Generator], dict[str, Tensor]]
"""(images (n, C, H, W), labels (n,), random generator on their device) -> terms of the loss by name, each a mean over
the images; training minimises their sum."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.

    Attributes:
        nb_epochs: passes over the images, at least 1.
        batch_size: maximum number of images in a step.
        learning_rate: Adam's initial step size; it decays to 0 along half a cosine, step by step.
        weight_decay: Adam's weight decay, added to the gradient.
        clip_norm: maximum l2 norm of the gradient of all parameters together; None for no clipping.
        patience: stop after this many epochs without a lower validation loss, which needs validation images; None runs
            all epochs.
        seed: seed of the order of the images and of all random draws.
        mixed_precision: autocast to bfloat16; None does so on CUDA only.
    """

    nb_epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    seed: int = 0
    mixed_precision: bool | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # neither torch's generators nor JSON accept them
                object.__setattr__(self, name, value.item())
        check_count("nb_epochs", self.nb_epochs)
        check_count("batch_size", self.batch_size)
        check_seed(self.seed)
        check_positive("learning_rate", self.learning_rate)
        check_number("weight_decay", self.weight_decay, "a finite number >= 0", lambda value: value >= 0)
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)
        if self.patience is not None:
            check_count("patience", self.patience)
        if self.mixed_precision is not None:
            check_flag("mixed_precision", self.mixed_precision)


@gradients_enabled()
def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    settings: Settings,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train ``network`` and leave it in evaluation mode.

    Only parameters of ``network`` that require a gradient change. No ``.grad`` is filled, also not in other networks
    that the objective runs.

    Args:
        network: the trained network; it stays on its device, in channels-last memory during training.
        images: images (N, C, H, W), on the CPU or the network's device.
        labels: labels (N,), on the CPU or the network's device.
        objective: the loss, which runs ``network``.
        settings: settings of the run.
        validation: images and labels on which the objective is computed after each epoch, in evaluation mode and with
            the same random numbers each time; the weights of the epoch with the smallest sum are kept.
        checkpoint: a file that is written after each epoch. If it exists, training continues from it, and
            on a CPU ends with the weights of an uninterrupted run.
        identity: further values that must equal those of the run that wrote ``checkpoint``.
        progress: show a transient bar with the losses on the standard error.

    Returns:
        The losses, epoch by epoch.

    Raises:
        InputError: for a network without parameters to train, images without labels, patience without validation
            images, a checkpoint of another run or without a folder, or a loss or weights that are not finite.

    *Source*: Kingma, Ba 2015 (arXiv:1412.6980) for Adam; Loshchilov, Hutter 2017 (arXiv:1608.03983), section 3, for the
    cosine, here without restarts.

    **Convention**: the sizes of an epoch's batches differ by one image at most. In a short last batch each image would
    weigh more, and batch normalisation fails on a single image.
    """
    check_differentiable_tensors(network, "network")
    trained = _check_run(network, images, labels, settings, validation, checkpoint)
    device = trained[0].device
    nb_batches = math.ceil(len(images) / settings.batch_size)
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=settings.nb_epochs * nb_batches)
    state = TrainingState(network, optimiser, schedule, order=torch.Generator().manual_seed(settings.seed))
    run_identity = {} if checkpoint is None else _identity(network, (images, labels), validation, settings, identity)
    precision = _precision(settings, device)
    noise = torch.Generator(device)
    try:
        with _seeded(settings.seed, device), _channels_last(network), progress_bar(progress) as bar:
            if checkpoint is not None and checkpoint.exists():
                load_state(checkpoint, state, run_identity)
            task = bar.add_task("training", total=settings.nb_epochs * nb_batches, note="")
            bar.advance(task, len(state.history) * nb_batches)
            for epoch in range(len(state.history), settings.nb_epochs):
                if _ran_out(state.history, settings.patience):
                    break
                network.train()
                noise.manual_seed(settings.seed + epoch)  # seeded per epoch, so that its state is not saved
                sums = _Sums(device)
                for batch in torch.randperm(len(images), generator=state.order).tensor_split(nb_batches):
                    with precision():
                        terms = objective(images[batch].to(device), labels[batch].to(device), noise)
                    _step(sum(terms.values()), trained, optimiser, settings.clip_norm)  # type: ignore[arg-type]
                    schedule.step()
                    sums.add(terms, len(batch))
                    bar.advance(task)
                epoch_losses = Epoch(
                    sums.means(), _validate(network, objective, settings, validation, precision, device)
                )
                _check_finite(epoch_losses, trained, settings, epoch)
                state.finish(epoch_losses)
                if checkpoint is not None:
                    save_state(checkpoint, state, run_identity)
                bar.update(task, note=_note(epoch_losses))
            state.restore_best()
    finally:
        optimiser.zero_grad()
        network.eval()
    return state.history


def train_classifier(
    model: nn.Module,
    x: FloatArray,
    y: IntArray,
    *,
    nb_epochs: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train a classifier on the cross entropy and leave it in evaluation mode.

    Args:
        model: from normalised images (N, C, H, W) to logits (N, nb_classes); it stays on its device, and parameters
            that require no gradient do not change.
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,) or one-hot rows (N, nb_classes).
        nb_epochs: passes over the images, at least 1.
        mean: mean of the normalisation, one number per channel.
        std: standard deviation of the normalisation, one number per channel, above 0.
        batch_size: maximum number of images in a step.
        learning_rate: Adam's initial step size; it decays to 0 along half a cosine, step by step.
        seed: seed of the order of the images and of dropout; the caller's random state is restored. On the CPU
            the same seed (with the same initial weights and number of threads) gives the same weights.
        progress: show a transient bar with the loss on the standard error.

    Returns:
        The mean training loss of each epoch.

    Raises:
        InputError: for a model, images, labels or settings that cannot be used, before any training.
    """
    settings = Settings(nb_epochs, batch_size, learning_rate, seed=seed, mixed_precision=False)
    images, labels = _check_data(model, x, y, mean, std)

    def objective(images: Tensor, labels: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"cross-entropy": functional.cross_entropy(model(_normalise(images, mean, std)), labels)}

    history = train(model, images, labels, objective, settings, progress=progress)
    return [epoch.training["cross-entropy"] for epoch in history]


def accuracy(
    model: nn.Module,
    x: FloatArray,
    y: IntArray,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 512,
) -> float:
    """Return the accuracy of a classifier in evaluation mode.

    Args:
        model: from normalised images to logits (N, nb_classes); the modes of its modules are restored.
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,) or one-hot rows (N, nb_classes).
        mean: mean of the normalisation, one number per channel.
        std: standard deviation of the normalisation, one number per channel, above 0.
        batch_size: maximum number of images in a forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: for images, labels or settings that cannot be used.
    """
    check_count("batch_size", batch_size)
    images, labels = _check_data(model, x, y, mean, std)
    device = _device(model)
    correct = 0
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            logits = model(_normalise(images[batch].to(device), mean, std))
            correct += int((named_classes(logits).cpu() == labels[batch]).sum())
    return correct / len(images)


def _check_run(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    validation: tuple[Tensor, Tensor] | None,
    checkpoint: Path | None,
) -> list[nn.Parameter]:
    """Return the parameters to train; refuse a run without parameters or images."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"model is a {type(network).__name__} without a parameter to train; at least one was expected")
    _check_pairs("images", images, labels)
    if validation is not None:
        _check_pairs("validation", *validation)
    elif settings.patience is not None:
        raise InputError(f"patience is {settings.patience} without validation images; some, or None, were expected")
    if checkpoint is not None:
        check_target("checkpoint", checkpoint)
    return trained


def _check_pairs(argument: str, images: Tensor, labels: Tensor) -> None:
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"{argument} holds {len(images)} images and {len(labels)} labels; as many of both, one at least, were "
            "expected"
        )


def _identity(
    network: nn.Module,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None,
    settings: Settings,
    identity: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what must be the same for a run to continue another one."""
    shapes = {name: torch.tensor([value.requires_grad, *value.shape]) for name, value in network.named_parameters()}
    own = {
        "data": _fingerprint(data),
        "validation": None if validation is None else _fingerprint(validation),
        "network": fingerprint(shapes),
    }
    return as_plain(own | vars(settings) | (identity or {}))


def _fingerprint(data: tuple[Tensor, Tensor]) -> str:
    images, labels = data
    return fingerprint({"images": images, "labels": labels})


def _ran_out(history: list[Epoch], patience: int | None) -> bool:
    """Return whether none of the last ``patience`` epochs improved on those before."""
    losses = [epoch.validation_loss for epoch in history]
    return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _step(loss: Tensor, trained: list[nn.Parameter], optimiser: torch.optim.Optimizer, clip_norm: float | None) -> None:
    # Not loss.backward(), which would fill the .grad of other networks that the objective runs.
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(trained, clip_norm)
    optimiser.step()


class _Sums:
    """Sums of loss terms over images, kept on the device, so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.zero = torch.zeros((), device=device)
        self.terms: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor], count: int) -> None:
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, self.zero) + value.detach() * count
        self.count += count

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.terms.items()}


def _validate(
    network: nn.Module,
    objective: Objective,
    settings: Settings,
    validation: tuple[Tensor, Tensor] | None,
    precision: Callable[[], Any],
    device: torch.device,
) -> dict[str, float]:
    if validation is None:
        return {}
    images, labels = validation
    noise = torch.Generator(device).manual_seed(settings.seed)
    sums = _Sums(device)
    with evaluation_mode(network), torch.no_grad(), precision():
        for batch in torch.arange(len(images)).tensor_split(math.ceil(len(images) / settings.batch_size)):
            sums.add(objective(images[batch].to(device), labels[batch].to(device), noise), len(batch))
    return sums.means()


def _check_finite(losses: Epoch, trained: list[nn.Parameter], settings: Settings, epoch: int) -> None:
    for part, terms in (("training", losses.training), ("validation", losses.validation)):
        for name, value in terms.items():
            if not math.isfinite(value):
                raise InputError(
                    f"learning_rate is {settings.learning_rate}, and the {part} loss {name!r} became {value} in epoch "
                    f"{epoch + 1}; a step size that keeps it finite was expected"
                )
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise InputError(
            f"learning_rate is {settings.learning_rate}, and a weight became NaN or infinite in epoch {epoch + 1}, "
            "though the loss did not; a loss with a finite gradient was expected"
        )


def _note(losses: Epoch) -> str:
    note = f"loss {sum(losses.training.values()):.4f}"
    return f"{note}, validation {losses.validation_loss:.4f}" if losses.validation else note


def _precision(settings: Settings, device: torch.device) -> Callable[[], Any]:
    wanted = settings.mixed_precision
    if wanted or (wanted is None and device.type == "cuda"):
        # No cache: weights first used under no_grad, as in an attack, would have no gradient in it.
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Use the memory layout in which convolutions are fastest, and the default one afterwards."""
    network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed random layers such as dropout on ``device``, and restore the caller's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed, which also seeds devices that are not forked.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_data(
    model: nn.Module, x: FloatArray, y: IntArray, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the images and labels as tensors; refuse those that ``model`` cannot be run on."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; an nn.Module was expected")
    _check_images(x)
    _check_channels("mean", mean, x.shape[1], -math.inf, "finite numbers")
    _check_channels("std", std, x.shape[1], 0, "finite numbers above 0")
    images = torch.from_numpy(np.ascontiguousarray(x))  # torch has no negative strides
    labels = check_labels(y, _nb_classes(model, images[:1], mean, std), len(x))
    return images, torch.from_numpy(labels)


def _check_images(x: FloatArray) -> None:
    if not isinstance(x, np.ndarray):
        raise InputError(f"x is a {type(x).__name__}; a numpy array was expected")
    if x.dtype != np.float32 or x.ndim != 4 or len(x) == 0:
        raise InputError(
            f"x has dtype {x.dtype} and shape {x.shape}; float32 and (N, C, H, W) with N > 0 were expected"
        )
    # In this form NaN fails too.
    if not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"x ranges from {x.min():g} to {x.max():g}; values inside [0, 1] were expected")


def _check_channels(argument: str, values: Sequence[float], nb_channels: int, above: float, wanted: str) -> None:
    numbers = np.asarray(values)
    fits = numbers.shape == (nb_channels,) and numbers.dtype.kind in "iuf"
    if not (fits and np.isfinite(numbers).all() and (numbers > above).all()):
        raise InputError(f"{argument} is {values!r}; {wanted}, {nb_channels} for as many channels, were expected")


def _nb_classes(model: nn.Module, image: Tensor, mean: Sequence[float], std: Sequence[float]) -> int:
    """Return the number of logits that ``model`` gives for one image (1, C, H, W)."""
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(_normalise(image.to(_device(model)), mean, std))
    except Exception as error:  # a model may check its input in any way
        raise InputError(
            f"x has images of shape {tuple(image.shape[1:])}, which the {type(model).__name__} cannot take "
            f"({one_line(error)}); images of the shape that it was made for were expected"
        ) from error
    return check_outputs(logits, 1, argument=f"model, a {type(model).__name__},").shape[1]
