"""Weights read from files, and those that torchvision publishes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from art_defenses_ext.base.checkpoint import check_kinds
from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.validation import check_file, one_line
from art_defenses_ext.zoo.catalogue import MODELS

_KEYS_SHOWN = 3


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into ``model``, all of them or none.

    Args:
        model: the network; it stays on its device and is unchanged if anything fails.
        path: a ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads. The state dict may be the
            value of ``"state_dict"``, and its keys may begin with ``"module."`` (from ``nn.DataParallel``); those of a
            wrapped network may lack the wrapper's ``"network."``. Another floating-point precision, such as half, is
            converted to the model's; another kind, such as integers, is refused.

    Raises:
        InputError: for a missing file, another format, a pickle that holds more than plain data, or keys, shapes
            or values that do not fit.

    **Convention**: the counters ``num_batches_tracked`` of batch normalisation may be missing, since networks saved
    by old versions of PyTorch have none and no prediction depends on them.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"model is a {type(model).__name__}; an nn.Module was expected")
    state = _with_prefix(_strip_prefix(_read_state(path), model), model)
    _check_fit(state, model, path)
    # All tensors fit here; strict loading alone would load some of them before it raises.
    model.load_state_dict(state, strict=False)


def load_published(model: nn.Module, name: str, progress: bool = True) -> None:
    """Load the ImageNet weights that torchvision publishes, downloaded once into the cache of ``torch.hub``.

    Args:
        model: the network; it stays on its device and is unchanged if anything fails.
        name: its name in ``MODELS``, of a network that is ``published``.
        progress: show a bar while downloading.

    Raises:
        InputError: for a network without published weights, and if they are not cached and cannot be downloaded.

    *Source*: torchvision's ``weights="DEFAULT"`` of the function of that name.
    """
    if name not in MODELS or not MODELS[name].published:
        raise DataError(f"name is {name!r}, whose weights torchvision does not publish; another network was expected")
    from torchvision.models import get_model_weights

    published = get_model_weights(name).DEFAULT
    try:
        state = published.get_state_dict(progress=progress, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # network, disk and damaged cache files raise many types
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise DataError(
            f"model {name} was given no weights, and the published ones could not be downloaded or read "
            f"({one_line(error)}); a file of weights, or {published.url} saved in {folder}, was expected"
        ) from error
    _check_fit(state, model, published.url)
    model.load_state_dict(state, strict=False)


def _read_state(path: str | Path) -> dict[str, Any]:
    path = check_file("weights", path, "an existing file of weights")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types on damaged files
        raise DataError(
            f"weights is {str(path)!r}, which cannot be read ({type(error).__name__}); a state dict saved as "
            ".safetensors or by torch.save, which torch.load(weights_only=True) reads, was expected"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise DataError(f"weights is {str(path)!r}, which holds a {type(state).__name__}; a state dict was expected")
    return dict(state)


def _strip_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Remove the prefix that ``nn.DataParallel`` adds to each key, unless the model's own keys have it."""
    prefix = "module."
    if all(key.startswith(prefix) for key in model.state_dict()):
        return state
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _with_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Add the prefix of the network that a wrapper such as ``AdaptedNetwork`` holds, if no key has it."""
    prefix = "network."
    if not all(key.startswith(prefix) for key in model.state_dict()) or any(key.startswith(prefix) for key in state):
        return state
    return {prefix + key: value for key, value in state.items()}


def _check_fit(state: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    subject = f"weights is {str(path)!r}, whose weights do not fit {type(model).__name__}"
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise DataError(
            f"{subject}: missing {_list_keys(missing)}, unexpected {_list_keys(unexpected)}; its own keys were expected"
        )
    for key, value in state.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if shape is not None and shape != tuple(expected[key].shape):
            raise DataError(f"{subject}: {key} has shape {shape}; {tuple(expected[key].shape)} was expected")
    check_kinds(subject, state, expected)


def _list_keys(keys: list[str]) -> str:
    if not keys:
        return "no keys"
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return ", ".join(keys[:_KEYS_SHOWN]) + more
