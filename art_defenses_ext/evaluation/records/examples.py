"""Attacked images in a report, and their file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.files import reading

NB_EXAMPLES = 8
"""Maximum number of images in a report: for each attack the first image that it broke."""

PLAIN: dict[str, Callable[[Any], Any]] = {"index": int, "label": int, "prediction": int, "attack": str}
IMAGES = ("clean", "adversarial")
"""The fields of an example that are arrays in the file, each over all examples."""

View = tuple[FloatArray, FloatArray]
"""A defence's picture of the clean image and of the attacked one."""


@dataclass(frozen=True)
class Example:
    """An image that was classified correctly until an attack changed it.

    Attributes:
        index: position in the data set.
        label: true class.
        prediction: class after the attack.
        attack: the attack's key.
        clean: image (C, H, W) in the clip range; while its block is attacked, in the classifier's layout.
        adversarial: the attacked image, in the same layout.
        views: the defences' pictures of both, by name.
    """

    index: int
    label: int
    prediction: int
    attack: str
    clean: FloatArray
    adversarial: FloatArray
    views: dict[str, View] = field(default_factory=dict)


def first_of_each(examples: Iterable[Example]) -> list[Example]:
    """Return the first example of each attack, for as many attacks as a report shows."""
    chosen: dict[str, Example] = {}
    for example in examples:
        if len(chosen) < NB_EXAMPLES:
            chosen.setdefault(example.attack, example)
    return list(chosen.values())


def written(examples: Sequence[Example]) -> bytes:
    """Return the bytes of a ``.npz`` file, which numpy reads without pickle.

    Its arrays are ``clean``, ``adversarial``, ``index``, ``label``, ``prediction``, ``attack``, and for each view, such
    as ``view 0 heat map``, an array of the pictures of the clean and the attacked image.
    """
    buffer = io.BytesIO()
    arrays = {name: np.array([getattr(example, name) for example in examples]) for name in (*PLAIN, *IMAGES)}
    for number, example in enumerate(examples):
        arrays |= {f"view {number} {name}": np.stack(pair) for name, pair in example.views.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_examples(path: Path) -> list[Example]:
    """Return the examples in a file of :func:`written`.

    Raises:
        InputError: for another file.
    """
    with reading(path, "a run's examples were expected"):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return [_example(number, arrays) for number in range(len(arrays["index"]))]


def _example(number: int, arrays: dict[str, np.ndarray]) -> Example:
    if any(arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all() for name in IMAGES):
        raise ValueError("it holds no images")
    start = f"view {number} "
    return Example(
        **{name: kind(arrays[name][number]) for name, kind in PLAIN.items()},
        **{name: arrays[name][number] for name in IMAGES},
        views={name.removeprefix(start): (two[0], two[1]) for name, two in arrays.items() if name.startswith(start)},
    )
