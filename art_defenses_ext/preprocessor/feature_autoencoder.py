"""Feature autoencoder: a denoiser in front of the classifier, trained to restore the feature maps of clean images.

Source: Sivamani 2019, "Feature Losses for Adversarial Robustness" (arXiv:1912.04497). A small perturbation of an image
becomes a large one of the feature maps. The loss therefore compares, beside the pixels, the feature maps of the
restored and of the clean image in a frozen network. The method applies to any trained classifier, which does not
change.

**Departure**: in the authors' script the feature terms never depend on the autoencoder, training and test images have
different ranges, and training images are clean only. Here the feature terms take part in the training, the range is the
classifier's, and the training images are an option.

**Convention**: the paper's tables and its network for colour images were not available. The default network is a small
U-Net that predicts a correction, after Liao et al. 2018 (arXiv:1712.02976, HGD); ``architecture="paper"`` is the
authors' network for 28x28 grey images. The default inputs and losses were chosen by an ablation on validation images,
whose table is in docs/methods/feature_autoencoder.md.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.declared import Count, one_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.base.shares import as_shares
from art_defenses_ext.gradients.activation import softplus_for_kinks
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.preprocessor.blocks import from_blocks, to_blocks
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
from art_defenses_ext.preprocessor.trained import TrainedRestorer

ARCHITECTURES = ("unet", "paper")

BETA = 10.0
"""Beta of the smooth surrogate's softplus. **Convention**: the start from which an annealed attack is strongest; the
table is in docs/methods/feature_autoencoder.md."""


class FeatureAutoencoder(TrainedRestorer):
    """A denoiser trained on pixels and on feature maps of a frozen network.

    Args:
        model: the classifier's network, from normalised images to logits (N, K); it stays frozen.
        channels: number of the images' channels.
        architecture: ``"unet"`` predicts a correction of the image, for any size; ``"paper"`` is the authors'
            autoencoder for 28x28 grey images, with 5,729 parameters and a bottleneck of 32 numbers.
        width: channels of the U-Net's first level; the two levels below have twice as many.
        stem: each block of ``stem`` x ``stem`` pixels enters the U-Net as one pixel with more channels.
        gradient_modes: ``"exact"`` differentiates everything; ``"smooth"`` differentiates the restorer with softplus in
            place of its ReLUs, whose width attacks may anneal; ``"identity"`` passes the gradient unchanged.
        **options: see :class:`.TrainedRestorer`.

    Raises:
        InputError: for an unknown network, and for images that ``"paper"`` does not take.

    >>> from art_defenses_ext import FeatureAutoencoder, defend
    >>> restorer = FeatureAutoencoder.for_classifier(classifier, width=4)
    >>> restorer.fit(x_train[:100], y_train[:100], eps=0.1, nb_epochs=1, progress=False)
    >>> defend(classifier, restorer).predict(x).shape
    (8, 10)
    """

    name = "feature_autoencoder"
    gradient_modes = ("exact", "smooth", "identity")
    annealable_modes = ("smooth",)
    title = "Feature autoencoder: a denoiser trained on feature losses (Sivamani 2019)"
    paper = "https://arxiv.org/abs/1912.04497"
    architecture: Annotated[str, one_of(*ARCHITECTURES)] = "unet"
    width: Count = 16
    stem: Count = 2
    network_params = (*TrainedRestorer.network_params, "architecture", "width", "stem")
    usual_loss = RestorationLoss(feature_weight=1.0)
    usual_inputs = ("clean", "fgsm", "pgd")

    def _build(self) -> nn.Module:
        return PaperAutoencoder() if self.architecture == "paper" else UNet(self.channels, self.width, self.stem)

    def _proposed(self, x: Tensor, mode: str) -> Tensor:
        if mode != "smooth":
            return self._answer(x)
        with torch.no_grad():
            exact = self._answer(x)
        with softplus_for_kinks(BETA / self.surrogate_width):
            smooth = self._answer(x)
        return replaced(smooth, exact)

    def _answer(self, x: Tensor) -> Tensor:
        shares = as_shares(x, self.clip_values)
        if self.architecture == "unet":
            return shares + self._run(shares)
        if x.shape[1:] != (1, 28, 28):
            raise InputError(f"x has images {tuple(x.shape[1:])}; (1, 28, 28) was expected by architecture 'paper'")
        return (1 + self._run(2 * shares - 1)) / 2

    def _check_params(self) -> None:
        super()._check_params()
        if self.architecture == "paper" and self.channels != 1:
            raise InputError(f"channels is {self.channels}; 1 was expected by architecture 'paper'")

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return FGSM and ART's PGD, as in the authors' code. **Convention**: forty steps, as usual on MNIST."""
        steps = {"max_iter": 40, "eps_step": 0.1, "num_random_init": 1}
        return PaperAttack("FGSM, gray-box", "fgsm"), PaperAttack("PGD-40, gray-box", "pgd", steps)


class PaperAutoencoder(nn.Sequential):
    """The authors' network: images (N, 1, 28, 28) in [-1, 1] to the same.

    *Source*: the authors' code; 5,729 parameters, bottleneck (8, 2, 2).
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, stride=3, padding=1),  # (N, 16, 10, 10)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 16, 5, 5)
            nn.Conv2d(16, 8, 3, stride=2, padding=1),  # (N, 8, 3, 3)
            nn.ReLU(),
            nn.MaxPool2d(2, stride=1),  # (N, 8, 2, 2)
            nn.ConvTranspose2d(8, 16, 3, stride=2),  # (N, 16, 5, 5)
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 5, stride=3, padding=1),  # (N, 8, 15, 15)
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 2, stride=2, padding=1),  # (N, 1, 28, 28)
            nn.Tanh(),
        )


class UNet(nn.Module):
    """A U-Net of three levels, each half as large as the one above: from images (N, C, H, W) to a correction.

    *Source*: Ronneberger, Fischer, Brox 2015 (arXiv:1505.04597); a correction in place of an image: Liao et al. 2018
    (arXiv:1712.02976), section 4.2. **Convention**: sizes that fit small images and a CPU; the last layer starts at
    zero, so that training starts from images as they are.
    """

    def __init__(self, channels: int, width: int, stem: int) -> None:
        super().__init__()
        self.stem = stem
        blocks = channels * stem**2
        self.level1 = _double(blocks, width)
        self.level2 = _double(width, 2 * width, stride=2)
        self.level3 = _double(2 * width, 2 * width, stride=2)
        self.up2 = _convolution(4 * width, 2 * width)
        self.up1 = _convolution(3 * width, width)
        self.correction = nn.Conv2d(width, blocks, 3, padding=1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        level1 = self.level1(to_blocks(x, self.stem))
        level2 = self.level2(level1)
        level3 = self.level3(level2)
        up2 = self.up2(torch.cat([level2, _sized_as(level2, level3)], dim=1))
        up1 = self.up1(torch.cat([level1, _sized_as(level1, up2)], dim=1))
        return from_blocks(self.correction(up1), self.stem, x)


def _convolution(nb_in: int, nb_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(nb_in, nb_out, 3, stride=stride, padding=1), nn.ReLU())


def _double(nb_in: int, nb_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_convolution(nb_in, nb_out, stride), *_convolution(nb_out, nb_out))


def _sized_as(like: Tensor, x: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[2:])
