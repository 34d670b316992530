"""Attacked images that a report shows, and their file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.validation import one_line

NB_EXAMPLES = 8
"""How many a report shows, at most: one an attack, the first that it broke."""

PLAIN: dict[str, Callable[[Any], Any]] = {"index": int, "label": int, "prediction": int, "attack": str}
IMAGES = ("clean", "adversarial")
"""The arrays of the file: of an example's fields, one of all examples each."""

View = tuple[FloatArray, FloatArray]
"""What a defence makes of the clean image and of the attacked one."""


@dataclass(frozen=True)
class Example:
    """An image that was classified correctly until an attack moved it.

    Attributes:
        index: position in the data set.
        label: true class.
        prediction: class after the attack.
        attack: the attack's key.
        clean: image (C, H, W) in the clip range; while its block is at work, as the classifier takes it.
        adversarial: the attacked image, in the same form.
        views: what the defences make of both, by name; images.
    """

    index: int
    label: int
    prediction: int
    attack: str
    clean: FloatArray
    adversarial: FloatArray
    views: dict[str, View] = field(default_factory=dict)


def first_of_each(examples: Iterable[Example]) -> list[Example]:
    """Return the first of each attack, of as many attacks as are shown."""
    chosen: dict[str, Example] = {}
    for example in examples:
        if len(chosen) < NB_EXAMPLES:
            chosen.setdefault(example.attack, example)
    return list(chosen.values())


def written(examples: Sequence[Example]) -> bytes:
    """A ``.npz`` file that numpy reads without pickle.

    Its arrays are ``clean``, ``adversarial``, ``index``, ``label``, ``prediction``, ``attack``, and of each view, such
    as ``view 0 heat map``, one of the clean and the attacked image above each other.
    """
    buffer = io.BytesIO()
    arrays = {name: np.array([getattr(example, name) for example in examples]) for name in (*PLAIN, *IMAGES)}
    for number, example in enumerate(examples):
        arrays |= {f"view {number} {name}": np.stack(pair) for name, pair in example.views.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_examples(path: Path) -> list[Example]:
    """Return what :func:`written` wrote.

    Raises:
        InputError: for another file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return [_example(number, arrays) for number in range(len(arrays["index"]))]
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy trip over a damaged file in a dozen ways
        raise RunError(f"{path} cannot be read ({one_line(error)}); a run's examples were expected") from None


def _example(number: int, arrays: dict[str, np.ndarray]) -> Example:
    if any(arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all() for name in IMAGES):
        raise ValueError("it holds no images")
    start = f"view {number} "
    return Example(
        **{name: kind(arrays[name][number]) for name, kind in PLAIN.items()},
        **{name: arrays[name][number] for name in IMAGES},
        views={name.removeprefix(start): (two[0], two[1]) for name, two in arrays.items() if name.startswith(start)},
    )
