"""JumpReLU on the authors' own LeNet weights: the accuracies of the paper's network, and how little the jump hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import JumpReLU
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Split, load_dataset
from art_defenses_ext.zoo.networks import LeNetLike
from art_defenses_ext.zoo.weights import load_weights

pytestmark = pytest.mark.data

CLEAN = {
    "baseline": {0: 99.55, 1: 99.53, 1.5: 99.34, 2: 98.82, 3: 88.05},
    "robust": {0: 99.50, 1: 99.47, 1.5: 99.41, 2: 99.19, 3: 96.87},
}


@pytest.fixture
def test_split(data_root: Path) -> Split:
    return load_dataset("mnist", data_root).test


def lenet(data_root: Path, weights: str) -> PyTorchClassifier:
    path = data_root / "weights" / f"erichson_mnist_lenet_{weights}.pkl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder weights of ART_DEFENSES_DATA")
    spec, model = MODELS["lenet_like"], LeNetLike()
    load_weights(model, path)
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        spec.input_shape,
        spec.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(spec.mean), np.array(spec.std)),
        device_type="cpu",
    )


@pytest.mark.parametrize("weights", CLEAN)
def test_clean_accuracies_are_those_of_the_authors_network(data_root: Path, test_split: Split, weights: str) -> None:
    """On all 10,000 test images, to one image."""
    classifier = lenet(data_root, weights)
    for jump, expected in CLEAN[weights].items():
        predicted = JumpReLU(classifier, jump)().predict(test_split.x, batch_size=500).argmax(axis=1)
        assert 100 * (predicted == test_split.y).mean() == pytest.approx(expected, abs=0.0101)


def robust_accuracy(classifier: PyTorchClassifier, data: Split, eps: float, mode: str) -> float:
    """Per cent of the first 200 test images that 40 steps of eps / 4 from a random start leave right."""
    x, y = data.x[:200], data.y[:200]
    x_adv = MarginPGD(classifier, np.inf, eps, gradient_mode=mode, batch_size=200).generate(x, y)
    return 100 * float((classifier.predict(x_adv).argmax(axis=1) == y).mean())


def test_the_jump_s_gain_is_gone_once_the_backward_pass_is_smoothed(data_root: Path, test_split: Split) -> None:
    """On 500 images at eps .2: bare 33.2 %; with the jump 67.4 % (exact), 55.6 % (relu), 33.6 % (smooth).

    200 images give those numbers to within about 7 points (two standard errors).
    """
    bare = lenet(data_root, "robust")
    jumping = JumpReLU(bare, 1.0)()
    undefended = robust_accuracy(bare, test_split, 0.2, "exact")
    exact, relu, smooth = (robust_accuracy(jumping, test_split, 0.2, mode) for mode in ("exact", "relu", "smooth"))
    assert exact > undefended + 20  # the jump looks like a gain
    assert exact > relu > smooth
    assert smooth < exact - 20  # and it is none
    assert smooth == pytest.approx(undefended, abs=10)
    assert (undefended, exact, relu, smooth) == pytest.approx((33.2, 67.4, 55.6, 33.6), abs=8)


def test_the_baseline_s_gain_is_gone_too(data_root: Path, test_split: Split) -> None:
    """On 500 images at eps .1: bare 74.0 %; with the jump 83.4 % (exact), 68.4 % (smooth)."""
    bare = lenet(data_root, "baseline")
    jumping = JumpReLU(bare, 1.0)()
    undefended = robust_accuracy(bare, test_split, 0.1, "exact")
    exact, smooth = (robust_accuracy(jumping, test_split, 0.1, mode) for mode in ("exact", "smooth"))
    assert exact > undefended > smooth
    assert (undefended, exact, smooth) == pytest.approx((74.0, 83.4, 68.4), abs=8)


@pytest.mark.parametrize("mode", ["exact", "relu", "smooth"])
def test_the_first_layer_s_gradient_matches_one_written_out(data_root: Path, test_split: Split, mode: str) -> None:
    """On trained weights the activations are large enough for every branch of each rule to be met."""
    classifier = lenet(data_root, "robust")
    network = JumpReLU(classifier, 1.0)().model
    network.gradient_mode = mode
    model = classifier.model.eval()
    images = torch.from_numpy((test_split.x[:4] - 0.1307) / 0.3081).requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).logsumexp(dim=1).sum(), images)

    def jump(z: torch.Tensor) -> torch.Tensor:
        hard = z * (z > 1)
        soft = {"exact": hard, "relu": z.clamp(min=0), "smooth": z * torch.sigmoid((z - 1) / 0.25)}[mode]
        return hard.detach() + soft - soft.detach()

    reference = images.detach().clone().requires_grad_()
    h = jump(nn.functional.max_pool2d(model.conv1(reference), 2))
    h = jump(nn.functional.max_pool2d(model.conv2(h), 2)).flatten(1)
    logits = model.fc3(jump(model.fc2(jump(model.fc1(h)))))
    (expected,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), reference)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
