"""defend and as_module: one differentiable path, the same for ART, for autograd and for any other attack library."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.defend import as_module, defend
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.gradients.modes import Defence, find_defences, gradient_mode, gradient_modes

SHAPE = (3, 4, 5)
NB_CLASSES = 4


class Affine(PreprocessorPyTorch):
    """slope * x + offset; no module."""

    def __init__(self, slope: float, offset: float, apply_predict: bool = True) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=apply_predict)
        self.slope, self.offset = slope, offset

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return self.slope * x + self.offset, y


class Squared(nn.Module, Defence, PreprocessorPyTorch):
    """x squared times a parameter; the derivative that an attacker sees is exact or that of the identity."""

    name = "squared"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "identity")

    def __init__(self) -> None:
        nn.Module.__init__(self)
        PreprocessorPyTorch.__init__(self, device_type="cpu", apply_fit=False, apply_predict=True)
        self.factor = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        exact = self.factor * x.square()
        return (exact if self.gradient_mode == "exact" else exact.detach() + x - x.detach()), y


class Inside(nn.Module, Defence):
    """The identity, inside a network; the derivative that an attacker sees is exact or doubled."""

    name = "inside"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "double")

    def forward(self, x: Tensor) -> Tensor:
        return x if self.gradient_mode == "exact" else 2 * x - x.detach()


class OwnForward(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def network() -> nn.Module:
    """A Sequential, so that ART runs its children one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 4, 3, padding=1),
                tanh=nn.Tanh(),
                flat=nn.Flatten(),
                dropout=nn.Dropout(0.5),
                out=nn.Linear(80, NB_CLASSES),
            )
        )


def wrap(model: nn.Module | None = None, **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | arguments
    return PyTorchClassifier(model or network(), nn.CrossEntropyLoss(), SHAPE, NB_CLASSES, **settings)


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)


@pytest.fixture
def y() -> Any:
    return np.eye(NB_CLASSES, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]


PREPROCESSING = {
    "none": None,
    "default": (0.0, 1.0),
    "scalar": (0.3, 0.7),
    "one channel": (np.array([0.3]), np.array([0.7])),
    "per channel": (np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])),
    "per pixel": (np.full(SHAPE, 0.4), np.linspace(0.5, 2, 60).reshape(SHAPE)),
}


def assert_art_and_autograd_agree(classifier: PyTorchClassifier, x: Any, y: Any) -> None:
    """Predictions, loss gradients and class gradients, to the last bit."""
    module = as_module(classifier)
    images = torch.from_numpy(x).requires_grad_()
    logits = module(images)
    np.testing.assert_array_equal(logits.detach().numpy(), classifier.predict(x))
    loss = F.cross_entropy(logits, torch.from_numpy(y.argmax(axis=1)))
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    np.testing.assert_array_equal(gradient.numpy(), classifier.loss_gradient(x, y))
    per_class = [torch.autograd.grad(column.sum(), images, retain_graph=True)[0].numpy() for column in logits.T]
    np.testing.assert_array_equal(np.stack(per_class, axis=1), classifier.class_gradient(x))
    np.testing.assert_array_equal(per_class[2][:, None], classifier.class_gradient(x, label=2))
    assert np.abs(gradient.numpy()).max() > 0


# defend


def test_preprocessors_are_appended_and_images_meet_them_in_that_order(x: Any) -> None:
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    earlier, first, second = Affine(2, 1), Affine(-1, 0.5), Affine(3, -1)
    classifier = wrap(preprocessing_defences=[earlier], preprocessing=(mean, std))
    defended = defend(classifier, first, second)
    assert defended.preprocessing_defences == [earlier, first, second]
    preprocessed = 3 * (-1 * (2 * x.astype(np.float64) + 1) + 0.5) - 1
    preprocessed = (preprocessed - mean[:, None, None]) / std[:, None, None]  # always last
    with torch.no_grad():
        expected = classifier.model.eval().double()(torch.from_numpy(preprocessed)).numpy()
    classifier.model.float()
    np.testing.assert_allclose(defended.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_the_earlier_classifier_stays_as_it_is_and_shares_its_model(x: Any) -> None:
    classifier = wrap(preprocessing_defences=[Affine(2, 1)])
    before = classifier.predict(x)
    defended = defend(classifier, Affine(0.5, 0))
    assert defended.model is classifier.model
    assert len(classifier.preprocessing_defences) == 1
    assert len(classifier.preprocessing_operations) == 2
    np.testing.assert_array_equal(classifier.predict(x), before)
    assert not np.array_equal(defended.predict(x), before)


@pytest.mark.parametrize(
    ("preprocessors", "message"),
    [
        ((), "no preprocessor; at least one was expected"),
        ((nn.Identity(),), "Identity: an ART Preprocessor"),
        ((Affine,), "an ART Preprocessor was expected"),
        (([Affine(1, 0)],), "list: an ART Preprocessor"),
    ],
)
def test_what_is_no_preprocessor_is_refused(preprocessors: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        defend(wrap(), *preprocessors)


def test_a_classifier_that_art_would_misread_is_refused() -> None:
    classifier = wrap(OwnForward(nn.Flatten(), nn.Linear(60, NB_CLASSES)))
    with pytest.raises(InputError, match="OwnForward"):
        defend(classifier, Affine(2, 1))
    with pytest.raises(InputError, match="OwnForward"):
        as_module(classifier)


# as_module


@pytest.mark.parametrize("preprocessing", PREPROCESSING)
def test_art_and_autograd_agree_to_the_last_bit(preprocessing: str, x: Any, y: Any) -> None:
    classifier = wrap(preprocessing=PREPROCESSING[preprocessing])
    assert_art_and_autograd_agree(classifier, x, y)
    assert_art_and_autograd_agree(defend(classifier, Affine(2, -0.5)), x, y)


@pytest.mark.parametrize("preprocessing", ["none", "per channel"])
def test_art_and_autograd_agree_in_every_gradient_mode_of_stacked_defences(preprocessing: str, x: Any, y: Any) -> None:
    defended = defend(wrap(preprocessing=PREPROCESSING[preprocessing]), Squared(), Affine(2, -0.5), Squared())
    assert len(gradient_modes(defended)) == 4
    gradients = []
    for mode in gradient_modes(defended):
        with gradient_mode(defended, mode):
            assert_art_and_autograd_agree(defended, x, y)
            gradients.append(defended.loss_gradient(x, y))
    for row in range(4):
        for earlier in range(row):
            assert not np.allclose(gradients[row], gradients[earlier])  # each mode is another backward pass


def test_every_defence_is_reachable_through_the_module(x: Any) -> None:
    first, second = Squared(), Squared()
    defended = defend(wrap(), first, Affine(2, 1), second)
    module = as_module(defended)
    assert [part for part in module.modules() if isinstance(part, Defence)] == [first, second]
    assert find_defences(module) == find_defences(defended)
    assert gradient_modes(module) == gradient_modes(defended)
    with gradient_mode(module, "identity+exact"):
        assert (first.gradient_mode, second.gradient_mode) == ("identity", "exact")


def test_defences_in_front_of_the_network_come_before_those_inside_it_for_the_module_too(x: Any) -> None:
    """So that one name of a combination of modes means the same for a classifier and for its module."""
    first, second = Squared(), Squared()
    defended_network = nn.Sequential(*network(), Inside())
    defended = defend(wrap(defended_network, preprocessing=PREPROCESSING["per channel"]), first, second)
    module = as_module(defended)
    expected = [first, second, defended_network[-1]]
    assert [part for part in module.modules() if isinstance(part, Defence)] == expected
    assert find_defences(module) == find_defences(defended) == expected
    assert gradient_modes(module) == gradient_modes(defended)
    for target in (module, defended):
        with gradient_mode(target, "exact+identity+double"):
            assert [defence.gradient_mode for defence in expected] == ["exact", "identity", "double"]
    nested = rebuild(defended, model=module, preprocessing_defences=None, preprocessing=None)
    assert find_defences(as_module(nested)) == find_defences(nested) == expected


def test_a_preprocessor_for_training_alone_is_left_out(x: Any, y: Any) -> None:
    classifier = defend(wrap(), Affine(0, 0, apply_predict=False), Affine(2, 1))
    assert_art_and_autograd_agree(classifier, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_another_dtype_are_cast_at_the_models_door(dtype: torch.dtype, x: Any) -> None:
    classifier = defend(wrap(preprocessing=PREPROCESSING["per channel"]), Squared())
    module = as_module(classifier)
    images = torch.from_numpy(x).to(dtype).requires_grad_()
    logits = module(images)
    assert logits.dtype == torch.float32
    expected = classifier.predict(images.detach().float().numpy())
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=tolerance, rtol=tolerance)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("preprocessing", PREPROCESSING)
def test_the_module_is_whole_on_the_device_of_the_model(preprocessing: str) -> None:
    """Shown on the meta device, which every machine has and which mixes with the CPU no better than CUDA does."""
    classifier = wrap(preprocessing=PREPROCESSING[preprocessing])
    classifier.model.to("meta")
    classifier._device = torch.device("meta")
    assert as_module(classifier)(torch.empty(2, *SHAPE, device="meta")).shape == (2, NB_CLASSES)
