"""Values that nobody should hand in, or nobody here, by name."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from fuzz_targets import World

SHAPE = (1, 4, 4)
"""Of the images."""
CLASSES = 3


class Unprintable:
    """Whose every look raises."""

    def __repr__(self) -> str:
        raise RuntimeError("\x1b[2J")


class Hostile:
    """Whose repr a terminal acts on."""

    def __repr__(self) -> str:
        return "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


class WrongArray:
    """Which numpy cannot read."""

    shape, dtype, ndim = (2, *SHAPE), np.dtype(np.float32), 4

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")

    def __len__(self) -> int:
        return 2


def _images(dtype: Any = np.float32) -> Any:
    return (np.random.default_rng(0).random((4, *SHAPE)) * (255 if dtype == np.uint8 else 1)).astype(dtype)


def _nested() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def _with(value: float) -> Any:
    x = _images()
    x[0, 0, 0, 0] = value
    return x


POOL: dict[str, Callable[[World], Any]] = {
    # nothing and numbers
    "None": lambda world: None,
    "True": lambda world: True,
    "False": lambda world: False,
    "np.True_": lambda world: np.True_,
    "zero": lambda world: 0,
    "0.0": lambda world: 0.0,
    "one": lambda world: 1,
    "two": lambda world: 2,
    "-1": lambda world: -1,
    "half": lambda world: 0.5,
    "-0.5": lambda world: -0.5,
    "1e-300": lambda world: 1e-300,
    "1e308": lambda world: 1e308,
    "NaN": lambda world: float("nan"),
    "inf": lambda world: float("inf"),
    "-inf": lambda world: -float("inf"),
    "a large number": lambda world: 999_999_999,
    "a huge number": lambda world: 10**400,
    "a number without digits": lambda world: 10**5000,
    "complex": lambda world: 1j,
    "Fraction": lambda world: Fraction(1, 3),
    "Decimal": lambda world: Decimal("0.5"),
    "np.float16": lambda world: np.float16(0.5),
    "np.float64 NaN": lambda world: np.float64("nan"),
    "np.int64": lambda world: np.int64(2),
    # texts
    "empty text": lambda world: "",
    "space": lambda world: " ",
    "'no'": lambda world: "no",
    "'1'": lambda world: "1",
    "'exact'": lambda world: "exact",
    "'nan'": lambda world: "nan",
    "escape sequence": lambda world: "\x1b]0;owned\x07\x1b[2J",
    "C1": lambda world: "\x9b2J\x85",
    "bidi": lambda world: "a\u202eb\u2066\u200b",
    "surrogate": lambda world: "a\ud800",
    "line end": lambda world: "a\nError: b",
    "NUL": lambda world: "a\0b",
    "long text": lambda world: "x" * 5000,
    "markup": lambda world: "[/bold]<script>alert(1)</script>|`$\\frac$`",
    "formula": lambda world: "=cmd|' /C calc'!A0",
    "javascript": lambda world: "javascript:alert(1)",
    "bytes": lambda world: b"\xff\x00",
    # containers
    "empty list": lambda world: [],
    "empty tuple": lambda world: (),
    "empty dict": lambda world: {},
    "list of numbers": lambda world: [1, 2],
    "list of texts": lambda world: ["a", "b"],
    "list of None": lambda world: [None],
    "list of lists": lambda world: [[0.5], [0.5, 1]],
    "endless list": lambda world: _nested(),
    "dict": lambda world: {"a": 1},
    "set": lambda world: {1, 2},
    "range": lambda world: range(3),
    "generator": lambda world: (number for number in (1, 2)),
    "slice": lambda world: slice(None),
    # objects
    "object": lambda world: object(),
    "unprintable": lambda world: Unprintable(),
    "hostile repr": lambda world: Hostile(),
    "function": lambda world: lambda *_: None,
    "class": lambda world: int,
    "class of a network": lambda world: nn.ReLU,
    "network": lambda world: nn.Linear(2, 2),
    "instance of a list": lambda world: type("Own", (list,), {})(),
    "module": lambda world: np,
    "an exception": lambda world: ValueError("\x1b[2J"),
    # arrays
    "0-d array": lambda world: np.array(3),
    "0-d float array": lambda world: np.array(0.5),
    "empty array": lambda world: np.zeros(0, np.float32),
    "array of one": lambda world: np.array([0.5], np.float32),
    "array of two": lambda world: np.array([0.5, 0.5], np.float32),
    "array of words": lambda world: np.array(["a", "exact"]),
    "array of objects": lambda world: np.array([None, "a", 1], dtype=object),
    "array of classes": lambda world: np.array([0, 1, 2, 0]),
    "array of far classes": lambda world: np.array([0, 1, 2, 999_999_999]),
    "array of negative classes": lambda world: np.array([0, 1, 2, -1]),
    "array of float classes": lambda world: np.array([0.0, 1.0, 2.0, 0.0]),
    "array of bools": lambda world: np.array([True, False, True, False]),
    "one-hot rows": lambda world: np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 0]],
    "rows that are not one-hot": lambda world: np.full((4, CLASSES), 0.5, np.float32),
    "one-hot with NaN": lambda world: np.full((4, CLASSES), np.nan, np.float32),
    "images": lambda world: _images(),
    "float64 images": lambda world: _images(np.float64),
    "float16 images": lambda world: _images(np.float16),
    "uint8 images": lambda world: _images(np.uint8),
    "images to 255": lambda world: 255 * _images(),
    "complex images": lambda world: _images(np.complex64),
    "mirrored images": lambda world: _images()[..., ::-1],
    "every other image": lambda world: np.repeat(_images(), 2, axis=0)[::2],
    "transposed images": lambda world: _images().transpose(0, 1, 3, 2),
    "Fortran images": lambda world: np.asfortranarray(_images()),
    "read-only images": lambda world: np.broadcast_to(_images()[:1], (4, *SHAPE)),
    "swapped bytes": lambda world: _images().astype(">f4"),
    "images with NaN": lambda world: _with(np.nan),
    "images with inf": lambda world: _with(np.inf),
    "images below": lambda world: _with(-0.1),
    "images of rounding": lambda world: _with(1.0000001),
    "no images": lambda world: _images()[:0],
    "one image without its axis": lambda world: _images()[0],
    "images of another size": lambda world: np.zeros((4, 1, 5, 5), np.float32),
    "images of no size": lambda world: np.zeros((4, 1, 0, 4), np.float32),
    "images of colours": lambda world: np.zeros((4, 3, 4, 4), np.float32),
    "channels last": lambda world: _images().transpose(0, 2, 3, 1),
    "masked images": lambda world: np.ma.masked_array(_images()),
    "structured array": lambda world: np.zeros(4, dtype=[("a", "f4")]),
    "dates": lambda world: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "array that raises": lambda world: WrongArray(),
    # tensors
    "0-d tensor": lambda world: torch.tensor(0.5),
    "tensor of two": lambda world: torch.tensor([0.5, 0.5]),
    "tensor of classes": lambda world: torch.tensor([0, 1, 2, 0]),
    "tensor images": lambda world: torch.tensor(_images()),
    "tensor images with NaN": lambda world: torch.tensor(_with(np.nan)),
    "tensor images to 255": lambda world: 255 * torch.tensor(_images()),
    "double tensor images": lambda world: torch.tensor(_images(np.float64)),
    "half tensor images": lambda world: torch.tensor(_images()).half(),
    "integer tensor images": lambda world: torch.zeros(4, *SHAPE, dtype=torch.long),
    "no tensor images": lambda world: torch.zeros(0, *SHAPE),
    "meta tensor": lambda world: torch.empty(4, *SHAPE, device="meta"),
    "sparse tensor": lambda world: torch.zeros(4, *SHAPE).to_sparse(),
    "quantised tensor": lambda world: torch.quantize_per_tensor(torch.zeros(4, *SHAPE), 1.0, 0, torch.quint8),
    "float8 tensor": lambda world: torch.zeros(4, *SHAPE).to(torch.float8_e4m3fn),
    "complex tensor": lambda world: torch.zeros(4, *SHAPE, dtype=torch.complex64),
    # paths
    "missing path": lambda world: world.folder / "missing" / "file",
    "new path": lambda world: world.new_path(),
    "folder": lambda world: world.folder / "a folder",
    "empty path": lambda world: Path(),
    "path that nobody may write": lambda world: Path("/proc/nothing/file"),
    "file as folder": lambda world: world.folder / "plain.txt" / "below",
    "text file": lambda world: str(world.copied(world.folder / "plain.txt")),
    "bytes of a path": lambda world: b"file",
    "hostile path": lambda world: world.folder / "\x1b]0;x\x07\u202e[red]",
    "long path": lambda world: world.folder / ("x" * 300),
    "~": lambda world: "~nobody/file",
    # things of the package
    "classifier": lambda world: world.classifier(),
    "another classifier": lambda world: world.other_classifier(),
    "defence": lambda world: world.heat_and_blur(),
    "detector": lambda world: world.detector(),
    "spec": lambda world: world.spec(),
    "list of a spec": lambda world: [world.spec()],
    "threat": lambda world: world.threat(),
    "loss": lambda world: world.loss(),
    "run folder": lambda world: world.copied(world.runs[0]),
    "list of run folders": lambda world: [str(run) for run in world.runs],
    "defence's file": lambda world: world.copied(world.files["feature_autoencoder"]),
}
