"""Attacked images that a report shows, and their file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.validation import one_line

NB_EXAMPLES = 8
"""How many a report shows, at most: one an attack, the first that it broke."""

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
    views = {
        f"view {number} {name}": np.stack(pair)
        for number, example in enumerate(examples)
        for name, pair in example.views.items()
    }
    np.savez(
        buffer,
        clean=np.stack([example.clean for example in examples]),
        adversarial=np.stack([example.adversarial for example in examples]),
        index=np.array([example.index for example in examples]),
        label=np.array([example.label for example in examples]),
        prediction=np.array([example.prediction for example in examples]),
        attack=np.array([example.attack for example in examples]),
        **views,  # type: ignore[arg-type]
    )
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
    start = f"view {number} "
    for name in ("clean", "adversarial"):
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds no images")
    views = {name.removeprefix(start): (pair[0], pair[1]) for name, pair in arrays.items() if name.startswith(start)}
    return Example(
        index=int(arrays["index"][number]),
        label=int(arrays["label"][number]),
        prediction=int(arrays["prediction"][number]),
        attack=str(arrays["attack"][number]),
        clean=arrays["clean"][number],
        adversarial=arrays["adversarial"][number],
        views=views,
    )
