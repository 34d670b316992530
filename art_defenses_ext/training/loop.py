"""The training loop: Adam with a cosine schedule; the same seed gives the same weights, interrupted or not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art_defenses_ext.base.checkpoint import fingerprint
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.validation import check_differentiable_tensors, check_target
from art_defenses_ext.estimator.rebuild import evaluation_mode, gradients_enabled
from art_defenses_ext.training.settings import Settings
from art_defenses_ext.training.state import Epoch, TrainingState, as_plain, load_state, save_state

LOG = logging.getLogger(__name__)

Data = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N,)."""

Objective = Callable[[Tensor, Tensor, torch.Generator], dict[str, Tensor]]
"""(images (n, C, H, W), labels (n,), random generator on their device) -> terms of the loss by name, each a mean over
the images; training minimises their sum."""


@gradients_enabled()
def train(
    network: nn.Module,
    data: Data,
    objective: Objective,
    settings: Settings,
    *,
    validation: Data | None = None,
    checkpoint: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train ``network`` and leave it in evaluation mode.

    Only parameters of ``network`` that require a gradient change. No ``.grad`` is filled, also not in other networks
    that the objective runs.

    Args:
        network: the trained network; it stays on its device, in channels-last memory during training.
        data: images (N, C, H, W) and labels (N,), on the CPU or the network's device.
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
    trained = _check_run(network, data, settings, validation, checkpoint)
    images, labels = data
    device = trained[0].device
    nb_batches = math.ceil(len(images) / settings.batch_size)
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=settings.nb_epochs * nb_batches)
    state = TrainingState(network, optimiser, schedule, order=torch.Generator().manual_seed(settings.seed))
    run_identity = {} if checkpoint is None else _identity(network, data, validation, settings, identity)
    precision = precision_of(settings, device)
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
                LOG.info("epoch %d of %d: %s", epoch + 1, settings.nb_epochs, _note(epoch_losses))
            state.restore_best()
    finally:
        optimiser.zero_grad()
        network.eval()
    return state.history


def _check_run(
    network: nn.Module,
    data: Data,
    settings: Settings,
    validation: Data | None,
    checkpoint: Path | None,
) -> list[nn.Parameter]:
    """Return the parameters to train; refuse a run without parameters or images."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"model is a {type(network).__name__} without a parameter to train; at least one was expected")
    _check_pairs("images", *data)
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
    data: Data,
    validation: Data | None,
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


def _fingerprint(data: Data) -> str:
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
    validation: Data | None,
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
    if not bool(torch.stack([parameter.isfinite().all() for parameter in trained]).all()):
        raise InputError(
            f"learning_rate is {settings.learning_rate}, and a weight became NaN or infinite in epoch {epoch + 1}, "
            "though the loss did not; a loss with a finite gradient was expected"
        )


def _note(losses: Epoch) -> str:
    note = f"loss {sum(losses.training.values()):.4f}"
    return f"{note}, validation {losses.validation_loss:.4f}" if losses.validation else note


def precision_of(settings: Settings, device: torch.device) -> Callable[[], Any]:
    """Return what makes the context in which a step computes its loss: bfloat16 where it is mixed."""
    is_mixed = settings.mixed_precision
    if is_mixed or (is_mixed is None and device.type == "cuda"):
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
