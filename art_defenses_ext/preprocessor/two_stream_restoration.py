"""Two-stream Restoration Network (TRN): restores an image from itself and from an estimate of the attack's gradient.

Source: Hong, Hong, Kong 2022, "An Eye for an Eye: Defending against Gradient-based Attacks with Gradients"
(arXiv:2202.01117). Gradient-based attacks leave a trace in the classifier's gradient at the adversarial image. At test
time the loss and label of the attack are unknown, so the Gradient Map Estimation Mechanism estimates the gradient from
several classes. The image and this map each pass through one stream, and the Fusion Block joins the two into the
restored image. The method applies to any trained classifier, which does not change.

**Convention**: the labels, weights and scaling of the map, the layers, losses and sizes were not available. All
interpretations of the map are options here. The ablation in docs/methods/two_stream_restoration.md chose the default
map, the best of those that cost one backward pass, and the loss. The default inputs are the attacks of the paper except
MIM and FFGSM, which are held out of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.attribution.gradient import weighted_loss_gradient
from art_defenses_ext.attribution.second_order import check_second_derivative
from art_defenses_ext.base.declared import Count, accepted, one_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.base.shares import as_shares
from art_defenses_ext.gradients.activation import softplus_for_kinks
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.preprocessor.blocks import from_blocks, to_blocks
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.training.loop import Data, Objective
from art_defenses_ext.training.settings import Settings

MAPS = ("stacked", "sum", "predicted")

WEIGHTS = ("uniform", "softmax")

SCALES = ("image", "channel")

STREAMS = ("estimated", "zero", "shuffled")

BETA = 10.0
"""Beta of the softplus in the smooth surrogate: the larger, the closer to the ReLU. **Convention**: as for heatmaps,
after Dombrowski et al. 2019 (arXiv:1906.07983)."""

TINY = 1e-12


class TwoStreamRestoration(TrainedRestorer):
    """A restorer whose inputs are an image and an estimate of the gradient that an attack would have followed.

    The gradient map holds derivatives of cross-entropies with respect to the image. ``map`` is one of

    - ``"stacked"``: one for each of the ``top_k`` most probable classes, in this order: ``top_k`` x C channels;
    - ``"sum"``: their weighted sum, C channels, for one backward pass;
    - ``"predicted"``: that of the predicted class alone, which is wrong if an attack was successful.

    Args:
        model: the classifier's network, from normalised images to logits (N, K); it stays frozen.
        channels: number of the images' channels.
        nb_classes: K.
        map: kind of the gradient map.
        top_k: number of classes; None for the three most probable classes, or both of two.
        weights: weights of the classes: ``"uniform"``, or their ``"softmax"`` probability.
        scale: divisor of the map: the largest absolute value of the ``"image"``'s whole map, or of each ``"channel"``,
            which removes the weights of a stacked map.
        gradient_stream: ``"estimated"``, or as controls ``"zero"`` and ``"shuffled"`` (each image gets the map of the
            image before it in its batch; a single image gets its own).
        width: channels of each stream.
        blocks: residual dense blocks of each stream, and after the Fusion Block.
        stem: each block of ``stem`` x ``stem`` pixels enters the network as one pixel with more channels.
        **options: see :class:`.TrainedRestorer`.

    Attributes:
        gradient_modes: ``"exact"`` also differentiates the map, to second order; ``"frozen"`` holds it constant;
            ``"smooth"`` takes its derivative from the classifier with softplus in place of ReLU (that of the ReLU
            network contains the probabilities' curvature only); ``"identity"`` passes gradients unchanged.

    Raises:
        InputError: for an unknown option, a ``top_k`` above the number of classes, and the sum over all classes
            weighted by their softmax, which is zero for every image.

    >>> import torch
    >>> from art_defenses_ext import TwoStreamRestoration
    >>> restorer = TwoStreamRestoration.for_classifier(classifier, width=4, blocks=1)
    >>> restorer.gradient_map(torch.tensor(x)).shape  # one channel, for grey images
    torch.Size([8, 1, 8, 8])
    >>> restorer.fit(x_train[:100], y_train[:100], eps=0.1, nb_epochs=1, progress=False)
    """

    name = "two_stream_restoration"
    gradient_modes = ("exact", "frozen", "smooth", "identity")
    annealable_modes = ("smooth",)
    title = "TRN: restores from the image and an estimate of the gradient (Hong et al. 2022)"
    paper = "https://arxiv.org/abs/2202.01117"
    from_classifier = ("channels", "nb_classes")
    nb_classes: Count
    map: Annotated[str, one_of(*MAPS)] = "sum"
    top_k: Count
    weights: Annotated[str, one_of(*WEIGHTS)] = "uniform"
    scale: Annotated[str, one_of(*SCALES)] = "image"
    gradient_stream: Annotated[str, one_of(*STREAMS)] = "estimated"
    width: Count = 16
    blocks: Count = 2
    stem: Count = 2
    network_params = (
        *TrainedRestorer.network_params,
        *("nb_classes", "map", "top_k", "weights", "scale", "width", "blocks", "stem"),
    )
    usual_loss = RestorationLoss(class_weight=1.0)
    usual_inputs = ("clean", "fgsm", "pgd", "bim")

    def __init__(self, model: nn.Module, *, nb_classes: int, top_k: int | None = None, **options: Any) -> None:
        nb_classes = accepted(Count, "nb_classes", nb_classes)
        top_k = min(3, nb_classes) if top_k is None else top_k
        super().__init__(model, nb_classes=nb_classes, top_k=top_k, **options)

    def _check_network(self, classifier: PyTorchClassifier) -> None:
        check_second_derivative(self._map, self.model, self._probes(classifier))

    def gradient_map(self, x: Tensor) -> Tensor:
        """Return the estimated gradient, the input of the second stream.

        Args:
            x: images (N, C, H, W) in the clip range; (N, H, W, C) without ``channels_first``.

        Returns:
            A map (N, M, H, W), from -1 to 1; M is C, for a stacked map C times ``top_k``.
        """
        self._check_images(x)
        return self._map(self._inside(x))

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Return the restored images, and the absolute value of the gradient map, averaged over its channels."""
        size = self.gradient_map(x).abs().mean(dim=1, keepdim=True)
        return super().views(x) | {"gradient map": size / (size.amax(dim=(1, 2, 3), keepdim=True) + TINY)}

    # The method

    def _proposed(self, x: Tensor, mode: str) -> Tensor:
        gradients = self._smooth_map(x) if mode == "smooth" else self._map(x.detach() if mode == "frozen" else x)
        shares = as_shares(x, self.clip_values)
        return shares + self._run(shares, gradients)

    def _map(self, x: Tensor, classes: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the gradient map; ``classes`` maps logits (N, K) to the classes (N, k) that take part."""
        if self.gradient_stream == "zero":
            return x.new_zeros(len(x), self._map_channels(), *x.shape[2:])
        # The derivative by what the first layer sees, wherever the normalisation is written.
        classes = self._likeliest if classes is None else classes
        with torch.autocast(x.device.type, enabled=False):
            gradients = weighted_loss_gradient(
                self.model, self._normalised(x), lambda logits: self._class_weights(logits, classes(logits))
            )
        gradients = gradients if self.channels_first else gradients.movedim(4, 2)  # (N, M, C, H, W)
        inner = self._inner_normalisation(x)
        if inner is not None:
            gradients = gradients * inner.std.reshape(-1, 1, 1)
        channels = gradients.flatten(1, 2)  # (N, M C, H, W)
        largest = channels.abs().amax(dim=(2, 3) if self.scale == "channel" else (1, 2, 3), keepdim=True)
        scaled = channels / torch.where(largest > 0, largest, 1)  # also of predictions of the highest confidence
        return scaled.roll(1, dims=0) if self.gradient_stream == "shuffled" else scaled

    def _smooth_map(self, x: Tensor) -> Tensor:
        """Return the exact map, with the derivative of that of the network with softplus, whose width attacks set.

        Both use the classes of the exact network, since softplus may rank them differently.
        """
        classes: list[Tensor] = []

        def keep_likeliest(logits: Tensor) -> Tensor:
            classes.append(self._likeliest(logits))
            return classes[0]

        with torch.no_grad():
            exact = self._map(x, keep_likeliest)
        if self.gradient_stream == "zero":
            return exact
        with softplus_for_kinks(BETA / self.surrogate_width):
            smooth = self._map(x, lambda logits: classes[0])
        return replaced(smooth, exact)

    def _likeliest(self, logits: Tensor) -> Tensor:
        """Return the most probable classes (N, k), in this order."""
        if logits.shape[1] != self.nb_classes:
            raise InputError(f"model gives {logits.shape[1]} logits; nb_classes, {self.nb_classes}, were expected")
        return logits.topk(1 if self.map == "predicted" else self.top_k, dim=1).indices

    def _class_weights(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the weights (N, M, K) of the cross-entropies in each part of the map."""
        weights = functional.one_hot(classes, self.nb_classes).to(logits)  # (N, k, K)
        if self.map == "predicted":
            return weights
        if self.weights == "softmax":
            weights = weights * logits.softmax(dim=1)[:, None]
        return weights if self.map == "stacked" else weights.sum(dim=1, keepdim=True) / classes.shape[1]

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return the paper's attacks. **Convention**: their steps are those of each attack's own authors."""
        attacks: dict[str, dict[str, Any]] = {
            "FFGSM": {"max_iter": 1, "eps_step": 1.25, "num_random_init": 1},
            "BIM": {"max_iter": 10, "eps_step": 0.1},
            "PGD-40": {"max_iter": 40, "eps_step": 0.1, "num_random_init": 1},
            "MIM": {"max_iter": 10, "eps_step": 0.1, "decay": 1.0},
        }
        pgd = (PaperAttack(f"{name}, gray-box", "pgd", parameters) for name, parameters in attacks.items())
        return (PaperAttack("FGSM, gray-box", "fgsm"), *pgd)

    def _map_channels(self) -> int:
        return self.channels * (self.top_k if self.map == "stacked" else 1)

    def _build(self) -> nn.Module:
        return TwoStreamNetwork(self.channels, self._map_channels(), self.width, self.blocks, self.stem)

    @classmethod
    def _suited_to(cls, classifier: PyTorchClassifier) -> dict[str, Any]:
        return super()._suited_to(classifier) | {"nb_classes": classifier.nb_classes}

    def _try(self, objective: Objective, part: Data, settings: Settings) -> None:
        super()._try(objective, part, settings)
        check_second_derivative(self._map, self.model, part[0][:2].to(self.device))

    def _check_params(self) -> None:
        super()._check_params()
        if self.top_k > self.nb_classes:
            raise InputError(f"top_k is {self.top_k}; at most nb_classes, {self.nb_classes}, was expected")
        if self.map == "sum" and self.weights == "softmax" and self.top_k == self.nb_classes:
            raise InputError(
                f"map is 'sum' with weights 'softmax' over all {self.nb_classes} classes, which is zero for any image "
                "(sum_c p_c (p - e_c) = 0); a smaller top_k, or weights 'uniform', was expected"
            )


class ResidualDenseBlock(nn.Module):
    """Three densely connected convolutions, of whose output a fifth is added to the input.

    *Source*: Zhang et al. 2018 (arXiv:1802.08797), section 3.2; the factor: Wang et al. 2018 (arXiv:1809.00219).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        growth = max(1, width // 2)
        self.first = nn.Conv2d(width, growth, 3, padding=1)
        self.second = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.last = nn.Conv2d(width + 2 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.cat([x, functional.relu(self.first(x))], dim=1)
        features = torch.cat([features, functional.relu(self.second(features))], dim=1)
        return x + 0.2 * self.last(features)  # type: ignore[no-any-return]


class FusionBlock(nn.Module):
    """The joining of both streams: a 1x1 and a 3x3 convolution of both, added to the image's stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(2 * width, width, 1)
        self.around = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, image: Tensor, gradient: Tensor) -> Tensor:
        both = functional.relu(self.both(torch.cat([image, gradient], dim=1)))
        return image + self.around(both)  # type: ignore[no-any-return]


class TwoStreamNetwork(nn.Module):
    """The network from images (N, C, H, W) and gradient maps (N, M, H, W) to corrections (N, C, H, W).

    **Convention**: sizes that fit small images and a CPU; the last layer starts at zero, so that training starts from
    images as they are.
    """

    def __init__(self, channels: int, map_channels: int, width: int, blocks: int, stem: int) -> None:
        super().__init__()
        self.stem = stem
        self.image = _stream(channels * stem**2, width, blocks)
        self.gradient = _stream(map_channels * stem**2, width, blocks)
        self.fusion = FusionBlock(width)
        self.restoration = nn.Sequential(*(ResidualDenseBlock(width) for _ in range(blocks)), nn.ReLU())
        self.correction = nn.Conv2d(width, channels * stem**2, 3, padding=1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, gradient: Tensor) -> Tensor:
        fused = self.fusion(self.image(to_blocks(x, self.stem)), self.gradient(to_blocks(gradient, self.stem)))
        return from_blocks(self.correction(self.restoration(fused)), self.stem, x)


def _stream(nb_in: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(nb_in, width, 3, padding=1), *(ResidualDenseBlock(width) for _ in range(blocks)))
