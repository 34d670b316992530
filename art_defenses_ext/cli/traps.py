"""Traps in a classifier that make ART's attacks fail, so that it looks robust (docs/traps.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor import HighConfidence, ReverseSigmoid
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import contradiction
from art_defenses_ext.base.validation import check_outputs, has_ignored_hooks, one_line
from art_defenses_ext.estimator.rebuild import as_model_input, evaluation_mode, gradients_enabled, model_dtype
from art_defenses_ext.evaluation.run.describe import versions
from art_defenses_ext.evaluation.suite.attacker import BATCH_NOISE, followed
from art_defenses_ext.evaluation.suite.probe import has_gradient
from art_defenses_ext.gradients.modes import Defence, gradient_mode, gradient_modes

NO_GRAPH = "no graph leads from the logits back to the image"
"""The finding if no gradient is computed at all, as opposed to a gradient of zero."""

IMAGES = 4
"""Number of random images for most traps."""

MANY = 32
"""Number of random images for traps that depend on a share of images."""

SATURATED = 0.1
"""The largest share of images with a zero gradient of the cross-entropy that is not reported."""

NEED_PROBABILITIES = (HighConfidence, ReverseSigmoid)
"""ART's postprocessors that expect probabilities."""


@dataclass(frozen=True)
class Trap:
    """A property of a classifier that makes attacks fail, crash or overestimate its robustness.

    Attributes:
        name: a few words, as in docs/traps.md.
        finding: the evidence in this classifier.
        advice: the remedy.
    """

    name: str
    finding: str
    advice: str


@gradients_enabled()
def examine(classifier: PyTorchClassifier) -> list[Trap]:
    """Return the traps of a classifier, found with a few random images; an empty list if there are none.

    Args:
        classifier: an ART ``PyTorchClassifier`` with its preprocessing and postprocessing.
    """
    if not isinstance(classifier, PyTorchClassifier):  # subclasses have traps of their own
        raise InputError(f"classifier is a {type(classifier).__name__}; an ART PyTorchClassifier was expected")
    x = np.random.default_rng(0).random((MANY, *classifier.input_shape), dtype=np.float32)
    if classifier.clip_values is not None:
        low, high = (np.float32(end) for end in classifier.clip_values)
        x = low + x * (high - low)
    traps: list[Trap] = []
    for name, (look, advice) in TRAPS.items():
        if name in NEED_LOGITS and any(trap.name in ("output", "precision") for trap in traps):
            continue  # without logits from ART these cannot be tested
        try:
            finding = look(classifier, x if name in NEED_MANY else x[:IMAGES])
        except Exception as error:  # a classifier may raise any
            finding = f"it cannot be tested: {one_line(error)}"
        if finding:
            traps.append(Trap(name, finding, advice))
    return traps


def _subclass(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    if type(classifier) is PyTorchClassifier:
        return None
    return f"it is a {type(classifier).__name__}, and several of ART's attacks rebuild a plain one from its parts"


def _sequential(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    kind = type(_network(classifier))
    if not issubclass(kind, nn.Sequential) or kind.forward is nn.Sequential.forward:
        return None
    return f"the network's class {kind.__name__} is an nn.Sequential with a forward of its own, which ART ignores"


def _hooks(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    if not has_ignored_hooks(_network(classifier)):
        return None
    return "the network is an nn.Sequential with a hook of its own, which ART ignores: it calls the layers one by one"


def _layout(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    wrong = contradiction(classifier.input_shape, classifier.channels_first)
    return None if wrong is None else f"it has {wrong}"


def _numpy(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    others = [each for each in classifier.preprocessing_operations if not isinstance(each, PreprocessorPyTorch)]
    return (
        f"{_names(others)} work on numpy arrays: gradients stop there, or are replaced by an estimate"
        if others
        else None
    )


def _postprocessing(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    steps = classifier.postprocessing_defences
    if not steps:
        return None
    finding = f"{_names(steps)} change the output as a numpy array, so no gradient passes"
    misused = [step for step in steps if isinstance(step, NEED_PROBABILITIES)]
    if misused and not _are_probabilities(torch.as_tensor(_outputs(classifier, x))):
        finding += f"; {_names(misused)} expect probabilities, and the network returns logits"
    return finding


def _detaching(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    """Return the preprocessors through which no gradient, or one of zero, passes."""
    images = torch.tensor(x, device=classifier.device)
    flat = [
        preprocessor
        for preprocessor in classifier.preprocessing_operations
        if isinstance(preprocessor, PreprocessorPyTorch)
        and preprocessor.apply_predict
        and not isinstance(preprocessor, Defence)
        and not followed(preprocessor, images)[1]
    ]
    return f"no gradient passes {_names(flat)}: it is masked for attacks" if flat else None


def _no_gradient(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    """Return the flaw of the loss's gradient, and the gradient modes that do not have it."""
    flaw = _wrong_gradient(classifier, x)
    if flaw is None:
        return None
    modes = []
    for mode in gradient_modes(classifier):
        with gradient_mode(classifier, mode):
            if _wrong_gradient(classifier, x) is None:
                modes.append(mode)
    return flaw + (f" (not under gradient_mode {' or '.join(modes)}, which evaluate attacks too)" if modes else "")


def _wrong_gradient(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    labels = np.eye(classifier.nb_classes, dtype=np.float32)[np.arange(IMAGES) % classifier.nb_classes]
    try:
        gradient = classifier.loss_gradient(x, labels)
    except Exception as error:  # an attack would meet the same
        if _has_no_graph(classifier, x):
            return f"{NO_GRAPH}: an operation between them runs under torch.no_grad, or detaches"
        return f"the loss has no gradient: {type(error).__name__}: {_line(error)}"
    if not np.isfinite(gradient).all():
        return "the loss's gradient holds NaN or infinite values"
    if not gradient.any():
        return "the loss's gradient is zero everywhere: an operation is saturated or piecewise constant"
    return None


def _has_no_graph(classifier: PyTorchClassifier, x: FloatArray) -> bool:
    """Return whether the logits can be computed but have no graph back to the image."""
    try:
        return not has_gradient(classifier, "exact", x)
    except Exception:  # another flaw, which is named instead
        return False


def _double(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    try:
        classifier.predict(x.astype(np.float64))
    except RuntimeError as error:
        return f"float64 images are refused ({_line(error)}), and under NumPy 2 several of ART's attacks send them"
    return None


def _precision(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    """Return how ART fails on a network of another dtype, since it sends and expects float32."""
    dtype = model_dtype(_network(classifier))
    if dtype in (None, torch.float32):
        return None
    try:
        classifier.predict(x)
    except Exception as error:  # torch and numpy have several for it
        return f"the network computes in {str(dtype).removeprefix('torch.')}, and ART sends float32: {one_line(error)}"
    return None


def _random(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    first, second = classifier.predict(x), classifier.predict(x)
    same = np.allclose(first, second, rtol=1e-4, atol=1e-5)
    return None if same else "two passes of the same images differ: an attack that follows one of them is misled"


def _unclipped(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    return (
        None if classifier.clip_values is not None else "there are no clip values, which several of ART's attacks need"
    )


def _output(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    try:
        outputs = _outputs(classifier, x)
    except Exception as error:  # a network may check its input in any way
        return f"the network cannot be run on images {tuple(x.shape[1:])}: {one_line(error)}"
    try:
        logits = check_outputs(outputs, len(x), classifier.nb_classes, "the network")
    except InputError as error:
        return str(error)
    if _are_probabilities(logits):
        return "the network returns probabilities, not logits: the loss applies softmax twice, and gradients vanish"
    return None


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and torch.allclose(outputs.sum(dim=1), torch.ones_like(outputs[:, 0]), atol=1e-3)


def _outputs(classifier: PyTorchClassifier, x: FloatArray) -> Any:
    """Return the network's output for images after ART's preprocessing, of any type."""
    network, device = _network(classifier), classifier.device
    with evaluation_mode(network), torch.no_grad():
        images, _ = classifier._apply_preprocessing(x, y=None, fit=False)
        return network(as_model_input(torch.as_tensor(images, device=device), network))


def _saturated(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    """Return at how many images the cross-entropy of the predicted class has no gradient although the logits have."""
    if _wrong_gradient(classifier, x[:IMAGES]) is not None:
        return None  # another trap
    logits = classifier.predict(x)
    predicted = logits.argmax(axis=1)
    climbed = classifier.loss_gradient(x, np.eye(classifier.nb_classes, dtype=np.float32)[predicted])
    flat = ~np.asarray(climbed, dtype=bool).reshape(len(x), -1).any(axis=1)
    if flat.mean() <= SATURATED:
        return None
    ranked = np.sort(logits[flat].astype(np.float64), axis=1)
    gap = np.median(ranked[:, -1] - ranked[:, -2])
    return (
        f"at {flat.sum()} of {len(x)} images the cross-entropy of the predicted class has a gradient of zero: the two "
        f"largest logits lie {gap:.3g} apart, where softmax is exactly 1 in float32"
    )


def _batches(classifier: PyTorchClassifier, x: FloatArray) -> str | None:
    if _random(classifier, x):
        return None
    together = classifier.predict(x, batch_size=len(x))
    turned = classifier.predict(x[::-1].copy(), batch_size=len(x))[::-1]
    alone = np.concatenate([classifier.predict(image[None]) for image in x])
    tolerance = BATCH_NOISE * float(np.abs(np.nan_to_num(together, posinf=0.0, neginf=0.0)).max())
    same = (np.allclose(together, other, rtol=0, atol=tolerance, equal_nan=True) for other in (turned, alone))
    if all(same):
        return None
    return "the logits of an image depend on the others in its batch, so every figure depends on the batch size"


TRAPS: dict[str, tuple[Callable[[PyTorchClassifier, FloatArray], str | None], str]] = {
    "subclass": (_subclass, "move its behaviour into the network or a PreprocessorPyTorch"),
    "sequential with a forward": (_sequential, "make it a plain nn.Module"),
    "sequential with a hook": (_hooks, "wrap it in an nn.Module"),
    "channels": (_layout, "pass channels_first to PyTorchClassifier: the defences and Square look at rows and columns"),
    "numpy preprocessing": (_numpy, "attack as_module(classifier), which bridges it, as evaluate and defend do"),
    "postprocessing": (_postprocessing, "attack the classifier without it, and predict with it, as evaluate does"),
    "detached preprocessing": (_detaching, "wrap it in Surrogate(preprocessor), as evaluate does"),
    "output": (_output, "return a tensor of logits, one for each class"),
    "precision": (_precision, "cast in the network's forward, its input and its logits, or use model.float()"),
    "no gradient": (_no_gradient, "look for torch.no_grad, detach, argmax or rounding between image and loss"),
    "float64": (_double, "cast in the network's forward: x = x.to(next(self.parameters()).dtype)"),
    "random": (_random, "average over many passes, as evaluate does"),
    "no clip values": (_unclipped, "pass clip_values=(0, 1), or the actual range of the pixels"),
    "saturation": (_saturated, "attack the margin (AutoPGD(loss='margin')) or divide the logits by a constant"),
    "batches": (_batches, "let batch norm use its running statistics, and take the softmax over the classes"),
}
"""The test for each trap, and its remedy, by name."""

NEED_LOGITS = ("no gradient", "float64", "random", "saturation", "batches")
"""Traps that can be tested only if ART receives logits from the network."""

NEED_MANY = ("saturation",)
"""Traps that are tested with ``MANY`` images."""


def environment() -> dict[str, str]:
    """Return versions, devices and threads of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return versions() | {"GPU": ", ".join(gpus) or "none that torch finds", "CPU threads": str(torch.get_num_threads())}


def _network(classifier: PyTorchClassifier) -> nn.Module:
    network: nn.Module = classifier.model
    return network


def _names(steps: Sequence[object]) -> str:
    return ", ".join(type(step).__name__ for step in steps)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
