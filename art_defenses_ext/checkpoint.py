"""Save and load a fitted defence: one file of tensors (safetensors) and settings (JSON) in it, never pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from art_defenses_ext.validation import InputError

FORMAT = "art-defenses-ext defence 1"


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers of ``model``, by name: the same for the same network, wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(path: str | Path, kind: str, settings: dict[str, Any], own: nn.Module, model: nn.Module) -> None:
    """Write a defence to ``path``.

    Args:
        path: the file; its folder must exist.
        kind: the defence's name.
        settings: its constructor arguments, as JSON can hold them.
        own: whose parameters and buffers to keep: the defence's.
        model: the network that it was built for, which is not kept but recognised.

    Raises:
        InputError: for a setting that JSON cannot hold, or a folder that does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"path is {str(path)!r}; a file in an existing folder was expected")
    try:
        text = json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a setting of {kind} cannot be saved ({error}); numbers, texts and names were expected"
        ) from None
    metadata = {"format": FORMAT, "kind": kind, "settings": text, "model": fingerprint(model)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.state_dict().items()}
    save_file(tensors, path, metadata)


def load_checkpoint(path: str | Path, kind: str, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_checkpoint` wrote.

    Args:
        path: the file.
        kind: the defence that is expected in it.
        model: the network that it must have been built for.

    Returns:
        Settings, and tensors by name, on the CPU.

    Raises:
        InputError: for a file that is missing or no such checkpoint, of another defence, or for another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path is {str(path)!r}; an existing file was expected")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise InputError(f"path is {str(path)!r}, which is no safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"path is {str(path)!r}, which holds no defence of this version ({FORMAT!r} was expected)")
    if metadata["kind"] != kind:
        raise InputError(f"path is {str(path)!r}, which holds a {metadata['kind']}; a {kind} was expected")
    if metadata["model"] != fingerprint(model):
        raise InputError(f"path is {str(path)!r}, whose {kind} was built for another network than the classifier's")
    settings: dict[str, Any] = json.loads(metadata["settings"])
    return settings, tensors
