"""Checks of arguments, each with an error of one sentence, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray, Images, IntArray, StoredImages
from art_defenses_ext.base.declared import (
    Flag,
    Kind,
    Positive,
    Seed,
    Share,
    Text,
    accepted,
    as_path,
    integer,
    number,
    one_of,
)
from art_defenses_ext.base.errors import ClassifierError, InputError
from art_defenses_ext.base.layout import contradiction
from art_defenses_ext.base.text import shown


def may_look(values: Any) -> bool:
    """Return whether a check may read values: numbers, and tensors on the CPU.

    On an accelerator reading waits for all earlier work, which would slow down every step of an attack; a class index
    out of range fails in its kernels.
    """
    return not isinstance(values, Tensor) or values.device.type == "cpu"


def check_classifier(classifier: Any, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` if ART runs it as intended.

    Raises:
        InputError: if it is not a ``PyTorchClassifier``, or a subclass, whose behaviour would be lost (ART's
            attacks and our defences build plain ones from its parts); if its model is an ``nn.Sequential`` with its own
            hooks or ``forward``, which ART ignores (it calls the children one by one); or if its ``channels_first`` or
            clip values contradict its ``input_shape``.
    """
    if type(classifier) is not PyTorchClassifier:
        raise ClassifierError(f"{argument} is a {type(classifier).__name__}; an ART PyTorchClassifier was expected")
    model = classifier.model
    if isinstance(model, nn.Sequential) and type(model).forward is not nn.Sequential.forward:
        raise ClassifierError(
            f"{argument}: the model's class {type(model).__name__} is an nn.Sequential with a forward of its own, "
            "which ART ignores; make it a plain nn.Module"
        )
    if has_ignored_hooks(model):
        raise ClassifierError(
            f"{argument}: the model is an nn.Sequential with a hook of its own, which ART ignores (it calls the layers "
            "one by one); an nn.Module around it was expected"
        )
    wrong = contradiction(classifier.input_shape, classifier.channels_first)
    if wrong is not None:
        raise ClassifierError(f"{argument} has {wrong}")
    _check_clip_values(classifier, argument)
    return classifier


def check_differentiable_tensors(module: nn.Module, argument: str) -> None:
    """Refuse a module with tensors made under inference mode, which cannot be part of a graph."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_inference():
            raise ClassifierError(
                f"{argument} has the tensor {name}, which was made under torch.inference_mode and lets no gradient "
                "pass; a network that is built or loaded outside of it was expected"
            )


def is_compiled(part: nn.Module) -> bool:
    """Return whether ``torch.compile`` returned this part of a network, or compiled it in place."""
    # By the name of its class, since importing that takes seconds.
    return type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None


def has_ignored_hooks(model: nn.Module) -> bool:
    """Return whether the network has hooks that ART ignores, since it calls the layers one by one."""
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    return isinstance(model, nn.Sequential) and any(hooks)


def _check_clip_values(classifier: PyTorchClassifier, argument: str) -> None:
    """Refuse clip values that do not broadcast against an image, such as (3,) for images (3, H, W)."""
    if classifier.clip_values is None:
        return
    shape = tuple(classifier.input_shape)
    for end in classifier.clip_values:
        try:
            fits = np.broadcast_shapes(np.shape(end), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            ones = [1] * (len(shape) - 1)
            example = (shape[0], *ones) if classifier.channels_first else (*ones, shape[-1])
            raise ClassifierError(
                f"{argument} has clip_values of shape {np.shape(end)} for images {shape}; numbers, or arrays that "
                f"broadcast against an image, such as {example}, were expected"
            )


def check_takes_images(classifier: PyTorchClassifier, method: str) -> None:
    """Refuse a classifier of vectors, series or volumes for a method that needs rows and columns.

    Raises:
        InputError: for an ``input_shape`` of other than three axes.
    """
    shape = tuple(classifier.input_shape)
    if len(shape) != 3:
        raise ClassifierError(
            f"classifier takes inputs of shape {shape}, and {method} looks at rows and columns; images (C, H, W) were "
            "expected, such as a network behind a reshape of its input makes of others"
        )


def check_outputs(outputs: Any, nb_images: int, nb_classes: int | None = None, argument: str = "classifier") -> Tensor:
    """Return a network's outputs if they are logits: floating-point, (n, K), K at least 2.

    Args:
        outputs: outputs of the network.
        nb_images: n.
        nb_classes: K; None for any number from 2 on.
        argument: its name in error messages.

    Raises:
        InputError: for anything else.
    """
    readable = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.is_floating_point()
    if not (
        readable and len(outputs) == nb_images and outputs.shape[1] >= 2 and nb_classes in (None, outputs.shape[1])
    ):
        count = "K >= 2" if nb_classes is None else str(nb_classes)
        what = (
            f"{outputs.dtype} of shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else f"a {type(outputs).__name__}"
        )
        raise ClassifierError(
            f"{argument} gives {what} for {nb_images} images; logits ({nb_images}, {count}) of floating-point values "
            "were expected; for a single logit z these are 0 and z"
        )
    logits: Tensor = outputs
    return logits


def check_evaluated(x: Any, classifier: PyTorchClassifier) -> Images:
    """Return ``x`` as :func:`check_images` does; for images that are read on demand only the shape is checked."""
    if not isinstance(x, StoredImages):
        return check_images(x, classifier)
    if x.shape[1:] != tuple(classifier.input_shape) or len(x) == 0:
        raise InputError(f"x has shape {x.shape}; (N, {', '.join(map(str, classifier.input_shape))}) was expected")
    return x


def check_images(x: Any, classifier: PyTorchClassifier, argument: str = "x") -> FloatArray:
    """Return ``x`` if it is a batch of images of ``classifier``: float32, finite, in its clip range.

    Args:
        x: images ``(N, *classifier.input_shape)``, float32, inside ``classifier.clip_values``.
        classifier: source of the image shape and the clip values.
        argument: its name in error messages.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise InputError(f"{argument} is {shown(x)}; a numpy array of float32, scaled as in training, was expected")
    expected = tuple(classifier.input_shape)
    if x.shape[1:] != expected:
        raise InputError(f"{argument} has shape {x.shape}; (N, {', '.join(map(str, expected))}) was expected")
    if len(x) == 0:
        raise InputError(f"{argument} is empty; at least one image was expected")
    if not np.isfinite(x).all():
        raise InputError(f"{argument} holds NaN or infinite values; finite values were expected")
    if classifier.clip_values is not None:
        x = into_clip_values(x, classifier.clip_values, argument)
    contiguous: FloatArray = np.ascontiguousarray(x)  # torch has no negative strides
    return contiguous


ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Relative tolerance by which pixels may exceed the clip values: a few roundings of float32, as from resizing or
scaling."""


def within_clip_values(x: FloatArray, clip_values: tuple[Any, Any] | None) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return images, clipped where they exceed the clip values by rounding only, and which are finite and inside.

    Args:
        x: images (N, ...), float32.
        clip_values: numbers, or arrays that broadcast against an image; None for no limit.

    Returns:
        The images (N, ...), and True for each that is usable (N,).
    """
    inside = np.isfinite(x)
    if clip_values is not None:
        low, high = (np.asarray(end, dtype=np.float32) for end in clip_values)
        clipped = np.clip(x, low, high)
        x = np.where(np.abs(x - clipped) <= _allowed(clip_values), clipped, x)
        inside &= (x >= low) & (x <= high)
    return x, np.all(inside.reshape(len(x), -1), axis=1)


def _allowed(clip_values: tuple[Any, Any]) -> float:
    """Return by how much pixels may exceed the clip values."""
    low, high = clip_values
    return ROUNDING * max(float(np.max(np.abs(low))), float(np.max(np.abs(high))))


def into_clip_values(x: FloatArray, clip_values: tuple[Any, Any], argument: str = "x") -> FloatArray:
    """Return ``x`` clipped to the clip values, if it exceeds them by rounding only.

    Args:
        x: images (N, ...), float32.
        clip_values: numbers, or arrays that broadcast against an image.
        argument: its name in error messages.

    Raises:
        InputError: for pixels that exceed them by more than rounding, or NaN.
    """
    low, high = clip_values
    if bool(((x >= low) & (x <= high)).all()):
        return x
    allowed = _allowed(clip_values)
    if not bool(((x >= low - allowed) & (x <= high + allowed)).all()):
        raise InputError(
            f"{argument} ranges from {x.min():.9g} to {x.max():.9g}; "
            f"values inside the clip values [{np.min(low):.9g}, {np.max(high):.9g}] were expected"
        )
    clipped: FloatArray = np.clip(x, low, high).astype(np.float32)
    return clipped


def check_labels(y: Any, nb_classes: int, nb_samples: int, argument: str = "y") -> IntArray:
    """Return labels as class indices, int64 of shape (N,).

    Args:
        y: class indices (N,) or one-hot rows (N, nb_classes).
        nb_classes: number of classes.
        nb_samples: number of images.
        argument: its name in error messages.

    Raises:
        InputError: for another width or length, rows that are not one-hot, or an index out of range.
    """
    array = isinstance(y, np.ndarray)
    one_hot = array and y.ndim == 2 and bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())
    if not (one_hot or (array and y.ndim == 1 and np.issubdtype(y.dtype, np.integer))):
        raise InputError(
            f"{argument} is {shown(y)}; an array of class indices (N,) or one-hot rows (N, {nb_classes}) was expected"
        )
    if len(y) != nb_samples:
        raise InputError(f"{argument} has {len(y)} labels for {nb_samples} images; as many were expected")
    if one_hot:
        if y.shape[1] != nb_classes:
            raise InputError(f"{argument} is one-hot of width {y.shape[1]}; {nb_classes} classes were expected")
        y = y.argmax(axis=1)
    if (y < 0).any() or (y >= nb_classes).any():
        raise InputError(f"{argument} holds labels from {y.min()} to {y.max()}; 0 to {nb_classes - 1} were expected")
    indices: IntArray = y.astype(np.int64)
    return indices


@contextmanager
def explained_by_shape(model: nn.Module, shape: Sequence[int]) -> Iterator[None]:
    """Refuse images that a network cannot take, in place of the error that it raises for them.

    Raises:
        InputError: for any error inside the block except those of this package and those of memory.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a network may check its input in any way
        raise InputError(
            f"x has images of shape {tuple(shape)}, which the {type(model).__name__} cannot take ({one_line(error)}); "
            "images of the shape that it was made for were expected"
        ) from error


def one_line(error: BaseException) -> str:
    """Return the type of an error and its text on one line, for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def last_line(error: BaseException) -> str:
    """Return the type of an error and the last line of its text, which for torchvision is the cause."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def check_number(argument: str, value: Any, expected: str, holds: Callable[[float], bool] = lambda _: True) -> float:
    """Return the number ``value`` if it is a finite real one for which ``holds`` is true, as ``expected`` says."""
    result: float = number(expected, holds).checked(argument, value)
    return result


check_share: Callable[[str, Any], float] = partial(accepted, Share)
"""Return a number from 0 to 1; raise an ``InputError`` that names the argument for anything else."""

check_positive: Callable[[str, Any], float] = partial(accepted, Positive)
"""Return a number above zero that float32 holds; raise an ``InputError`` for anything else."""

check_flag: Callable[[str, Any], bool] = partial(accepted, Flag)
"""Return a flag, True or False, but no word such as ``"no"``; raise an ``InputError`` for anything else."""

check_text: Callable[[str, Any], str] = partial(accepted, Text)
"""Return a text that is not blank and fits on one line; raise an ``InputError`` for anything else."""

check_seed: Callable[[Any], int] = partial(accepted, Seed, "seed")
"""Return a whole number that every generator takes; raise an ``InputError`` for anything else."""


def check_count(argument: str, value: Any, least: int = 1) -> int:
    """Refuse anything but a whole number of at least ``least``."""
    result: int = integer(least).checked(argument, value)
    return result


def check_all_positive(argument: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse anything but a finite number above zero, or an array of them that broadcasts to ``shape``."""
    if isinstance(value, np.ndarray):
        real = np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer)
        pairs = zip(value.shape[::-1], tuple(shape)[::-1], strict=False)
        fits = value.ndim <= len(shape) and all(size in (1, other) for size, other in pairs)
        if not (real and fits and value.size and np.isfinite(value).all() and (value > 0).all()):
            raise InputError(
                f"{argument} is {shown(value)}; finite numbers > 0, one or an array that broadcasts, were expected"
            )
    else:
        check_positive(argument, value)


def check_choice(argument: str, value: Any, known: Sequence[str]) -> None:
    """Refuse anything but one of the names ``known``."""
    one_of(*known).checked(argument, value)


def check_path(argument: str, value: Any, expected: str = "a path") -> Path:
    """Return a path: a text that is not empty, or a path object.

    Raises:
        InputError: for anything else.
    """
    path: Path = Kind(expected, as_path).checked(argument, value)
    return path


def check_paths(argument: str, value: Any, least: int = 1) -> list[Path]:
    """Return a list of at least ``least`` paths.

    Raises:
        InputError: for anything but a list or tuple of paths.
    """
    if not isinstance(value, list | tuple) or len(value) < least:
        raise InputError(f"{argument} is {shown(value)}; a list of {least} or more folders was expected")
    return [check_path(argument, path, "a list of folders") for path in value]


def differs(value: Any, other: Any) -> bool:
    """Return whether two values of any kind differ; values that cannot be compared differ."""
    try:
        return bool(value != other)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors, whose truth value is ambiguous
        return True


def check_file(argument: str, value: Any, expected: str = "an existing file") -> Path:
    """Return the path of an existing file.

    Raises:
        InputError: for anything else.
    """
    return _check_place(argument, value, expected, Path.is_file)


def check_folder(argument: str, value: Any) -> Path:
    """Return the path of an existing folder.

    Raises:
        InputError: for anything else.
    """
    return _check_place(argument, value, "an existing folder", lambda path: path.expanduser().is_dir())


def check_target(argument: str, value: Any) -> Path:
    """Return the path of a file in an existing folder; the path itself must not be a folder.

    Raises:
        InputError: for anything else.
    """
    return _check_place(
        argument, value, "a file in an existing folder", lambda path: path.parent.is_dir() and not path.is_dir()
    )


def _check_place(argument: str, value: Any, expected: str, holds: Callable[[Path], bool]) -> Path:
    """Return a path for which ``holds`` is true, as ``expected`` says."""
    path = check_path(argument, value, expected)
    try:
        if holds(path):
            return path
    except (OSError, RuntimeError):  # such as a name that is too long, or the home of an unknown user
        pass
    raise InputError(f"{argument} is {str(path)!r}; {expected} was expected")
