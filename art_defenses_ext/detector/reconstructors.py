"""Models of the benign explanations of each class, and the distance of an explanation from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import may_look

RECONSTRUCTORS = ("autoencoder", "convolutional", "statistics")


class Reconstructor(nn.Module):
    """A model from maps or statistics (n, d) and classes (n,) to their reconstruction as benign ones of the class."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        first: Tensor = next(iter(self.state_dict().values()))
        return first.dtype


class ClassAutoencoders(Reconstructor):
    """One autoencoder per class, all in one pass: d - hidden ReLU - d sigmoid.

    *Source*: the authors' code. **Convention**: torch's initial weights for dense layers.
    """

    def __init__(self, nb_classes: int, size: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Parameter(_uniform(size, nb_classes, size, hidden))
        self.encoder_bias = nn.Parameter(_uniform(size, nb_classes, 1, hidden))
        self.decoder = nn.Parameter(_uniform(hidden, nb_classes, hidden, size))
        self.decoder_bias = nn.Parameter(_uniform(hidden, nb_classes, 1, size))

    def forward(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Return reconstructions (n, d) of maps (n, d) by the autoencoders of their classes (n,)."""
        nb_classes = len(self.encoder)
        seen_before = functional.one_hot(classes, nb_classes).cumsum(dim=0).gather(1, classes[:, None]).squeeze(1)
        # On a GPU there is room for all maps in each class, since reading the counts would wait for the device.
        room = int(torch.bincount(classes, minlength=nb_classes).max()) if may_look(maps) else len(maps)
        places = (classes, seen_before - 1)
        grouped = maps.new_zeros(nb_classes, room, maps.shape[1]).index_put(places, maps)  # (K, room, d)
        hidden = torch.baddbmm(self.encoder_bias, grouped, self.encoder).relu()  # (K, room, hidden)
        reconstructed = torch.baddbmm(self.decoder_bias, hidden, self.decoder).sigmoid()  # (K, room, d)
        reconstructions: Tensor = reconstructed[places]
        return reconstructions


def _uniform(nb_in: int, *shape: int) -> Tensor:
    drawn: Tensor = 2 * torch.rand(shape) - 1
    return drawn / math.sqrt(nb_in)


def _above_median(errors: Tensor) -> Tensor:
    size = errors.abs()
    above = size > torch.quantile(size.detach(), 0.5, dim=1, keepdim=True)
    return torch.where(above, size, 0.0).mean(dim=1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "above_median": _above_median,
    "l1": lambda errors: errors.abs().mean(dim=1),
    "l2": lambda errors: errors.square().mean(dim=1),
}
"""The scores (n,) of errors (n, d), by name."""


class ConvolutionalAutoencoder(Reconstructor):
    """One convolutional autoencoder for the maps of all classes, with separate biases for each class.

    It halves the resolution twice, to a sixteenth of ``hidden`` channels, and doubles it twice. **Departure** from the
    authors' dense autoencoders: it uses that pixels are neighbours, and learns common features of all classes once.
    """

    WIDTH = 32

    def __init__(self, nb_classes: int, map_shape: tuple[int, int, int], hidden: int) -> None:
        super().__init__()
        self.map_shape, narrow = map_shape, max(1, hidden // 16)
        height, width = map_shape[1:]
        self.sizes = ((-(-height // 2), -(-width // 2)), (height, width))
        self.first = nn.Conv2d(map_shape[0], self.WIDTH, 3, stride=2, padding=1)
        self.second = nn.Conv2d(self.WIDTH, narrow, 3, stride=2, padding=1)
        self.third = nn.Conv2d(narrow, self.WIDTH, 3, padding=1)
        self.last = nn.Conv2d(self.WIDTH, map_shape[0], 3, padding=1)
        self.of_class = nn.Embedding(nb_classes, 2 * self.WIDTH)

    def forward(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Return reconstructions (n, d) of maps (n, d) as maps of their classes (n,)."""
        inner, outer = self.of_class(classes)[:, :, None, None].chunk(2, dim=1)
        seen = (self.first(maps.unflatten(1, self.map_shape)) + inner).relu()
        narrow = self.second(seen).relu()
        back = (self.third(functional.interpolate(narrow, self.sizes[0])) + outer).relu()
        restored: Tensor = self.last(functional.interpolate(back, self.sizes[1])).sigmoid().flatten(1)
        return restored


class ClassGaussians(Reconstructor):
    """A Gaussian for the statistics of each class; the score is the Mahalanobis distance from the class.

    *Source*: Lee, Lee, Lee, Shin 2018 (arXiv:1807.03888), who use features of the network instead of statistics of its
    explanations. **Convention**: each class has its own covariance, to which a millionth of its mean variance is added.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, nb_classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(nb_classes, size))
        self.register_buffer("whitening", torch.eye(size).repeat(nb_classes, 1, 1))

    def fit(self, points: Tensor, classes: Tensor) -> None:
        """Fit the Gaussians to points (N, d) of classes (N,), on any device.

        Raises:
            InputError: for a class with at most d points, or with points in a plane.
        """
        for number in range(len(self.mean)):
            members = points[classes == number].double()
            if len(members) <= members.shape[1]:
                raise InputError(
                    f"x has {len(members)} images predicted as class {number} to learn from; more than the "
                    f"{members.shape[1]} statistics were expected"
                )
            covariance = members.T.cov()
            covariance = covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed or not bool(factor.isfinite().all()):
                raise InputError(
                    f"x has statistics of class {number} that are all equal; statistics that differ were expected"
                )
            unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            self.mean[number] = members.mean(dim=0)
            self.whitening[number] = torch.linalg.solve_triangular(factor, unit, upper=False)

    def forward(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return points (n, d) whitened by mean and covariance of their class."""
        left: Tensor = (self.whitening[classes] @ (points - self.mean[classes])[:, :, None]).squeeze(2)
        return left


def make_reconstructors(kind: str, nb_classes: int, map_shape: tuple[int, int, int], hidden: int) -> Reconstructor:
    """Return untrained reconstructors for maps of ``map_shape`` (M, H, W), of a kind out of ``RECONSTRUCTORS``."""
    if kind == "statistics":
        return ClassGaussians(nb_classes, 2 * map_shape[0])
    if kind == "convolutional":
        return ConvolutionalAutoencoder(nb_classes, map_shape, hidden)
    return ClassAutoencoders(nb_classes, math.prod(map_shape), hidden)
