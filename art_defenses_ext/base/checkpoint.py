"""Files of fitted defences: tensors (safetensors) and settings (JSON), never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from art_defenses_ext.base.errors import CheckpointError, InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_file, check_target, one_line

FORMAT, VERSION = "art-defenses-ext defence", 1


def fingerprint(what: nn.Module | dict[str, Tensor]) -> str:
    """Return a hash of tensors by name, or of a network: its parameters, buffers and the classes of its modules.

    Settings without a tensor, such as a slope or a stride, do not count: what modules say of them differs between
    versions of torch, and a file must outlive these.

    It does not depend on the device.
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


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], argument: str = "path") -> None:
    """Write a safetensors file, atomically.

    Raises:
        InputError: for tensors without values or of a layout that the format does not support, and if the file cannot
            be written, such as on a full disk; the incomplete file is removed.
    """
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{name} is {_kind_of(tensor)}; a dense tensor with values was expected")
    part = path.with_name(path.name + ".part")
    # Clones, since the format does not support shared weights.
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        save_file(owned, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{argument} is {str(path)!r}, which cannot be written ({one_line(error)}); a file that can was expected"
        ) from None
    finally:
        with suppress(OSError):  # the error above matters
            part.unlink(missing_ok=True)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and has values."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _kind_of(tensor: Tensor) -> str:
    layout = "dense" if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
    return f"a tensor of {layout} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def check_kinds(subject: str, tensors: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights whose conversion would lose information: their kind must be that of the weights they replace.

    Floating-point numbers of another precision are of the same kind, except those of eight bits, which need a scale.
    Integers, booleans and complex numbers, whose imaginary part torch would drop, are other kinds.

    Args:
        subject: beginning of the error message.
        tensors: weights by name; other objects are refused.
        expected: the weights that they replace, by name; other names are not checked.

    Raises:
        InputError: for another kind, and for values that are not finite.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{subject}: {name} is a {type(tensor).__name__}; a tensor was expected")
        replaced = expected.get(name)
        same = replaced is None or _sort(tensor) == _sort(replaced)
        if not _is_plain(tensor) or not same or (tensor.is_floating_point() and tensor.itemsize == 1):
            kind = "a dense tensor" if replaced is None else f"one of {str(replaced.dtype).removeprefix('torch.')}"
            raise CheckpointError(f"{subject}: {name} is {_kind_of(tensor)}; {kind} was expected")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{subject}: {name} holds NaN or infinite values; finite values were expected")


def _sort(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def read_tensors(path: str | Path, argument: str = "path") -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata, and tensors by name on the CPU, of a safetensors file.

    Raises:
        InputError: for a file that is missing or no safetensors file.
    """
    path = check_file(argument, path)
    try:
        with safe_open(path, framework="pt") as file:
            # Clones: the tensors are pages of the file, and overwriting it would change them or end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except MemoryError:
        raise
    except Exception as error:  # damaged files, and dtypes that this torch does not support
        raise CheckpointError(
            f"{argument} is {str(path)!r}, which is no safetensors file ({one_line(error)}); one was expected"
        ) from None


@dataclass(frozen=True)
class Checkpoint:
    """The content of a defence's file.

    Attributes:
        settings: the defence's constructor arguments.
        tensors: its parameters and buffers by name, on the CPU.
        training: the settings of each fit, in order; empty without training.
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
        own: the defence, whose parameters and buffers are saved.
        model: the network that it was built for; only its fingerprint is saved.
        training: the settings of each fit, as JSON can hold them.

    Raises:
        InputError: for a setting that JSON cannot hold, a folder that does not exist, a path that is one, and a file
            that cannot be written.
    """
    path = check_target("path", path)
    try:
        named = {"settings": settings, "training": list(training)}
        texts = {name: json.dumps(held, allow_nan=False) for name, held in named.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"a setting of {kind} cannot be saved ({error}); numbers, texts and names were expected"
        ) from None
    metadata = {"format": f"{FORMAT} {VERSION}", "kind": kind, "model": fingerprint(model), **texts}
    write_tensors(path, own.state_dict(), metadata | {"package": version("art-defenses-ext")})


def load_checkpoint(path: str | Path, kind: str, model: nn.Module) -> Checkpoint:
    """Read a file of :func:`save_checkpoint`.

    Args:
        path: the file.
        kind: the expected defence.
        model: the expected network.

    Raises:
        InputError: for a file that is missing or no such checkpoint, of a newer version of this package, of another
            defence, or for another network.
    """
    metadata, tensors = read_tensors(path)
    path = Path(path)
    check_format(path, metadata, FORMAT, VERSION)
    missing = [name for name in ("kind", "model", "settings") if name not in metadata]
    if missing:
        raise CheckpointError(f"path is {str(path)!r}, which does not say its {missing[0]}; a whole file was expected")
    if metadata["kind"] != kind:
        raise CheckpointError(f"path is {str(path)!r}, which holds a {metadata['kind']}; a {kind} was expected")
    if metadata["model"] != fingerprint(model):
        raise CheckpointError(
            f"path is {str(path)!r}, whose {kind} was built for another network than the classifier's"
        )
    settings = from_json(path, "settings", metadata["settings"], dict)
    training = from_json(path, "training", metadata.get("training", "[]"), list)
    check_kinds(f"path is {str(path)!r}", tensors, {})
    return Checkpoint(settings, tensors, training)


@contextmanager
def rebuilding(path: str | Path, defence: str) -> Iterator[None]:
    """Turn errors of a defence that is built from a file's settings into an error that names the file.

    Raises:
        CheckpointError: in place of any error inside the block that is none of this package.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"path is {str(path)!r}, from which no {defence} of this version can be built "
            f"({' '.join(str(error).split())})"
        ) from error


def from_json(path: Path, name: str, text: str, kind: type, argument: str = "path") -> Any:
    """Return the value of a JSON text in a file's metadata, if it is of type ``kind``.

    Raises:
        InputError: otherwise.
    """
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{argument} is {str(path)!r}, whose {name} cannot be read ({one_line(error)}); a whole file was expected"
        ) from None
    if not isinstance(held, kind):
        raise CheckpointError(
            f"{argument} is {str(path)!r}, whose {name} are {shown(held)}; a {kind.__name__} was expected"
        )
    return held


def check_format(path: Path, metadata: dict[str, str], name: str, known: int) -> None:
    """Refuse a file whose format is not ``name`` with a version up to ``known``."""
    written, _, number = metadata.get("format", "").rpartition(" ")
    if written != name or not (number.isdecimal() and len(number) < 10):
        raise CheckpointError(
            f"path is {str(path)!r}, which holds no {name!r}; a file that this package wrote was expected"
        )
    if int(number) > known:
        raise CheckpointError(
            f"path is {str(path)!r}, of format {number}; this version of art-defenses-ext reads formats up to {known}"
        )
