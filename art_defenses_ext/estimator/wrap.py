"""An ART classifier of any torch network, with the arguments that ART needs given or found on some images."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray, Images, StoredImages
from art_defenses_ext.base.data import as_pixels, images_and_labels
from art_defenses_ext.base.errors import ClassifierError, InputError
from art_defenses_ext.base.layout import contradiction
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_choice, has_ignored_hooks, one_line
from art_defenses_ext.estimator.pipeline import unmoved_generators
from art_defenses_ext.estimator.rebuild import HALVES, as_model_input, at_least_float32, evaluation_mode, model_dtype

FOUND = "found"
"""The default of arguments that are found on the images."""

OUTPUTS = ("logits", "log-probabilities", "probabilities", "sigmoids", "logit", "probability")
"""Kinds of outputs: (N, K), and for the last two one value (N,) or (N, 1) for the second of two classes.

Sigmoids are a probability for each class, not adding up to 1."""

EXAMINED = 32
"""Number of images whose outputs are examined."""

LAST = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
"""Last layers that are left out, since attacks need the logits before them."""

SATURATED = "the probabilities of {} of {} images are rounded to 0 or 1 and have no gradient: gradients are masked"


class AdaptedNetwork(nn.Module):
    """A network from images (N, ...) to logits (N, K), around one with another layout or other outputs.

    Args:
        network: the network.
        outputs: one of ``OUTPUTS``.
        axes: the order of the axes in which the network takes images; None for that of the images.
        remark: the description of the outputs in a report; empty for logits.

    **Convention**: one logit z becomes -z/2 and z/2, so that both classes have a gradient and an explanation. The
    logarithm of a probability is its logit up to a constant of the image; a probability that underflows has no
    gradient. Logits are at least float32, since numpy has no bfloat16.
    """

    halves: Tensor

    def __init__(self, network: nn.Module, outputs: str, axes: tuple[int, ...] | None, remark: str) -> None:
        super().__init__()
        self.network, self.outputs, self.axes, self.remark = network, outputs, axes, remark
        self.register_buffer("halves", torch.tensor([[-0.5], [0.5]]), persistent=False)
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        x = as_model_input(x if self.axes is None else x.permute(self.axes), self.network)
        return self.logits(at_least_float32(tensor_of(self.network(x))))

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits (N, K) of the network's outputs."""
        if self.outputs in ("logits", "log-probabilities"):
            return outputs
        tiny = torch.finfo(outputs.dtype).tiny
        if self.outputs == "probabilities":
            return outputs.clamp(min=tiny).log()
        if self.outputs in ("sigmoids", "probability"):
            outputs = outputs.clamp(min=tiny).log() - (1 - outputs).clamp(min=tiny).log()
        return outputs if self.outputs == "sigmoids" else F.linear(outputs.reshape(-1, 1), self.halves.to(outputs))


def as_classifier(
    model: nn.Module,
    data: Any,
    *,
    mean: Any = None,
    std: Any = None,
    clip_values: tuple[Any, Any] | str | None = FOUND,
    channels_first: bool | str = FOUND,
    outputs: str = FOUND,
) -> PyTorchClassifier:
    """Return an ART classifier of a torch network; arguments that are not given are found on the images.

    The network may return a tensor, a dictionary, a tuple, of which the first element counts, or an object with
    ``logits``, as Hugging Face's do. Its outputs may be logits, probabilities, log-probabilities, or one value for two
    classes. Attacks need logits: a last softmax or sigmoid layer is left out, and other probabilities are replaced by
    their logarithm. Channels of images may be first or last, whichever the network takes.

    Args:
        model: the network, in any floating-point dtype. It is shared, not copied, except for a last layer that is left
            out.
        data: images ``(N, ...)``, an array or a tensor, or images and labels as :func:`evaluate` takes them.
        mean: mean of the network's normalisation, in the units of the pixels: one number, or one for each channel.
        std: deviation of the same normalisation. Leave both out if the network or a loader normalises.
        clip_values: least and largest pixel value; None for none. **Convention**: by default 0 and 1 for images
            (N, C, H, W) in this range, 0 and 255 for whole numbers in that range, else None.
        channels_first: True for images (C, H, W), False for (H, W, C); by default found by their shape.
        outputs: kind of the network's outputs, by default found by their values: ``"logits"``,
            ``"log-probabilities"``, ``"probabilities"``, ``"sigmoids"`` (a probability for each class, not adding up to
            1; found only if a last layer makes them, since logits may lie between 0 and 1 too), or for two classes
            ``"logit"`` or ``"probability"``.

    Returns:
        A plain ``PyTorchClassifier`` without an optimizer, on the network's device.

    Raises:
        InputError: for a model that is not a network, cannot take the images, or does not return such outputs; and for
            a normalisation in other units than those of the pixels.

    >>> from torch import nn
    >>> from art_defenses_ext import as_classifier
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(dim=1))
    >>> wrapped = as_classifier(network, x_test)
    >>> wrapped.nb_classes, wrapped.model.remark
    (10, 'probabilities of a Softmax layer; attacked on the logits before it')
    """
    if not isinstance(model, nn.Module):
        raise ClassifierError(f"model is a {type(model).__name__}; an nn.Module or a PyTorchClassifier was expected")
    if outputs != FOUND:
        check_choice("outputs", outputs, OUTPUTS)
    images = _images(data)
    shape = images.shape[1:]
    if channels_first == FOUND:
        channels_first = contradiction(shape, True) is None
    clip = _range_of(images) if isinstance(clip_values, str) and clip_values == FOUND else clip_values
    mean, std = _normalisation(mean, std, clip)
    x = torch.tensor(np.asarray(images[:EXAMINED]))
    if mean is not None:
        low, high = broadcastable_mean_std(x, mean, std)
        x = (x - torch.as_tensor(low)) / torch.as_tensor(high)
    network, nb_classes = _adapted(model, x, outputs)
    on_cuda = next((tensor.is_cuda for tensor in model.parameters()), False)
    with torch.cuda.device(next(model.parameters()).device) if on_cuda else nullcontext():
        return PyTorchClassifier(
            network,
            nn.CrossEntropyLoss(),
            tuple(shape),
            nb_classes,
            clip_values=None if clip is None else tuple(clip),
            channels_first=bool(channels_first),
            preprocessing=None if mean is None else (mean, std),
            device_type="gpu" if on_cuda else "cpu",
        )


def tensor_of(outputs: Any) -> Any:
    """Return the logits in a network's output, which may be a dictionary, an object with ``logits``, or a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict) and "logits" not in outputs:
        names = [name for name in ("out", "output", "scores") if name in outputs] or list(outputs)
        return tensor_of(outputs[names[0]]) if "out" in outputs or len(names) == 1 else outputs
    if isinstance(outputs, dict):
        return outputs["logits"]
    if getattr(outputs, "logits", None) is not None:
        return outputs.logits
    return tensor_of(outputs[0]) if isinstance(outputs, tuple | list) and outputs else outputs


def recognised(outputs: Tensor) -> str:
    """Return which of ``OUTPUTS`` a network's outputs (N, K), (N, 1) or (N,) are."""
    tolerance = 0.02 if outputs.dtype in HALVES else 1e-4
    values = outputs.double()
    if values.ndim == 1 or values.shape[1] == 1:
        return "probability" if bool(((values >= 0) & (values <= 1)).all()) else "logit"
    if bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < tolerance).all()):
        return "probabilities"
    if bool((values <= tolerance).all()) and bool((values.logsumexp(dim=1).abs() < tolerance).all()):
        return "log-probabilities"
    return "sigmoids" if bool(((values >= 0) & (values <= 1)).all()) else "logits"


def _images(data: Any) -> Images:
    """Return the images (N, ...) of the data, at least one."""
    alone = isinstance(data, np.ndarray | Tensor | StoredImages)
    x = as_pixels(data) if alone else images_and_labels(data)[0]
    if not isinstance(x, np.ndarray | StoredImages) or (isinstance(x, np.ndarray) and x.dtype != np.float32):
        raise InputError(f"x is {shown(x)}; a numpy array or a tensor of images (N, ...) was expected")
    if len(x.shape) < 2 or len(x) == 0:
        raise InputError(f"x has shape {x.shape}; images (N, ...), at least one, were expected")
    return x


def _range_of(x: Images) -> tuple[float, float] | None:
    """Return the pixel range of images (N, C, H, W); None if it is unknown, and for other inputs."""
    values = np.asarray(x[:EXAMINED]) if isinstance(x, StoredImages) else x
    if values.ndim != 4 or not bool((values >= 0).all()):
        return None
    if bool((values <= 1).all()):
        return 0.0, 1.0
    is_bytes = bool((values <= 255).all()) and bool((np.mod(values[:EXAMINED], 1) == 0).all())
    return (0.0, 255.0) if is_bytes else None


def _normalisation(mean: Any, std: Any, clip_values: Any) -> tuple[FloatArray | None, FloatArray | None]:
    """Return mean and deviation as arrays of one shape, or None for both."""
    if mean is None and std is None:
        return None, None
    try:
        means = np.asarray(0.0 if mean is None else mean, np.float32)
        stds = np.asarray(1.0 if std is None else std, np.float32)
        means, stds = map(np.ascontiguousarray, np.broadcast_arrays(means, stds))
        usable = bool(np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all())
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"mean is {shown(mean)} and std {shown(std)}; finite numbers, std > 0, were expected")
    width = None if clip_values is None else float(np.max(clip_values[1]) - np.min(clip_values[0]))
    if width is not None and width > 100 and means.any() and stds.max() <= 1:
        raise InputError(
            f"mean is {shown(mean)} and std {shown(std)} for pixel values up to {np.max(clip_values[1]):g}; both in "
            "the units of the pixels were expected, such as mean=123.7, std=58.4"
        )
    return means, stds


def _adapted(model: nn.Module, x: Tensor, outputs: str) -> tuple[nn.Module, int]:
    """Return a network from images to logits, wrapped if necessary, and its number of classes."""
    axes, values = _first_outputs(model, x)
    tensor = tensor_of(values)
    form = recognised(tensor) if outputs == FOUND else outputs
    single = tensor.ndim == 1 or tensor.shape[1] == 1
    if single != (form in ("logit", "probability")):
        raise InputError(
            f"outputs is {form!r}, but model returns {tuple(tensor.shape)}; a fitting one of {OUTPUTS} was expected"
        )
    network, layer = model, None
    if form not in ("logits", "logit"):
        network, layer = _without_last(model, x, axes, form)
    if form == "sigmoids" and layer is None and outputs == FOUND:
        form = "logits"  # which may lie between 0 and 1 too, and give the same class
    if form == "probability" and layer is None and outputs == FOUND and len({bool(v > 0.5) for v in tensor}) == 1:
        raise InputError(
            f"model returns numbers from {float(tensor.min()):.3g} to {float(tensor.max()):.3g} for the first images, "
            'which may be probabilities or logits; outputs="probability" or outputs="logit" was expected'
        )
    nb_classes = 2 if single else tensor.shape[1]
    ignored = has_ignored_hooks(model) or (
        isinstance(model, nn.Sequential) and type(model).forward is not nn.Sequential.forward
    )
    plain = isinstance(values, Tensor) and form == "logits" and axes is None and not ignored
    if plain and tensor.dtype not in HALVES:
        return model, nb_classes
    remark = {
        "logits": "",
        "log-probabilities": "log-probabilities, which are logits up to a constant of each image",
        "probabilities": "probabilities; attacked on their logarithm",
        "sigmoids": "a probability for each class; attacked on their logits",
        "logit": "one logit z; attacked as the logits -z/2 and z/2 of two classes",
        "probability": "one probability; attacked on its logit",
    }[form]
    if layer is not None:
        remark = f"{form} of a {layer} layer; attacked on the logits before it"
        form = "logit" if single else "logits"
    elif form in ("probabilities", "sigmoids", "probability"):
        remark += _warned(tensor)
    return AdaptedNetwork(network, form, axes, remark), nb_classes


def _first_outputs(model: nn.Module, x: Tensor) -> tuple[tuple[int, ...] | None, Any]:
    """Return the order of axes in which a network takes images, None for their own, and its outputs for them."""
    orders: list[tuple[int, ...] | None] = [None, *([(0, 3, 1, 2), (0, 2, 3, 1)] if x.ndim == 4 else [])]
    first: Exception | None = None
    for axes in orders:
        try:
            values = _run(model, x, axes)
        except Exception as error:  # a network may check its input in any way
            first = first or error
            continue
        _check_outputs(tensor_of(values), len(x))
        return axes, values
    assert first is not None
    raise ClassifierError(
        f"model cannot take images {tuple(x.shape[1:])} ({one_line(first)}); a network for such images was expected"
    ) from first


def _run(model: nn.Module, x: Tensor, axes: tuple[int, ...] | None) -> Any:
    """Return a network's outputs for normalised images."""
    tensor = next((tensor for tensor in model.parameters()), None)
    dtype = model_dtype(model)
    x = x if axes is None else x.permute(axes)
    x = (x if dtype is None else x.to(dtype)).clone()  # the network may write into its input
    with evaluation_mode(model), unmoved_generators(), torch.no_grad():
        return model(x if tensor is None else x.to(tensor.device))


def _check_outputs(outputs: Any, nb_images: int) -> None:
    """Refuse outputs that are neither (N, K) nor one value for each image."""
    fits = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim in (1, 2)
    if not fits or len(outputs) != nb_images or outputs.numel() == 0:
        what = f"a {type(outputs).__name__}"
        if isinstance(outputs, Tensor):
            what = f"{outputs.dtype} of shape {tuple(outputs.shape)}"
        elif isinstance(outputs, dict):
            what += f" with the keys {', '.join(map(repr, outputs))}"
        raise ClassifierError(
            f"model gives {what} for {nb_images} images; logits ({nb_images}, K) of floating-point values were expected"
        )


def _without_last(model: nn.Module, x: Tensor, axes: tuple[int, ...] | None, form: str) -> tuple[nn.Module, str | None]:
    """Return a copy without its last layer that shares all tensors, and that layer's class.

    Where no softmax or sigmoid layer alone makes the outputs, this is the network itself, and None.
    """
    calls: list[tuple[str, Any]] = []
    layers = {name: module for name, module in model.named_modules() if name and isinstance(module, LAST)}
    hooks = [
        layer.register_forward_hook(lambda *call, name=name: calls.append((name, call[2])))
        for name, layer in layers.items()
    ]
    try:
        outputs = tensor_of(_run(model, x, axes))
    finally:
        for hook in hooks:
            hook.remove()
    last = [name for name, made in calls if made is outputs]
    if len(last) != 1 or [name for name, _ in calls].count(last[0]) != 1:
        return model, None
    try:
        copy = deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        copy.set_submodule(last[0], nn.Identity())
        logits = tensor_of(_run(copy, x, axes))
    except Exception:  # torch's old weight_norm cannot be copied, and a network may do anything else
        return model, None
    remade = {"probabilities": F.softmax, "log-probabilities": F.log_softmax}.get(form)
    again = torch.sigmoid(logits) if remade is None else remade(logits, dim=1)
    agrees = torch.allclose(again.float(), outputs.float(), rtol=1e-3, atol=1e-4)
    return (copy, type(layers[last[0]]).__name__) if agrees else (model, None)


def _warned(probabilities: Tensor) -> str:
    """Return how many images have probabilities that are rounded to 0 or 1, with a warning; nothing for none."""
    rows = probabilities.reshape(len(probabilities), -1)
    saturated = int(((rows == 0) | (rows == 1)).any(dim=1).sum())
    if saturated == 0:
        return ""
    words = SATURATED.format(saturated, len(rows))
    warnings.warn(f"model: {words}; a network that returns logits was expected", UserWarning, stacklevel=4)
    return f"; {words}"
