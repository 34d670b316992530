"""Restoration losses: pixels, feature maps, and the classifier's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.declared import Declared, Kind, NonNegative, Texts, one_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.shares import as_shares
from art_defenses_ext.estimator.rebuild import as_model_input, at_least_float32
from art_defenses_ext.preprocessor.feature_maps import VGG16_TAPS, VGG16Features, feature_maps, usual_taps

Terms = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""(restored images, clean images, labels (n,)) -> terms of the loss by name, weighted, each a mean over the images."""

TINY = 1e-12


def _network(value: Any) -> Any:
    if not isinstance(value, nn.Module) and not (isinstance(value, str) and value in ("classifier", "vgg16")):
        raise ValueError
    return value


@dataclass(frozen=True)
class RestorationLoss(Declared):
    """A weighted sum of three terms; those of weight 0 are not computed.

    **Convention**: a feature term is the mean square of the difference of two maps over the mean square of the clean
    image's map, so that weights mean the same for every network and layer, and the layers' terms are averaged.

    Attributes:
        pixel: norm of the pixel term: ``"l1"`` or ``"l2"`` (squares).
        pixel_weight: weight of the pixel term, a mean over pixels in fractions of the clip range.
        feature_weight: weight of the feature term.
        class_weight: weight of the classifier's cross-entropy on the restored image.
        network: network of the feature maps: the ``"classifier"`` behind the restorer, ``"vgg16"`` (torchvision's,
            trained on ImageNet), or a frozen network for images in the clip range.
        taps: names of the layers in the network; None for three convolutions (``feature_maps.usual_taps``), for
            VGG16 relu4_2, pool4 and relu5_2.

    >>> from art_defenses_ext import FeatureAutoencoder, RestorationLoss
    >>> loss = RestorationLoss(pixel="l2", feature_weight=1.0, class_weight=0.1)
    >>> restorer = FeatureAutoencoder.for_classifier(classifier, width=4)
    >>> restorer.fit(x_train[:100], y_train[:100], eps=0.1, loss=loss, nb_epochs=1, progress=False)
    """

    pixel: Annotated[Literal["l1", "l2"], one_of("l1", "l2")] = "l1"
    pixel_weight: NonNegative = 1.0
    feature_weight: NonNegative = 0.0
    class_weight: NonNegative = 0.0
    network: Annotated[str | nn.Module, Kind("'classifier', 'vgg16' or an nn.Module", _network)] = "classifier"
    taps: Texts | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.pixel_weight or self.feature_weight or self.class_weight):
            raise InputError("pixel_weight, feature_weight and class_weight are all 0; one above 0 was expected")

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        network = self.network if isinstance(self.network, str) else type(self.network).__name__
        return vars(self) | {"network": network, "taps": None if self.taps is None else list(self.taps)}

    def bound_to(
        self,
        classifier: nn.Module,
        normalised: Callable[[Tensor], Tensor],
        clip_values: tuple[float, float] = (0.0, 1.0),
    ) -> Terms:
        """Return the loss for a classifier.

        Args:
            classifier: from normalised images to logits.
            normalised: from images in the clip range to normalised images.
            clip_values: the clip range.

        Raises:
            InputError: for VGG16 weights that cannot be downloaded, or a network without convolution and no taps.
        """
        if self.feature_weight == 0 or self.network == "classifier":
            features, prepare = classifier, normalised
        else:
            features = VGG16Features() if self.network == "vgg16" else self.network  # type: ignore[assignment]
            device = next((tensor.device for tensor in classifier.parameters()), torch.device("cpu"))
            in_shares = self.network == "vgg16"
            features = features.to(device)
            prepare = lambda x: as_model_input(as_shares(x, clip_values) if in_shares else x, features)  # noqa: E731
        taps = tuple(self.taps or ()) if self.feature_weight else ()
        if self.feature_weight and not taps:
            taps = VGG16_TAPS if self.network == "vgg16" else usual_taps(features)

        def terms(restored: Tensor, clean: Tensor, labels: Tensor) -> dict[str, Tensor]:
            losses: dict[str, Tensor] = {}
            if self.pixel_weight:
                compare = functional.l1_loss if self.pixel == "l1" else functional.mse_loss
                pixels = compare(as_shares(restored, clip_values), as_shares(clean, clip_values))
                losses["pixels"] = self.pixel_weight * pixels
            logits = None
            if taps:
                maps, output = feature_maps(features, prepare(restored), taps)
                with torch.no_grad():
                    targets, _ = feature_maps(features, prepare(clean), taps)
                losses["features"] = self.feature_weight * _mean_difference(maps, targets)
                logits = output if features is classifier else None
            if self.class_weight:
                logits = classifier(normalised(restored)) if logits is None else logits
                losses["class"] = self.class_weight * functional.cross_entropy(at_least_float32(logits), labels)
            return losses

        return terms


def _mean_difference(maps: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Return the mean over layers of the mean squared difference, relative to the mean square of the target."""
    pairs = [
        (at_least_float32(restored), at_least_float32(target)) for restored, target in zip(maps, targets, strict=True)
    ]
    relative = [functional.mse_loss(restored, target) / (target.square().mean() + TINY) for restored, target in pairs]
    return torch.stack(relative).mean()
