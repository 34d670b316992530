"""Explanation reconstructor: flags images whose explanation cannot be reconstructed as benign ones of their class can.

Source: Ko, Lim 2021, "Unsupervised Detection of Adversarial Examples with Model Explanations" (arXiv:2107.10480), and
the authors' published code. A network explains its prediction of class c by phi(x); one autoencoder g_c per class has
learnt to reconstruct the explanations of benign images predicted as c; an image whose reconstruction error exceeds t_c
is flagged. No adversarial example takes part in training.

The score depends on the derivative of a derivative of the classifier, which is zero almost everywhere in a ReLU
network. So whoever attacks the score needs the gradient mode ``"smooth"``: a softplus copy of the classifier for the
explanation's backward pass, after Dombrowski et al. 2019 (arXiv:1906.07983).

**Departure** from the authors' code: there the threshold is the best one in hindsight, chosen with the adversarial
scores; here it is a quantile of the scores of held-out benign images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.attribution.second_order import check_second_derivative
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import check_kinds, load_checkpoint, save_checkpoint
from art_defenses_ext.base.layout import channels_to_front, shape_with_channels_in_front
from art_defenses_ext.base.memory import available_memory, in_words
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import (
    InputError,
    check_choice,
    check_classifier,
    check_count,
    check_flag,
    check_images,
    check_inner_share,
    check_takes_images,
    check_target,
    differs,
)
from art_defenses_ext.detector.explanations import EXPLANATIONS, STATISTICS, TINY, maps, statistics
from art_defenses_ext.detector.reconstructors import (
    SCORES,
    ClassAutoencoders,
    ClassGaussians,
    ConvolutionalAutoencoder,
    make_reconstructors,
)
from art_defenses_ext.estimator.pipeline import Pipeline, check_differentiable, check_runs, device_of, probes
from art_defenses_ext.estimator.rebuild import evaluation_mode, gradients_enabled, rebuild
from art_defenses_ext.gradients.modes import Defence, find_defences, gradient_mode
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.training.loop import Settings, train
from art_defenses_ext.training.state import Epoch

SCALINGS = ("image", "benign")

RECONSTRUCTORS = ("autoencoder", "convolutional", "statistics")

BETA = 10.0
"""Of the softplus in the smooth surrogate: the larger, the closer to the ReLU. **Convention**: as for TRN's maps; an
attacker grows it to ten times as much."""

PERCENTILE = 0.99
"""Of an image's explanation, which becomes 1. Source: the authors' code."""


class ExplanationReconstructor(BinaryInputDetector):
    """A detector that is fitted on benign images alone; ART's detector outside, a differentiable network inside.

    Args:
        classifier: the classifier to watch, with all its preprocessing, defended or not; it stays as it is.
        explanation: a name out of ``EXPLANATIONS``, or several, whose maps are reconstructed together; with
            ``reconstructor="statistics"`` also ``"noise_response"``, how the logits answer to noise.
        scaling: ``"image"``: an explanation's least value becomes 0 and its 99th percentile 1, as in the authors' code,
            which takes its magnitude away; ``"benign"``: the logarithm of its values, of which the 0.1th percentile
            over benign images becomes 0 and the 99.9th 1, which keeps it; beyond them it goes on.
        score: ``"above_median"``: the mean of the absolute errors above the image's own median, the others taken as
            zero, as in the authors' code; ``"l1"``: their mean; ``"l2"``: the mean of their squares.
        hidden: units between encoder and decoder of each class; the convolutional one has a sixteenth as many
            channels.
        reconstructor: ``"autoencoder"``: a dense one for each class, as in the authors' code; ``"convolutional"``: one
            for all classes with biases of each class's own; ``"statistics"``: no map is reconstructed, but each
            explanation's size and its share of high frequencies are held against their Gaussian for the class:
            ``scaling``, ``score`` and ``hidden`` play no part.
        false_positive_rate: share of benign images of each predicted class that may be flagged.

    Attributes:
        detector: a two-output ``PyTorchClassifier`` over images in the clip range, with logits [0, score - threshold of
            the predicted class]; ART's attacks run on it.
        network: its network, whose ``scores`` is differentiable.
        training: how it was fitted; None before ``fit``.

    Raises:
        InputError: for an unknown option, a classifier that does not give an image a logit for each of at least two
            classes, a network that torch cannot differentiate twice, weights that do not fit into memory, and for
            scores before ``fit``.

    >>> from art_defenses_ext import ExplanationReconstructor
    >>> detector = ExplanationReconstructor(classifier)
    >>> detector.fit(x_train, nb_epochs=1, validation_split=0.25, progress=False)
    >>> report, is_adversarial = detector.detect(x)
    >>> is_adversarial.shape, sorted(report)
    ((8,), ['classes', 'predictions', 'scores', 'thresholds'])
    """

    made_with: ClassVar[tuple[str, ...]] = ("explanation", "scaling", "score", "hidden", "reconstructor")
    """Options that the network is made with: they cannot be set."""
    defence_params: ClassVar[list[str]] = [*made_with, "false_positive_rate"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        explanation: str | Sequence[str] = "input_gradient",
        scaling: str = "image",
        score: str = "above_median",
        hidden: int = 64,
        reconstructor: str = "autoencoder",
        false_positive_rate: float = 0.05,
    ) -> None:
        check_classifier(classifier)
        check_takes_images(classifier, type(self).__name__)
        self.classifier = classifier
        self.explanation = list(explanation) if isinstance(explanation, list | tuple) else explanation
        self.scaling, self.score, self.hidden, self.reconstructor = scaling, score, hidden, reconstructor
        self.false_positive_rate = false_positive_rate
        self.training: Training | None = None
        self._check_params()
        check_runs(check_differentiable(classifier))
        self._check_memory(1)
        self.network = self._new_network()
        self._check_second_derivative()
        super().__init__(self._as_classifier())

    @gradients_enabled()
    def fit(
        self,
        x: FloatArray,
        y: IntArray | None = None,
        batch_size: int = 32,
        nb_epochs: int = 10,
        *,
        learning_rate: float = 1e-3,
        validation_split: float = 0.1,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Learn what explanations of benign images look like, and set the thresholds on those held out.

        A fit that breaks off leaves the detector as it was.

        Args:
            x: benign images ``(N, *input_shape)``, float32, in the clip range.
            y: ART's 0/1 labels (N,) or one-hot (N, 2), 1 for adversarial; only zeros are taken. None for all benign.
            batch_size: images of each class in a step, in the mean: the autoencoders of all classes are trained
                together.
            nb_epochs: passes over the images.
            learning_rate: Adam's step size at the start. **Convention**: it falls to 0 along a cosine, as everywhere
                here; the authors keep it.
            validation_split: share of each predicted class's images that only the thresholds are set on.
            seed: of initial weights, split and order.
            checkpoint: a file, written after each epoch, from which an interrupted fit goes on.
            progress: show a bar.

        Raises:
            InputError: for images that cannot be used, a label 1, a class that no image is predicted as, too few images
                to set a threshold on, explanations that are all constant, or settings of no use; before any training.
        """
        if kwargs:
            raise InputError(f"fit has no argument {sorted(kwargs)[0]!r}; see its documentation")
        batch_size = check_count("batch_size", batch_size)
        x = check_images(x, self.classifier)
        check_flag("progress", progress)
        _check_benign(y, len(x))
        validation_split = check_inner_share("validation_split", validation_split)
        self._check_memory(TRAINING_COPIES)
        nb_classes = self.classifier.nb_classes
        settings = Settings(nb_epochs, batch_size * nb_classes, learning_rate, seed=seed)
        path = None if checkpoint is None else check_target("checkpoint", checkpoint)
        raw, classes = self._explained(x)
        held_out = _held_out(classes, nb_classes, validation_split, self.false_positive_rate, settings.seed)
        _check_maps(raw, self._explanations)
        network = self._new_network()  # its own, so that whatever comes in between leaves the former one whole
        network.calibrate(raw[~held_out])
        scaled = torch.cat([network.scaled(some.to(network.device)).cpu() for some in raw.split(AT_ONCE)])
        network.reconstructors = network.new_reconstructors(settings.seed).to(network.device)
        part = scaled[~held_out], classes[~held_out]
        if isinstance(network.reconstructors, ClassGaussians):
            network.reconstructors.fit(part[0].flatten(1), part[1])
            history = []
        else:
            history = self._trained(network.reconstructors, *part, settings, path, progress)
        with torch.no_grad():
            errors = [
                network.score_of(some.to(network.device), of.to(network.device))
                for some, of in zip(scaled[held_out].split(AT_ONCE), classes[held_out].split(AT_ONCE), strict=True)
            ]
        network.keep(torch.cat(errors), classes[held_out], self.false_positive_rate)
        self.network.take(network)
        plan = vars(settings) if history else {"seed": settings.seed}  # a Gaussian is not trained
        plan = plan | {"images": int((~held_out).sum()), "validation_split": validation_split}
        self.training = Training(plan, [(sum(one.training.values()), None) for one in history])
        self.network.trainings = [self.training]

    def _trained(
        self,
        reconstructors: nn.Module,
        scaled: Tensor,
        classes: Tensor,
        settings: Settings,
        checkpoint: Path | None,
        progress: bool,
    ) -> list[Epoch]:
        """Train autoencoders on scaled maps (N, M, H, W) of classes (N,)."""

        def objective(batch: Tensor, classes: Tensor, _: torch.Generator) -> dict[str, Tensor]:
            return {"reconstruction": functional.mse_loss(reconstructors(batch.flatten(1), classes), batch.flatten(1))}

        identity = {name: getattr(self, name) for name in self.made_with if name != "score"}
        return train(
            reconstructors,
            scaled,
            classes,
            objective,
            settings,
            checkpoint=checkpoint,
            identity=identity,
            progress=progress,
        )

    def scores(self, x: FloatArray, batch_size: int = 128) -> npt.NDArray[np.float32]:
        """How badly each image's explanation is reconstructed.

        Args:
            x: images ``(N, *input_shape)``, float32, in the clip range; read batch by batch, so a memory-mapped array
                of any length will do.
            batch_size: images at a time.

        Returns:
            Scores (N,), from 0 on.

        Raises:
            InputError: before ``fit``, and for images that cannot be used.
        """
        scores: npt.NDArray[np.float32] = self._measured(x, batch_size)["scores"]
        return scores

    def detect(
        self, x: FloatArray, batch_size: int = 128, **kwargs: Any
    ) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
        """Which images are flagged.

        Args:
            x, batch_size: as for :meth:`scores`.

        Returns:
            A report and flags (N,). The report holds ``predictions``, the logits (N, 2) of ``detector``, as ART's
            detectors have it, ``scores`` (N,), ``thresholds`` (N,) and ``classes`` (N,), the predicted ones.

        Raises:
            InputError: as :meth:`scores`.
        """
        if kwargs:
            raise InputError(f"detect has no argument {sorted(kwargs)[0]!r}; x and batch_size were expected")
        found = self._measured(x, batch_size)
        flagged = ~(found["scores"] <= found["thresholds"])  # a score that is NaN is flagged, as ART's argmax has it
        excess = found["scores"] - found["thresholds"]
        return {"predictions": np.stack([np.zeros_like(excess), excess], axis=1), **found}, flagged

    def set_params(self, **kwargs: Any) -> None:
        """Set ``false_positive_rate``, and with it the thresholds; what the network is made with cannot be set.

        Raises:
            InputError: for another name or value; nothing changes then.
        """
        for name in kwargs:
            if name not in self.defence_params:
                raise InputError(f"{name}: no parameter of {type(self).__name__}; it has {self.defence_params}")
            given = list(kwargs[name]) if isinstance(kwargs[name], tuple) else kwargs[name]
            if name in self.made_with and differs(given, getattr(self, name)):
                raise InputError(
                    f"{name} is {shown(kwargs[name])}, and the detector was made for "
                    f"{getattr(self, name)!r}; a new one was expected"
                )
        rate = kwargs.get("false_positive_rate", self.false_positive_rate)
        rate = check_inner_share("false_positive_rate", rate)
        if self.network.is_fitted:
            self.network.set_rate(rate)
        self.false_positive_rate = rate

    def save(self, path: str | Path) -> None:
        """Write options, autoencoders and thresholds to one safetensors file, together with a hash of the classifier.

        Args:
            path: the file, which is replaced as a whole if it is there.

        Raises:
            InputError: before ``fit``, and as :func:`.save_checkpoint`.
        """
        self.network.check_fitted()
        settings = {name: getattr(self, name) for name in self.defence_params} | {
            "made for": _made_for(self.classifier)
        }
        training = [] if self.training is None else [vars(self.training)]
        save_checkpoint(path, DetectorNetwork.defence_name, settings, self.network, self.network.pipeline, training)

    @classmethod
    def load(cls, path: str | Path, *, classifier: PyTorchClassifier) -> Self:
        """The detector that was saved to ``path``, for the classifier that it was fitted for.

        Raises:
            InputError: as :func:`.load_checkpoint`, and for a classifier with other preprocessing or defences.
        """
        check_classifier(classifier)
        saved = load_checkpoint(path, DetectorNetwork.defence_name, _pipeline(classifier))
        settings = dict(saved.settings)
        made_for = settings.pop("made for", None)
        if made_for != _made_for(classifier):
            raise InputError(
                f"path is {str(path)!r}, made for {made_for}, and the classifier has {_made_for(classifier)} (clip "
                "values, mean, std, then its defences); the same were expected"
            )
        try:
            detector = cls(classifier, **settings)
            detector.network.make()
            check_kinds(f"path is {str(path)!r}", saved.tensors, detector.network.state_dict())
            detector.network.load(saved.tensors)
            if saved.training:
                held = saved.training[0]
                detector.training = Training(held["settings"], [(a, b) for a, b in held["losses"]])
                detector.network.trainings = [detector.training]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"path is {str(path)!r}, from which no {cls.__name__} of this version can be built "
                f"({' '.join(str(error).split())})"
            ) from error
        return detector

    @property
    def weight_bytes(self) -> int:
        """Bytes of what the reconstructors learn; while they are trained ``fit`` takes four times as many.

        For the dense ones 4 K (2 d h + d + h) with K classes, d pixels of all maps and h hidden units.
        """
        return self._bytes_of(self.reconstructor)

    # Inside

    def _bytes_of(self, reconstructor: str) -> int:
        """What the weights of a kind of reconstructor take, with none of them made."""
        count, (height, width) = len(self._explanations), shape_with_channels_in_front(self.classifier)[1:]
        options = self.classifier.nb_classes, (count, height, width), self.hidden
        with torch.device("meta"):
            made = make_reconstructors(reconstructor, *options)
        return sum(tensor.nbytes for tensor in made.state_dict().values())

    def _check_memory(self, copies: int) -> None:
        """Refuse weights of which so many copies do not fit into the memory of the classifier's device.

        Raises:
            InputError: where less memory is available than they take.
        """
        device = device_of(self.classifier)
        weights, available = self.weight_bytes, available_memory(device)
        if available is None or copies * weights <= available:
            return
        doing = "" if copies == 1 else f", and {in_words(copies * weights)} while they are trained"
        others = [
            f"reconstructor={kind!r}, which takes {in_words(self._bytes_of(kind))}"
            for kind in RECONSTRUCTORS
            if kind != self.reconstructor and copies * self._bytes_of(kind) <= available
        ]
        raise InputError(
            f"reconstructor is {self.reconstructor!r}, whose weights for {self.classifier.nb_classes} classes take "
            f"{in_words(weights)}{doing}, of {in_words(available)} available on {device}; "
            f"{' or '.join(others) or 'a smaller hidden'} was expected"
        )

    @property
    def _explanations(self) -> list[str]:
        return self.explanation if isinstance(self.explanation, list) else [self.explanation]  # type: ignore[list-item]

    def __getstate__(self) -> dict[str, Any]:
        """Without ``detector``, which ART would copy with another network inside than ``network``."""
        return {name: value for name, value in vars(self).items() if name != "detector"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # ART's copies of a classifier have a module of their own around its parameters, and choose their device.
        self.network.look_into(_pipeline(self.classifier))
        self.network.to(device_of(self.classifier))
        self.detector = self._as_classifier()

    def _new_network(self) -> DetectorNetwork:
        classifier = self.classifier
        shape, names = shape_with_channels_in_front(classifier), list(self._explanations)
        options = self.scaling, self.score, self.hidden, self.reconstructor
        network = DetectorNetwork(_pipeline(classifier), classifier.nb_classes, shape, names, *options)
        return network.to(device_of(classifier)).requires_grad_(False).eval()

    def _check_second_derivative(self) -> None:
        """Refuse a network whose explanation has no derivative: tried on two images of noise."""
        network = self.network
        x = torch.tensor(probes(self.classifier), device=network.device)
        classes = network.predicted(x)
        check_second_derivative(lambda at: network.explained(at, classes), self.classifier.model, x)

    def _as_classifier(self) -> PyTorchClassifier:
        return rebuild(
            self.classifier,
            model=self.network,
            loss=nn.CrossEntropyLoss(),
            nb_classes=2,
            optimizer=None,
            use_amp=False,
            preprocessing_defences=None,
            preprocessing=(0.0, 1.0),
        )

    def _explained(self, x: FloatArray) -> tuple[Tensor, Tensor]:
        """Unscaled maps (N, M, H, W) and predicted classes (N,) of images, on the CPU."""
        network = self.network
        maps, classes = [], []
        with torch.no_grad():
            for start in range(0, len(x), AT_ONCE):
                batch = torch.tensor(x[start : start + AT_ONCE], device=network.device)
                predicted = network.predicted(batch)
                maps.append(network.explained(batch, predicted).cpu())
                classes.append(predicted.cpu())
        return torch.cat(maps), torch.cat(classes)

    def _measured(self, x: FloatArray, batch_size: int) -> dict[str, Any]:
        """Scores, thresholds and predicted classes (N,), by name."""
        self.network.check_fitted()
        check_count("batch_size", batch_size)
        if not isinstance(x, np.ndarray) or x.ndim == 0 or len(x) == 0:
            check_images(x, self.classifier)  # says what is wrong
        found: dict[str, npt.NDArray[Any]] = {
            "scores": np.empty(len(x), np.float32),
            "thresholds": np.empty(len(x), np.float32),
            "classes": np.empty(len(x), np.int64),
        }
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            batch = torch.tensor(check_images(x[rows], self.classifier), device=self.network.device)
            with torch.no_grad():
                scores, classes = self.network.scores(batch)
                thresholds = self.network.thresholds[classes]
            for name, values in (("scores", scores), ("thresholds", thresholds), ("classes", classes)):
                found[name][rows] = values.cpu().numpy()
        return found

    def _check_params(self) -> None:
        check_choice("reconstructor", self.reconstructor, RECONSTRUCTORS)
        known = STATISTICS if self.reconstructor == "statistics" else tuple(EXPLANATIONS)
        for name in self._explanations:
            check_choice("explanation", name, known)
        if not 0 < len(self._explanations) == len(set(self._explanations)):
            raise InputError(f"explanation is {self.explanation!r}; distinct ones of {', '.join(known)} were expected")
        check_choice("scaling", self.scaling, SCALINGS)
        check_choice("score", self.score, list(SCORES))
        self.hidden = check_count("hidden", self.hidden)
        self.false_positive_rate = check_inner_share("false_positive_rate", self.false_positive_rate)


TRAINING_COPIES = 4
"""Of the weights, while they are trained: themselves, their gradients and Adam's two moments."""

AT_ONCE = 128
"""Images explained at a time in ``fit``."""


class DetectorNetwork(nn.Module, Defence):
    """Images in the clip range to logits (n, 2): [0, score - threshold of the predicted class].

    They come as the classifier takes them, (n, C, H, W) or (n, H, W, C); explanations have the channels in front.
    The classifier's pipeline is no submodule: the detector's parameters, state and mode are its own.

    Attributes:
        thresholds: (K,), of each class.
        gradient_modes: ``"exact"`` differentiates the explanation itself; ``"smooth"`` takes the explanation's
            derivative from the classifier with softplus in place of ReLU.
    """

    defence_name = "explanation_reconstructor"
    gradient_modes = ("exact", "smooth")
    annealable_modes = ("smooth",)
    thresholds: Tensor
    low: Tensor
    high: Tensor
    held_out_scores: Tensor
    held_out_classes: Tensor
    reconstructors: ClassAutoencoders | ConvolutionalAutoencoder | ClassGaussians

    def __init__(
        self,
        pipeline: Pipeline,
        nb_classes: int,
        image_shape: tuple[int, ...],
        explanations: list[str],
        scaling: str,
        score: str,
        hidden: int,
        reconstructor: str = "autoencoder",
    ) -> None:
        super().__init__()
        self.look_into(pipeline)
        self.reconstructor = reconstructor
        self.nb_classes, self.image_shape, self.hidden = nb_classes, image_shape, hidden
        self.explanations, self.scaling, self.scoring = explanations, scaling, score
        self.register_buffer("thresholds", torch.full((nb_classes,), torch.nan))
        self.register_buffer("low", torch.zeros(len(explanations), 1, 1))
        self.register_buffer("high", torch.ones(len(explanations), 1, 1))
        self.register_buffer("held_out_scores", torch.zeros(0))
        self.register_buffer("held_out_classes", torch.zeros(0, dtype=torch.long))
        self.add_module("reconstructors", None)  # which may be large: made by fit and load

    def forward(self, x: Tensor) -> Tensor:
        scores, classes = self.scores(x)
        excess = scores - self.thresholds[classes]
        return torch.stack([torch.zeros_like(excess), excess], dim=1)

    # The method

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction errors (n,), differentiable, and predicted classes (n,) of images (n, ...)."""
        self.check_fitted()
        classes = self.predicted(x)
        maps = self.scaled(self._explained_as_attacked(x, classes))
        scores = self.score_of(maps, classes).to(x.dtype)
        # A linear classifier's explanation has no x in it: its gradient is zero, which autograd would call an error.
        return scores + 0 * x.flatten(1).sum(dim=1), classes

    def predicted(self, x: Tensor) -> Tensor:
        """The classes (n,) that the classifier predicts."""
        with torch.no_grad(), evaluation_mode(self.pipeline):
            logits: Tensor = self.pipeline(self._turned(x.detach()))
        if logits.shape[1] != self.nb_classes:
            raise InputError(f"classifier gives {logits.shape[1]} logits; nb_classes, {self.nb_classes}, were expected")
        return logits.argmax(dim=1)

    def explained(self, x: Tensor, classes: Tensor) -> Tensor:
        """Explanations phi (n, M, H, W) of the given classes: absolute attributions summed over colours, unscaled.

        They are made of exact derivatives, whatever the gradient mode of a defence inside the classifier.
        """
        with gradient_mode(self.pipeline, "exact"):
            return self._explained_with(x, classes, None)

    def scaled(self, maps: Tensor) -> Tensor:
        """Maps (n, M, H, W) as the autoencoders see them: from 0 to 1, ``"benign"`` also beyond; statistics as is."""
        if self.reconstructor == "statistics":
            return maps
        if self.scaling == "benign":
            return ((maps + TINY).log() - self.low) / (self.high - self.low)
        flat = maps.flatten(2)  # (n, M, H W)
        least = flat.amin(dim=2)[..., None, None]
        high = torch.quantile(flat, PERCENTILE, dim=2)[..., None, None]
        span = high - least
        return ((maps - least) / torch.where(span > 0, span, 1.0)).clamp(0, 1)

    def score_of(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Reconstruction errors (n,) of scaled maps (n, M, H, W) by the autoencoders of the given classes.

        Of statistics (n, M, 1, 2) the squared Mahalanobis distance, over their number.
        """
        flat = maps.flatten(1).to(self.reconstructors.dtype)
        found = self.reconstructors(flat, classes)
        return SCORES["l2"](found) if self.reconstructor == "statistics" else SCORES[self.scoring](flat - found)

    def _explained_as_attacked(self, x: Tensor, classes: Tensor) -> Tensor:
        """The exact explanations; backwards those that the gradient modes make, the defences' inside included."""
        modes = {self.gradient_mode} | {one.gradient_mode for one in find_defences(self.pipeline)}
        if modes == {"exact"} or not torch.is_grad_enabled():
            return self.explained(x, classes)
        with torch.no_grad():
            exact = self.explained(x, classes)
        beta = None if self.gradient_mode == "exact" else BETA / self.surrogate_width
        return replaced(self._explained_with(x, classes, beta), exact)

    def _explained_with(self, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
        look = statistics if self.reconstructor == "statistics" else maps
        return look(self.explanations, self.pipeline, self._turned(x), classes, beta)

    def _turned(self, x: Tensor) -> Tensor:
        """Images with the channels in front, as the pipeline takes them."""
        return channels_to_front(x) if self.pipeline.turns else x

    # What fit settles

    def new_reconstructors(self, seed: int) -> ClassAutoencoders | ConvolutionalAutoencoder | ClassGaussians:
        """Autoencoders with the random weights of ``seed``, or Gaussians."""
        count, (height, width) = len(self.explanations), self.image_shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return make_reconstructors(self.reconstructor, self.nb_classes, (count, height, width), self.hidden)

    def calibrate(self, maps: Tensor) -> None:
        """Set what ``"benign"`` scales by, from unscaled maps (N, M, H, W) of benign images."""
        if self.scaling != "benign" or self.reconstructor == "statistics":
            return
        for number, one in enumerate(maps.unbind(dim=1)):
            logarithms = np.log(one.flatten().numpy() + TINY)  # torch's quantile takes no more than 16 million values
            low, high = np.quantile(logarithms, [0.001, 0.999])
            if not low < high:
                raise InputError(
                    f"x has {self.explanations[number]} explanations whose values are all but 0.2 % the same; ones "
                    'that differ, or scaling="image", were expected'
                )
            self.low[number], self.high[number] = float(low), float(high)

    def keep(self, scores: Tensor, classes: Tensor, rate: float) -> None:
        """Hold the scores (n,) of benign images that took no part in training, and set the thresholds on them."""
        self.held_out_scores, self.held_out_classes = scores.to(self.device), classes.to(self.device)
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Thresholds at which at most the share ``rate`` of benign images of each predicted class is flagged.

        *Source*: the quantile with one more than there are, Vovk, Gammerman, Shafer 2005 (conformal prediction), for
        which the share holds in the mean whatever the scores' distribution.
        """
        found = []
        for number in range(self.nb_classes):
            mine = self.held_out_scores[self.held_out_classes == number].sort().values
            place = math.ceil((len(mine) + 1) * (1 - rate) - 1e-9)
            if place > len(mine):
                raise InputError(
                    f"false_positive_rate is {rate}, for which class {number} has too few images held out "
                    f"({len(mine)}); at least {needed(rate)} were expected"
                )
            found.append(mine[max(place, 1) - 1])
        self.thresholds.copy_(torch.stack(found))  # all at once, so that nothing has changed where one is refused

    def take(self, fitted: DetectorNetwork) -> None:
        """Take what another one of the same options has learnt; nothing is copied."""
        for name, buffer in fitted.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.reconstructors = fitted.reconstructors.requires_grad_(False).eval()

    def make(self) -> None:
        """Make the weights, random ones: what is loaded replaces them."""
        self.reconstructors = self.new_reconstructors(seed=0).to(self.device).requires_grad_(False).eval()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what ``state_dict`` gave."""
        if self._modules["reconstructors"] is None:
            self.make()
        for name in ("held_out_scores", "held_out_classes"):
            setattr(self, name, torch.empty_like(tensors[name], device=self.device))
        self.load_state_dict(tensors)

    # What else others ask

    @property
    def pipeline(self) -> Pipeline:
        """The classifier with its preprocessing, from images with the channels in front."""
        return self._held[0]

    def look_into(self, pipeline: Pipeline) -> None:
        """Explain this classifier from now on."""
        self._held = (pipeline,)  # in a tuple, which nn.Module does not look into

    @property
    def device(self) -> torch.device:
        """Of the thresholds, and so of the classifier."""
        return self.thresholds.device

    @property
    def is_fitted(self) -> bool:
        """Whether there are benign scores to take thresholds from."""
        return len(self.held_out_scores) > 0

    def check_fitted(self) -> None:
        """Refuse to answer before a fit.

        Raises:
            InputError: if neither ``fit`` nor ``load`` was called.
        """
        if not self.is_fitted:
            raise InputError("ExplanationReconstructor is not fitted yet; fit() or load() first was expected")

    def describe(self) -> dict[str, Any]:
        """The options."""
        options = {"explanation": " + ".join(self.explanations), "reconstructor": self.reconstructor}
        if self.reconstructor == "statistics":
            return options
        return options | {"scaling": self.scaling, "score": self.scoring, "hidden": self.hidden}

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The explanation and its reconstruction, where that is a picture."""
        if self.reconstructor == "statistics":
            return {}
        with torch.no_grad():
            classes = self.predicted(x)
            maps = self.scaled(self.explained(x, classes)).to(self.reconstructors.dtype)
            again = self.reconstructors(maps.flatten(1), classes).reshape(maps.shape)
        return {"explanation": maps[:, :1].clamp(0, 1), "reconstruction": again[:, :1]}


def needed(rate: float) -> int:
    """How many images a class needs for a threshold that flags the share ``rate`` of benign ones at most."""
    return math.ceil(1 / rate - 1e-9) - 1


def _held_out(classes: Tensor, nb_classes: int, share: float, rate: float, seed: int) -> Tensor:
    """Which images (N,) the thresholds are set on: the same share of each predicted class."""
    counts = torch.bincount(classes, minlength=nb_classes).tolist()
    kept = [int(share * count + 1e-9) for count in counts]  # so that 0.29 of 100 are 29
    missing = [number for number in range(nb_classes) if counts[number] == 0]
    if missing:
        raise InputError(
            f"x has no image that is predicted as class {_listed(missing)}; some of each class were expected"
        )
    few = [number for number in range(nb_classes) if kept[number] < needed(rate)]
    if few:
        raise InputError(
            f"x has {counts[few[0]]} images predicted as class {few[0]}, of which a validation_split of {share:g} "
            f"holds out {kept[few[0]]} (too few in class {_listed(few)}); at least {needed(rate)} held out of each "
            f"class were expected for a false_positive_rate of {rate:g}{_larger_split(min(counts), rate)}"
        )
    unlearnt = [number for number in range(nb_classes) if kept[number] >= counts[number]]
    if unlearnt:
        raise InputError(
            f"validation_split is {share!r}, which leaves no image of class {_listed(unlearnt)} to learn from; a "
            "smaller one was expected"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(classes), dtype=torch.bool)
    for number in range(nb_classes):
        mine = (classes == number).nonzero().squeeze(1)
        chosen[mine[torch.randperm(len(mine), generator=generator)[: kept[number]]]] = True
    return chosen


def _larger_split(count: int, rate: float) -> str:
    """What to do where the smallest class has so many images, if it has enough."""
    share = math.ceil(100 * needed(rate) / count) / 100
    return f": validation_split={share:g} holds out so many" if share <= 0.5 else ""


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _check_benign(y: Any, count: int) -> None:
    """Refuse labels with a 1 among them."""
    if y is None:
        return
    expected = f"0/1 labels ({count},), or one-hot ({count}, 2), were expected"
    if not isinstance(y, np.ndarray | list | tuple):
        raise InputError(f"y is a {type(y).__name__}; {expected}")
    labels = np.asarray(y)
    if labels.shape not in ((count,), (count, 2)):
        raise InputError(f"y has shape {labels.shape}; {expected}")
    if not np.isin(labels, (0, 1)).all() or (labels.ndim == 2 and (labels.sum(axis=1) != 1).any()):
        raise InputError(f"y holds other values than 0 and 1, or rows without a single 1; {expected}")
    if labels.ndim == 2:
        labels = labels[:, 1]
    if labels.any():
        raise InputError(
            f"y holds {int(labels.sum())} labels 1 (adversarial); only zeros were expected: the detector learns from "
            "benign images alone"
        )


def _check_maps(maps: Tensor, explanations: list[str]) -> None:
    """Refuse unscaled maps (N, M, H, W) from which nothing can be learnt."""
    for name, one in zip(explanations, maps.flatten(2).unbind(dim=1), strict=True):
        if not bool(one.isfinite().all()):
            raise InputError(f"x has {name} explanations that hold NaN or infinite values; finite ones were expected")
        if torch.equal(one.amax(dim=1), one.amin(dim=1)):
            raise InputError(
                f"x has {name} explanations of a single value each; ones with something on them were expected"
            )


def _made_for(classifier: PyTorchClassifier) -> list[Any]:
    """Clip values, mean, std, and what else of the defences no weight tells, as JSON holds them."""
    clip = classifier.clip_values
    numbers = [None if clip is None else [np.asarray(end).tolist() for end in clip]]
    for name in ("mean", "std"):
        value = getattr(classifier.preprocessing, name, None)
        numbers.append(None if value is None else np.asarray(value, dtype=np.float32).ravel().tolist())
    others = [one for one in classifier.preprocessing_defences or [] if not isinstance(one, Defence)]
    numbers += [[type(one).__name__, {name: getattr(one, name) for name in one.params}] for one in others]
    numbers += [[one.defence_name, one.describe()] for one in find_defences(classifier)]
    plain: list[Any] = json.loads(json.dumps(numbers, default=str))
    return plain


def _pipeline(classifier: PyTorchClassifier) -> Pipeline:
    return Pipeline(classifier, channels_in_front=True)
