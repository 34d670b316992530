"""Explanation reconstructor: a detector that flags images whose explanation differs from benign ones of their class.

A network explains its prediction of class c by phi(x). One autoencoder g_c per class is trained to reconstruct the
explanations of benign images predicted as c. An image whose reconstruction error exceeds t_c is flagged. The training
needs no adversarial examples.

The gradient of the score depends on second derivatives of the classifier, which are zero almost everywhere in a ReLU
network. Attacks therefore need the gradient mode ``"smooth"``: the explanation's backward pass runs through the
classifier with softplus in place of ReLU, after Dombrowski et al. 2019 (arXiv:1906.07983).

Source: Ko, Lim 2021, "Unsupervised Detection of Adversarial Examples with Model Explanations" (arXiv:2107.10480), and
the authors' published code.

**Departure** from the authors' code: there the threshold is chosen in hindsight with the adversarial scores; here it is
a quantile of the scores of held-out benign images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Unpack

import numpy as np
import numpy.typing as npt
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.attribution.second_order import check_second_derivative
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.checkpoint import Checkpoint, check_kinds
from art_defenses_ext.base.declared import (
    Count,
    Flag,
    InnerShare,
    Kind,
    check_declared,
    one_of,
    validated,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import shape_with_channels_in_front
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import (
    check_choice,
    check_count,
    check_images,
    check_labels,
    check_takes_images,
    check_target,
)
from art_defenses_ext.defence.face import DefenceFace, check_known, check_unchanged, made_for
from art_defenses_ext.detector.explanations import EXPLANATIONS, STATISTICS
from art_defenses_ext.detector.fitting import fit_network
from art_defenses_ext.detector.memory import TRAINING_COPIES, check_memory, usual_reconstructor, weight_bytes
from art_defenses_ext.detector.network import SCALINGS, DetectorNetwork
from art_defenses_ext.detector.reconstructors import RECONSTRUCTORS, SCORES
from art_defenses_ext.estimator.bridged import differentiable
from art_defenses_ext.estimator.pipeline import Pipeline, check_runs, device_of, probes
from art_defenses_ext.estimator.rebuild import gradients_enabled, rebuild
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.training.settings import OtherSettings, Settings


def _distinct(value: Any) -> Any:
    """Accept the name of an explanation, or a list of distinct names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError
    if len(set(names)) < len(names) or not set(names) <= set(STATISTICS):
        raise ValueError
    return value if isinstance(value, str) else list(names)


class ExplanationReconstructor(BinaryInputDetector, DefenceFace):
    """A detector that is fitted on benign images alone, with ART's interface and a differentiable network.

    Args:
        classifier: the classifier to explain, with all its preprocessing, defended or not; it does not change.
        explanation: a name in ``EXPLANATIONS``, or several, whose maps are reconstructed together; with
            ``reconstructor="statistics"`` also ``"noise_response"``, the response of the logits to noise.
        scaling: ``"image"`` maps an explanation's minimum to 0 and its 99th percentile to 1, as in the authors' code,
            which removes its magnitude. ``"benign"`` maps the logarithm of its values so that the 0.1th percentile over
            benign images becomes 0 and the 99.9th becomes 1, without a limit beyond them, which keeps the magnitude.
        score: ``"above_median"``: the mean of the absolute errors above the image's own median, with the others set to
            zero, as in the authors' code; ``"l1"``: their mean; ``"l2"``: the mean of their squares.
        hidden: units between encoder and decoder of each class; the convolutional autoencoder has a sixteenth as many
            channels.
        reconstructor: ``"autoencoder"``: a dense autoencoder for each class, as in the authors' code.
            ``"convolutional"``: one autoencoder for all classes, with separate biases for each. ``"statistics"``: no
            map is reconstructed; each explanation's size and share of high frequencies are compared with their
            Gaussian for the class, and ``scaling``, ``score`` and ``hidden`` have no effect. None: the first, or the
            second if the dense autoencoders need more than 4 GiB in training, as at 224 pixels and a thousand classes.
        false_positive_rate: share of benign images of each predicted class that may be flagged.

    Attributes:
        detector: a two-output ``PyTorchClassifier`` over images in the clip range, with logits [0, score - threshold of
            the predicted class]; ART's attacks run on it.
        network: the detector's network, with a differentiable method ``scores``.

    Raises:
        InputError: for an unknown option, a classifier without a logit for each of at least two classes, a network that
            torch cannot differentiate twice, weights that do not fit into memory, and for scores before ``fit``.

    >>> from art_defenses_ext import ExplanationReconstructor
    >>> detector = ExplanationReconstructor(classifier)
    >>> detector.fit(x_train, nb_epochs=1, validation_split=0.25, progress=False)
    >>> report, is_adversarial = detector.detect(x)
    >>> is_adversarial.shape, sorted(report)
    ((8,), ['classes', 'predictions', 'scores', 'thresholds'])
    """

    name = DetectorNetwork.name
    title = "Explanation reconstructor: rejects images with unusual explanations (Ko, Lim 2021)"
    paper = "https://arxiv.org/abs/2107.10480"
    gradient_modes = DetectorNetwork.gradient_modes
    paper_attacks = DetectorNetwork.paper_attacks
    fitted_on = "train"
    usual_training = {  # noqa: RUF012
        "digits": {"nb_epochs": 60, "validation_split": 0.25},  # of 100 images per class; the thresholds need 19
        "mnist": {},
        "fashion_mnist": {},
        "cifar10": {},
    }
    made_with: ClassVar[tuple[str, ...]] = ("explanation", "scaling", "score", "hidden", "reconstructor")
    """Options of the network, which cannot be set later."""
    defence_params: ClassVar[list[str]] = [*made_with, "false_positive_rate"]
    explanation: Annotated[str | list[str], Kind(f"one of {', '.join(STATISTICS)}, or a list of them,", _distinct)]
    scaling: Annotated[str, one_of(*SCALINGS)]
    score: Annotated[str, one_of(*SCORES)]
    hidden: Count
    reconstructor: Annotated[str, one_of(*RECONSTRUCTORS)] | None
    false_positive_rate: InnerShare

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        explanation: str | Sequence[str] = "input_gradient",
        scaling: str = "image",
        score: str = "above_median",
        hidden: int = 64,
        reconstructor: str | None = None,
        false_positive_rate: float = 0.05,
    ) -> None:
        classifier = differentiable(classifier)
        check_takes_images(classifier, type(self).__name__)
        self.classifier = classifier
        self.explanation = explanation  # type: ignore[assignment]
        self.scaling, self.score, self.hidden, self.reconstructor = scaling, score, hidden, reconstructor
        self.false_positive_rate = false_positive_rate
        self._check_params()
        self.reconstructor = self._sizes()[0]
        check_runs(classifier)
        check_memory(*self._sizes(), device_of(classifier))
        self.network = self._new_network()
        self._check_second_derivative()
        super().__init__(self._as_classifier())

    def apply(self, classifier: PyTorchClassifier) -> PyTorchClassifier:
        """Return the classifier with an additional class, "rejected", see :func:`.rejecting`.

        Args:
            classifier: usually the classifier that the detector explains.
        """
        return rejecting(classifier, self)

    @gradients_enabled()
    @validated
    def fit(
        self,
        x: FloatArray,
        y: IntArray | None = None,
        batch_size: Count | None = None,
        nb_epochs: Count = 10,
        *,
        benign: npt.NDArray[np.bool_] | None = None,
        validation_split: InnerShare = 0.1,
        checkpoint: str | Path | None = None,
        progress: Flag = True,
        **settings: Unpack[OtherSettings],
    ) -> None:
        """Fit the detector to explanations of benign images, and set the thresholds on images held out.

        A fit that fails leaves the detector unchanged.

        Args:
            x: images ``(N, *input_shape)``, float32, in the clip range.
            y: class indices (N,) or one-hot rows (N, K), as in every defence's ``fit``; checked, but not used, since
                the predicted class is explained. **Departure** from ART, whose detectors take 0 for benign and 1 for
                adversarial here; use ``benign`` instead.
            batch_size: images per step; None for 32 K, since the autoencoders of all K classes are trained together.
            benign: which images are benign (N,); the others are left out. None for all images.
            nb_epochs: number of passes over the images.
            validation_split: share of each predicted class's images that are used only for the thresholds.
            checkpoint: a file, written after each epoch, from which an interrupted fit continues.
            progress: show a progress bar.
            **settings: settings of the training, such as ``learning_rate`` and ``seed``, see :class:`.Settings`; the
                seed is also used for initial weights and split. **Convention**: the learning rate falls to 0 along a
                cosine, as in all trainings of this package; the authors' is constant.

        Raises:
            InputError: for images or labels that cannot be used, a class that is never predicted, too few images for a
                threshold, constant explanations, or unusable settings; before any training.
        """
        x = check_images(x, self.classifier)
        nb_classes = self.classifier.nb_classes
        if y is not None:
            check_labels(y, nb_classes, len(x))
        x = x[_benign(benign, len(x))]
        check_memory(*self._sizes(), device_of(self.classifier), TRAINING_COPIES)
        chosen = Settings.of({"nb_epochs": nb_epochs, "batch_size": batch_size or 32 * nb_classes, **settings})
        path = None if checkpoint is None else check_target("checkpoint", checkpoint)
        network = self._new_network()  # a new network, so that an exception leaves the former one unchanged
        training = fit_network(
            network,
            x,
            self.false_positive_rate,
            validation_split,
            chosen,
            checkpoint=path,
            identity={name: getattr(self, name) for name in self.made_with if name != "score"},
            progress=progress,
        )
        self.network.take(network)
        self.network.trainings = [training]

    def scores(self, x: FloatArray, batch_size: int = 128) -> npt.NDArray[np.float32]:
        """Return the detection score of each image: the reconstruction error of its explanation.

        Args:
            x: images ``(N, *input_shape)``, float32, in the clip range; read batch by batch, so it may be a
                memory-mapped array of any length.
            batch_size: number of images per batch.

        Returns:
            Scores (N,), >= 0.

        Raises:
            InputError: before ``fit``, and for images that cannot be used.
        """
        scores: npt.NDArray[np.float32] = self._measured(x, batch_size)["scores"]
        return scores

    def detect(self, x: FloatArray, batch_size: int = 128) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
        """Detect adversarial images.

        Args:
            x, batch_size: as for :meth:`scores`.

        Returns:
            A report and flags (N,). The report holds ``predictions``, the logits (N, 2) of ``detector``, as in ART's
            detectors, ``scores`` (N,), ``thresholds`` (N,) and the predicted ``classes`` (N,).

        Raises:
            InputError: as :meth:`scores`.
        """
        report = self._measured(x, batch_size)
        margins = report["scores"] - report["thresholds"]
        flagged = ~(report["scores"] <= report["thresholds"])  # NaN is flagged, as by ART's argmax
        return {"predictions": np.stack([np.zeros_like(margins), margins], axis=1), **report}, flagged

    def set_params(self, **kwargs: Any) -> None:
        """Set ``false_positive_rate`` and the thresholds; options of the network cannot be set.

        Raises:
            InputError: for another name or value; nothing changes then.
        """
        check_known(self, kwargs, self.defence_params)
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in kwargs.items()}
        check_unchanged(self, options, self.made_with)
        rate = kwargs.get("false_positive_rate", self.false_positive_rate)
        rate = self.options()["false_positive_rate"].checked("false_positive_rate", rate)
        if self.network.is_fitted:
            self.network.set_rate(rate)
        self.false_positive_rate = rate

    def save(self, path: str | Path) -> None:
        self.network.check_fitted()
        super().save(path)

    @property
    def training(self) -> Training | None:
        """The training of the detector; None before ``fit``."""
        return next(iter(self.network.trainings), None)

    @property
    def weight_bytes(self) -> int:
        """The bytes of the reconstructors' weights; ``fit`` needs four times as many.

        Dense autoencoders need 4 K (2 d h + d + h) bytes for K classes, d pixels of all maps and h hidden units.
        """
        return weight_bytes(*self._sizes())

    # Saved files

    made_for_in_words = "clip values, mean, std, then its defences"

    @classmethod
    def _network_of(cls, classifier: PyTorchClassifier) -> nn.Module:
        return _pipeline(classifier)

    def _network(self) -> nn.Module:
        return self.network.pipeline

    def _parameters_of_file(self) -> Sequence[str]:
        return self.defence_params

    def _made_for(self) -> list[Any]:
        return made_for(self.classifier)

    def _own(self) -> nn.Module:
        return self.network

    def _fits(self) -> list[dict[str, Any]]:
        return [vars(training) for training in self.network.trainings]

    def _restore(self, saved: Checkpoint, subject: str) -> None:
        self.network.make()
        check_kinds(subject, saved.tensors, self.network.state_dict())
        self.network.load(saved.tensors)
        self.network.trainings = [Training.of(plain) for plain in saved.training]

    # Inside

    def _sizes(self) -> tuple[str, int, tuple[int, int, int], int]:
        """Return the kind of reconstructor, the number of classes, the shape of the maps and the hidden units."""
        height, width = shape_with_channels_in_front(self.classifier)[1:]
        sizes = self.classifier.nb_classes, (len(self._explanations), height, width), self.hidden
        return self.reconstructor or usual_reconstructor(*sizes), *sizes

    @property
    def _explanations(self) -> list[str]:
        return self.explanation if isinstance(self.explanation, list) else [self.explanation]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out ``detector``, which ART would copy with another network inside than ``network``."""
        return {name: value for name, value in vars(self).items() if name != "detector"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # ART's copies of a classifier wrap its parameters in a new module, and choose their device.
        self.network.set_pipeline(_pipeline(self.classifier))
        self.network.to(device_of(self.classifier))
        self.detector = self._as_classifier()

    def _new_network(self) -> DetectorNetwork:
        classifier = self.classifier
        shape, names = shape_with_channels_in_front(classifier), list(self._explanations)
        options = self.scaling, self.score, self.hidden, self._sizes()[0]
        network = DetectorNetwork(_pipeline(classifier), classifier.nb_classes, shape, names, *options)
        return network.to(device_of(classifier)).requires_grad_(False).eval()

    def _check_second_derivative(self) -> None:
        """Refuse a network whose explanation has no derivative, tested on two images of noise."""
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

    def _measured(self, x: FloatArray, batch_size: int) -> dict[str, Any]:
        """Return scores, thresholds and predicted classes (N,), by name."""
        self.network.check_fitted()
        check_count("batch_size", batch_size)
        if not isinstance(x, np.ndarray) or x.ndim == 0 or len(x) == 0:
            check_images(x, self.classifier)  # raises the error
        batches = []
        for start in range(0, len(x), batch_size):
            images = check_images(x[start : start + batch_size], self.classifier)
            with torch.no_grad():
                scores, classes = self.network.scores(torch.tensor(images, device=self.network.device))
            batches.append([values.cpu().numpy() for values in (scores, self.network.thresholds[classes], classes)])
        columns = map(np.concatenate, zip(*batches, strict=True))
        return dict(zip(("scores", "thresholds", "classes"), columns, strict=True))

    def _check_params(self) -> None:
        check_declared(self)
        known = STATISTICS if self.reconstructor == "statistics" else tuple(EXPLANATIONS)
        for name in self._explanations:
            check_choice("explanation", name, known)


def _benign(benign: Any, count: int) -> npt.NDArray[np.bool_]:
    """Return which of ``count`` images are benign (N,), from the argument ``benign``."""
    if benign is None:
        return np.ones(count, dtype=np.bool_)
    readable = isinstance(benign, np.ndarray) and benign.shape == (count,) and benign.dtype == np.bool_
    if not (readable and benign.any()):
        raise InputError(
            f"benign is {shown(benign)}; truth values ({count},), one per image and some True, were expected"
        )
    assert isinstance(benign, np.ndarray)
    return benign


def _pipeline(classifier: PyTorchClassifier) -> Pipeline:
    return Pipeline(classifier, channels_in_front=True)
