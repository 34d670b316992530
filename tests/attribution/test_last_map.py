"""Where ``"last_conv"`` starts: the same place for any number of images, and a map rather than a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from art_defenses_ext.attribution.axes import Axis, followed
from art_defenses_ext.attribution.relevance import Layer, relevance
from art_defenses_ext.attribution.trace import Trace
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo.networks import AlexLike, DigitsCNN, LeNetLike, ResNet20, ResNet20A

NB_CLASSES = 5


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images(count: int = 2, size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, dtype=torch.float64)


# An axis is where autograd finds it.

MATRIX = torch.randn(4, 4, dtype=torch.float64)

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    # Four images of four values of four: no size tells them apart.
    "as they are": lambda x: x * 2,
    "permuted": lambda x: x.permute(1, 2, 0),
    "transposed and back": lambda x: x.transpose(0, 1).transpose(0, 2),
    "axis moved": lambda x: torch.movedim(x, 0, -1),
    "reshaped": lambda x: x.transpose(0, 1).reshape(2, 2, 4, 4),
    "merged and split": lambda x: (x.flatten(0, 1) * MATRIX[0]).view(4, 4, 4).transpose(0, 1),
    "merged between": lambda x: x.permute(1, 0, 2).reshape(2, -1).relu().reshape(4, 4, 4),
    "windows": lambda x: x.view(4, 2, 2, 4).reshape(8, 8).view(4, 2, 2, 2, 2).transpose(1, 3),
    "squeezed": lambda x: x.unsqueeze(0).transpose(0, 2).squeeze(2),
    "a new axis": lambda x: x[None, :, 0, None],
    "expanded": lambda x: x[None].expand(3, 4, 4, 4),
    "one taken": lambda x: x.transpose(0, 1)[0],
    "one selected": lambda x: x.movedim(0, 2).select(0, 1),
    "chosen": lambda x: x.transpose(0, 1)[[2, 0, 1, 3]],
    "unbound": lambda x: x.transpose(0, 1).unbind(2)[1],
    "chunks": lambda x: torch.cat(x.movedim(0, 1).chunk(2, dim=0)[::-1]),
    "stacked": lambda x: torch.stack([x, x], dim=0),
    "stacked behind": lambda x: torch.stack([x.transpose(0, 1), x.transpose(0, 1)], dim=-1),
    "a mean": lambda x: x.permute(1, 0, 2).mean(dim=0),
    "a mean, kept": lambda x: x.permute(1, 0, 2).mean(dim=0, keepdim=True),
    "a sum by letters": lambda x: torch.einsum("nle->en", x),
    "letters moved": lambda x: torch.einsum("nle->len", x),
    "a product by letters": lambda x: torch.einsum("fe,nle->lnf", MATRIX, x),
    "attention by letters": lambda x: torch.einsum("lne,mne->nlm", x.transpose(0, 1), x.transpose(0, 1)),
    "matrices": lambda x: (x @ x.transpose(1, 2)).transpose(0, 1),
    "a dense layer": lambda x: F.linear(x.transpose(0, 1), MATRIX),
    "a sum that repeats": lambda x: x.permute(1, 0, 2) + x.permute(1, 0, 2)[0],
    "flipped": lambda x: x.transpose(0, 1).flip(0),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_the_axis_of_images_is_followed_to_where_autograd_finds_each_image(move: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4, 4, dtype=torch.float64, requires_grad=True)
    trace = Trace(x, nn.Identity(), None, 1e-6)
    with trace:
        output = move(x)
    axes = {id(x): Axis(0)}
    for step in trace.steps:
        reached = followed(step, axes)
        assert reached is not None
        axes[id(step.output)] = reached
    axis = axes[id(output)]
    assert axis.is_whole
    for image in range(4):
        (gradient,) = torch.autograd.grad(output.select(axis.place, image).square().sum(), x, retain_graph=True)
        assert [bool(part.any()) for part in gradient] == [row == image for row in range(4)]


def test_images_that_are_merged_with_others_have_no_axis_of_their_own() -> None:
    x = torch.randn(4, 4, 4)
    trace = Trace(x, nn.Identity(), None, 1e-6)
    with trace:
        x.flatten(0, 1)
    assert followed(trace.steps[0], {id(x): Axis(0)}) == Axis(0, 1, 4)


# Any number of images.


class Sequences(nn.Module):
    """A transformer: 16 patches of 16 numbers and a class token, with the images first or second."""

    def __init__(self, batch_first: bool, *, merges: bool = False) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.dense, self.norm, self.head = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, NB_CLASSES)
        self.batch_first, self.merges = batch_first, merges

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), 1, -1), tokens], dim=1)
        tokens = self.block(tokens if self.batch_first else tokens.permute(1, 0, 2))
        if self.merges:
            tokens = self.dense(tokens)
            tokens = F.relu(self.norm(tokens.flatten(0, 1)).view(tokens.shape))
        logits: Tensor = self.head(tokens[:, 0] if self.batch_first else tokens[0])
        return logits


@pytest.mark.parametrize("merges", [False, True])
def test_the_start_is_the_same_for_any_number_of_images_and_order_of_axes(merges: bool) -> None:
    first, second = (Sequences(batch_first, merges=merges).double().eval() for batch_first in (True, False))
    second.load_state_dict(first.state_dict())
    x = images(17)
    expected = relevance(first, x[:4], "last_conv")
    assert expected.abs().max() > 0
    for model in (first, second):
        singles = torch.cat([relevance(model, x[row : row + 1], "last_conv") for row in range(4)])
        torch.testing.assert_close(singles, expected)
        for count in (4, 16, 17):  # as many as numbers of a token, and as tokens
            actual = relevance(model, x[:count], "last_conv")[:4]
            torch.testing.assert_close(actual, expected)


class Units(nn.Module):
    """16 tokens, no class token, of 40 units that come before the tokens or behind them at the end."""

    def __init__(self, units_first: bool) -> None:
        super().__init__()
        self.patches, self.dense, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 40), nn.Linear(40, NB_CLASSES)
        self.units_first = units_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.dense(self.patches(x).flatten(2).transpose(1, 2)))
        pooled = F.adaptive_avg_pool1d(tokens.transpose(1, 2), 1)[..., 0] if self.units_first else tokens.mean(dim=1)
        logits: Tensor = self.head(pooled)
        return logits


def test_units_that_come_before_the_tokens_are_not_taken_for_class_tokens() -> None:
    models = [Units(units_first).double().eval() for units_first in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    x = images()
    actual, expected = (relevance(model, x, "last_conv") for model in models)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected)


class Unread(nn.Module):
    """An attention whose weights, which come last, nobody reads."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, NB_CLASSES)
        self.attention, self.need_weights = nn.MultiheadAttention(8, 2, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0]
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def test_attention_weights_that_nobody_reads_are_no_start() -> None:
    models, x = [Unread(need_weights).double().eval() for need_weights in (True, False)], images()
    models[1].load_state_dict(models[0].state_dict())
    actual, expected = (relevance(model, x, "last_conv") for model in models)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected)


# A map and no gate.


class Gated(nn.Module):
    """Two convolutions, of which a gate with further ones weights the second."""

    def __init__(self, gate: Callable[[Gated, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.up, self.seen = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(2, 1, 7, padding=3)
        self.along, self.head = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, NB_CLASSES)
        self.gate = gate

    def squeezed(self, z: Tensor) -> Tensor:
        excited: Tensor = self.up(F.relu(self.down(F.adaptive_avg_pool2d(z, 1))))
        return excited

    def forward(self, x: Tensor) -> Tensor:
        before = F.relu(self.first(x))
        z = self.second(before)
        logits: Tensor = self.head(F.relu(self.gate(self, z) * z + before).mean(dim=(2, 3)))
        return logits


GATES: dict[str, Callable[[Gated, Tensor], Tensor]] = {
    "sigmoid": lambda net, z: net.squeezed(z).sigmoid(),
    "hard sigmoid": lambda net, z: F.hardsigmoid(net.squeezed(z)),
    "hard sigmoid, written out": lambda net, z: F.relu6(net.squeezed(z) + 3) / 6,
    "tanh": lambda net, z: 1 + net.squeezed(z).tanh(),
    "along channels": lambda net, z: net.along(z.mean(dim=(2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None],
    "of places": lambda net, z: net.seen(torch.stack([z.mean(dim=1), z.sum(dim=1)], dim=1)).sigmoid(),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())
def test_the_last_convolution_is_no_gate(gate: Callable[[Gated, Tensor], Tensor]) -> None:
    model, x = Gated(gate).double().eval(), images()
    for count in (1, 2):
        actual = relevance(model, x[:count], "last_conv")
        assert actual.abs().max() > 0
        torch.testing.assert_close(actual, relevance(model, x[:count], Layer("second")))


def test_a_network_whose_only_convolution_is_a_gate_has_no_last_one() -> None:
    class OnlyGate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3 * 16 * 16, NB_CLASSES)

        def forward(self, x: Tensor) -> Any:
            return self.head((self.gate(x).sigmoid() * x).flatten(1))

    with pytest.raises(InputError, match="start is 'last_conv', but no convolution ran on the way to the logits"):
        relevance(OnlyGate().double(), images(), "last_conv")


STARTS: dict[str, tuple[Callable[[], nn.Module], int, int, str]] = {
    # Name -> (network, channels, size, the layer whose activity is the start).
    "digits": (DigitsCNN, 1, 8, "features.2"),
    "LeNet": (LeNetLike, 1, 28, "conv2"),
    "AlexNet": (AlexLike, 3, 32, "conv4"),
    "ResNet-20": (ResNet20, 3, 32, "layer3.2.bn2"),
    "ResNet-20 A": (ResNet20A, 3, 32, "layer3.2.bn2"),
    "ResNet-18": (lambda: resnet18(num_classes=NB_CLASSES), 3, 64, "layer4.1.bn2"),
    "at a single place": (lambda: nn.Sequential(nn.Conv2d(3, 4, 4), nn.Conv2d(4, 5, 1), nn.Flatten()), 3, 4, "1"),
    "a pooled head": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Flatten()
        ),
        3,
        8,
        "0",
    ),
}


@pytest.mark.parametrize(("build", "channels", "size", "layer"), STARTS.values(), ids=STARTS.keys())
def test_the_last_convolution_is_the_last_with_several_places_if_there_is_one(
    build: Callable[[], nn.Module], channels: int, size: int, layer: str
) -> None:
    model, x = build().double().eval(), images(2, size, channels)
    actual = relevance(model, x, "last_conv")
    assert actual.abs().max() > 0
    torch.testing.assert_close(actual, relevance(model, x, Layer(layer)))
