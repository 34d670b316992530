"""Gradient explanations of a classifier, as differentiable functions of tensors.

All of them take ``model``, an ``nn.Module`` from x (N, ...) to logits (N, K), and change neither it nor x: no ``.grad``
is filled, and a model in training mode runs in evaluation mode and is restored. If autograd records and x requires
grad, the explanation is part of the graph, exact to second order; otherwise, also under ``torch.no_grad``, it is
detached. Differentiate it by ``torch.autograd``; ``torch.func``'s transforms do not support the ``torch.autograd.grad``
inside. x may have another floating-point dtype than the model: the model receives its own, and the explanation has that
of x.

The logits of a ReLU network are piecewise linear, so the derivative of its ``input_gradient`` is zero almost
everywhere: attacks on an explanation need a smooth copy of the network.

Source: Simonyan, Vedaldi, Zisserman 2013, "Deep Inside Convolutional Networks" (arXiv:1312.6034), section 3, for the
gradient of a class's logit; the other functions name their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.attribution.second_order import elementary_operations
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_count, check_positive, check_seed, may_look
from art_defenses_ext.estimator.rebuild import HALVES, as_model_input, at_least_float32, evaluation_mode

ROWS_AT_ONCE = 512  # noisy copies or steps that share one pass of the model

Classes = int | Tensor | Literal["all"] | None
"""A class for all samples, one (N,) or several (N, M) per sample, every class, or None for the predicted class."""


def input_gradient(model: nn.Module, x: Tensor, classes: Classes = None) -> Tensor:
    """Return the gradient of a class's logit with respect to the input.

    Several classes share one forward pass and one vectorised backward pass (``torch.func``'s batching rules). If an
    operation of the model has no such rule, such as a custom backward pass through numpy, each class has its own
    backward pass, without a warning: the result is the same.

    **Convention** The logit, not the softmax probability, which also increases where other classes decrease (section 2
    of the source), and whose gradient vanishes where the model is confident.

    Args:
        model: from x to logits (N, K), floating-point.
        x: inputs (N, ...), floating-point, on the device of the model, of any finite value.
        classes: class of the logit: an index from 0 to K - 1 for all samples, indices (N,) of any integer dtype,
            indices (N, M) for M explanations per sample, ``"all"`` for K, None for the class with the largest logit.
            The range of tensors on an accelerator is not checked, since that would wait for it.

    Returns:
        Gradients of the shape and dtype of x; for several classes (N, M, ...) or (N, K, ...).

    Raises:
        InputError: for a model that is no module, gives no logits (N, K) or passes no gradient to x; an x that is not
            floating-point, empty or without a dimension beside N; classes of another shape, dtype or device, or out
            of range.
    """
    _check_inputs(model, x, classes, "classes")
    with _recording(model, x) as live:
        points, logits = _forward(model, live)
        cotangents = _one_hot(_chosen(classes, logits, "classes"), logits)
        return _by_sample(_pull_back(logits, points, cotangents, live.requires_grad), classes)


def loss_gradient(model: nn.Module, x: Tensor, y: Classes) -> Tensor:
    """Return the gradient of each sample's cross-entropy with respect to the input.

    It is the gradient of the sum of the losses, not of their mean, and does not depend on the batch size.

    Args:
        model: from x to logits (N, K), floating-point.
        x: inputs (N, ...) as for ``input_gradient``.
        y: labels, in any form of ``classes`` of ``input_gradient``; several labels per sample give the
            gradient of the cross-entropy with each.

    Returns:
        Gradients of the shape and dtype of x; for several labels (N, M, ...) or (N, K, ...).

    Raises:
        InputError: as ``input_gradient``.
    """
    _check_inputs(model, x, y, "y")
    with _recording(model, x) as live:
        points, logits = _forward(model, live)
        # d cross-entropy / d logits = p - e_y; p is part of the graph, so that its derivative is included. In float32
        # the p_y of a confident prediction is 1, and its component vanishes.
        probabilities = logits.double().softmax(dim=1)
        cotangents = probabilities - _one_hot(_chosen(y, logits, "y"), probabilities)  # (M, N, K)
        cotangents = cotangents.to(at_least_float32(logits).dtype)
        return _by_sample(_pull_back(logits, points, cotangents, live.requires_grad), y)


def weighted_loss_gradient(model: nn.Module, x: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Return gradients of weighted sums of a sample's cross-entropies with several classes, one backward pass a sum.

    With weights w (M, K) and the softmax p, the m-th sum's gradient with respect to the logits is (sum_c w_mc) p - w_m.
    The gradient of the sum over all classes with the weights p is therefore zero for any network.

    Args:
        model: from x to logits (N, K), floating-point.
        x: inputs (N, ...) as for ``input_gradient``.
        weights: from logits (N, K), in float64, to weights (N, M, K) of M sums per sample. They are constants in
            the gradient, but part of its own derivative.

    Returns:
        Gradients (N, M, ...) of the dtype of x.

    Raises:
        InputError: as ``input_gradient``, and for weights of another shape.
    """
    _check_inputs(model, x, None, "weights")
    with _recording(model, x) as live:
        points, logits = _forward(model, live)
        wide = logits.double()  # confident probabilities differ from 0 and 1 by less than float32 resolves
        weighted = weights(wide)
        count, nb_classes = logits.shape
        shape = tuple(weighted.shape) if isinstance(weighted, Tensor) else ()
        if len(shape) != 3 or shape[1] < 1 or (shape[0], shape[2]) != (count, nb_classes):
            raise InputError(f"weights gives {shown(weighted)}; shape ({count}, M, {nb_classes}) was expected")
        weighted = weighted.to(wide.dtype)
        cotangents = weighted.sum(dim=2, keepdim=True) * wide.softmax(dim=1).unsqueeze(1) - weighted  # (N, M, K)
        cotangents = cotangents.transpose(0, 1).to(at_least_float32(logits).dtype)
        gradients = _pull_back(logits, points, cotangents, live.requires_grad)
        return gradients.transpose(0, 1)


def gradient_x_input(model: nn.Module, x: Tensor, classes: Classes = None) -> Tensor:
    """Return the gradient of a class's logit times the input, element by element.

    Args:
        model, x, classes: as for ``input_gradient``.

    Returns:
        Attributions of the shape and dtype of x; for several classes (N, M, ...) or (N, K, ...).

    Raises:
        InputError: as ``input_gradient``.

    *Source*: Shrikumar, Greenside, Shcherbina, Kundaje 2016, "Not Just a Black Box" (arXiv:1605.01713).
    """
    gradient = input_gradient(model, x, classes)
    return gradient * _like_result(x, classes)


def smooth_grad(
    model: nn.Module,
    x: Tensor,
    classes: Classes = None,
    *,
    sigma: float = 0.15,
    samples: int = 50,
    seed: int | torch.Generator = 0,
) -> Tensor:
    """Return SmoothGrad: the mean gradient of a class's logit over noisy copies of the input.

    If the result is differentiated, the passes over all copies are in memory together.

    **Convention** ``sigma`` is in units of x (the paper's noise level is relative to the range of an image's values),
    so that the function does not depend on an image's extremes. Noisy copies are not clipped, which would bias the
    noise. The predicted class is that of x, not of each copy. Gradients keep their sign; absolute values are for
    figures.

    Args:
        model, x, classes: as for ``input_gradient``.
        sigma: standard deviation of the Gaussian noise; the paper's level is 0.1 to 0.2 for inputs in [0, 1].
        samples: number of noisy copies; the paper sees little gain beyond 50.
        seed: a whole number >= 0 gives the same noise at each call on a device; a generator draws on its own
            device (one on the CPU gives the same noise for every device). torch's global generator is not used.

    Returns:
        Gradients of the shape and dtype of x; for several classes (N, M, ...) or (N, K, ...).

    Raises:
        InputError: as ``input_gradient``, and for ``sigma`` <= 0, ``samples`` < 1, or another seed.

    *Source*: Smilkov, Thorat, Kim, Viegas, Wattenberg 2017 (arXiv:1706.03825), section 2; noise level and samples from
    section 3.
    """
    _check_inputs(model, x, classes, "classes")
    check_positive("sigma", sigma)
    check_count("samples", samples)
    generator = _generator(seed, x.device)

    def noisy(live: Tensor, _: int) -> Tensor:
        # Drawn copy by copy: larger draws would give other numbers for another ROWS_AT_ONCE.
        noise = torch.randn(live.shape, generator=generator, device=generator.device, dtype=live.dtype)
        return live + sigma * noise.to(live.device)

    return _mean_gradient(model, x, classes, noisy, samples)


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    classes: Classes = None,
    *,
    baseline: Tensor | None = None,
    steps: int = 50,
) -> Tensor:
    """Return integrated gradients: x - baseline times the mean gradient on the straight line between the two.

    The attributions of a sample add up to its logit minus that of the baseline (completeness), up to the error of the
    sum that approximates the integral. If the result is differentiated, the passes over all steps are in memory
    together.

    **Departure** The midpoint rule, whose error falls with the square of ``steps``, instead of the paper's right
    Riemann sum, whose error falls with ``steps``.

    **Convention** The baseline is zero: the paper's black image for values in [0, 1], the mean colour for normalised
    ones. The predicted class is that of x, at every step.

    Args:
        model, x, classes: as for ``input_gradient``.
        baseline: reference input, of shape, dtype and device of x; None for zeros. It is part of the graph if x
            requires grad.
        steps: points on the line; the paper finds 20 to 300 enough with its rule.

    Returns:
        Attributions of the shape and dtype of x; for several classes (N, M, ...) or (N, K, ...).

    Raises:
        InputError: as ``input_gradient``, and for a ``baseline`` of another shape, dtype or device, or ``steps`` < 1.

    *Source*: Sundararajan, Taly, Yan 2017 (arXiv:1703.01365), section 3, equation 1; the sum and the baseline from
    section 5.
    """
    _check_inputs(model, x, classes, "classes")
    check_count("steps", steps)
    start = _start(baseline, x)

    def midpoint(live: Tensor, step: int) -> Tensor:
        return start + (step + 0.5) / steps * (live - start)

    mean = _mean_gradient(model, x, classes, midpoint, steps)
    return mean * _like_result(x - start, classes)


def _mean_gradient(
    model: nn.Module,
    x: Tensor,
    classes: Classes,
    point: Callable[[Tensor, int], Tensor],
    count: int,
) -> Tensor:
    """Return the mean over j = 0 ... count - 1 of the input gradient at ``point(x, j)``, for classes chosen at x."""
    with _recording(model, x) as live:
        with torch.no_grad():
            chosen = _chosen(classes, _forward(model, live)[1], "classes")  # (N, M)
        total = torch.zeros(chosen.shape[1], *x.shape, dtype=x.dtype, device=x.device)
        at_once = max(1, ROWS_AT_ONCE // len(x))
        for done in range(0, count, at_once):
            copies = min(at_once, count - done)
            places = torch.cat([point(live, j) for j in range(done, done + copies)])  # (copies * N, ...)
            points, logits = _forward(model, places)
            cotangents = _one_hot(chosen.repeat(copies, 1), logits)
            gradients = _pull_back(logits, points, cotangents, live.requires_grad)
            total = total + gradients.unflatten(1, (copies, len(x))).sum(dim=1)
        return _by_sample(total / count, classes)


@contextmanager
def _recording(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Enable evaluation mode and autograd; yield x itself if the result is to be part of its graph, else detached."""
    again = torch.is_grad_enabled() and x.requires_grad
    with evaluation_mode(model), elementary_operations(), torch.inference_mode(False), torch.enable_grad():
        yield x if again else x.detach()


def _forward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of x to differentiate by, and the model's logits for it."""
    # Clones: differentiating by x itself would run its hooks and fill a retained .grad, and a model
    # whose first layer works in place may overwrite its input.
    points = x.clone()
    if not points.requires_grad:
        points.requires_grad_()
    logits = model(as_model_input(points.clone(), model))
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(x) and logits.is_floating_point()):
        raise InputError(f"model gives {shown(logits)}; floating-point logits ({len(x)}, K) were expected")
    return points, logits


def _pull_back(logits: Tensor, points: Tensor, cotangents: Tensor, again: bool) -> Tensor:
    """Return d sum(cotangent * logits) / d points, (M, n, ...), for each of ``cotangents`` (M, n, K)."""
    if logits.dtype in HALVES:  # small numbers underflow: scale the largest of each sample to 1
        size = cotangents.detach().abs().amax(dim=2, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        gradients = _pull_back(at_least_float32(logits), points, cotangents / size, again)
        return gradients * size.reshape(*size.shape[:2], *[1] * (points.ndim - 1)).to(points.dtype)
    if len(cotangents) == 1:
        return _vjp(logits, points, cotangents[0], again, retain=again)[None]
    try:
        return _vjp(logits, points, cotangents, again, batched=True)
    except torch.OutOfMemoryError:
        raise  # the loop would hide that fewer classes at a time are needed
    except RuntimeError:
        # An operation without a batching rule. Any other cause raises its own error again, without vmap.
        return torch.stack([_vjp(logits, points, cotangent, again) for cotangent in cotangents])


def _vjp(
    logits: Tensor, points: Tensor, cotangent: Tensor, again: bool, retain: bool = True, batched: bool = False
) -> Tensor:
    gradient = None
    if logits.requires_grad:
        graph = {"retain_graph": retain, "create_graph": again, "allow_unused": True, "is_grads_batched": batched}
        (gradient,) = torch.autograd.grad(logits, points, cotangent, **graph)
    if gradient is None:
        # Zeros would look like an explanation.
        raise InputError("model passes no gradient to x; logits that depend differentiably on it were expected")
    return gradient


def _chosen(classes: Classes, logits: Tensor, argument: str) -> Tensor:
    """Return the class indices (N, M) of ``classes``, given the number of classes."""
    count, nb_classes = logits.shape
    if classes is None:
        return logits.detach().argmax(dim=1, keepdim=True)
    every = torch.arange(nb_classes, device=logits.device)
    if isinstance(classes, str):
        return every.expand(count, -1)
    if may_look(classes):
        low, high = (classes, classes) if isinstance(classes, int) else (int(classes.min()), int(classes.max()))
        if low < 0 or high >= nb_classes:
            held = f"is {classes}" if isinstance(classes, int) else f"holds indices from {low} to {high}"
            raise InputError(f"{argument} {held}; class indices from 0 to {nb_classes - 1} were expected")
    if isinstance(classes, int):
        return every[classes].expand(count, 1)
    return classes.long().reshape(count, -1)


def _one_hot(chosen: Tensor, logits: Tensor) -> Tensor:
    """Return rows (M, N, K) with a single 1, at the class in ``chosen`` (N, M)."""
    return F.one_hot(chosen.T, logits.shape[1]).to(logits.dtype)


def _are_several(classes: Classes) -> bool:
    return isinstance(classes, str) or (isinstance(classes, Tensor) and classes.ndim == 2)


def _by_sample(gradients: Tensor, classes: Classes) -> Tensor:
    """Return gradients (M, N, ...) as (N, M, ...), or as (N, ...) for one class per sample."""
    return gradients.transpose(0, 1) if _are_several(classes) else gradients[0]


def _like_result(x: Tensor, classes: Classes) -> Tensor:
    """Return x (N, ...) in the shape that multiplies a result for ``classes``."""
    return x.unsqueeze(1) if _are_several(classes) else x


def _start(baseline: Tensor | None, x: Tensor) -> Tensor:
    if baseline is None:
        return torch.zeros_like(x)
    wanted = (x.shape, x.dtype, x.device)
    if not isinstance(baseline, Tensor) or (baseline.shape, baseline.dtype, baseline.device) != wanted:
        raise InputError(
            f"baseline is {shown(baseline)}; a tensor like x, {x.dtype} of shape {tuple(x.shape)} on {x.device}, was "
            "expected"
        )
    return baseline if x.requires_grad else baseline.detach()


def _generator(seed: int | torch.Generator, device: torch.device) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator(device).manual_seed(check_seed(seed))


def _check_inputs(model: Any, x: Any, classes: Any, argument: str) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {shown(model)}; an nn.Module was expected")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise InputError(f"x is {shown(x)}; a floating-point tensor (N, ...) with at least one sample was expected")
    if not _may_name_classes(classes, x):
        raise InputError(
            f"{argument} is {shown(classes)}; a class index, indices ({len(x)},) or ({len(x)}, M) on the device of x, "
            "'all' or None was expected"
        )


def _may_name_classes(classes: Any, x: Tensor) -> bool:
    """Return whether values are ``Classes`` of x for some number of classes."""
    if isinstance(classes, Tensor):
        integers = not (classes.dtype == torch.bool or classes.is_floating_point() or classes.is_complex())
        fits = classes.ndim in (1, 2) and len(classes) == len(x) and classes.numel() > 0
        return integers and fits and classes.device == x.device
    return classes is None or (isinstance(classes, str) and classes == "all") or type(classes) is int
