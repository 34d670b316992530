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


def fingerprint(what: nn.Module | dict[str, Tensor]) -> str:
    """A hash of tensors by name, or of all parameters and buffers of a network: the same wherever they lie."""
    digest = hashlib.sha256()
    tensors = what.state_dict() if isinstance(what, nn.Module) else what
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; whatever happens meanwhile, ``path`` holds all of the former or all of the new one."""
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata, and tensors by name on the CPU, of a safetensors file.

    Raises:
        InputError: for a file that is missing or no safetensors file.
    """
    if not path.is_file():
        raise InputError(f"path is {str(path)!r}; an existing file was expected")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"path is {str(path)!r}, which is no safetensors file ({error})") from None


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
    write_tensors(path, own.state_dict(), metadata)


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
    metadata, tensors = read_tensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise InputError(f"path is {str(path)!r}, which holds no defence of this version ({FORMAT!r} was expected)")
    if metadata["kind"] != kind:
        raise InputError(f"path is {str(path)!r}, which holds a {metadata['kind']}; a {kind} was expected")
    if metadata["model"] != fingerprint(model):
        raise InputError(f"path is {str(path)!r}, whose {kind} was built for another network than the classifier's")
    settings: dict[str, Any] = json.loads(metadata["settings"])
    return settings, tensors
