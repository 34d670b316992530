"""The common base of restorers whose own network is trained in front of the frozen classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, Unpack

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import Checkpoint, fingerprint
from art_defenses_ext.base.declared import (
    Count,
    Flag,
    Kind,
    Share,
    instance_of,
    number,
    one_of,
    validated,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import shape_with_channels_in_front
from art_defenses_ext.base.progress import progress_bar
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
    explained_by_shape,
    into_clip_values,
)
from art_defenses_ext.defence.face import check_unchanged
from art_defenses_ext.estimator.rebuild import (
    as_model_input,
    at_least_float32,
    evaluation_mode,
    gradients_enabled,
    model_dtype,
)
from art_defenses_ext.preprocessor.base import RestoringPreprocessor
from art_defenses_ext.preprocessor.fitting import check_batches, largest_batch, name_of, split
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
from art_defenses_ext.training.inputs import Inputs, Networks, Radius, TrainingInput, may_be_end_to_end, mixture
from art_defenses_ext.training.loop import Data, Objective, precision_of, train
from art_defenses_ext.training.memory import check_step
from art_defenses_ext.training.settings import Settings, SettingsOptions
from art_defenses_ext.training.state import Epoch

Loss = Annotated[RestorationLoss, instance_of(RestorationLoss, "a RestorationLoss")]
Part = Annotated[float, number("a share from 0 up to 1", lambda value: 0 <= value < 1)]


class TrainedRestorer(RestoringPreprocessor):
    """A restorer with a network of its own, which is trained.

    Input and output of the network are pixels as shares of the clip range, from 0 to 1. Training sizes (``eps``, noise,
    differences of pixels) are measured in shares too, so images in [0, 255] give the same restorer as the same images
    in [0, 1].

    Beyond the clip range restored pixels continue with the slope ``leak``. **Departure**: a clipped pixel (``leak=0``)
    would pass no gradient. The gradient would be masked, and a restorer that is trained on adversarial examples would
    learn to mask it instead of to restore. Without a bend (``leak=1``) it learns to denoise far more slowly.

    Args:
        model: the classifier's network, from normalised images to logits (N, K); it stays frozen.
        channels: number of the images' channels.
        leak: slope of the restored image beyond the clip range, from 0 (clipped) to 1 (unchanged).
        **options: see :class:`.RestoringPreprocessor`.

    Attributes:
        network: the restorer's own network. It starts with random weights; before ``fit`` or ``load``, ``forward``
            refuses images.
        history: the losses of the last ``fit``, epoch by epoch.
        trainings: the settings and losses of every ``fit``, in order.
        gradient_modes: ``"exact"`` differentiates everything, ``"identity"`` passes the gradient unchanged.

    Raises:
        InputError: for an invalid option, and in ``forward`` before ``fit``.
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
    leak: Share = 0.05
    usual_loss: ClassVar[RestorationLoss]
    """The loss that ``fit`` minimises by default."""
    usual_inputs: ClassVar[tuple[str, ...]]
    """The kinds of training images by default."""
    network_params: ClassVar[tuple[str, ...]] = ("channels", "leak")
    """Those of ``params`` that determine the network's layers and inputs, and cannot be set later."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
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
        """Return one fit, or for adversarial training an ordinary fit and then one with end-to-end inputs."""
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
        loss: Loss | None = None,
        adversarial: Flag = False,
        attack_mode: str = "exact",
        validation_split: Part = 0.1,
        checkpoint: str | Path | None = None,
        progress: Flag = True,
        **settings: Unpack[SettingsOptions],
    ) -> None:
        """Train the restorer, or continue the training of a fitted one; the classifier does not change.

        Args:
            x: clean images (N, C, H, W), float32, in the clip range; (N, H, W, C) without ``channels_first``.
            y: class indices (N,) or one-hot rows (N, K); None for the classifier's own predictions.
            eps: size of the perturbations to train on, as a share of the clip range, up to 1: 8/255 for images in
                [0, 1] and in [0, 255] alike.
            inputs: kinds of training images, names of ``training.inputs.INPUTS`` or functions; by default the method's
                own, and with ``adversarial`` clean images and end-to-end adversarial ones.
            loss: the loss to minimise; by default the method's own, and with ``adversarial`` the classifier's
                cross-entropy, which attacks maximise.
            adversarial: train on adversarial examples made through the restorer and the classifier together;
                ``inputs``, if given, must name them.
            attack_mode: the gradient mode with which these are made.
            validation_split: share of the images on which the loss is measured after each epoch; the weights of the
                epoch with the smallest loss are kept. 0 keeps the last weights.
            checkpoint: a file, written after each epoch, from which an interrupted fit continues.
            progress: show a bar.
            **settings: settings of the training, such as ``nb_epochs``, see :class:`.Settings`; ``clip_norm`` is 1 by
                default. The ``seed`` is also that of the initial weights, the split and the attacks.

        Raises:
            InputError: for invalid images, labels or settings, or a batch whose step does not fit into the memory,
                before any training.
        """
        check_choice("attack_mode", attack_mode, self.gradient_modes)
        chosen = Settings.of({"clip_norm": 1.0, **settings})
        if inputs is None:
            inputs = ("clean", "end_to_end") if adversarial else self.usual_inputs
        if loss is None:
            loss = RestorationLoss(pixel_weight=0.0, class_weight=1.0) if adversarial else self.usual_loss
        make = mixture(inputs, eps)
        if adversarial and not any(map(may_be_end_to_end, inputs)):
            raise InputError(
                f"inputs is {inputs!r}, but adversarial is True; one made through the defence was expected"
            )
        path = None if checkpoint is None else check_target("checkpoint", checkpoint)
        part, held_out = split(*self._check_training(x, y, chosen.batch_size), validation_split, chosen.seed)
        check_batches(len(part[0]), chosen.batch_size, len(inputs))
        if not self._is_fitted:
            self._make_network(chosen.seed)
        objective = self._objective(make, loss, attack_mode)
        with progress_bar(progress) as bar:
            bar.add_task("trial step on two images", total=None, note="")
            self._try(objective, part, chosen)
        plan: dict[str, Any] = {"eps": float(eps), "inputs": [*map(name_of, inputs)], "attack_mode": attack_mode}
        plan |= {"loss": loss.describe(), "validation_split": validation_split}
        with self._trainable(), evaluation_mode(self.model):
            self.history = train(
                self.network,
                part,
                objective,
                chosen,
                validation=held_out,
                checkpoint=path,
                identity=plan | self._identity(loss),
                progress=progress,
            )
        self._is_fitted = True
        losses = [(sum(each.training.values()), each.validation_loss if held_out else None) for each in self.history]
        self.trainings.append(Training(vars(chosen) | plan | {"images": len(part[0])}, losses))

    def set_params(self, **kwargs: Any) -> None:
        check_unchanged(self, kwargs, self.network_params)
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
        """Return a copy with its own network, so that training or moving the copy does not affect the original."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.__dict__["_modules"] = {name: deepcopy(module) for name, module in self._modules.items()}
        copied.__dict__["_buffers"] = dict(self._buffers)
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
        """Return the restored images, clipped."""
        return {"restored": self.shown(self.restore(self._inside(x)))}

    # The method

    @abstractmethod
    def _build(self) -> nn.Module:
        """Return a new network with random weights."""

    @abstractmethod
    def _proposed(self, x: Tensor, mode: str) -> Tensor:
        """Return restored images, as shares and before the bend at the clip range, with the backward pass ``mode``.

        ``x`` (n, C, H, W) is in the clip range. ``"frozen"`` treats what is computed from the classifier as constant,
        which is exact for the restorer's own parameters.
        """

    @classmethod
    def _suited_to(cls, classifier: PyTorchClassifier) -> dict[str, Any]:
        """Return the options that a classifier determines."""
        return {"channels": shape_with_channels_in_front(classifier)[0]}

    # Inside

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """Make the network's weights trainable inside the block; a fit that fails restores the former weights."""
        first_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.requires_grad_(True)
        try:
            yield
        except BaseException:
            self.network.load_state_dict(first_weights)
            raise
        finally:
            self.network.requires_grad_(False).to(memory_format=torch.channels_last)

    def _fits(self) -> list[dict[str, Any]]:
        return [vars(training) for training in self.trainings]

    def _restore(self, saved: Checkpoint, subject: str) -> None:
        super()._restore(saved, subject)
        self.trainings = [Training.of(held) for held in saved.training]

    def _make_network(self, seed: int) -> None:
        """Make a new network with the random weights of ``seed``, on the classifier's device.

        It is frozen, since attacks would otherwise compute gradients of its weights, and ART would accumulate them.
        """
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
        """Return the network's output in the dtype of its input."""
        if next(self.network.parameters()).device != x[0].device:  # ART has moved the classifier's network since
            self.network.to(x[0].device)
        result: Tensor = self.network(*(as_model_input(values, self.network) for values in x))
        return result.to(x[0].dtype)

    def _in_range(self, shares: Tensor) -> Tensor:
        """Return pixels from shares of the clip range, with the slope ``leak`` beyond it."""
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

    def _try(self, objective: Objective, part: Data, settings: Settings) -> None:
        """Compute the loss of two images, so that training does not begin that fails or exceeds the memory."""
        images, labels = (values[:2].to(self.device) for values in part)
        precision = precision_of(settings, self.device)

        def loss(count: int) -> Tensor:
            noise = torch.Generator(self.device).manual_seed(0)
            with precision():
                return sum(objective(images[:count], labels[:count], noise).values())  # type: ignore[return-value]

        with explained_by_shape(self, images.shape[1:]), evaluation_mode(self.model), self._trainable():
            check_step(loss, largest_batch(len(part[0]), settings.batch_size), self.device)

    def _identity(self, loss: RestorationLoss) -> dict[str, Any]:
        """Return further values on which the weights at the end of a fit depend."""
        own = fingerprint(loss.network) if isinstance(loss.network, nn.Module) else None
        return {
            "defence": {name: getattr(self, name) for name in self.params},
            "classifier": fingerprint(self.model),
            "normalisation": [self.mean.flatten().tolist(), self.std.flatten().tolist(), list(self.clip_values)],
            "loss network": own,
            "first weights": fingerprint(self.network),
        }

    def _check_training(self, x: Any, y: Any, batch_size: int) -> Data:
        """Return the training images and class indices as tensors."""
        if model_dtype(self.model) == torch.float16:
            raise InputError(
                "model is in float16, in which small gradients become zero; float32 or bfloat16 was expected for "
                "training: fit the restorer before the network in float32, then rebind() it"
            )
        readable = isinstance(x, np.ndarray) and x.dtype == np.float32 and x.ndim == 4 and x.size > 0
        if not readable or x.shape[1 if self.channels_first else 3] != self.channels:
            axes = f"{self.channels}, H, W" if self.channels_first else f"H, W, {self.channels}"
            raise InputError(f"x is {shown(x)}; a numpy array of float32, (N, {axes}) with N > 0, was expected")
        x = into_clip_values(x, self.clip_values)
        if np.ptp(x.reshape(len(x), -1), axis=1).max() == 0:
            raise InputError("x holds images of a single value each; images with something on them were expected")
        images = torch.from_numpy(np.ascontiguousarray(x if self.channels_first else x.transpose(0, 3, 1, 2)))
        with explained_by_shape(self.model, x.shape[1:]):
            logits = self._all_logits(images[:1], batch_size)
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
