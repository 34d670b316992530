"""Attacks have ART's interface outside, and inside tensors on the model's device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, InitVar, dataclass, field, fields
from functools import cached_property, partial
from inspect import Parameter, signature
from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from torch import Tensor, nn

from art_defenses_ext.attack.ball import Ball, NormName, ball_type, per_sample
from art_defenses_ext.attack.losses import only_pair
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.declared import Count, Flag, Positive, Seed, check_declared
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_classifier, check_images, check_labels, check_outputs
from art_defenses_ext.estimator.averaged import averages
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.paired import paired
from art_defenses_ext.estimator.rebuild import at_least_float32, evaluation_mode, gradients_enabled
from art_defenses_ext.estimator.rejecting import merge_rejection, rejects
from art_defenses_ext.gradients.modes import gradient_mode, gradient_modes

CONFIRMATIONS = 8
"""Number of consecutive gradients at which an image must be broken before its runs end, for a random network: one mean
of a few passes may be below zero by chance, and then too little for a vote of fresh passes. **Convention**."""


@dataclass(eq=False, repr=False)
class TensorAttack(EvasionAttack):
    """An evasion attack that differentiates a torch classifier together with all its preprocessing.

    On a classifier that rejects (:func:`.rejecting`), an image is broken only if another class is predicted and the
    image is not rejected.

    Args:
        estimator: the classifier under attack, defended or not.
        gradient_mode: the gradient mode of its defences, see :mod:`.modes`; None for the mode that is set when
            ``generate`` is called.
        batch_size: number of images per batch.
        seed: seed of the attack; the same seed gives the same examples.
        verbose: show a progress bar.
    """

    _estimator_requirements = (BaseEstimator, LossGradientsMixin)
    function: ClassVar[Callable[..., Tensor]]  # (logits, images, labels, ball or norm, options by name) -> images
    batches_per_block: ClassVar[int] = 1  # batches per call of ``perturb``; more for attacks that refill their batch

    estimator: InitVar[PyTorchClassifier] = field()
    _: KW_ONLY
    gradient_mode: str | None = None
    batch_size: Count = 256
    seed: Seed = 0
    verbose: Flag = False

    def __post_init__(self, estimator: PyTorchClassifier) -> None:
        check_classifier(estimator, "estimator")  # before ART's own check, for a clearer error
        EvasionAttack.__init__(self, estimator=estimator)
        self.attack_params = [*EvasionAttack.attack_params, *(parameter.name for parameter in fields(self))]
        self._check_params()

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> FloatArray:
        """Return adversarial examples for ``x``.

        Args:
            x: images ``(N, *input_shape)``, float32, in the classifier's clip range.
            y: labels to leave, indices (N,) or one-hot (N, nb_classes); None for the predicted classes. The predicted
                class of a rejected image is the most probable one besides "rejected", which is not a label.

        Returns:
            float32 images of the shape of ``x``, in the clip range and, after the rounding to float32, in the ball.

        Raises:
            InputError: for images or labels that do not fit the estimator, and for missing labels if ``targeted``.
        """
        if kwargs:
            raise InputError(f"generate has no argument {sorted(kwargs)[0]!r}; x and y were expected")
        x = check_images(x, self.estimator)
        device = self.estimator.device
        generator = torch.Generator(device).manual_seed(self.seed)
        block = self.batch_size * self.batches_per_block
        starts = range(0, len(x), block)
        results = []
        mode = nullcontext() if (name := self._mode()) is None else gradient_mode(self.estimator, name)
        with gradients_enabled(), evaluation_mode(self.estimator.model), mode, progress_bar(self.verbose) as bar:
            module = as_module(self.estimator)
            task = bar.add_task(type(self).__name__, total=len(starts), note="")
            labels = self._labels(y, len(x))
            for start in starts:
                rows = slice(start, start + block)
                images = torch.tensor(x[rows], device=device)
                if labels is None:
                    parts = images.split(self.batch_size)
                    y_block = torch.cat([predict(module, part, self.nb_labels) for part in parts])
                else:
                    y_block = torch.tensor(labels[rows], device=device)
                adversarial = self.perturb(module, images, y_block, generator).detach().cpu().numpy()
                results.append(self._inside(x[rows], adversarial))
                bar.advance(task)
        return np.concatenate(results)

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return adversarial examples for one batch: call ``function`` with the options among its keyword arguments.

        Args:
            module: the defended network, images (N, ...) -> logits (N, K).
            x: images (N, ...) on the module's device.
            y: labels (N,) to leave.
            generator: source of the attack's random numbers, on the same device.
        """
        options = self.options(module, x) | {"generator": generator}
        arguments = signature(self.function).parameters.values()
        keywords = [argument.name for argument in arguments if argument.kind is Parameter.KEYWORD_ONLY]
        selected = {name: options[name] for name in keywords if name in options}
        return self.function(self.network(module), x, y, self.domain, **selected)

    def network(self, module: nn.Module) -> Callable[..., Any]:
        """Return the network that ``function`` attacks, see :meth:`logits`."""
        return partial(self.logits, module)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        """Return the options for ``function``: the attack's parameters, and what it needs to know of the network."""
        estimator = self.estimator
        return vars(self) | {
            "clip_values": estimator.clip_values,
            "channels_first": estimator.channels_first,
            "confirmations": CONFIRMATIONS if averages(module) else 1,
        }

    @property
    def ball(self) -> Ball | None:
        """The ball that bounds the attack; None for an unbounded attack."""
        return None

    @property
    def geometry(self) -> type[Ball]:
        """The attack's norm."""
        return ball_type(vars(self)["norm"])

    @property
    def domain(self) -> Ball | type[Ball]:
        """The fourth argument of ``function``: a ball, or the norm of an unbounded attack."""
        return self.geometry

    def _inside(self, x: FloatArray, adversarial: FloatArray) -> FloatArray:
        """Return attacked images (n, ...), with those moved into the ball that rounding left outside."""
        ball = self.ball
        return adversarial if ball is None else ball.moved_inside(x, adversarial, self.estimator.clip_values)

    def logits(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the network's logits at images (n, ...), from which every loss, margin and prediction is computed.

        If the network rejects images and ``y`` (n,) are labels to leave, rejection is merged into the label's logit,
        see :func:`.merge_rejection`. If they are classes to reach, "rejected" remains a class of its own. For a
        :class:`.PairedNetwork` only the two classes of the label's problem count.
        """
        # Checked at each call, since a network may change during an attack.
        outputs = check_outputs(module(x), len(x), self.estimator.nb_classes, "estimator")
        logits: Tensor = at_least_float32(outputs)
        if self._paired:
            return only_pair(logits, y)
        return merge_rejection(logits, y) if rejects(self.estimator) and not self.targeted else logits

    @cached_property
    def _paired(self) -> bool:
        return paired(self.estimator)

    @property
    def nb_labels(self) -> int:
        """The number of classes without "rejected"."""
        classes: int = self.estimator.nb_classes
        return classes - 1 if rejects(self.estimator) else classes

    def _mode(self) -> str | None:
        """Return the gradient mode of the attack; None for the mode that is set."""
        return self.gradient_mode

    def _labels(self, y: Any, nb_samples: int) -> IntArray | None:
        """Return ``y`` as class indices (N,) without "rejected"; None if it is None."""
        if y is None:
            if self.targeted:
                raise InputError("y is None; with targeted the classes to reach were expected")
            return None
        labels = check_labels(y, self.estimator.nb_classes, nb_samples)
        if (labels >= self.nb_labels).any():
            raise InputError(
                f"y holds the label {labels.max()}, which means rejected; 0 to {self.nb_labels - 1} were expected"
            )
        return labels

    def _check_params(self) -> None:
        check_declared(self)
        check_classifier(self.estimator, "estimator")
        modes = gradient_modes(self.estimator)
        mode = self.gradient_mode
        if mode is not None and (not isinstance(mode, str) or mode not in ("exact", *modes)):
            raise InputError(f"gradient mode {shown(mode)}: one of {', '.join(modes)} was expected")


@dataclass(eq=False, repr=False)
class BallAttack(TensorAttack):
    """An attack bounded by a ball.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, or ART's numbers inf, 2 or 1; or a class of :mod:`.ball`.
        eps: radius of the ball, in pixel values.
        **options: see :class:`TensorAttack`.
    """

    norm: NormName = "linf"
    eps: Positive = 0.3

    @property
    def ball(self) -> Ball:
        return self.geometry(self.eps)

    @property
    def domain(self) -> Ball:
        return self.ball


def predict(module: nn.Module, x: Tensor, nb_labels: int | None = None) -> Tensor:
    """Return the predicted classes (N,) of images (N, ...), among the first ``nb_labels`` if given."""
    with torch.no_grad():
        classes: Tensor = module(x)[:, :nb_labels].argmax(dim=1)
    return classes


class BestPoints:
    """The point of lowest margin of each image so far.

    Args:
        x: images (N, ...), the points until others are offered.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        self.margins = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)

    def offer(self, points: Tensor, margins: Tensor, rows: Tensor | None = None, repeated: bool = True) -> None:
        """Take ``points`` (n, ...) where their ``margins`` (n,) are the lowest yet.

        Args:
            points: one point for each image, or for each of ``rows``.
            margins: margins of the points; NaN is never the lowest.
            rows: index of each point's image (n,); images may repeat, and the first of equal margins counts.
            repeated: whether images may repeat; where none does, less is computed.
        """
        margins = margins.to(self.margins.dtype)
        if rows is None:
            better = margins < self.margins
            self.points = torch.where(per_sample(better, points), points, self.points)
            self.margins = torch.where(better, margins, self.margins)
            return
        if not repeated:
            better = margins < self.margins[rows]
            self.points[rows] = torch.where(per_sample(better, points), points, self.points[rows])
            self.margins[rows] = torch.where(better, margins, self.margins[rows])
            return
        # All places of a repeated image write the same value, since the order of writing is not defined.
        margins = torch.where(margins.isnan(), torch.inf, margins)
        lowest = self.margins.scatter_reduce(0, rows, margins, "amin")[rows]
        places = torch.arange(len(rows), device=rows.device)
        wins = (margins < self.margins[rows]) & (margins == lowest)
        no_place = torch.full_like(self.margins, len(rows), dtype=torch.long)
        winner = no_place.scatter_reduce(0, rows, torch.where(wins, places, len(rows)), "amin")[rows]
        taken = per_sample(winner < len(rows), points)
        self.points[rows] = torch.where(taken, points[winner.clamp(max=len(rows) - 1)], self.points[rows])
        self.margins[rows] = lowest


Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (n, ...) and labels (n,) -> (images after one step, which of them were still classified as labelled)."""


def iterate_until_broken(step: Step, x: Tensor, y: Tensor, max_iter: int, period: int = 5) -> Tensor:
    """Repeat ``step`` on the images that are still classified as labelled, up to ``max_iter`` times.

    A step must not change a misclassified image. Broken images leave the batch every ``period`` steps, not at every
    step, since finding them waits for the device.
    """
    x = x.clone()
    active = torch.arange(len(x), device=x.device)
    for done in range(0, max_iter, period):
        images, labels = x[active], y[active]
        for _ in range(min(period, max_iter - done)):
            images, unbroken = step(images, labels)
        x[active] = images
        active = active[unbroken]
        if len(active) == 0:
            break
    return x
