"""Restorers with a network of their own, trained in front of the frozen classifier: what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import fingerprint
from art_defenses_ext.base.declared import (
    Count,
    Flag,
    Kind,
    NonNegative,
    Positive,
    Seed,
    Share,
    number,
    one_of,
    validated,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import shape_with_channels_in_front
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.base.shares import from_shares
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import (
    check_choice,
    check_classifier,
    check_labels,
    check_outputs,
    check_takes_images,
    check_target,
    differs,
    into_clip_values,
)
from art_defenses_ext.estimator.rebuild import (
    as_model_input,
    at_least_float32,
    evaluation_mode,
    gradients_enabled,
    model_dtype,
)
from art_defenses_ext.preprocessor.base import RestoringPreprocessor
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
from art_defenses_ext.training.inputs import INPUTS, Networks, TrainingInput, may_be_end_to_end, mixture
from art_defenses_ext.training.loop import Objective, Settings, train
from art_defenses_ext.training.state import Epoch


def _inputs(value: Any) -> Any:
    """A list of names out of ``INPUTS`` and of functions."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    if not all(kind in INPUTS if isinstance(kind, str) else callable(kind) for kind in value):
        raise ValueError
    return value


Inputs = Annotated[Sequence[str | TrainingInput], Kind(f"a list of {', '.join(INPUTS)}, or of functions", _inputs)]
Radius = Annotated[float, number("a share of the clip range, at most 1,", lambda value: 0 < value <= 1)]
Part = Annotated[float, number("a share from 0 up to 1", lambda value: 0 <= value < 1)]


class TrainedRestorer(RestoringPreprocessor):
    """A restorer that is trained, with a network of its own.

    Whatever the clip range, the network sees and gives pixels as shares of it, from 0 to 1, and what it is trained on
    and by (``eps``, noise, differences of pixels) is measured in shares too: images in [0, 255] make the restorer that
    the same images in [0, 1] make.

    Beyond the clip range what it restores goes on with the slope ``leak``. **Departure**: clipped (``leak=0``), a pixel
    would pass no gradient, which misleads an attacker, and a restorer that is trained on the attacker's examples learns
    to mislead him instead of to restore; without any bend (``leak=1``) it learns to denoise far more slowly.

    Args:
        model: the classifier's network, from normalised images to logits (N, K); it stays frozen.
        channels: of the images.
        leak: slope of the restored image beyond the clip range, from 0 (clipped) to 1 (as it is).
        **options: see :class:`.RestoringPreprocessor`.

    Attributes:
        network: the restorer's own network. It is made with random weights; until ``fit`` or ``load`` has given it
            better ones, ``forward`` refuses images.
        history: the losses of the last ``fit``, epoch by epoch.
        trainings: the settings and losses of every ``fit``, in order.
        gradient_modes: ``"exact"`` differentiates everything, ``"identity"`` passes the gradient through as if nothing
            were restored.

    Raises:
        InputError: for an option that cannot be used, and in ``forward`` before ``fit``.
    """

    network: nn.Module
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "identity")
    fitted_on = "train"
    from_classifier: ClassVar[tuple[str, ...]] = ("channels",)
    usual_training = {  # noqa: RUF012
        "digits": {"nb_epochs": 60, "batch_size": 32},  # seconds; minutes for the others
        "mnist": {"nb_epochs": 2},
        "fashion_mnist": {"nb_epochs": 2},
    }
    channels: Count
    leak: Share
    usual_loss: ClassVar[RestorationLoss]
    """What ``fit`` minimises by default."""
    usual_inputs: ClassVar[tuple[str, ...]]
    """What it trains on by default."""
    network_params: ClassVar[tuple[str, ...]] = ("channels", "leak")
    """Those of ``params`` that decide the network's layers and what they are trained to see: they cannot be set."""

    def __init__(self, model: nn.Module, *, channels: int, leak: float = 0.05, **options: Any) -> None:
        self.channels, self.leak = channels, leak
        super().__init__(model, **options)
        self._is_fitted = False
        self.history: list[Epoch] = []
        self.trainings: list[Training] = []
        self._make_network(seed=0)

    @classmethod
    def for_classifier(cls, classifier: PyTorchClassifier, **options: Any) -> Self:
        check_takes_images(check_classifier(classifier), cls.__name__)
        return super().for_classifier(classifier, **(cls._suited_to(classifier) | options))

    @classmethod
    def training_options(cls) -> dict[str, Kind]:
        return super().training_options() | {"attack_mode": one_of(*cls.gradient_modes)}

    @classmethod
    def stages(cls, training: dict[str, Any]) -> list[dict[str, Any]]:
        """Adversarially trained is what is trained already; its inputs are then those made through the defence."""
        if not training.get("adversarial", False):
            return [training]
        second = {name: value for name, value in training.items() if name != "inputs"}
        return [training | {"adversarial": False}, second]

    @gradients_enabled()
    @validated
    def fit(
        self,
        x: FloatArray,
        y: IntArray | None = None,
        *,
        eps: Radius = 0.1,
        inputs: Inputs | None = None,
        loss: RestorationLoss | None = None,
        adversarial: Flag = False,
        attack_mode: str = "exact",
        nb_epochs: Count = 10,
        batch_size: Count = 128,
        learning_rate: Positive = 1e-3,
        weight_decay: NonNegative = 0.0,
        clip_norm: Positive | None = 1.0,
        patience: Count | None = None,
        validation_split: Part = 0.1,
        seed: Seed = 0,
        mixed_precision: Flag | None = None,
        checkpoint: str | Path | None = None,
        progress: Flag = True,
    ) -> None:
        """Train the restorer; the classifier stays as it is. A fitted one is trained on from where it is.

        Args:
            x: clean images (N, C, H, W), float32, in the clip range; (N, H, W, C) without ``channels_first``.
            y: class indices (N,) or one-hot rows (N, K); None for the classifier's own predictions.
            eps: size of the perturbations to train on, as a share of the clip range, up to 1: 8/255 for images in
                [0, 1] and in [0, 255] alike.
            inputs: kinds of training images, names out of ``training.inputs.INPUTS`` or functions; by default the
                method's own, and where ``adversarial`` clean ones and those made end to end.
            loss: what to minimise; by default the method's own, and where ``adversarial`` the cross-entropy of the
                classifier, which is what an attacker drives up.
            adversarial: train on adversarial examples made through the restorer and the classifier together, which
                ``inputs``, if given, must name.
            attack_mode: which of ``gradient_modes`` those are made with.
            nb_epochs, batch_size, learning_rate, weight_decay, clip_norm, patience, mixed_precision: see
                :class:`.training.Settings`.
            validation_split: share of the images that the loss is measured on after each epoch; the weights of the
                epoch with the smallest are kept. 0 keeps the last ones.
            seed: of the initial weights, the split, the order and the attacks.
            checkpoint: a file, written after each epoch, from which an interrupted fit goes on.
            progress: show a bar.

        Raises:
            InputError: for images, labels or settings that cannot be used, before any training.
        """
        check_choice("attack_mode", attack_mode, self.gradient_modes)
        settings = Settings(
            nb_epochs, batch_size, learning_rate, weight_decay, clip_norm, patience, seed, mixed_precision
        )
        inputs, loss = self._usual(inputs, loss, adversarial)
        make = mixture(inputs, eps)
        if adversarial and not any(may_be_end_to_end(one) for one in inputs):
            raise InputError(
                f"inputs is {inputs!r}, but adversarial is True; one made through the defence was expected"
            )
        path = None if checkpoint is None else check_target("checkpoint", checkpoint)
        part, held_out = _split(*self._check_training(x, y, settings.batch_size), validation_split, settings.seed)
        _check_batches(len(part[0]), settings.batch_size, len(inputs))
        if not self._is_fitted:
            self._make_network(settings.seed)
        objective = self._objective(make, loss, attack_mode)
        self._try(objective, part)
        plan: dict[str, Any] = {"eps": float(eps), "inputs": [_name(one) for one in inputs], "attack_mode": attack_mode}
        plan |= {"loss": loss.describe(), "validation_split": validation_split}
        with self._trainable(), evaluation_mode(self.model):
            self.history = train(
                self.network,
                *part,
                objective,
                settings,
                validation=held_out,
                checkpoint=path,
                identity=plan | self._identity(loss),
                progress=progress,
            )
        self._is_fitted = True
        losses = [(sum(one.training.values()), one.validation_loss if held_out else None) for one in self.history]
        self.trainings.append(Training(vars(settings) | plan | {"images": len(part[0])}, losses))

    def set_params(self, **kwargs: Any) -> None:
        for name in self.network_params:
            if name in kwargs and differs(kwargs[name], getattr(self, name)):
                raise InputError(
                    f"{name} is {shown(kwargs[name])}, and the network was made for {getattr(self, name)!r}; a new "
                    f"{type(self).__name__} was expected"
                )
        super().set_params(**kwargs)

    def save(self, path: str | Path) -> None:
        self._check_fitted()
        super().save(path)

    def rebind(self, classifier: PyTorchClassifier) -> None:
        """As :meth:`.RestoringPreprocessor.rebind`; the new classifier must have as many channels and classes."""
        check_classifier(classifier)
        for name, value in self._suited_to(classifier).items():
            if getattr(self, name) != value:
                raise InputError(f"classifier has {name} {value}; {getattr(self, name)} was expected")
        super().rebind(classifier)

    def __copy__(self) -> Self:
        """With a network of its own, so that training or moving the copy leaves the original alone."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.__dict__["_modules"] = {name: deepcopy(module) for name, module in self._modules.items()}
        copied.__dict__["trainings"] = list(self.trainings)
        return copied

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._is_fitted = True  # also where a module around it loads

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        self._check_fitted()
        return super().forward(x, y)

    def restore(self, x: Tensor) -> Tensor:
        return self._in_range(self._proposed(x, "exact"))

    def restore_with(self, x: Tensor, mode: str) -> Tensor:
        return super().restore_with(x, mode) if mode == "identity" else self._in_range(self._proposed(x, mode))

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The restored images, clipped."""
        return {"restored": self.shown(self.restore(self._inside(x)))}

    # What a method adds

    @abstractmethod
    def _build(self) -> nn.Module:
        """A new network with random weights."""

    @abstractmethod
    def _proposed(self, x: Tensor, mode: str) -> Tensor:
        """Restored images with the backward pass ``mode``, before they are bent into the clip range.

        ``x`` (n, C, H, W) is in the clip range; what comes out is in shares of it.

        ``"frozen"`` holds constant what the classifier has told of ``x``: exact for the network's own parameters.
        """

    @classmethod
    def _suited_to(cls, classifier: PyTorchClassifier) -> dict[str, Any]:
        """Options that a classifier decides."""
        return {"channels": shape_with_channels_in_front(classifier)[0]}

    # Inside

    def _usual(
        self, inputs: Sequence[str | TrainingInput] | None, loss: RestorationLoss | None, adversarial: bool
    ) -> tuple[Sequence[str | TrainingInput], RestorationLoss]:
        """What to train on and what to minimise, by default where nothing was named."""
        if inputs is None:
            inputs = ("clean", "end_to_end") if adversarial else self.usual_inputs
        if loss is None:
            loss = RestorationLoss(pixel_weight=0.0, class_weight=1.0) if adversarial else self.usual_loss
        elif not isinstance(loss, RestorationLoss):
            raise InputError(f"loss is {shown(loss)}; a RestorationLoss was expected")
        return inputs, loss

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """The network's weights can be trained meanwhile; a fit that breaks off leaves those that it found."""
        first_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.requires_grad_(True)
        try:
            yield
        except BaseException:
            self.network.load_state_dict(first_weights)
            raise
        finally:
            self.network.requires_grad_(False).to(memory_format=torch.channels_last)

    def _training_summary(self) -> list[dict[str, Any]]:
        return [vars(one) for one in self.trainings]

    def _take_summary(self, training: list[dict[str, Any]]) -> None:
        self.trainings = [Training(one["settings"], [(a, b) for a, b in one["losses"]]) for one in training]

    def _make_network(self, seed: int) -> None:
        """A new network with the random weights of ``seed``, on the classifier's device, frozen: whoever attacks the
        whole would otherwise pay for gradients of its weights, and ART would pile them up."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = self._build().to(self.device).requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # in which convolutions are fastest

    def _hold(self, *arguments: Any, **named: Any) -> None:
        super()._hold(*arguments, **named)
        if "network" in self._modules:
            self.network.to(self.device)

    def _check_images(self, x: Any) -> None:
        super()._check_images(x)
        nb_channels = x.shape[1 if self.channels_first else 3]
        if nb_channels != self.channels:
            raise InputError(f"x has {nb_channels} channels; images of {self.channels} were expected")

    def _check_fitted(self) -> None:
        if not self._is_fitted:
            raise InputError(f"{type(self).__name__} is not trained yet; fit() or load() first was expected")

    def _run(self, *x: Tensor) -> Tensor:
        """The network's answer, whatever its dtype, in that of its input."""
        if next(self.network.parameters()).device != x[0].device:  # ART has moved the classifier's network since
            self.network.to(x[0].device)
        result: Tensor = self.network(*(as_model_input(one, self.network) for one in x))
        return result.to(x[0].dtype)

    def _in_range(self, shares: Tensor) -> Tensor:
        """Pixels from shares of the clip range, those beyond it bent back."""
        inside = shares.clamp(0, 1)
        return from_shares(inside if self.leak == 0 else inside + self.leak * (shares - inside), self.clip_values)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(as_model_input(self._normalised(x), self.model))
        return at_least_float32(logits)

    def _objective(self, make: TrainingInput, loss: RestorationLoss, attack_mode: str) -> Objective:
        terms = loss.bound_to(self.model, lambda x: as_model_input(self._normalised(x), self.model), self.clip_values)
        networks = Networks(self._logits, lambda x: self._logits(self.restore_with(x, attack_mode)), self.clip_values)

        def objective(clean: Tensor, labels: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            return terms(self.restore_with(make(clean, labels, networks, noise), "frozen"), clean, labels)

        return objective

    def _try(self, objective: Objective, part: tuple[Tensor, Tensor]) -> None:
        """The loss of two images, so that what cannot be computed is refused before any training."""
        images, labels = (one[:2].to(self.device) for one in part)
        try:
            with evaluation_mode(self.model), torch.no_grad():
                objective(images, labels, torch.Generator(self.device).manual_seed(0))
        except InputError:
            raise
        except Exception as error:  # a network may check its input in any way
            raise InputError(
                f"x has images of shape {tuple(images.shape[1:])}, on which the loss cannot be computed "
                f"({' '.join(str(error).split())}); images that all networks of the loss take were expected"
            ) from error

    def _identity(self, loss: RestorationLoss) -> dict[str, Any]:
        """What else decides how a fit ends."""
        own = loss.network if isinstance(loss.network, nn.Module) else None
        return {
            "defence": {name: getattr(self, name) for name in self.params},
            "classifier": fingerprint(self.model),
            "normalisation": [self.mean.flatten().tolist(), self.std.flatten().tolist(), list(self.clip_values)],
            "loss network": None if own is None else fingerprint(own),
            "first weights": fingerprint(self.network),
        }

    def _check_training(self, x: Any, y: Any, batch_size: int) -> tuple[Tensor, Tensor]:
        """Images and class indices to train on, as tensors."""
        if model_dtype(self.model) == torch.float16:
            raise InputError(
                "model is in float16, in which small gradients become zero; float32 or bfloat16 was expected for "
                "training: fit the restorer before the network in float32, then rebind() it"
            )
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise InputError(f"x is {got}; a numpy array of float32 was expected")
        if x.ndim != 4 or x.shape[1 if self.channels_first else 3] != self.channels or x.size == 0:
            axes = f"{self.channels}, H, W" if self.channels_first else f"H, W, {self.channels}"
            raise InputError(f"x has shape {x.shape}; (N, {axes}) with N > 0 was expected")
        x = into_clip_values(x, self.clip_values)
        if np.ptp(x.reshape(len(x), -1), axis=1).max() == 0:
            raise InputError("x holds images of a single value each; images with something on them were expected")
        images = torch.from_numpy(np.ascontiguousarray(x if self.channels_first else x.transpose(0, 3, 1, 2)))
        try:
            logits = self._all_logits(images[:1], batch_size)
        except Exception as error:  # a network may check its input in any way
            raise InputError(
                f"x has images of shape {x.shape[1:]}, which the {type(self.model).__name__} cannot take "
                f"({' '.join(str(error).split())}); images of the shape that it was made for were expected"
            ) from error
        check_outputs(logits, 1, argument="model")
        if y is None:
            labels = self._all_logits(images, batch_size).argmax(dim=1).numpy()
        else:
            labels = check_labels(y, logits.shape[1], len(x))
        if len(np.unique(labels)) < 2:
            raise InputError(f"y holds class {labels[0]} alone; images of at least two classes were expected")
        return images, torch.from_numpy(labels)

    def _all_logits(self, images: Tensor, batch_size: int) -> Tensor:
        with evaluation_mode(self.model), torch.no_grad():
            return torch.cat([self._logits(batch.to(self.device)).cpu() for batch in images.split(batch_size)])


def _check_batches(nb_images: int, batch_size: int, nb_kinds: int) -> None:
    """Refuse batches with fewer images than there are kinds of them."""
    nb_least = nb_images // -(-nb_images // batch_size)
    if nb_least < nb_kinds:
        raise InputError(
            f"batch_size is {batch_size}, which makes batches of {nb_least} of {nb_images} images; at least as "
            f"many as the {nb_kinds} kinds of inputs were expected"
        )


def _name(kind: str | TrainingInput) -> str:
    """The same in each process, which the address in a function's own text is not."""
    name = str(getattr(kind, "__qualname__", kind))
    return type(kind).__qualname__ if " at 0x" in name else name


def _split(
    images: Tensor, labels: Tensor, share: float, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Images and labels to train on, and those held out; None for a share of 0."""
    if share == 0:
        return (images, labels), None
    count = int(share * len(images))
    if count == 0:
        raise InputError(
            f"x has {len(images)} images, of which a validation_split of {share:g} holds out none; more images, a "
            "larger share, or 0 for no validation was expected"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[:count].sort().values, order[count:].sort().values
    return (images[rest], labels[rest]), (images[held_out], labels[held_out])


def to_blocks(x: Tensor, side: int) -> Tensor:
    """(N, C, H, W) as (N, C side^2, ceil(H / side), ceil(W / side)), edge pixels repeated where they are too few."""
    missing = [-length % side for length in x.shape[2:]]
    padded = functional.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
    return functional.pixel_unshuffle(padded, side)


def from_blocks(x: Tensor, side: int, like: Tensor) -> Tensor:
    """Back from :func:`to_blocks` to the size of ``like``."""
    return functional.pixel_shuffle(x, side)[:, :, : like.shape[2], : like.shape[3]]
