"""Save and load a fitted defence: one file of tensors (safetensors) and settings (JSON) in it, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from art_defenses_ext.validation import InputError

FORMAT, VERSION = "art-defenses-ext defence", 1


def fingerprint(what: nn.Module | dict[str, Tensor]) -> str:
    """A hash of tensors by name, or of a network: its parameters, buffers and the classes of its modules.

    It is the same wherever the tensors lie.
    """
    digest = hashlib.sha256()
    if isinstance(what, nn.Module):
        digest.update(" ".join(f"{name} {type(module).__qualname__}" for name, module in what.named_modules()).encode())
    tensors = what.state_dict() if isinstance(what, nn.Module) else what
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; whatever happens meanwhile, ``path`` holds all of the former or all of the new one."""
    part = path.with_name(path.name + ".part")
    # Clones, since the format has no way to say that two weights are one.
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    save_file(owned, part, metadata)
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
            # Clones: the tensors are the file's own pages, and whoever overwrites it would change or end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise InputError(f"path is {str(path)!r}, which is no safetensors file ({error})") from None


@dataclass(frozen=True)
class Checkpoint:
    """What a defence's file holds.

    Attributes:
        settings: the defence's constructor arguments.
        tensors: its parameters and buffers by name, on the CPU.
        training: the settings of each fit, in order; empty where there was nothing to train.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    training: list[dict[str, Any]]


def save_checkpoint(
    path: str | Path,
    kind: str,
    settings: dict[str, Any],
    own: nn.Module,
    model: nn.Module,
    training: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a defence to ``path``.

    Args:
        path: the file; its folder must exist.
        kind: the defence's name.
        settings: its constructor arguments, as JSON can hold them.
        own: whose parameters and buffers to keep: the defence's.
        model: the network that it was built for, which is not kept but recognised.
        training: the settings of each fit, as JSON can hold them.

    Raises:
        InputError: for a setting that JSON cannot hold, or a folder that does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"path is {str(path)!r}; a file in an existing folder was expected")
    try:
        named = {"settings": settings, "training": list(training)}
        texts = {name: json.dumps(held, allow_nan=False) for name, held in named.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a setting of {kind} cannot be saved ({error}); numbers, texts and names were expected"
        ) from None
    metadata = {"format": f"{FORMAT} {VERSION}", "kind": kind, "model": fingerprint(model), **texts}
    write_tensors(path, own.state_dict(), metadata | {"package": version("art-defenses-ext")})


def load_checkpoint(path: str | Path, kind: str, model: nn.Module) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Args:
        path: the file.
        kind: the defence that is expected in it.
        model: the network that it must have been built for.

    Raises:
        InputError: for a file that is missing or no such checkpoint, of a newer version of this package, of another
            defence, or for another network.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    check_format(path, metadata, FORMAT, VERSION)
    missing = [name for name in ("kind", "model", "settings") if name not in metadata]
    if missing:
        raise InputError(f"path is {str(path)!r}, which does not say its {missing[0]}; a whole file was expected")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise InputError(f"path is {str(path)!r}, which holds NaN or infinite weights; finite ones were expected")
    if metadata["kind"] != kind:
        raise InputError(f"path is {str(path)!r}, which holds a {metadata['kind']}; a {kind} was expected")
    if metadata["model"] != fingerprint(model):
        raise InputError(f"path is {str(path)!r}, whose {kind} was built for another network than the classifier's")
    try:
        settings, training = (json.loads(metadata.get(name, "[]")) for name in ("settings", "training"))
    except json.JSONDecodeError as error:
        raise InputError(f"path is {str(path)!r}, whose settings cannot be read ({error})") from None
    return Checkpoint(settings, tensors, training)


def check_format(path: Path, metadata: dict[str, str], name: str, known: int) -> None:
    """Refuse a file whose metadata do not say ``name`` with a version up to ``known``."""
    written, _, number = metadata.get("format", "").rpartition(" ")
    if written != name or not number.isdecimal():
        raise InputError(f"path is {str(path)!r}, which holds no {name!r}; a file that this package wrote was expected")
    if int(number) > known:
        raise InputError(
            f"path is {str(path)!r}, of format {number}; this version of art-defenses-ext reads formats up to {known}"
        )
