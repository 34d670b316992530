"""ART's interface of a torch preprocessor, for all restoring defences.

A defence adds one differentiable function from a batch of images to restored images, ``restore``, and the backward
passes that an attacker may use beside the exact one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.attribution.first_layer import Normalisation, normalisation_of
from art_defenses_ext.base.checkpoint import Checkpoint, check_kinds
from art_defenses_ext.base.declared import Count, check_declared
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import channels_to_back, channels_to_front
from art_defenses_ext.base.shares import as_shares
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import (
    check_flag,
    explained_by_shape,
    may_look,
)
from art_defenses_ext.defence.face import DefenceFace, check_known
from art_defenses_ext.estimator.defend import defend
from art_defenses_ext.estimator.pipeline import probes
from art_defenses_ext.estimator.rebuild import HALVES, model_dtype
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.preprocessor.checks import (
    channel_ends,
    channel_numbers,
    check_pixels,
    check_restorable,
    parts_of,
    pixel_range,
)

Numbers = float | Sequence[float]


class RestoringPreprocessor(nn.Module, PreprocessorPyTorch, Defence, DefenceFace):
    """A defence in front of a network that it may use, as an ART preprocessor and a torch module.

    - Images pass in chunks of ``chunk_size``, since ART's ``predict`` passes the whole array at once.
    - The network is not a submodule, so that parameters, state and mode of the defence are separate. A deepcopy or
      pickle of a defended classifier copies both together; ``rebind`` binds the defence to another network.
    - Under ``no_grad`` nothing is kept for gradients, even by a defence that computes gradients itself.
    """

    mean: Tensor
    std: Tensor
    apply_params: ClassVar[tuple[str, ...]] = ("apply_fit", "apply_predict")
    """Parameters of ART's preprocessors on when they are applied, which are not options of a defence."""
    chunk_size: Count = 64

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Numbers = 0.0,
        std: Numbers = 1.0,
        clip_values: tuple[float, float] = (0.0, 1.0),
        channels_first: bool = True,
        apply_fit: bool = False,
        apply_predict: bool = True,
        **options: Any,
    ) -> None:
        """Make a defence for a network.

        Args:
            model: the network, from normalised images to logits (N, K).
            mean: mean of the network's normalisation, one number or one for each channel; ART applies it after the
                defence, so a defence that runs the network applies it itself.
            std: deviation of the same normalisation.
            clip_values: least and largest pixel value; for arrays, that of all channels.
            channels_first: whether images are (C, H, W), for the network and ART alike; else (H, W, C).
            apply_fit: whether ART applies the defence when it trains the classifier.
            apply_predict: whether ART applies it at prediction.
            chunk_size: number of images restored at a time.
            **options: the options of the method, which its class declares as annotated attributes with defaults.

        Raises:
            InputError: for a model that is not an ``nn.Module``, invalid numbers, and an option that is unknown,
                missing or of another kind.
        """
        nn.Module.__init__(self)
        PreprocessorPyTorch.__init__(self, is_fitted=True)
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; an nn.Module was expected")
        self._hold(model, mean, std, clip_values, channels_first)
        self._apply_fit, self._apply_predict = apply_fit, apply_predict  # ART would make a bool of anything
        check_known(self, options, list(self.options()))
        for name in self.options():
            if name not in options and not hasattr(type(self), name):
                raise InputError(f"{name} is missing; a value was expected")
            setattr(self, name, options.get(name, getattr(type(self), name, None)))
        self._check_params()

    @classmethod
    def for_classifier(cls, classifier: PyTorchClassifier, **options: Any) -> Self:
        """Return the defence for a classifier, with its network, normalisation and clip values.

        Args:
            classifier: the classifier to defend.
            **options: options of the defence.

        Raises:
            InputError: for a classifier without clip values, or with preprocessing other than mean and deviation, or
                whose network does not return logits (N, nb_classes) or lacks a derivative that the defence needs.
        """
        defence = cls(**parts_of(classifier), **options)
        defence._check_network(classifier)
        return defence

    def apply(self, classifier: PyTorchClassifier) -> PyTorchClassifier:
        """Return the classifier with the defence after the preprocessors that it has, see :func:`.defend`.

        Args:
            classifier: usually the classifier that the defence was made for.
        """
        return defend(classifier, self)

    # The method

    @abstractmethod
    def restore(self, x: Tensor) -> Tensor:
        """Return restored images of the shape of ``x`` (n, C, H, W), differentiable if gradients are enabled.

        If they are not, ``x`` requires no gradient. Channels come first whatever the network takes, and the dtype is
        the network's, at least float32.
        """

    def restore_with(self, x: Tensor, mode: str) -> Tensor:
        """Return the same values as :meth:`restore`, with the backward pass named ``mode``."""
        if mode == "identity":
            with torch.no_grad():
                restored = self.restore(x.detach())
            return replaced(x, restored.detach())
        return self.restore(x)

    def describe(self) -> dict[str, Any]:
        """Return the options without ``chunk_size``, which has no effect on results; for an object its class."""
        named = {name: getattr(self, name) for name in self.options() if name != "chunk_size"}
        return {name: value if _is_plain(value) else type(value).__name__ for name, value in named.items()}

    def shown(self, x: Tensor) -> Tensor:
        """Return images (N, ...) in the clip range as pictures for a report, from 0 to 1."""
        return as_shares(x.clamp(*self.clip_values), self.clip_values)

    # The interface of ART and torch

    @property
    def params(self) -> list[str]:
        """The names for ART's ``set_params``: the declared options, and whether ART applies the defence."""
        return [*self.options(), *self.apply_params]

    @property
    def model(self) -> nn.Module:
        """The network that the defence uses."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """The network's device."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return tensors[0].device if tensors else torch.device("cpu")

    def __call__(self, x: Any, y: Any = None) -> Any:
        """Restore numpy arrays, as ART's preprocessors do, or tensors; return restored images and unchanged labels.

        Args:
            x: images (N, C, H, W) in the clip range, up to rounding: an array of floating-point numbers in any memory
                layout, or a tensor as for :meth:`forward`.
            y: labels, returned as they are.

        Raises:
            InputError: as :meth:`forward`, for an array of anything else, and for NaN and values outside the clip
                range. Tensors are checked for these on the CPU without gradients only, where this neither waits for the
                device nor hinders an attack.
        """
        if not isinstance(x, Tensor):
            x = check_restorable(x, self.clip_values, self._axes)
            return self._tried(PreprocessorPyTorch.__call__, x, y)
        self._check_images(x)
        if may_look(x) and not x.requires_grad and type(x) is Tensor and not torch.compiler.is_compiling():
            check_pixels(x, self.clip_values)
        return self._tried(nn.Module.__call__, x, y)

    def _tried(self, call: Any, x: Any, y: Any) -> Any:
        """Call the restorer; refuse images that the network cannot take with an InputError."""
        # Under torch.func it may be torch that refuses, whatever the shape.
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return call(self, x, y)
        with explained_by_shape(self.model, x.shape[1:]):
            return call(self, x, y)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Restore images.

        Args:
            x: images (N, C, H, W) in the clip range, any floating-point dtype; (N, H, W, C) without
                ``channels_first``.
            y: labels, returned as they are.

        Returns:
            Restored images, of the shape of ``x`` and the network's dtype, and ``y``. **Convention**: float32 for a
            network of bfloat16, which numpy, and therefore ART's ``predict``, does not have.

        Raises:
            InputError: for anything but a batch of images on the network's device.
        """
        self._check_images(x)
        x = self._inside(x)
        # Not x.requires_grad: inside torch.func's transforms it is False, and the attacker would get no gradient.
        if not torch.is_grad_enabled():
            return self._outside(self._without_gradient(x)), y
        restored = torch.cat([self.restore_with(batch, self.gradient_mode) for batch in x.split(self.chunk_size)])
        return self._outside(restored), y

    def rebind(self, classifier: PyTorchClassifier) -> None:
        """Bind the defence to another classifier's network, such as one that ART has cloned for refitting.

        Such a clone shares the defence with its original, which would then use the clone's network too: bind a
        ``copy.copy`` of the defence, and pass it to the clone by ``set_params(preprocessing_defences=[...])``.

        Raises:
            InputError: as :meth:`for_classifier`, or if an option does not fit the network; nothing changes then.
        """
        parts = parts_of(classifier)
        tried = copy(self)
        tried._hold(**parts)
        tried._check_params()
        tried._check_network(classifier)
        self._hold(**parts)

    def set_params(self, **kwargs: Any) -> None:
        """Set the parameters that ``params`` names; other names, which ART drops silently, are refused.

        Raises:
            InputError: for an unknown name or an invalid value; nothing changes then.
        """
        check_known(self, kwargs, self.params)
        tried = copy(self)
        tried._set(kwargs)
        tried._check_params()
        self._set(kwargs)

    def _check_params(self) -> None:
        check_declared(self)
        for name in self.apply_params:
            check_flag(name, getattr(self, name))

    # Inside

    def _check_network(self, classifier: PyTorchClassifier) -> None:
        """Refuse a classifier whose network lacks a derivative that the defence needs; by default none is needed."""

    def _network(self) -> nn.Module:
        return self.model

    def _own(self) -> nn.Module:
        return self

    def _made_for(self) -> list[Any]:
        """Return clip values, mean and std in float32, since a file may have been written on any device."""
        numbers = (torch.tensor(self.clip_values), self.mean, self.std)
        return [values.flatten().float().tolist() for values in numbers]

    def _restore(self, saved: Checkpoint, subject: str) -> None:
        check_kinds(subject, saved.tensors, self.state_dict())
        self.load_state_dict(saved.tensors)

    def _hold(self, model: nn.Module, mean: Any, std: Any, clip_values: Any, channels_first: Any) -> None:
        numbers = {"mean": channel_numbers("mean", mean), "std": channel_numbers("std", std)}
        if bool((numbers["std"] <= 0).any()):
            raise InputError(f"std is {shown(std)}; numbers > 0 were expected")
        check_flag("channels_first", channels_first)
        self.clip_values = pixel_range(clip_values)
        self.channels_first = channels_first
        self._ends = channel_ends(clip_values, channels_first)
        self._held = (model,)  # in a tuple, which nn.Module does not look into
        self._buffers = dict(self._buffers)  # which a copy.copy shares with its original
        for name, values in numbers.items():
            self.register_buffer(name, values.to(self.device), persistent=False)

    def _set(self, params: dict[str, Any]) -> None:
        for name, value in params.items():
            if isinstance(value, nn.Module):  # which torch would register, in a copy's original too
                raise InputError(f"{name} is a {type(value).__name__}; an option, no network, was expected")
            value = value.item() if isinstance(value, np.generic) else value  # JSON takes no other numbers
            setattr(self, f"_{name}" if name.startswith("apply_") else name, value)  # ART's are properties

    def _without_gradient(self, x: Tensor) -> Tensor:
        """Restore batch by batch into one array, so that memory grows by this array alone."""
        restored = torch.empty_like(x)
        for start in range(0, len(x), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            restored[rows] = self.restore(x[rows].detach()).detach()
        return restored

    def _inside(self, x: Tensor) -> Tensor:
        """Return ART's images in the form for a method: (N, C, H, W), at least float32."""
        return self._with_digits(x if self.channels_first else channels_to_front(x))

    def _with_digits(self, x: Tensor) -> Tensor:
        dtype = model_dtype(self.model)
        return x if dtype is None else x.to(torch.float32 if dtype in HALVES else dtype)

    def _outside(self, x: Tensor) -> Tensor:
        """Return a method's images in ART's form, the inverse of :meth:`_inside`."""
        x = x.half() if model_dtype(self.model) == torch.float16 else x
        return x if self.channels_first else channels_to_back(x)

    def _normalised(self, x: Tensor) -> Tensor:
        """Return images (n, C, H, W) in the form for the network."""
        normalised = (x - self.mean.to(x)) / self.std.to(x)
        return normalised if self.channels_first else channels_to_back(normalised)

    def _probes(self, classifier: PyTorchClassifier) -> Tensor:
        """Return two images of noise (2, C, H, W), to test a network."""
        return self._inside(torch.tensor(probes(classifier), device=self.device))

    def _inner_normalisation(self, x: Tensor) -> Normalisation | None:
        """Return the normalisation of images (n, C, H, W) inside the network before its first layer, if any."""
        low, high = (self._normalised(torch.full_like(x[:1], end))[0] for end in self.clip_values)
        return normalisation_of(self.model, low, high, 0 if self.channels_first else 2)

    @property
    def _axes(self) -> str:
        return "(N, C, H, W)" if self.channels_first else "(N, H, W, C)"

    def _check_images(self, x: Any) -> None:
        dense = isinstance(x, Tensor) and x.layout == torch.strided
        if not dense or not x.is_floating_point() or x.itemsize == 1 or x.ndim != 4:
            what = f"{tuple(x.shape)} of {x.dtype}" if dense else f"a {getattr(x, 'layout', type(x).__name__)}"
            raise InputError(f"x is {what}; images {self._axes} of floating-point values were expected")
        if len(x) == 0:
            raise InputError("x is empty; at least one image was expected")
        nb_channels = x.shape[1 if self.channels_first else 3]
        for numbers in (self.mean, self.std):
            if len(numbers) not in (1, nb_channels):
                raise InputError(
                    f"x has {nb_channels} channels, mean or std {len(numbers)} values; as many were expected"
                )
        if x.device != self.device:
            raise InputError(
                f"x is on {x.device} and the defence's network on {self.device}; one device was expected: build the "
                "defence for the classifier that it stands before, or rebind() it"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
