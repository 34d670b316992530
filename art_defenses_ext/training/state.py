"""A training run between two epochs, and the file from which it continues: tensors and numbers, never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art_defenses_ext.base.checkpoint import check_format, check_kinds, from_json, read_tensors, write_tensors
from art_defenses_ext.base.errors import CheckpointError
from art_defenses_ext.base.validation import one_line

FORMAT, VERSION = "art-defenses-ext training", 1


@dataclass(frozen=True)
class Epoch:
    """The mean of each term of the loss over an epoch.

    Attributes:
        training: means over the training images, during the steps.
        validation: means over the validation images, after the steps; empty without validation.
    """

    training: dict[str, float]
    validation: dict[str, float]

    @property
    def validation_loss(self) -> float:
        """The sum of all terms on the validation images."""
        return sum(self.validation.values())


@dataclass
class TrainingState:
    """The state of a run between two epochs, beside the data and the settings.

    Attributes:
        network: the trained network.
        optimiser: its optimiser.
        schedule: the optimiser's schedule.
        order: generator of the order of the images; other draws use torch's global generators.
        history: the finished epochs.
        best: the weights of the epoch with the smallest validation loss; empty without validation.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    order: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def finish(self, epoch: Epoch) -> None:
        """Record an epoch's losses, and its weights if they are the best so far."""
        earlier = [previous.validation_loss for previous in self.history]
        self.history.append(epoch)
        if epoch.validation and all(epoch.validation_loss < loss for loss in earlier):
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def restore_best(self) -> None:
        """Restore the best weights, if any were recorded."""
        if self.best:
            self.network.load_state_dict(self.best)


def save_state(path: Path, state: TrainingState, identity: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, atomically.

    Args:
        path: the file.
        state: the state of the run.
        identity: values that a run must share to continue from here; plain data.
    """
    tensors = {"order": state.order.get_state(), "random": torch.get_rng_state()}
    device = next(state.network.parameters()).device
    if device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(device)
    tensors |= {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    moments = state.optimiser.state_dict()["state"]
    tensors |= {f"moment.{which}.{name}": value for which, held in moments.items() for name, value in held.items()}
    numbers = {
        "history": [[epoch.training, epoch.validation] for epoch in state.history],
        "schedule": state.schedule.state_dict(),
        "rates": [group["lr"] for group in state.optimiser.param_groups],
    }
    identity = as_plain(identity)
    metadata = {"format": f"{FORMAT} {VERSION}", "identity": json.dumps(identity), "numbers": json.dumps(numbers)}
    write_tensors(path, tensors, metadata, "checkpoint")


def load_state(path: Path, state: TrainingState, identity: dict[str, Any]) -> None:
    """Restore ``state``, and torch's global random state, from the run that wrote ``path``.

    Raises:
        InputError: for a file in another format, or of another run.
    """
    metadata, tensors = read_tensors(path, "checkpoint")
    check_format(path, metadata, FORMAT, VERSION)
    there = from_json(path, "identity", metadata.get("identity", "null"), dict, "checkpoint")
    _check_identity(path, there, as_plain(identity))
    numbers = from_json(path, "numbers", metadata.get("numbers", "null"), dict, "checkpoint")
    own = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    check_kinds(f"checkpoint is {str(path)!r}", tensors, own)
    try:
        _restore(state, numbers, tensors)
    except Exception as error:  # torch raises many types on missing tensors and other shapes
        raise CheckpointError(
            f"checkpoint is {str(path)!r}, from which no training can continue ({one_line(error)}); a whole file was "
            "expected"
        ) from error


def _restore(state: TrainingState, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    state.network.load_state_dict(_part(tensors, "network."))
    state.best = _part(tensors, "best.")
    state.history = [Epoch(*terms) for terms in numbers["history"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "moment.").items():
        which, name = key.split(".")
        moments.setdefault(int(which), {})[name] = value
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.schedule.load_state_dict(numbers["schedule"])
    for group, rate in zip(state.optimiser.param_groups, numbers["rates"], strict=True):
        group["lr"] = rate
    state.order.set_state(tensors["order"])
    torch.set_rng_state(tensors["random"])
    device = next(state.network.parameters()).device
    if device.type == "cuda" and "random_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random_cuda"], device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def as_plain(identity: dict[str, Any]) -> dict[str, Any]:
    """Return ``identity`` as read back from a file.

    Raises:
        InputError: for values that JSON cannot hold.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(identity))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint cannot hold a setting ({error}); numbers, texts and names were expected"
        ) from None
    return plain


def _check_identity(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"checkpoint is {str(path)!r}, written by a run whose {name} was {there.get(name)!r}, and this one's "
                f"is {here.get(name)!r}; the same, or another file, was expected"
            )
