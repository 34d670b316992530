"""Clean and adversarial images, their difference, and the defences' views of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.report.figures import drawing


def examples_figure(
    examples: Sequence[Example],
    clip_values: tuple[float, float] | None = None,
    class_name: Callable[[int], str] = str,
) -> Figure | None:
    """Return clean and adversarial images, their difference, and the defences' views of both.

    Args:
        examples: examples with images (C, H, W) or (H, W); three channels are colours, any other number is averaged
            to grey.
        clip_values: the pixel values shown as black and white; None for [0, 1], or the range of the images if it is
            larger.
        class_name: a function from a class to its name.

    Returns:
        The figure; None if there are no examples, or their inputs are not images.
    """
    if not examples or any(example.clean.ndim not in (2, 3) for example in examples):
        return None
    views = list(examples[0].views)
    figure = drawing.new_figure(1.0 + 1.75 * len(examples), 6.2 + 3.8 * len(views))
    grid = figure.subplots(3 + 2 * len(views), len(examples), squeeze=False)
    low, high = _value_range(examples) if clip_values is None else clip_values
    for column, example in enumerate(examples):
        clean, adversarial = _pixels(example.clean), _pixels(example.adversarial)
        change = adversarial - clean
        scale = float(np.abs(change).max()) or 1.0
        pictures = [(clean - low) / (high - low), (adversarial - low) / (high - low), 0.5 + change / (2 * scale)]
        for row, picture in enumerate(pictures):
            _show(grid[row, column], picture, diverging=row == 2)
        for row, (name, which) in enumerate(product(views, range(2)), start=3):
            _show(grid[row, column], _pixels(example.views[name][which]), diverging=False, hot=name == "heat")
        change_of_class = f"#{example.index}: {class_name(example.label)} → {class_name(example.prediction)}"
        title = "\n".join(drawing.wrap(line, 20) for line in (change_of_class, example.attack))
        grid[0, column].set_title(title, fontsize=9, parse_math=False)
        grid[2, column].set_xlabel(f"full scale: ±{scale:.2g}", fontsize=9)
    unchanged = "grey" if _pixels(examples[0].clean).ndim == 3 else "white"
    for row, label in enumerate(("clean", "adversarial", f"difference\n({unchanged}: unchanged)")):
        grid[row, 0].set_ylabel(label, fontsize=10)
    for row, (name, image) in enumerate(product(views, ("clean", "adversarial")), start=3):
        grid[row, 0].set_ylabel(f"{drawing.wrap(name, 18)}\n({image})", fontsize=10, parse_math=False)
    return figure


def _value_range(examples: Sequence[Example]) -> tuple[float, float]:
    """Return the pixel values shown as black and white: 0 and 1 if all images lie there, else their range."""
    low = min(float(min(example.clean.min(), example.adversarial.min())) for example in examples)
    high = max(float(max(example.clean.max(), example.adversarial.max())) for example in examples)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)


def _pixels(image: FloatArray) -> Any:
    """Return the image as (H, W) or (H, W, 3)."""
    wide = image.astype(np.float64)
    if wide.ndim == 2:
        return wide
    return wide.transpose(1, 2, 0) if len(wide) == 3 else wide.mean(axis=0)


def _show(axes: Axes, picture: Any, diverging: bool, hot: bool = False) -> None:
    # Blue for darker and red for lighter suit colour-blind readers; the difference of colour images is shown on grey.
    colours = "RdBu_r" if diverging and picture.ndim == 2 else "inferno" if hot else "gray"
    margin = 0.16 if colours == "RdBu_r" else 0.0  # without the ends of the map, which both look black
    axes.imshow(picture.clip(0, 1), cmap=colours, vmin=-margin, vmax=1 + margin, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
