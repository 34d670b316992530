"""The one training loop: Adam with a cosine schedule; the same seed gives the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.progress import progress_bar
from art_defenses_ext.rebuild import evaluation_mode
from art_defenses_ext.validation import FloatArray, InputError, IntArray, check_labels


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
            that require no gradient stay as they are.
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,) or one-hot rows (N, nb_classes).
        nb_epochs: passes over the images, at least 1.
        mean: what to subtract from the images, one number per channel.
        std: what to divide by after that, one number per channel, above 0.
        batch_size: the most images in a step.
        learning_rate: Adam's step size at the start; it falls to 0 along half a cosine, step by step.
        seed: fixes the order of the images and the dropout, and leaves the caller's random numbers alone. On the CPU
            the same seed (with the same initial weights and number of threads) gives the same weights.
        progress: show a bar with the loss on the standard error, gone at the end.

    Returns:
        The mean loss of each epoch, over its images, as met during the steps.

    Raises:
        InputError: for a model, images, labels or settings that cannot be used, before any training.

    *Source*: Kingma, Ba 2015 (arXiv:1412.6980) for Adam; Loshchilov, Hutter 2017 (arXiv:1608.03983), section 3, for the
    cosine, here without restarts.

    **Convention**: the batches of an epoch differ by one image at most. A short last one would weigh more per image,
    and batch normalisation cannot bear a single image.
    """
    _check_whole("nb_epochs", nb_epochs, 1)
    _check_whole("batch_size", batch_size, 1)
    _check_whole("seed", seed, 0)
    if not isinstance(learning_rate, (int, float)) or not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate!r}; a finite number above 0 was expected")
    images, labels = _check_data(model, x, y, mean, std)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"model is a {type(model).__name__} without a parameter to train; at least one was expected")

    device = _device(model)
    nb_batches = math.ceil(len(images) / batch_size)
    nb_steps = nb_epochs * nb_batches
    optimiser = torch.optim.Adam(trained, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=nb_steps)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    model.train()
    try:
        with _seeded(seed, device), progress_bar(progress) as bar:
            task = bar.add_task("training", total=nb_steps, note="")
            for _ in range(nb_epochs):
                total = torch.zeros((), device=device)  # stays there, so that no step waits for the device
                for batch in torch.randperm(len(images), generator=order).tensor_split(nb_batches):
                    logits = model(_normalise(images[batch].to(device), mean, std))
                    loss = functional.cross_entropy(logits, labels[batch].to(device))
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    total += loss.detach() * len(batch)
                    bar.advance(task)
                losses.append(float(total) / len(images))
                bar.update(task, note=f"loss {losses[-1]:.4f}")
    finally:
        optimiser.zero_grad()
        model.eval()
    return losses


def accuracy(
    model: nn.Module,
    x: FloatArray,
    y: IntArray,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 512,
) -> float:
    """Return the share of images that a classifier gets right in evaluation mode.

    Args:
        model: from normalised images to logits (N, nb_classes); its modules keep the modes that they are in.
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,) or one-hot rows (N, nb_classes).
        mean: what to subtract from the images, one number per channel.
        std: what to divide by after that, one number per channel, above 0.
        batch_size: the most images in a forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: for images, labels or settings that cannot be used.
    """
    _check_whole("batch_size", batch_size, 1)
    images, labels = _check_data(model, x, y, mean, std)
    device = _device(model)
    correct = 0
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            logits = model(_normalise(images[batch].to(device), mean, std))
            correct += int((logits.argmax(dim=1).cpu() == labels[batch]).sum())
    return correct / len(images)


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what layers such as dropout draw on ``device``, and give the caller's random numbers back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed, which seeds all devices, those that are not forked too.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_whole(argument: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or not least <= value < 2**63:
        raise InputError(f"{argument} is {value!r}; a whole number from {least} was expected")


def _check_data(
    model: nn.Module, x: FloatArray, y: IntArray, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the images and labels as tensors if ``model`` can be run on them."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; an nn.Module was expected")
    _check_images(x)
    _check_channels("mean", mean, x.shape[1], -math.inf, "finite numbers")
    _check_channels("std", std, x.shape[1], 0, "finite numbers above 0")
    images = torch.from_numpy(np.ascontiguousarray(x))  # torch knows no negative strides
    labels = check_labels(y, _nb_classes(model, images[:1], mean, std), len(x))
    return images, torch.from_numpy(labels)


def _check_images(x: FloatArray) -> None:
    if not isinstance(x, np.ndarray):
        raise InputError(f"x is a {type(x).__name__}; a numpy array was expected")
    if x.dtype != np.float32 or x.ndim != 4 or len(x) == 0:
        raise InputError(
            f"x has dtype {x.dtype} and shape {x.shape}; float32 and (N, C, H, W) with N > 0 were expected"
        )
    # Written so that NaN fails too.
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
            f"({_reason(error)}); images of the shape that it was made for were expected"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"model is a {type(model).__name__} that returns {shown} for an image; logits (1, nb_classes) were expected"
        )
    return logits.shape[1]


def _reason(error: Exception) -> str:
    """Return the type of an error and its text on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
