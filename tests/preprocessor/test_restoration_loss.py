"""RestorationLoss: each term against its formula written again, and whether it reaches the restored image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.preprocessor import restoration_loss
from art_defenses_ext.preprocessor.feature_maps import VGG16_TAPS
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss

TERMS: dict[str, dict[str, Any]] = {
    "pixels": {"pixel_weight": 1.0},
    "features": {"pixel_weight": 0.0, "feature_weight": 1.0},
    "class": {"pixel_weight": 0.0, "class_weight": 1.0},
}
LABELS = torch.tensor([1, 0, 3])


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@pytest.fixture
def classifier() -> nn.Module:
    """Four convolutions, so that three of them are a choice."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.Flatten(),
            nn.Linear(180, 4),
        )
    )


@pytest.fixture
def restored() -> Tensor:
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def clean() -> Tensor:
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))


def normalised(x: Tensor) -> Tensor:
    return (x - 0.3) / 0.4


def relative(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual - expected).square().mean() / expected.square().mean()


# The terms


@pytest.mark.parametrize("weight", [0.25, 3])
def test_pixels_are_compared_by_mean_differences_or_mean_squares(
    classifier: nn.Module, restored: Tensor, clean: Tensor, weight: float
) -> None:
    for pixel, expected in (("l1", (restored - clean).abs().mean()), ("l2", (restored - clean).square().mean())):
        bound = RestorationLoss(pixel=pixel, pixel_weight=weight).bound_to(classifier, normalised)  # type: ignore[arg-type]
        terms = bound(restored, clean, LABELS)
        assert list(terms) == ["pixels"]
        torch.testing.assert_close(terms["pixels"], weight * expected)


def test_the_class_term_is_the_cross_entropy_of_the_normalised_image(
    classifier: nn.Module, restored: Tensor, clean: Tensor
) -> None:
    terms = RestorationLoss(pixel_weight=0.0, class_weight=0.5).bound_to(classifier, normalised)
    losses = terms(restored, clean, LABELS)
    assert list(losses) == ["class"]
    likelihood = classifier((restored - 0.3) / 0.4).log_softmax(dim=1)
    torch.testing.assert_close(losses["class"], -0.5 * likelihood[range(3), LABELS].mean())


def test_a_feature_term_is_the_mean_over_layers_of_relative_mean_squares(
    classifier: nn.Module, restored: Tensor, clean: Tensor
) -> None:
    """Of what a layer gives, not of what the next one makes of it in place; by default of three convolutions."""
    assert isinstance(classifier, nn.Sequential)
    loss = RestorationLoss(pixel_weight=0.0, feature_weight=2.0, taps=("0", "7"))
    terms = loss.bound_to(classifier, normalised)(restored, clean, LABELS)
    restored_input, clean_input = normalised(restored), normalised(clean)
    first = relative(classifier[0](restored_input), classifier[0](clean_input))
    last = relative(classifier(restored_input), classifier(clean_input))
    torch.testing.assert_close(terms["features"], 2 * (first + last) / 2)

    usual = RestorationLoss(pixel_weight=0.0, feature_weight=1.0).bound_to(classifier, normalised)
    layers = [relative(classifier[:end](restored_input), classifier[:end](clean_input)) for end in (1, 3, 6)]
    torch.testing.assert_close(usual(restored, clean, LABELS)["features"], sum(layers) / 3)


def test_maps_that_are_zero_for_the_clean_image_give_no_nan(classifier: nn.Module, clean: Tensor) -> None:
    with torch.no_grad():
        for parameter in classifier.get_submodule("0").parameters():
            parameter.zero_()
    loss = RestorationLoss(pixel_weight=0.0, feature_weight=1.0, taps=("0",)).bound_to(classifier, normalised)
    assert loss(clean, clean, LABELS)["features"].item() == 0


def test_terms_together_are_those_of_each_alone(classifier: nn.Module, restored: Tensor, clean: Tensor) -> None:
    combined = RestorationLoss(pixel_weight=0.5, feature_weight=2.0, class_weight=0.1)
    terms = combined.bound_to(classifier, normalised)(restored, clean, LABELS)
    assert list(terms) == list(TERMS)
    for name, weight in (("pixels", 0.5), ("features", 2.0), ("class", 0.1)):
        single = RestorationLoss(**TERMS[name]).bound_to(classifier, normalised)(restored, clean, LABELS)
        torch.testing.assert_close(terms[name], weight * single[name])


# What they are for


@pytest.mark.parametrize("network", ["classifier", "another"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_pulls_at_the_restored_image(
    classifier: nn.Module, restored: Tensor, clean: Tensor, term: str, network: str
) -> None:
    """In every pixel, as finite differences say; the authors' feature terms did not depend on the restored image."""
    classifier.double()
    chosen: Any = network if network == "classifier" else copy.deepcopy(classifier)
    terms = RestorationLoss(**TERMS[term], network=chosen, taps=("7",)).bound_to(classifier, normalised)
    points = restored.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: terms(x, clean.double(), LABELS)[term], (points,))
    (gradient,) = torch.autograd.grad(terms(points, clean.double(), LABELS)[term], points)
    assert bool((gradient != 0).all())


def test_only_what_counts_is_computed(classifier: nn.Module, restored: Tensor, clean: Tensor) -> None:
    """The classifier runs once for features and class together, and once without graph for the clean features."""
    calls: list[bool] = []
    classifier.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for weights, expected in (
        ((1.0, 0.0, 0.0), []),
        ((1.0, 0.0, 1.0), [True]),
        ((0.0, 1.0, 0.0), [True, False]),
        ((1.0, 1.0, 1.0), [True, False]),
    ):
        calls.clear()
        RestorationLoss("l1", *weights).bound_to(classifier, normalised)(restored, clean, LABELS)
        assert calls == expected


# Whose features


def test_a_network_of_one_s_own_sees_images_as_they_are(classifier: nn.Module, restored: Tensor, clean: Tensor) -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.9))).train()
    loss = RestorationLoss(pixel_weight=0.0, feature_weight=1.0, network=network, taps=("1",))
    terms = loss.bound_to(classifier, normalised)(restored, clean, LABELS)
    torch.testing.assert_close(terms["features"], relative(network[0](restored), network[0](clean)))  # type: ignore[index]
    assert all(module.training for module in network.modules())


def test_vgg16_is_compared_where_the_authors_cut_it(
    classifier: nn.Module, restored: Tensor, clean: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stand(nn.Module):
        """Layer by layer a tenth more, so that the layer can be told from its map."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleList(nn.Identity() for _ in range(31))

        def forward(self, x: Tensor) -> Tensor:
            for layer, module in enumerate(self.features):
                x = module(x + 0.1 * layer)
            return x

    assert VGG16_TAPS == ("features.20", "features.23", "features.27")
    monkeypatch.setattr(restoration_loss, "VGG16Features", Stand)
    loss = RestorationLoss(pixel_weight=0.0, feature_weight=1.0, network="vgg16").bound_to(classifier, normalised)
    offsets = [0.1 * sum(range(layer + 1)) for layer in (20, 23, 27)]
    expected = sum(relative(restored + offset, clean + offset) for offset in offsets) / 3
    torch.testing.assert_close(loss(restored, clean, LABELS)["features"], expected)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel": "huber"}, "pixel is 'huber'; one of l1, l2 was expected"),
        ({"pixel_weight": 0.0}, "pixel_weight, feature_weight and class_weight are all 0; one above 0 was expected"),
        *(({name: -1.0}, f"{name} is -1") for name in ("pixel_weight", "feature_weight", "class_weight")),
        ({"network": "resnet"}, r"network is 'resnet'; 'classifier', 'vgg16' or an nn\.Module was expected"),
        ({"network": nn.ReLU}, r"network is <class .*; 'classifier', 'vgg16' or an nn\.Module was expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RestorationLoss(**settings)


def test_layers_that_are_not_there_are_named(classifier: nn.Module, restored: Tensor, clean: Tensor) -> None:
    loss = RestorationLoss(feature_weight=1.0, taps=("0", "conv")).bound_to(classifier, normalised)
    with pytest.raises(InputError, match="taps names 'conv', which Sequential does not have: one of 0, 1, 2, "):
        loss(restored, clean, LABELS)
    with pytest.raises(InputError, match="taps is None and Flatten has no convolution"):
        RestorationLoss(feature_weight=1.0).bound_to(nn.Flatten(), normalised)
