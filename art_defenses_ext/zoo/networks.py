"""The networks of the papers and a small one for the digits, all with plain ReLUs.

Their inputs are normalised already.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional


class DigitsCNN(nn.Module):
    """A small network for the 8x8 digits (1, 8, 8): two convolutions, a pool, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 1, 8, 8)."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


class LeNetLike(nn.Module):
    """The JumpReLU authors' network for 28x28 grey images.

    *Source*: the code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750); the keys are those of their published
    weights. The activation comes after the pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(20 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 90)
        self.fc3 = nn.Linear(90, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 1, 28, 28)."""
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))  # (N, 10, 12, 12)
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))  # (N, 20, 4, 4)
        x = functional.dropout(x.flatten(1), p=0.5, training=self.training)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class KoLim(nn.Sequential):
    """The network for 28x28 grey images of the explanation reconstructor's authors.

    *Source*: the code of Ko, Lim 2021 (arXiv:2107.10480), which trains it with Adam for ten epochs in batches of 32.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, kernel_size=3),  # (N, 32, 26, 26)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 26 * 26, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


class WongKolter(nn.Sequential):
    """The small network for 28x28 grey images of the defence by the convex outer adversarial polytope.

    *Source*: Wong, Kolter 2018 (arXiv:1711.00851), the MNIST network of their code; the keys are those of the weights
    that Wong, Rice, Kolter 2020 (arXiv:2001.03994) trained by PGD and published.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1),  # (N, 16, 14, 14)
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),  # (N, 32, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


class AlexLike(nn.Module):
    """The JumpReLU authors' network without residuals for 32x32 colour images.

    *Source*: the code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750): unpadded convolutions, and dropout before the
    first linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3)
        self.conv2 = nn.Conv2d(64, 64, kernel_size=3)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3)
        self.conv4 = nn.Conv2d(128, 128, kernel_size=3)
        self.fc1 = nn.Linear(128 * 5 * 5, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)  # (N, 64, 14, 14)
        x = functional.relu(self.conv3(x))
        x = functional.max_pool2d(functional.relu(self.conv4(x)), 2)  # (N, 128, 5, 5)
        x = functional.dropout(x.flatten(1), p=0.5, training=self.training)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class _SubsampleAndPad(nn.Module):
    """The shortcut without parameters: every other pixel, and zero channels on both sides.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2, option A.
    """

    def __init__(self, nb_new_channels: int) -> None:
        super().__init__()
        self.nb_new_channels = nb_new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.nb_new_channels // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.nb_new_channels - before))


def _project(nb_in: int, nb_out: int) -> nn.Module:
    """The shortcut with parameters (option B): a 1x1 convolution of stride 2."""
    return nn.Sequential(nn.Conv2d(nb_in, nb_out, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(nb_out))


def _subsample(nb_in: int, nb_out: int) -> nn.Module:
    return _SubsampleAndPad(nb_out - nb_in)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; one ReLU between them and one after the sum."""

    def __init__(self, nb_in: int, nb_out: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(nb_in, nb_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(nb_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(nb_out, nb_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(nb_out)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.downsample(x))  # type: ignore[no-any-return]


def _stage(nb_in: int, nb_out: int, shortcut: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """Three blocks; the first halves the image where the number of channels grows."""
    grows = nb_in != nb_out
    first = _BasicBlock(nb_in, nb_out, 2 if grows else 1, shortcut(nb_in, nb_out) if grows else nn.Identity())
    return nn.Sequential(first, *(_BasicBlock(nb_out, nb_out, 1, nn.Identity()) for _ in range(2)))


class _ResNet20Body(nn.Module):
    """The common part of both forms: from images (N, 3, 32, 32) to features (N, 64).

    **Convention**: convolutions start from He's normal distribution over the fan-out, as in the JumpReLU authors' code.
    """

    def __init__(self, shortcut: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, shortcut)
        self.layer2 = _stage(16, 32, shortcut)
        self.layer3 = _stage(32, 64, shortcut)
        self.avgpool = nn.AvgPool2d(8)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, 8, 8)
        return self.avgpool(x).flatten(1)  # type: ignore[no-any-return]


class ResNet20(_ResNet20Body):
    """The 20-layer residual network for 32x32 colour images with 1x1 convolutions as shortcuts.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2 with option B; the keys are those of the JumpReLU
    authors' published weights (Erichson, Yao, Mahoney 2019, arXiv:1904.03750).
    """

    def __init__(self) -> None:
        super().__init__(_project)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        return self.fc(self.features(x))  # type: ignore[no-any-return]


class ResNet20A(_ResNet20Body):
    """The 20-layer residual network for 32x32 colour images with shortcuts that have no parameters.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2 with option A; the keys are those of Yerlan Idelbayev's
    published weights (github.com/akamaster/pytorch_resnet_cifar10).
    """

    def __init__(self) -> None:
        super().__init__(_subsample)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        return self.linear(self.features(x))  # type: ignore[no-any-return]
