"""JumpReLU: a jump retrofitted to the rectifiers of a trained network.

Small positive signals are treated as noise: J(z) = z if z > kappa, else 0. The weights do not change. The jump makes
the loss surface discontinuous, and the exact gradient is uninformative at the discontinuity; an adaptive attacker uses
the surrogate gradient modes.

Source: Erichson, Yao, Mahoney 2019, "JumpReLU: A Retrofit Defense Strategy for Adversarial Attacks",
arXiv:1904.03750 (ICPRAM 2020), and the authors' published code.

**Departure**: the paper has ReLUs only. For another rectifier r, such as GELU, J(z) = r(z) if z > kappa, else 0. At
kappa = 0 this removes the values of r below zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from art.defences.transformer.transformer import Transformer
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

from art_defenses_ext.attribution.trace import Trace
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import Checkpoint
from art_defenses_ext.base.declared import Count, Flag, Kind, Positive, accepted, check_declared, number, validated
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.base.provenance import Tuning
from art_defenses_ext.base.validation import check_classifier, check_images, check_labels
from art_defenses_ext.defence.face import DefenceFace, check_known, made_for
from art_defenses_ext.estimator.pipeline import check_runs, network_input, unmoved_generators
from art_defenses_ext.estimator.rebuild import (
    as_model_input,
    at_least_float32,
    evaluation_mode,
    gradients_enabled,
    model_dtype,
    rebuild,
    record_undefended,
    without_training,
)
from art_defenses_ext.gradients.activation import Rectifier, ReplaceRectifiers, check_replaceable, count_rectifiers
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import replaced


def _jumps(value: Any) -> Any:
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return [_JUMP.accept(jump) for jump in value] if many else _JUMP.accept(value)


def _grid(value: Any) -> list[float]:
    jumps = [_JUMP.accept(jump) for jump in value] if isinstance(value, Sequence | np.ndarray) else []
    if not jumps or jumps != sorted(set(jumps)) or jumps[0] == 0:
        raise ValueError
    return jumps


_JUMP = number("a finite number >= 0", lambda value: value >= 0)
Jump = Annotated[float | Sequence[float], Kind(_JUMP.expected, _jumps)]
Grid = Annotated[Sequence[float], Kind("ascending finite numbers > 0", _grid)]
Drop = Annotated[float, number("a fraction from 0 up to 1", lambda value: 0 <= value < 1)]

NOT_TRAINED = (
    "the JumpReLU network shares its parameters with the undefended one and cannot be trained; "
    "JumpReLU(classifier, copy=True) was expected"
)


def jump_relu(
    z: Tensor,
    jump: float,
    gradient_mode: str = "exact",
    width: float | None = None,
    rectifier: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    """Return J(z) = r(z) if z > jump, else 0, for a rectifier r.

    Args:
        z: pre-activations, any shape.
        jump: kappa >= 0; at 0 J is the ReLU.
        gradient_mode: the backward rule. ``"exact"``: r'(z) 1[z > jump], the paper's white-box attack. ``"relu"``:
            r'(z), for the ReLU 1[z > 0], which also reaches the units that the jump set to zero. ``"smooth"``: the
            derivative of r(z) * sigmoid((z - jump) / width), which includes the jump itself. **Convention**: for the
            ReLU with z in place of r(z), so that units below zero have a gradient too.
        width: width of the sigmoid, > 0; None for a quarter of the jump. **Convention**: the paper has no smooth
            derivative; the table in docs/methods/jump_relu.md compares widths.
        rectifier: the rectifier r, elementwise.

    Returns:
        J(z), the same to the last bit in every gradient mode.
    """
    exact = gradient_mode == "exact" or not torch.is_grad_enabled()
    if gradient_mode == "relu" or jump == 0:  # without a jump the ReLU is the limit of the smooth rule
        width = None
    elif width is None:
        width = jump / 4
    observers = _observers()
    if observers or rectifier is not torch.relu:
        return _of_any_rectifier(z, jump, width, rectifier, exact or Trace in observers, bool(observers))
    if exact:
        return F.threshold(z, jump, 0.0)
    surrogate: Tensor = _SurrogateJump.apply(z, jump, width)
    return surrogate


def _observers() -> set[type]:
    """Return the kinds of modes around the network that must see its rectifiers: a softplus for each, or relevance."""
    return {type(mode) for mode in _get_current_function_mode_stack()} & {ReplaceRectifiers, Trace}


def _of_any_rectifier(
    z: Tensor, jump: float, width: float | None, rectifier: Callable[[Tensor], Tensor], exact: bool, observed: bool
) -> Tensor:
    """Return J(z); where a mode around the network observes it, with r(z) times a constant gate in plain sight."""
    activation = rectifier(z)
    with torch._C.DisableTorchFunction():
        below = z <= jump
        # The mode may have put another function in place of r, which belongs to the backward pass alone.
        jumped = (rectifier(z.detach()) if observed else activation).masked_fill(below, 0.0)
        gate = (~below).to(z.dtype)
    if exact:
        return activation * gate if observed else jumped
    if width is None:
        return replaced(activation, jumped.detach())
    argument = z if rectifier is torch.relu else activation
    return replaced(argument * torch.sigmoid((z - jump) / width), jumped.detach())


class _SurrogateJump(torch.autograd.Function):
    """The jump in the forward pass; the derivative of z * sigmoid((z - jump) / width), or of the ReLU, backwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, jump: float, width: float | None) -> Tensor:
        return F.threshold(z, jump, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float | None], output: Tensor) -> None:
        z, ctx.jump, ctx.width = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        if ctx.width is None:
            return torch.where(z > 0, grad_outputs[0], 0), None, None
        gate = torch.sigmoid((z - ctx.jump) / ctx.width)
        return grad_outputs[0] * (gate + z * gate * (1 - gate) / ctx.width), None, None


class JumpReLUNetwork(nn.Module, Defence):
    """A network whose rectifiers jump in evaluation mode; in training mode it is the undefended network.

    ``state_dict`` and ``load_state_dict`` use the network's own keys.

    Args:
        network: the network, with ``nb_rectifiers`` calls of rectifiers in each pass.
        jump: kappa >= 0, one for all calls or one for each.
        nb_rectifiers: number of calls of rectifiers in one pass, see :class:`.ReplaceRectifiers`.
        width: width of the smooth backward rule, see :func:`jump_relu`; attacks anneal it by ``surrogate_width``.
        shared: whether the parameters also belong to another network, so that training is refused. A copy is shared
            too, since the undefended classifier is copied with a defended one.

    Attributes:
        jumps: kappa of each call, in the order of execution.

    Source: arXiv:1904.03750 and the authors' code: every ReLU is replaced, the jump acts in evaluation mode only.
    """

    name = "jump_relu"
    gradient_modes = ("exact", "relu", "smooth")
    annealable_modes = ("smooth",)

    @validated
    def __init__(
        self, network: nn.Module, jump: Jump, nb_rectifiers: int, width: Positive | None = None, shared: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.nb_rectifiers = nb_rectifiers
        self.jumps = per_layer(jump, nb_rectifiers)
        self.width = width
        self.shared = shared
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        x = as_model_input(x, self.network)
        if self.training:
            plain: Tensor = self.network(x)
            return plain
        with ReplaceRectifiers(self._activate):
            logits: Tensor = self.network(x)
        return at_least_float32(logits)  # ART's predict returns numpy arrays, which have no bfloat16

    def _activate(self, rectifier: Rectifier, z: Tensor, call: int) -> Tensor:
        if call >= self.nb_rectifiers:
            if len(set(self.jumps)) > 1:
                raise InputError(
                    f"the network calls more than {self.nb_rectifiers} rectifiers; as many as jumps were expected"
                )
            call = 0
        jump = self.jumps[call]
        width = (jump / 4 if self.width is None else self.width) * self.surrogate_width
        return jump_relu(z, jump, self.gradient_mode, width, rectifier.function)

    def train(self, mode: bool = True) -> JumpReLUNetwork:
        """Set training or evaluation mode.

        Raises:
            InputError: for training mode while the parameters are shared with the undefended network.
        """
        if mode and self.shared:
            raise InputError(NOT_TRAINED)
        super().train(mode)
        return self

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return the authors' attacks: gray-box, on the undefended network, and white-box, with the exact gradient.

        The numbers of iterations are the authors': for MNIST in grey, and for CIFAR-10 in colour.
        """
        iterations = {"grey": 40, "colour": 7}
        attacks: dict[str, tuple[str, dict[str, Any]]] = {
            "IFGSM": ("iterative_fgsm", {"step": 0.01}),
            "DeepFool linf": ("deep_fool", {"norm": "linf"}),
            "DeepFool l2": ("deep_fool", {"norm": "l2"}),
        }
        return tuple(
            PaperAttack(f"{name}, {box}-box", attack, own | {"iterations": iterations}, on, bounded=False)  # type: ignore[arg-type]
            for box, on in (("gray", "undefended"), ("white", "defended"))
            for name, (attack, own) in attacks.items()
        )

    def undefended_network(self) -> nn.Module:
        """Return the network with its own rectifiers, which shares all tensors."""
        return self.network

    def describe(self) -> dict[str, Any]:
        """Return the jump (one number if all calls share it) and the width of the smooth rule."""
        jump = self.jumps[0] if len(set(self.jumps)) == 1 else list(self.jumps)
        return {"jump": jump, "width": self.width, "rectifiers": self.nb_rectifiers}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's state under its own keys; the jump is not part of it."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state under the network's own keys."""
        return self.network.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called if this network is part of a larger module: add the level to the keys that state_dict left out.
        own = [key for key in state_dict if key.startswith(prefix)]
        state_dict.update({f"{prefix}network.{key.removeprefix(prefix)}": state_dict.pop(key) for key in own})
        super()._load_from_state_dict(state_dict, prefix, *args)


class TradeOff(NamedTuple):
    """A point of the curve from ``fit``: a jump and its clean accuracy."""

    jump: float
    accuracy: float


class JumpReLU(Transformer, DefenceFace):
    """Retrofit a classifier with the JumpReLU.

    Args:
        classifier: trained classifier whose network has rectifiers: ReLU, ReLU6, leaky ReLU, PReLU, ELU, GELU, SiLU,
            hard-swish and others (:class:`.ReplaceRectifiers`), as modules, functions or methods, in place or not, and
            mixed. Other operations do not change: ``clamp(min=0)``, tanh, sigmoid, hard-sigmoid and softmax.
        jump: kappa >= 0 in units of the pre-activation, one for the whole network as in the paper, or one for each
            rectifier in the order of execution. **Convention**: 1.0, the largest jump of the authors' grid
            (0, .5, 1, 1.5) that does not lower the clean accuracy of their LeNet. Networks with batch norm need a much
            smaller jump (the authors' grid for ResNets ends at .09), which ``fit`` chooses.
        width: width of the smooth backward rule, see :func:`jump_relu`.
        copy: whether the transformed classifier gets its own parameters, so that it can be trained.

    Raises:
        InputError: for a jump below zero or not finite; for a network without a rectifier, with rectifiers that cannot
            be replaced, with a jump already, or without a logit for each of at least two classes.

    Source: arXiv:1904.03750; the equation in the authors' code is z * H(z - kappa).

    >>> from art_defenses_ext import JumpReLU, gradient_modes
    >>> defence = JumpReLU(classifier)
    >>> defence.fit(x_validation, y_validation, max_accuracy_drop=0.01)
    >>> defended = defence()
    >>> defence.jump > 0, gradient_modes(defended)
    (True, ('exact', 'relu', 'smooth'))
    """

    name = JumpReLUNetwork.name
    title = "JumpReLU: a jump retrofitted to every ReLU (Erichson et al. 2019)"
    paper = "https://arxiv.org/abs/1904.03750"
    gradient_modes = JumpReLUNetwork.gradient_modes
    paper_attacks = JumpReLUNetwork.paper_attacks
    fitted_on = "validation"
    chosen_by_fit = ("jump",)
    params: list[str] = ["jump", "width", "copy"]  # noqa: RUF012 (ART's convention)
    jump: Jump
    width: Positive | None
    copy: Flag

    def __init__(
        self, classifier: PyTorchClassifier, jump: Jump = 1.0, *, width: float | None = None, copy: bool = False
    ) -> None:
        super().__init__(check_classifier(classifier))
        self.jump = jump
        self.width = width
        self.copy = copy
        self.curve: list[TradeOff] = []
        self._tuned: float | None = None
        self._check_params()

    def apply(self, classifier: PyTorchClassifier) -> PyTorchClassifier:
        """Return the classifier with the jump in its network, like ART's call.

        Args:
            classifier: usually the classifier given at construction.
        """
        return self(transformed_classifier=classifier)

    def _network(self) -> nn.Module:
        return self._network_of(self.classifier)

    @classmethod
    def check_options(cls, stand_in: PyTorchClassifier, **options: Any) -> None:
        if isinstance(jumps := options.get("jump"), list | tuple):  # whose number depends on the network
            accepted(Jump, "jump", jumps)
            options["jump"] = 0.0
        super().check_options(stand_in, **options)

    def _made_for(self) -> list[Any]:
        return made_for(self.classifier)

    def _fits(self) -> list[dict[str, Any]]:
        return [] if self._tuned is None else [{"jump": self._tuned, "curve": self.curve}]

    def _restore(self, saved: Checkpoint, subject: str) -> None:
        for tuned in saved.training:
            self._tuned = tuned["jump"]
            self.curve = [TradeOff(float(jump), float(accuracy)) for jump, accuracy in tuned["curve"]]
            self._is_fitted = True

    def __call__(
        self, x: FloatArray | None = None, transformed_classifier: PyTorchClassifier | None = None
    ) -> PyTorchClassifier:
        """Return the classifier with the jump in its network.

        Mean/std, clip values, loss, other defences and device are kept. Its modules are separate objects. It shares the
        original's parameters and buffers, and its optimizer refuses to train them; with ``copy`` it has its own
        parameters and optimizer.

        Args:
            x: unused, since the jump needs no data; an argument of ART's transformers.
            transformed_classifier: a classifier to transform instead of the one given at construction.
        """
        classifier = self.classifier
        if transformed_classifier is not None:
            classifier = check_classifier(transformed_classifier, "transformed_classifier")
        optimizer = classifier.optimizer if self.copy else without_training(classifier, NOT_TRAINED)
        tensors = () if self.copy else (*classifier.model.parameters(), *classifier.model.buffers())
        # One copy of both, so that the optimizer's copy holds the network's copied parameters.
        network, optimizer = _copied((classifier.model, optimizer), {id(tensor): tensor for tensor in tensors})
        network = JumpReLUNetwork(network, self.jump, _rectifiers_of(classifier), self.width, shared=not self.copy)
        if self._tuned is not None and self._tuned == self.jump and classifier is self.classifier:
            network.tuning = Tuning("jump", self._tuned, [(point.jump, point.accuracy) for point in self.curve])
        return record_undefended(rebuild(classifier, model=network.eval(), optimizer=optimizer), classifier)

    @gradients_enabled()
    @validated
    def fit(
        self,
        x: FloatArray,
        y: Any = None,
        *,
        max_accuracy_drop: Drop = 0.01,
        jumps: Grid | None = None,
        batch_size: Count = 256,
    ) -> None:
        """Choose the largest jump whose clean accuracy is at most ``max_accuracy_drop`` below the undefended model's.

        Sets ``jump`` to the last jump before the first that lowers the accuracy further, and ``curve`` to the
        (jump, accuracy) pairs that were computed, in ascending order. Use validation images, since the choice is a form
        of training.

        Args:
            x: validation images ``(N, *input_shape)``, float32, in the clip range.
            y: true labels, indices (N,) or one-hot (N, nb_classes).
            max_accuracy_drop: accepted loss of clean accuracy, a fraction in [0, 1).
            jumps: ascending jumps > 0. None: twenty equal steps up to the first of .01, .02, .04, ... that lowers the
                accuracy too much. **Convention**: the authors' grids differ by network and were swept on test images.
            batch_size: images per forward pass.

        Raises:
            InputError: for unusable images or labels, a drop or a grid out of range, and if a jump of 0 lowers the
                accuracy too much, since it removes the values below zero of rectifiers other than the ReLU.

        Source: arXiv:1904.03750: kappa is tuned during validation.
        """
        x = check_images(x, self.classifier)
        labels = check_labels(y, self.classifier.nb_classes, len(x))
        accuracy = _CleanAccuracy(self.classifier, x, labels, batch_size)
        drop = accuracy.undefended - accuracy(0.0)
        required = accuracy.undefended - max_accuracy_drop - 1e-9  # tolerance for rounding of the two means
        if accuracy(0.0) < required:
            raise InputError(
                f"max_accuracy_drop is {max_accuracy_drop:g}, but a jump of 0 costs {drop:.3f}, since it removes the "
                "values below zero of the network's rectifiers; a larger drop was expected"
            )
        if jumps is None:
            end = 0.01
            while end < 1e6 and accuracy(end) >= required:
                end *= 2
            jumps = np.linspace(0, end, 21)[1:].tolist()
        self.jump = self._tuned = [0.0, *takewhile(lambda jump: accuracy(jump) >= required, jumps)][-1]
        self.curve = [TradeOff(*point) for point in sorted(accuracy.known.items())]
        self._is_fitted = True

    def set_params(self, **kwargs: Any) -> None:
        """Set ``jump``, ``width`` or ``copy``.

        Raises:
            InputError: for another name, which ART's transformers ignore, or a value that cannot be used; nothing
                changes then.
        """
        check_known(self, kwargs, self.params)
        former = {name: getattr(self, name) for name in kwargs}
        try:
            super().set_params(**kwargs)
        except InputError:
            self.__dict__.update(former)
            raise

    def _check_params(self) -> None:
        check_declared(self)
        per_layer(self.jump, _rectifiers_of(self.classifier))


class _CleanAccuracy:
    """Clean accuracy as a function of the jump, each value computed once.

    Attributes:
        undefended: clean accuracy of the network without the jump.
        known: the accuracies computed so far, by jump.
    """

    def __init__(self, classifier: PyTorchClassifier, x: FloatArray, labels: IntArray, batch_size: int) -> None:
        self.transformed = JumpReLU(classifier, 0.0)()
        self.x, self.labels, self.batch_size = x, labels, batch_size
        self.known: dict[float, float] = {}
        self.undefended = self._of(classifier)

    def __call__(self, jump: float) -> float:
        if jump not in self.known:
            network: JumpReLUNetwork = self.transformed.model
            network.jumps = per_layer(jump, network.nb_rectifiers)
            self.known[jump] = self._of(self.transformed)
        return self.known[jump]

    def _of(self, classifier: PyTorchClassifier) -> float:
        with evaluation_mode(classifier.model), unmoved_generators():
            logits = torch.as_tensor(classifier.predict(self.x, batch_size=self.batch_size))
        return float((named_classes(logits).numpy() == self.labels).mean())


def per_layer(jump: Jump, nb_rectifiers: int) -> tuple[float, ...]:
    """Return the jump of each rectifier.

    Raises:
        InputError: for a number of jumps that differs from the number of rectifiers.
    """
    jumps = tuple(jump) if isinstance(jump, Sequence) else (jump,) * nb_rectifiers
    if len(jumps) != nb_rectifiers:
        raise InputError(
            f"jump has {len(jumps)} values; one, or one for each of the {nb_rectifiers} rectifiers, was expected"
        )
    return jumps


def _rectifiers_of(classifier: PyTorchClassifier) -> int:
    """Return the number of rectifiers in an evaluation pass of the classifier's network, counted on an empty image."""
    if any(isinstance(module, JumpReLUNetwork) for module in classifier.model.modules()):
        raise InputError(
            f"the model {type(classifier.model).__name__} has a jump already; a model without a jump was expected"
        )
    check_replaceable(classifier.model)
    probe = _copied(classifier.model, {id(p): p for p in classifier.model.parameters()}).eval()
    try:
        nb_rectifiers = count_rectifiers(probe, network_input(classifier).to(model_dtype(probe)))
    except InputError:
        raise
    except Exception:
        check_runs(classifier)  # raises a clearer error if the network cannot take the images
        raise
    check_runs(classifier)  # after the copy, since its pass may prevent a copy
    if nb_rectifiers == 0:
        raise InputError(
            f"the model {type(classifier.model).__name__} calls no rectifier such as ReLU, GELU or SiLU; at least one "
            "was expected"
        )
    return nb_rectifiers


def _copied(original: Any, kept: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(original, kept)
    except RuntimeError as error:  # for example with torch's old weight_norm, whose weights are computed
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the model cannot be copied ({reason}); a model that copy.deepcopy can copy was expected"
        ) from error
