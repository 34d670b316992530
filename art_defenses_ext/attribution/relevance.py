"""Layer-wise relevance propagation as a repeatedly differentiable function.

Relevance starts at an output (a class, or a layer's activity), and each layer distributes the relevance of its outputs
to its inputs by a rule (:mod:`.rules`). Most libraries modify the backward pass of autograd for this, by hooks. A
second differentiation, which an attack on a heatmap needs, then uses the modified backward pass again and is wrong.
Here the ordinary forward pass is recorded (:mod:`.trace`) and relevance is computed from its values by ordinary
operations; autograd is not modified.

Layer-wise relevance propagation may be covered by patents in some countries.

Sources: Bach et al. 2015 (doi:10.1371/journal.pone.0130140) and those named in :mod:`.rules`. Composites: Montavon et
al. 2019 (doi:10.1007/978-3-030-28954-6_10); Kohlbrenner et al. 2020 (arXiv:1910.09840).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attribution.first_layer import entrance
from art_defenses_ext.attribution.last_map import last_map
from art_defenses_ext.attribution.linear_map import widened
from art_defenses_ext.attribution.rules import STABILIZER, Z_PLUS, AlphaBeta, Epsilon, Flat, Gamma, Rule, ZBox
from art_defenses_ext.attribution.trace import Step, Trace, check_visible
from art_defenses_ext.base.declared import Count, Declared, Kind, Positive, one_of
from art_defenses_ext.base.errors import AttributionError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_positive, may_look
from art_defenses_ext.estimator.rebuild import as_model_input, at_least_float32, evaluation_mode


def _rule(value: Any) -> Any:
    if isinstance(value, type) or not callable(value):
        raise ValueError
    return value


AnyRule = Annotated[Rule, Kind("a rule such as Epsilon()", _rule)]


@dataclass(frozen=True)
class Composite(Declared):
    """The rules of the layers of a network.

    Attributes:
        convolution: rule for convolutions.
        linear: rule for dense layers.
        first: rule for the first layer with weights, in the order of execution; None: the rule of its kind.
        scale: rule for a batch norm that cannot be folded into a layer before it. **Convention**: epsilon. A batch norm
            before the first layer with weights is a normalisation of the image and passes relevance through, as
            arithmetic does.
        stabilizer: stabiliser of averages and sums.
        attention: rule of softmax attention. ``"shared"``: half of the relevance to the values, half to the attention
            weights and through the softmax to queries and keys, which does not conserve relevance. ``"values"``: the
            weights are constants and the values take all relevance, which conserves it. See :mod:`.attention`.
    """

    convolution: AnyRule
    linear: AnyRule
    first: AnyRule | None = None
    scale: AnyRule = Epsilon()  # noqa: RUF009 (a frozen dataclass)
    stabilizer: Positive = STABILIZER
    attention: Annotated[str, one_of("shared", "values")] = "shared"

    def rule(self, kind: str, is_first: bool) -> Rule:
        """Return the rule for a layer of this kind."""
        if is_first and self.first is not None and kind != "scale":
            return self.first
        rule: Rule = getattr(self, kind)
        return rule


def uniform(rule: Rule) -> Composite:
    """Return a composite with the same rule for all layers."""
    return Composite(rule, rule)


def epsilon_plus(epsilon: float = STABILIZER) -> Composite:
    """Return z+ on convolutions, epsilon on dense layers."""
    return Composite(Z_PLUS, Epsilon(epsilon))


def epsilon_plus_flat(epsilon: float = STABILIZER) -> Composite:
    """Return :func:`epsilon_plus` with flat on the first layer."""
    return Composite(Z_PLUS, Epsilon(epsilon), Flat())


def epsilon_plus_box(low: float | Tensor, high: float | Tensor, epsilon: float = STABILIZER) -> Composite:
    """Return :func:`epsilon_plus` with z-box on the first layer, for inputs in [low, high]."""
    return Composite(Z_PLUS, Epsilon(epsilon), ZBox(low, high))


def epsilon_alpha2_beta1(epsilon: float = STABILIZER) -> Composite:
    """Return alpha 2, beta 1 on convolutions, epsilon on dense layers."""
    return Composite(AlphaBeta(2.0, 1.0), Epsilon(epsilon))


def epsilon_gamma_box(
    low: float | Tensor, high: float | Tensor, gamma: float = 0.25, epsilon: float = STABILIZER
) -> Composite:
    """Return gamma on convolutions, epsilon on dense layers, z-box on the first layer, for inputs in [low, high]."""
    return Composite(Gamma(gamma), Epsilon(epsilon), ZBox(low, high))


@dataclass(frozen=True)
class TopK(Declared):
    """Relevance starts at the ``k`` largest logits."""

    k: Count = 5


@dataclass(frozen=True)
class Layer:
    """Relevance starts at the positive activity of the layer of this name (``model.named_modules()``)."""

    name: str


Start = str | int | Tensor | TopK | Layer
"""``"predicted"``, ``"positive"`` (all positive logits), ``"last_conv"`` (the positive activity of the last
convolution, batch norm included, independent of classes), a class, classes (N,), :class:`TopK` or :class:`Layer`.

**Convention**: where dense layers follow at each place of the image, as in transformers and ConvNeXt, the last
convolution only begins a block, or makes the patches before all blocks. There ``"last_conv"`` is the positive activity
of the last tensor with several places, after all blocks; class tokens are set aside. A convolution at a single place,
such as one of pooled maps, counts where no other is, and the gate of a squeeze and excitation never."""

STARTS = ("predicted", "positive", "last_conv")


def relevance(
    model: nn.Module,
    x: Tensor,
    start: Start = "predicted",
    rules: Composite | None = None,
    *,
    softplus: float | None = None,
) -> Tensor:
    """Return the contribution of each value of ``x`` to an output.

    The relevance at the start is the logit or activity itself. The sum over ``x`` equals the sum at the start if the
    rules conserve relevance; biases and stabilisers absorb a part.

    Args:
        model: from ``x`` to logits (N, K). It runs in evaluation mode; its training mode is restored, and
            nothing else of it changes.
        x: images (N, ...), in the format of the model's input (such as normalised).
        start: where relevance starts.
        rules: rules of the layers; by default :func:`epsilon_plus`.
        softplus: a number b > 0 replaces each ReLU by softplus(b z) / b for this pass, a smooth approximation; those
            of a leaky ReLU too.

    Returns:
        Relevance, of the shape and dtype of ``x``. If gradients are enabled and ``x`` requires them, it is
        differentiable with respect to ``x``, exactly and repeatedly. The model's parameters are constants.

    Raises:
        InputError: for a layer that relevance cannot pass (named), an unknown start, a class or layer that
            the model does not have, "last_conv" without a convolution, or a model that has no layer with weights.
    """
    rules = epsilon_plus() if rules is None else rules
    if not isinstance(rules, Composite):
        raise AttributionError(f"rules is {rules!r}; a Composite such as epsilon_plus() was expected")
    if softplus is not None:
        check_positive("softplus", softplus)
    check_visible(model)
    check_start(start, model)
    trace = Trace(as_model_input(x, model), model, softplus, rules.stabilizer, rules.attention)
    with evaluation_mode(model), _watching(model, start, trace) as seen, trace:
        output = model(trace.x)
    logits = trace.value(output)
    where = _watched(seen, start) if isinstance(start, Layer) else None
    trace.fold(keep=logits if where is None else where)
    beginning, initial = _begin(start, logits, trace, where)
    return _send_back(trace, rules, beginning, at_least_float32(initial)).to(x.dtype)


def check_start(start: Any, model: nn.Module) -> None:
    """Refuse a start that ``model`` does not have, if that is known without running it.

    Raises:
        InputError: as :func:`relevance`.
    """
    known = start in STARTS if isinstance(start, str) else isinstance(start, int | Tensor | TopK | Layer)
    if not known or isinstance(start, bool):
        raise AttributionError(
            f"start is {shown(start)}; one of {', '.join(STARTS)}, classes, TopK or Layer was expected"
        )
    if isinstance(start, Layer) and start.name not in dict(model.named_modules()):
        raise AttributionError(f"start is the layer {start.name!r}, which the model does not have")
    if start == "last_conv" and not any(isinstance(module, _CONVOLUTIONS) for module in model.modules()):
        raise AttributionError("start is 'last_conv', but the model has no convolution; 'predicted' takes any model")


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _begin(start: Start, logits: Tensor, trace: Trace, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tensor of the pass at which relevance starts, and its relevance."""
    if where is not None:
        return where, where.clamp(min=0)
    if isinstance(start, str) and start == "last_conv":
        return last_map(trace.steps, trace.x, logits)
    if logits.ndim != 2:
        raise AttributionError(f"the model returns shape {tuple(logits.shape)}; logits (N, classes) were expected")
    return logits, logits * _chosen(start, logits)


def _chosen(start: Start, logits: Tensor) -> Tensor:
    """Return the logits at which relevance starts, as 0 and 1 (N, K)."""
    nb_classes = logits.shape[1]
    if isinstance(start, TopK):
        if start.k > nb_classes:
            raise AttributionError(f"k is {start.k}; at most the model's {nb_classes} classes were expected")
        return torch.zeros_like(logits).scatter(1, logits.detach().topk(start.k, dim=1).indices, 1.0)
    if isinstance(start, str):
        if start == "positive":
            return (logits.detach() > 0).to(logits.dtype)
        return torch.zeros_like(logits).scatter(1, logits.detach().argmax(dim=1, keepdim=True), 1.0)
    assert not isinstance(start, Layer)
    classes = torch.as_tensor(start, device=logits.device)
    integers = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    fits = integers and classes.shape in ((), (len(logits),))
    if not fits or (may_look(start) and bool(((classes < 0) | (classes >= nb_classes)).any())):
        raise AttributionError(
            f"start is {shown(start)}; a class or classes ({len(logits)},), from 0 to {nb_classes - 1}, were expected"
        )
    return torch.zeros_like(logits).scatter(1, classes.long().expand(len(logits))[:, None], 1.0)


def _send_back(trace: Trace, rules: Composite, beginning: Tensor, initial: Tensor) -> Tensor:
    """Return the relevance of the input, given that of one tensor of the pass."""
    relevances: dict[int, Tensor] = {id(beginning): initial}
    first = next((step for step in trace.steps if step.layer is not None and step.layer.kind != "scale"), None)
    if first is None:
        raise AttributionError("the model has no layer with weights that relevance could be sent through")
    while trace.steps:
        step = trace.steps.pop()  # its tensors are not needed again
        r = relevances.pop(id(step.output), None)
        if r is None:
            continue
        for tensor, share in zip(step.inputs, _back(trace, step, rules, r, first), strict=True):
            before = relevances.get(id(tensor))
            relevances[id(tensor)] = share if before is None else before + share
    result = relevances.get(id(trace.x))
    return torch.zeros_like(trace.x) if result is None else result


def _back(trace: Trace, step: Step, rules: Composite, r: Tensor, first: Step) -> tuple[Tensor, ...]:
    if step.layer is None:
        assert step.back is not None
        return step.back(r)
    if step.layer.kind == "scale" and first not in trace.steps:
        return (r,)  # a normalisation of the image, which passes relevance through
    rule = rules.rule(step.layer.kind, step is first)
    # The network's own activations, in at least float32: relevance underflows in half precision.
    layer, a, z = widened(step.layer), at_least_float32(step.inputs[0]), at_least_float32(step.output)
    if step is first and isinstance(rule, ZBox):
        low, high = _box(trace, rule, first.inputs[0])
        return (rule.between(at_least_float32(low), at_least_float32(high), layer, a, z, r),)
    return (rule(layer, a, z, r, step.nonnegative),)


def _box(trace: Trace, rule: ZBox, entering: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range of the first layer's input, each end (1, ...), given that of the network's input.

    Raises:
        InputError: if a value there depends on several values of the image.
    """
    ends = rule.ends(trace.x.detach())
    if entering is trace.x:
        return ends
    reached = entrance(trace.model, torch.cat(ends), trace.softplus)
    if reached is None or not reached.elementwise:
        raise AttributionError(
            "the model adds or subtracts values of its input before the first layer with weights, so the range of what "
            "enters that is not known; rules without a box (such as epsilon_plus or epsilon_plus_flat) were expected"
        )
    low, high = reached.values.aminmax(dim=0, keepdim=True)
    return low, high


@contextmanager
def _watching(model: nn.Module, start: Start, trace: Trace) -> Iterator[list[Tensor]]:
    """Collect the outputs of the layer at which relevance starts, at the time when it returns them."""
    seen: list[Tensor] = []
    if not isinstance(start, Layer):
        yield seen
        return

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if trace.knows(output):
            seen.append(trace.value(output))

    handle = model.get_submodule(start.name).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _watched(seen: list[Tensor], start: Layer) -> Tensor:
    if not seen:
        raise AttributionError(
            f"start is the layer {start.name!r}, which did not run on the way to the logits, or gave no tensor"
        )
    return seen[-1]
