"""RestoringPreprocessor: what ART's users and attackers may rely on, whatever a defence restores and how."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import FeatureAutoencoder, Linf, TwoStreamRestoration, as_module, defend
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.declared import Kind, NonNegative, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.evaluate import run_key
from art_defenses_ext.evaluation.suite.suites import WHITE_BOX
from art_defenses_ext.gradients.modes import find_defences, gradient_mode, gradient_modes
from art_defenses_ext.preprocessor.base import RestoringPreprocessor
from art_defenses_ext.preprocessor.heat_and_blur import HeatAndBlur
from art_defenses_ext.zoo.datasets import Dataset

# Each option by name: the defaults are no business of these tests.
OPTIONS: dict[str, Any] = {
    "start": "predicted",
    "top_k": 3,
    "rules": "epsilon_plus_box",
    "scale": "percentile",
    "heat_sigma": 0.0,
    "floor": 0.1,
    "mix": "blend",
    "sigma": 0.8,
    "sharp_sigma": 0.3,
    "gain": 0.5,
    "passes": 1,
}


class Pushed(RestoringPreprocessor):
    """Moves an image along the network's own gradient, so that an attacker needs second derivatives."""

    name = "pushed"
    gradient_modes = ("exact", "identity")
    step: NonNegative = 0.1

    def restore(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            confidence = self.model(self._normalised(at)).logsumexp(dim=1).sum()
            (slope,) = torch.autograd.grad(confidence, at, create_graph=wanted)
            return at + self.step * slope.tanh()


Defended = Callable[..., PyTorchClassifier]


@pytest.fixture(params=["pushed", "heat and blur"])
def kind(request: pytest.FixtureRequest) -> tuple[type[RestoringPreprocessor], dict[str, Any]]:
    """A class of defences and its options."""
    return {"pushed": (Pushed, {"step": 0.2}), "heat and blur": (HeatAndBlur, OPTIONS)}[request.param]


@pytest.fixture
def before(kind: tuple[type[RestoringPreprocessor], dict[str, Any]]) -> Defended:
    """Puts a defence of either kind before a classifier."""
    cls, options = kind
    return lambda classifier, **changes: defend(classifier, cls.for_classifier(classifier, **(options | changes)))


@pytest.fixture
def x(digits: Dataset) -> FloatArray:
    return digits.test.x[:23].copy()


@pytest.fixture
def y(digits: Dataset) -> FloatArray:
    return np.eye(10, dtype=np.float32)[digits.test.y[:23]]


def the_defence(classifier: PyTorchClassifier) -> Any:
    (defence,) = find_defences(classifier)
    return defence


@contextmanager
def restoring(defence: Any, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Show ``note`` each batch that ``defence`` restores meanwhile."""
    original = defence.restore

    def restore(batch: Tensor) -> Tensor:
        note(batch)
        restored: Tensor = original(batch)
        return restored

    defence.restore = restore
    try:
        yield
    finally:
        del defence.restore


# Batches


def test_the_size_of_the_batches_does_not_matter(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    at_once = before(own_classifier, chunk_size=64)
    for chunk_size in (7,):
        by_batch = before(own_classifier, chunk_size=chunk_size)
        np.testing.assert_allclose(the_defence(by_batch)(x)[0], the_defence(at_once)(x)[0], atol=1e-6)
        np.testing.assert_allclose(by_batch.predict(x), at_once.predict(x), rtol=1e-4, atol=1e-4)
    own_classifier.model.double()
    for mode in gradient_modes(at_once):
        expected = gradient_in(mode, at_once, x, y)
        for chunk_size in (1, 7):
            by_batch = before(own_classifier, chunk_size=chunk_size)
            np.testing.assert_allclose(gradient_in(mode, by_batch, x, y), expected, atol=1e-6 * np.abs(expected).max())


def gradient_in(mode: str, classifier: PyTorchClassifier, x: FloatArray, y: FloatArray) -> FloatArray:
    with gradient_mode(classifier, mode):
        gradient: FloatArray = classifier.loss_gradient(x, y)
    return gradient


def test_predict_restores_no_more_than_a_batch_at_a_time(
    before: Defended, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    defended = before(digits_classifier, chunk_size=64)
    sizes: list[int] = []
    with restoring(the_defence(defended), lambda batch: sizes.append(len(batch))):
        defended.predict(digits.test.x[:150], batch_size=1000)
    assert sizes == [64, 64, 22]


# Dtypes and labels


def test_a_float64_network_works_in_float64(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    single = before(own_classifier)
    expected = single.predict(x), the_defence(single)(x)[0]
    own_classifier.model.double()
    double = before(own_classifier)
    restored = the_defence(double)(torch.from_numpy(x))[0].detach()
    assert restored.dtype == torch.float64
    np.testing.assert_allclose(restored, expected[1], atol=1e-5)
    np.testing.assert_allclose(double.predict(x), expected[0], rtol=1e-3, atol=1e-3)
    assert np.isfinite(double.loss_gradient(x, y)).all()


@pytest.mark.parametrize("labels", ["one-hot", "indices", "none"])
def test_labels_come_back_as_they_are(
    before: Defended, digits_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray, labels: str
) -> None:
    defence = the_defence(before(digits_classifier))
    passed = {"one-hot": y, "indices": y.argmax(axis=1), "none": None}[labels]
    images, returned = defence(x, passed)
    assert isinstance(images, np.ndarray)
    assert (images.shape, images.dtype) == (x.shape, x.dtype)
    if passed is None:
        assert returned is None
        assert defence(torch.from_numpy(x))[1] is None
    else:
        np.testing.assert_array_equal(returned, passed)
        assert returned.dtype == passed.dtype
        tensors = torch.from_numpy(passed)
        assert defence(torch.from_numpy(x), tensors)[1] is tensors


# When ART applies it


@pytest.mark.parametrize("apply_fit", [False, True])
def test_training_sees_restored_images_if_it_is_asked_to(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray, apply_fit: bool
) -> None:
    defended = before(own_classifier, apply_fit=apply_fit)
    expected = own_classifier.preprocessing(the_defence(defended)(x)[0] if apply_fit else x)[0]
    inputs: list[Tensor] = []
    # Own passes of the defence come first, the training step last.
    handle = own_classifier.model.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    defended.fit(x, y, batch_size=len(x), nb_epochs=1)
    handle.remove()
    trained_on = inputs[-1].flatten(1).numpy()
    order = [int(np.abs(trained_on - image).sum(axis=1).argmin()) for image in expected.reshape(len(x), -1)]
    assert sorted(order) == list(range(len(x)))  # ART shuffles
    np.testing.assert_allclose(trained_on[order], expected.reshape(len(x), -1), atol=1e-5)


def test_it_can_be_left_out_of_predictions(before: Defended, digits_classifier: PyTorchClassifier, x: Any) -> None:
    unused = before(digits_classifier, apply_predict=False)
    np.testing.assert_array_equal(unused.predict(x), digits_classifier.predict(x))
    with torch.no_grad():
        np.testing.assert_array_equal(as_module(unused)(torch.from_numpy(x)), digits_classifier.predict(x))
    assert not np.array_equal(before(digits_classifier).predict(x), digits_classifier.predict(x))


# One differentiable path


@pytest.mark.parametrize(("normalised", "by_hand"), [(True, False), (True, True), (False, False)])
def test_art_s_gradients_are_those_of_autograd_to_the_last_bit(
    kind: Any, before: Defended, digits_classifier: PyTorchClassifier, x: Any, y: Any, normalised: bool, by_hand: bool
) -> None:
    classifier = digits_classifier if normalised else rebuild(digits_classifier, preprocessing=None)
    defended = before(classifier)
    if by_hand:
        cls, options = kind
        numbers = {"mean": classifier.preprocessing.mean, "std": classifier.preprocessing.std} if normalised else {}
        defence = cls(classifier.model, **numbers, **options)
        defended = PyTorchClassifier(
            classifier.model,
            nn.CrossEntropyLoss(),
            (1, 8, 8),
            10,
            clip_values=(0.0, 1.0),
            preprocessing_defences=[defence],
            preprocessing=(numbers["mean"], numbers["std"]) if normalised else None,
            device_type="cpu",
        )
    assert len(defended.preprocessing_operations) == 1 + normalised
    for mode in gradient_modes(defended):
        with gradient_mode(defended, mode):
            images = torch.from_numpy(x).requires_grad_()
            logits = as_module(defended)(images)
            loss = F.cross_entropy(logits, torch.from_numpy(y.argmax(axis=1)))
            (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
            rows = [torch.autograd.grad(column.sum(), images, retain_graph=True)[0].numpy() for column in logits.T]
            np.testing.assert_array_equal(logits.detach().numpy(), defended.predict(x))
            np.testing.assert_array_equal(gradient.numpy(), defended.loss_gradient(x, y))
            np.testing.assert_array_equal(np.stack(rows, axis=1), defended.class_gradient(x))
            np.testing.assert_array_equal(rows[2][:, None], defended.class_gradient(x, label=2))
            assert np.abs(gradient.numpy()).max() > 0


def test_the_modes_differ_backwards_alone(
    before: Defended, digits_classifier: PyTorchClassifier, x: Any, y: Any
) -> None:
    """The forward pass is the same to the last bit, with gradients and without."""
    defended = before(digits_classifier)
    defence, images = the_defence(defended), torch.from_numpy(x)
    with torch.no_grad():
        expected = defence(images)[0]
    gradients, predictions = [], []
    for mode in gradient_modes(defended):
        with gradient_mode(defended, mode):
            assert torch.equal(defence(images.clone().requires_grad_())[0].detach(), expected)
            predictions.append(defended.predict(x))
            gradients.append(defended.loss_gradient(x, y))
    for prediction, gradient in zip(predictions[1:], gradients[1:], strict=True):
        np.testing.assert_array_equal(prediction, predictions[0])
        assert not np.allclose(gradient, gradients[0], rtol=0.01)


def test_the_identity_gives_the_gradient_at_the_restored_image(
    before: Defended, digits_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    defended = before(digits_classifier)
    restored, _ = the_defence(defended)(x)
    with gradient_mode(defended, "identity"):
        np.testing.assert_array_equal(defended.loss_gradient(x, y), digits_classifier.loss_gradient(restored, y))
        np.testing.assert_array_equal(defended.class_gradient(x), digits_classifier.class_gradient(restored))


def test_the_exact_gradient_of_a_defence_that_takes_gradients_is_the_numerical_one() -> None:
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    defence = Pushed(smooth, mean=0.3, std=0.4, step=0.5)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: defence(x)[0], (x,))


@pytest.mark.parametrize("mode", ["exact", "frozen"])
def test_forward_differentiation_finds_it_too(own_classifier: PyTorchClassifier, digits: Dataset, mode: str) -> None:
    """There no tensor requires a gradient at all."""
    own_classifier.model.double()
    defended = defend(own_classifier, HeatAndBlur.for_classifier(own_classifier, **OPTIONS))
    module, images = as_module(defended), torch.from_numpy(digits.test.x[:3]).double()
    direction = torch.rand(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with gradient_mode(defended, mode):
        points = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(points).square().sum(), points)
        _, slope = torch.func.jvp(lambda x: module(x).square().sum(), (images,), (direction,))
    torch.testing.assert_close(slope, (gradient * direction).sum())


# What must stay as it is


def test_without_gradients_no_graph_is_kept(
    before: Defended, digits_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    """Not even by a defence that takes gradients itself, or of an image that asks for them."""
    defended = before(digits_classifier)
    images = torch.from_numpy(x)
    for mode in gradient_modes(defended):
        with gradient_mode(defended, mode), torch.no_grad():
            for asks in (False, True):
                restored, _ = the_defence(defended)(images.clone().requires_grad_(asks))
                assert not restored.requires_grad
                assert restored.grad_fn is None
    assert np.isfinite(defended.loss_gradient(x, y)).all()


def test_frozen_parameters_get_none(before: Defended, own_classifier: PyTorchClassifier, x: Any, y: Any) -> None:
    defended = before(own_classifier)
    modes = gradient_modes(defended)
    expected = {mode: gradient_in(mode, defended, x, y) for mode in modes}
    own_classifier.model.zero_grad()
    own_classifier.model.requires_grad_(False)
    for mode in modes:
        np.testing.assert_allclose(gradient_in(mode, defended, x, y), expected[mode], rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in own_classifier.model.parameters())


class Everything(nn.Module):
    """A network whose two modes differ, with statistics that training would change."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.dropout(F.relu(self.norm(self.conv(x))).flatten(1)))
        return z


def test_the_shared_network_is_only_read(
    x: FloatArray, y: FloatArray, only_read: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    """Its modes, part by part, its frozen parameters, its hooks and its state."""
    model = Everything()
    calls: list[int] = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    model.conv.weight.requires_grad_(False)
    defence = HeatAndBlur(model, mean=0.3, std=0.4, **OPTIONS)
    in_evaluation = defence(x)[0] if not model.eval().training else None
    model.train()
    model.norm.eval()
    with only_read(model):
        for mode in defence.gradient_modes:
            defence.gradient_mode = mode
            images = torch.from_numpy(x).requires_grad_()
            restored, _ = defence(images, torch.from_numpy(y))
            torch.autograd.grad(restored.square().sum(), images)
            np.testing.assert_array_equal(restored.detach(), in_evaluation)  # neither dropout nor batch statistics
            defence(x, y)
            defence.heatmap(torch.from_numpy(x))
    assert calls


def test_the_defence_owns_nothing_of_the_network(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray
) -> None:
    defence, model = the_defence(before(own_classifier)), own_classifier.model
    expected = defence(x)[0]
    assert list(defence.parameters()) == []
    assert dict(defence.state_dict()) == {}
    assert list(defence.modules()) == [defence]
    for training in (False, True):
        model.train(training)
        defence.train(not training)
        assert all(part.training is training for part in model.modules())
        model.eval()
    defence.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    defence.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    np.testing.assert_array_equal(defence(x)[0], expected)


# Copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_classifier_s_defence_looks_into_the_copy(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray, duplicate: Any
) -> None:
    defended = before(own_classifier)
    twin = duplicate(defended)
    original, copied = the_defence(defended), the_defence(twin)
    assert copied is twin.preprocessing_defences[0]
    addresses = [
        [weight.data_ptr() for weight in model.parameters()] for model in (copied.model, twin.model, original.model)
    ]
    assert addresses[0] == addresses[1]
    assert not set(addresses[0]) & set(addresses[2])
    np.testing.assert_array_equal(twin.predict(x), defended.predict(x))
    np.testing.assert_array_equal(twin.loss_gradient(x, y), defended.loss_gradient(x, y))

    with gradient_mode(twin, "identity"):
        assert (copied.gradient_mode, original.gradient_mode) == ("identity", "exact")
        expected = twin.loss_gradient(x, y)
    module = as_module(twin)
    assert copied in list(module.modules())
    with gradient_mode(module, "identity"):
        np.testing.assert_array_equal(twin.loss_gradient(x, y), expected)
        assert (copied.gradient_mode, original.gradient_mode) == ("identity", "exact")
    assert not np.array_equal(twin.loss_gradient(x, y), expected)

    with torch.no_grad():  # the copy's defence sees what becomes of the copy's network, and the original's does not
        restored = copied(x)[0], original(x)[0]
        for parameter in twin.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert not np.array_equal(copied(x)[0], restored[0])
    np.testing.assert_array_equal(original(x)[0], restored[1])


def test_a_clone_for_refitting_is_bound_anew(
    kind: Any, before: Defended, own_classifier: PyTorchClassifier, x: FloatArray
) -> None:
    """ART's clone has other weights, and shares the defence with its original until it gets one of its own."""
    cls, options = kind
    defended = before(own_classifier)
    expected = defended.predict(x)
    clone = defended.clone_for_refitting()
    assert the_defence(clone) is the_defence(defended)

    own_defence = copy.copy(the_defence(defended))
    own_defence.rebind(clone)
    clone.set_params(preprocessing_defences=[own_defence])
    assert the_defence(clone).model is clone.model
    fresh = rebuild(clone, preprocessing_defences=[cls.for_classifier(clone, **options)])
    np.testing.assert_array_equal(clone.predict(x), fresh.predict(x))
    np.testing.assert_array_equal(defended.predict(x), expected)


def test_binding_anew_takes_all_of_the_classifier(before: Defended, own_classifier: PyTorchClassifier, x: Any) -> None:
    """The network, its normalisation and its range."""
    other_classifier = rebuild(
        own_classifier,
        model=copy.deepcopy(own_classifier.model),
        preprocessing=(np.array([100.0]), np.array([70.0])),
        clip_values=(0.0, 255.0),
    )
    with torch.no_grad():
        for parameter in other_classifier.model.parameters():
            parameter.mul_(0.9)
    expected = the_defence(before(other_classifier))(255 * x)[0]
    defence = the_defence(before(own_classifier))
    defence.rebind(other_classifier)
    assert defence.model is other_classifier.model
    assert defence.clip_values == (0.0, 255.0)
    np.testing.assert_array_equal(defence(255 * x)[0], expected)


def test_binding_to_what_does_not_fit_changes_nothing(
    before: Defended, own_classifier: PyTorchClassifier, x: FloatArray
) -> None:
    defence = the_defence(before(own_classifier))
    expected = defence(x)[0]
    unfit = {
        "an ART PyTorchClassifier was expected": own_classifier.model,
        "no clip_values": rebuild(own_classifier, clip_values=None),
        "std is": rebuild(own_classifier, preprocessing=(np.array([0.3]), np.array([0.0]))),
        "StandardisationMeanStd": with_numpy_preprocessing(own_classifier),
    }
    for message, unfit_classifier in unfit.items():
        with pytest.raises(InputError, match=message):
            defence.rebind(unfit_classifier)
        np.testing.assert_array_equal(defence(x)[0], expected)


def test_options_that_do_not_fit_the_new_network_are_refused(own_classifier: PyTorchClassifier, x: Any) -> None:
    defence = HeatAndBlur.for_classifier(own_classifier, **(OPTIONS | {"start": "last_conv"}))
    expected = defence(x)[0]
    with pytest.raises(InputError, match="the model has no convolution"):
        defence.rebind(rebuild(own_classifier, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))
    assert defence.model is own_classifier.model
    np.testing.assert_array_equal(defence(x)[0], expected)


# Options


@pytest.mark.parametrize("cls", [Pushed, HeatAndBlur, FeatureAutoencoder, TwoStreamRestoration])
def test_a_value_that_an_option_does_not_declare_is_refused_and_changes_nothing(
    cls: type[RestoringPreprocessor], digits_classifier: PyTorchClassifier, wrong_values: Callable[[Kind], list[Any]]
) -> None:
    defence = cls.for_classifier(digits_classifier)
    settings = {name: getattr(defence, name) for name in defence.params}
    declared = {name: kind for name, kind in declared_of(cls).items() if name in defence.params}
    assert len(declared) >= 2
    for name, kind in declared.items():
        for value in wrong_values(kind):
            if value is None and name == "top_k":  # it stands for the usual number of classes
                continue
            with pytest.raises(InputError, match=rf"^{name} is "):
                cls.for_classifier(digits_classifier, **{name: value})
            with pytest.raises(InputError, match=rf"^{name} is "):
                defence.set_params(**{name: value})
    for flag in ("apply_fit", "apply_predict"):
        with pytest.raises(InputError, match=f"{flag} is 1; True or False was expected"):
            defence.set_params(**{flag: 1})
    assert {name: getattr(defence, name) for name in defence.params} == settings


def test_an_option_that_is_set_takes_effect(kind: Any, own_classifier: PyTorchClassifier, x: FloatArray) -> None:
    cls, options = kind
    defence = cls.for_classifier(own_classifier, **options)
    changed: dict[str, Any] = {"step": 0.4} if cls is Pushed else {"mix": "strength", "sigma": 0.6, "passes": 2}
    changed |= {"chunk_size": 3, "apply_fit": True, "apply_predict": False}
    defence.set_params(**changed)
    assert {name: getattr(defence, name) for name in changed} == changed
    expected = cls.for_classifier(own_classifier, **(options | changed))
    np.testing.assert_array_equal(defence(x)[0], expected(x)[0])
    assert not np.allclose(defence(x)[0], cls.for_classifier(own_classifier, **options)(x)[0], atol=1e-3)


def test_an_unknown_option_is_refused_and_changes_nothing(before: Defended, own_classifier: Any) -> None:
    defence = the_defence(before(own_classifier, chunk_size=5))
    with pytest.raises(InputError, match="clip_values, strength: no parameter of"):
        defence.set_params(chunk_size=6, strength=1, clip_values=(0, 2))
    assert defence.chunk_size == 5


# What cannot be used


def with_numpy_preprocessing(classifier: PyTorchClassifier) -> PyTorchClassifier:
    return rebuild(classifier, preprocessing=StandardisationMeanStd(0.3, 0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "std is 0.0; numbers > 0 were expected"),
        ({"std": [0.4, -0.1]}, r"std is \[0.4, -0.1\]; numbers > 0 were expected"),
        ({"std": float("nan")}, "std is nan; finite numbers"),
        ({"mean": float("inf")}, "mean is inf; finite numbers"),
        ({"mean": []}, r"mean is \[\]; finite numbers"),
        ({"mean": "grey"}, "mean is 'grey'; finite numbers"),
        ({"mean": None}, "mean is None; finite numbers"),
        ({"mean": np.zeros((1, 8, 8))}, "(?s)mean is .* one a channel"),
        ({"clip_values": (1.0, 0.0)}, r"clip_values is \(1.0, 0.0\); \(low, high\)"),
        ({"clip_values": (0.0, 0.0)}, r"\(low, high\) with low < high"),
        ({"clip_values": (0.0, float("inf"))}, r"\(low, high\) with low < high"),
        ({"clip_values": (float("nan"), 1.0)}, r"\(low, high\) with low < high"),
        ({"clip_values": None}, r"clip_values is None; \(low, high\)"),
        ({"clip_values": (0.0,)}, r"clip_values is \(0.0,\); \(low, high\)"),
        ({"apply_fit": "yes"}, "apply_fit is 'yes'; True or False"),
    ],
)
def test_bad_arguments_are_refused(own_classifier: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pushed(own_classifier.model, **options)


def test_other_models_and_classifiers_are_refused(own_classifier: PyTorchClassifier) -> None:
    cls, options = Pushed, {"step": 0.2}
    with pytest.raises(InputError, match=r"model is a PyTorchClassifier; an nn\.Module was expected"):
        cls(own_classifier, **options)
    with pytest.raises(InputError, match="classifier is a DigitsCNN; an ART PyTorchClassifier was expected"):
        cls.for_classifier(own_classifier.model, **options)
    with pytest.raises(InputError, match="classifier has no clip_values"):
        cls.for_classifier(rebuild(own_classifier, clip_values=None), **options)
    with pytest.raises(InputError, match="preprocessing StandardisationMeanStd; mean and std were expected"):
        cls.for_classifier(with_numpy_preprocessing(own_classifier), **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 8, 8), r"x is \(1, 8, 8\) of torch.float32; images \(N, C, H, W\)"),
        (torch.rand(2, 1, 1, 8, 8), r"x is \(2, 1, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "x is .* of torch.uint8; .* floating-point"),
        (np.zeros((2, 1, 8, 8), dtype=np.int64), "x is .* of int64; .* floating-point"),
        (torch.zeros(0, 1, 8, 8), "x is empty; at least one image was expected"),
        (torch.rand(2, 1, 8, 8, device="meta"), r"x is on meta and the defence's network on cpu; .* rebind\(\)"),
        (torch.rand(2, 3, 8, 8), None),
    ],
)
def test_bad_images_are_refused(own_classifier: PyTorchClassifier, x: Any, message: str | None) -> None:
    several: dict[str, Any] = {"mean": [0.1, 0.2], "std": 0.4} if message is None else {}
    defence = Pushed(own_classifier.model, **several)
    with pytest.raises(InputError, match=message or "x has 3 channels, mean or std 2 values; as many were expected"):
        defence(x)
    if isinstance(x, Tensor):
        with torch.no_grad(), pytest.raises(InputError, match=message):
            defence.forward(x)


def test_the_clip_range_is_the_classifier_s(kind: Any, own_classifier: PyTorchClassifier) -> None:
    cls, options = kind
    assert cls.for_classifier(own_classifier, **options).clip_values == (0.0, 1.0)
    per_pixel = rebuild(own_classifier, clip_values=(np.full((1, 8, 8), -1.0), np.full((1, 8, 8), 3.0)))
    assert cls.for_classifier(per_pixel, **options).clip_values == (-1.0, 3.0)


# What a run is known by


def test_runs_of_other_options_or_of_another_network_to_look_into_are_told_apart(
    digits_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    """Else a cached result could be that of another defence."""

    def key(defence: RestoringPreprocessor) -> str:
        defended = defend(digits_classifier, defence)
        return run_key(defended, (x, y), Linf(0.1), [WHITE_BOX], curve_samples=0, check_samples=0)

    model = digits_classifier.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other_model = type(model)().eval()
    defences = [Pushed(model), Pushed(model), Pushed(model, step=0.2), Pushed(other_model)]
    keys = [key(defence) for defence in defences]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


# Called directly

VIEWS = {
    "mirrored": lambda x: x[..., ::-1],
    "upside down": lambda x: x[:, :, ::-1],
    "backwards": lambda x: x[::-1],
    "transposed": lambda x: x.transpose(0, 1, 3, 2),
    "big-endian": lambda x: x.astype(">f4"),
    "Fortran": np.asfortranarray,
    "double": lambda x: x.astype(np.float64),
}


@pytest.mark.parametrize("view", VIEWS)
def test_an_array_is_read_however_it_lies_in_memory(own_classifier: PyTorchClassifier, view: str) -> None:
    defence = Pushed(own_classifier.model)
    x = VIEWS[view](np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32))
    plain = torch.tensor(np.array(x, dtype=np.float32, order="C"))
    np.testing.assert_allclose(defence(x)[0], defence.forward(plain)[0].detach().numpy(), atol=1e-6)


SPOILED = {
    "NaN": lambda x: np.where(x == x.max(), np.nan, x),
    "infinite": lambda x: np.where(x == x.max(), np.inf, x),
    "0 to 255": lambda x: 255 * x,
    "-1 to 1": lambda x: 2 * x - 1,
}


@pytest.mark.parametrize("spoiling", SPOILED)
@pytest.mark.parametrize("tensor", [False, True])
def test_pixels_that_are_none_are_refused(own_classifier: PyTorchClassifier, spoiling: str, tensor: bool) -> None:
    defence = Pushed(own_classifier.model)
    x = SPOILED[spoiling](np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)).astype(np.float32)
    with pytest.raises(InputError, match=r"x ranges from .* to .*; values inside \[0, 1\] were expected"):
        defence(torch.tensor(x) if tensor else x)


def test_rounding_at_the_ends_of_the_range_is_none(kind: Any, own_classifier: PyTorchClassifier) -> None:
    cls, options = kind
    x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2)), -1e-7
    assert np.isfinite(cls(own_classifier.model, **options)(x)[0]).all()


def test_an_attacker_is_not_stopped_beyond_the_range(kind: Any, own_classifier: PyTorchClassifier) -> None:
    """An attack may smooth with noise that leaves it, and asks for a gradient; so does ART, which calls forward."""
    cls, options = kind
    defence = cls(own_classifier.model, **options)
    x = torch.full((2, 1, 8, 8), 1.5, requires_grad=True)
    assert defence(x)[0].requires_grad
    assert defence.forward(x.detach())[0].shape == x.shape
