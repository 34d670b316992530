"""The explanation reconstructor: its score, its thresholds, how it is fitted and kept, and what an attacker gets."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import HeatAndBlur, JumpReLU, as_module, defend, gradient_mode
from art_defenses_ext.attribution.relevance import epsilon_plus, relevance
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector import fitting
from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.detector.explanations import EXPLANATIONS
from art_defenses_ext.detector.network import DetectorNetwork
from art_defenses_ext.detector.reconstructors import ClassAutoencoders
from art_defenses_ext.detector.thresholds import needed
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.gradients.modes import annealable_modes, surrogate_width
from art_defenses_ext.zoo.datasets import Dataset

RATE = 0.1
BRIEFLY: dict[str, Any] = {"nb_epochs": 2, "learning_rate": 3e-3, "progress": False}
HOW = BRIEFLY | {"nb_epochs": 60}
NB_CLASSES = 3


# Networks to explain


class Small(nn.Module):
    """One convolution and one dense layer, with an activation between them."""

    def __init__(self, shape: tuple[int, int, int], activation: nn.Module) -> None:
        super().__init__()
        channels, height, width = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(6 * height * width, NB_CLASSES)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.activation(self.conv(x)).flatten(1))
        return logits


class Darker(PreprocessorPyTorch):
    """Somebody else's preprocessor, no module."""

    params: ClassVar[list[str]] = ["factor"]

    def __init__(self, factor: float) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
        self.factor = factor

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return self.factor * x, y


class Larger(Darker):
    """One that doubles the size of images."""

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return F.interpolate(x, scale_factor=2), y


def images(shape: tuple[int, ...], count: int = 60, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def wrap(model: nn.Module, shape: tuple[int, ...], nb_classes: int = NB_CLASSES, **options: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | options
    return PyTorchClassifier(model.eval(), nn.CrossEntropyLoss(), shape, nb_classes, **settings)


def small(shape: tuple[int, int, int] = (1, 4, 4), activation: nn.Module | None = None) -> PyTorchClassifier:
    """Predicts each class about as often as any other on random images, which it normalises."""
    model = Small(shape, nn.Softplus(beta=5) if activation is None else activation)
    channels = shape[0]
    mean, std = np.linspace(0.3, 0.5, channels, dtype=np.float32), np.linspace(0.4, 0.6, channels, dtype=np.float32)
    classifier = wrap(model, shape, preprocessing=(mean, std))
    with torch.no_grad():
        model.out.weight.mul_(4)
        model.out.bias.sub_(torch.from_numpy(np.median(classifier.predict(images(shape, 500)), axis=0)))
    return classifier


def fitted(classifier: PyTorchClassifier, x: FloatArray | None = None, **options: Any) -> ExplanationReconstructor:
    options = {"hidden": 5, "false_positive_rate": 0.5} | options
    detector = ExplanationReconstructor(classifier, **options)
    detector.fit(images(classifier.input_shape) if x is None else x, **BRIEFLY)
    return detector


@pytest.fixture(scope="module")
def detector(digits_classifier: PyTorchClassifier, digits: Dataset) -> ExplanationReconstructor:
    """For all tests to share: whoever changes it takes ``own_detector``."""
    detector = ExplanationReconstructor(digits_classifier, false_positive_rate=RATE)
    detector.fit(digits.train.x, **HOW)
    return detector


@pytest.fixture
def own_detector(detector: ExplanationReconstructor, own_classifier: PyTorchClassifier) -> ExplanationReconstructor:
    """The fitted detector for one test alone, of ``own_classifier``."""
    copied = ExplanationReconstructor(own_classifier, false_positive_rate=RATE)
    copied.network.load(detector.network.state_dict())
    copied.network.trainings = detector.network.trainings
    return copied


@pytest.fixture
def x(digits: Dataset) -> FloatArray:
    return digits.test.x[:50].copy()


def state(detector: ExplanationReconstructor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


# The score


def logit_gradient(classifier: PyTorchClassifier, image: Any, label: int) -> Any:
    """The gradient of one logit at one image (C, H, W), in float64, with mean and deviation by hand."""
    model = copy.deepcopy(classifier.model).double()
    mean, std = (torch.as_tensor(getattr(classifier.preprocessing, name)).double() for name in ("mean", "std"))
    point = torch.from_numpy(image).double().requires_grad_()
    model((point - mean.reshape(-1, 1, 1))[None] / std.reshape(-1, 1, 1))[0, label].backward()
    assert point.grad is not None
    return point.grad.numpy()


ORACLES: dict[str, Callable[[PyTorchClassifier, Any, int], Any]] = {
    "input_gradient": logit_gradient,
    "gradient_x_input": lambda classifier, image, label: logit_gradient(classifier, image, label) * image,
}


def expected_score(detector: ExplanationReconstructor, image: Any, label: int) -> float:
    """The definition, for one image (C, H, W), in numpy."""
    names = [detector.explanation] if isinstance(detector.explanation, str) else detector.explanation
    arrays = {name: tensor.double().numpy() for name, tensor in detector.network.state_dict().items()}
    maps = []
    for number, name in enumerate(names):
        g = np.abs(ORACLES[name](detector.classifier, image, label)).sum(axis=0)
        if detector.scaling == "image":
            scaled = np.clip((g - g.min()) / (np.percentile(g, 99) - g.min()), 0, 1)
        else:
            low, high = arrays["low"][number].item(), arrays["high"][number].item()
            scaled = (np.log(g + 1e-12) - low) / (high - low)
        maps.append(scaled.ravel())
    phi = np.concatenate(maps)
    weights = [
        arrays[f"reconstructors.{name}"][label] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")
    ]
    hidden = np.maximum(phi @ weights[0] + weights[1][0], 0)
    error = np.abs(phi - 1 / (1 + np.exp(-(hidden @ weights[2] + weights[3][0]))))
    if detector.score == "above_median":
        return float(np.where(error > np.median(error), error, 0).sum() / len(error))
    return float((error if detector.score == "l1" else error**2).mean())


@pytest.mark.parametrize(
    ("shape", "explanation", "scaling", "score"),
    [
        ((1, 4, 4), "input_gradient", "image", "above_median"),
        ((3, 3, 5), "gradient_x_input", "image", "above_median"),
        ((3, 3, 5), "input_gradient", "benign", "l1"),
        ((1, 4, 4), ["input_gradient", "gradient_x_input"], "benign", "l2"),
        ((3, 3, 5), ["input_gradient", "gradient_x_input"], "image", "above_median"),
    ],
)
def test_the_score_is_the_papers(shape: tuple[int, int, int], explanation: Any, scaling: str, score: str) -> None:
    """For images of one colour or three, an odd number of pixels or an even one, one explanation or two."""
    classifier = small(shape)
    detector = fitted(classifier, explanation=explanation, scaling=scaling, score=score)
    x = images(shape, 20, seed=1)
    predicted = classifier.predict(x).argmax(axis=1)
    assert len(set(predicted)) == NB_CLASSES
    expected = [expected_score(detector, image, label) for image, label in zip(x, predicted, strict=True)]
    np.testing.assert_allclose(detector.scores(x), expected, rtol=1e-3, atol=2e-5)


def test_a_map_has_its_least_value_at_0_and_its_99th_percentile_at_1(detector: ExplanationReconstructor) -> None:
    """However small it is: a sure network's loss gradient may be; and one of a single value is 0 everywhere."""
    raw = torch.from_numpy(images((1, 10, 10), 3))
    expected = detector.network.scaled(raw)
    assert torch.equal(expected.flatten(1).amin(dim=1), torch.zeros(3))
    assert bool(((expected == 1).flatten(1).sum(dim=1) == 1).all())
    for factor in (1e-20, 1e-10, 1e10):
        torch.testing.assert_close(detector.network.scaled(factor * raw), expected, rtol=1e-4, atol=1e-5)
    flat = torch.full((2, 1, 10, 10), 0.3, requires_grad=True)
    scaled = detector.network.scaled(flat)
    assert torch.equal(scaled, torch.zeros_like(flat))
    (gradient,) = torch.autograd.grad(scaled.sum(), flat)
    assert float(gradient.abs().max()) < 1e3


def test_the_class_is_the_one_predicted_and_training_mode_changes_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of other weights one class may have too few images
        linear = nn.Linear(16, 8), nn.Linear(8, 3)
    model = nn.Sequential(nn.Flatten(), linear[0], nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), linear[1])
    classifier = wrap(model, (1, 4, 4))
    with torch.no_grad():
        x = images((1, 4, 4))
        model[-1].bias.sub_(torch.from_numpy(np.median(classifier.predict(x), axis=0)))
    detector = fitted(classifier)
    expected = detector.scores(x)
    model.train()
    model[2].eval()
    before = [module.training for module in model.modules()]
    np.testing.assert_array_equal(detector.scores(x), expected)
    assert [module.training for module in model.modules()] == before
    np.testing.assert_array_equal(detector.detect(x)[0]["classes"], classifier.predict(x).argmax(axis=1))


# The autoencoders


def layers_of(autoencoder: nn.Sequential) -> list[nn.Parameter]:
    """Of a single autoencoder, in the order of those of ``ClassAutoencoders``."""
    return [autoencoder[0].weight, autoencoder[0].bias, autoencoder[2].weight, autoencoder[2].bias]


def separate(together: ClassAutoencoders) -> list[nn.Sequential]:
    """Each class's autoencoder as torch's own layers."""
    autoencoders = []
    for number in range(len(together.encoder)):
        size, hidden = together.encoder.shape[1:]
        autoencoder = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Sigmoid()).double()
        with torch.no_grad():
            for parameter, all_of_them in zip(layers_of(autoencoder), together.parameters(), strict=True):
                parameter.copy_(as_layer(all_of_them[number]))
        autoencoders.append(autoencoder)
    return autoencoders


def as_layer(value: Tensor) -> Tensor:
    """A weight (inputs, outputs) or bias (1, outputs) as torch's dense layers hold it."""
    return value[0] if len(value) == 1 else value.T


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [3, 3, 3, 0, 3, 1, 3, 3], [2]], ids=str)
def test_all_autoencoders_together_are_each_one_on_its_own(classes: list[int]) -> None:
    """Forwards and backwards: for uneven classes, a single image, and classes of which there is none."""
    torch.manual_seed(0)
    together = ClassAutoencoders(4, 9, 5).double()
    maps, labels = torch.rand(len(classes), 9, dtype=torch.float64, requires_grad=True), torch.tensor(classes)
    autoencoders = separate(together)
    expected = torch.cat([autoencoders[label](image[None]) for image, label in zip(maps, classes, strict=True)])
    actual = together(maps, labels)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.rand_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(output, maps, cotangent)[0] for output in (actual, expected)))


def test_training_all_together_is_training_each_alone() -> None:
    """The gradient of the mean over all images is, for each class, that of its own; none where there is no image."""
    torch.manual_seed(0)
    together = ClassAutoencoders(4, 9, 5).double()
    maps, classes = torch.rand(12, 9, dtype=torch.float64), torch.tensor([0, 0, 2, 2, 2, 2, 2, 0, 3, 2, 2, 2])
    F.mse_loss(together(maps, classes), maps).backward()
    for number, autoencoder in enumerate(separate(together)):
        class_maps = maps[classes == number]
        F.mse_loss(autoencoder(class_maps), class_maps, reduction="sum").div(maps.numel()).backward()
        for parameter, all_of_them in zip(layers_of(autoencoder), together.parameters(), strict=True):
            assert all_of_them.grad is not None
            torch.testing.assert_close(as_layer(all_of_them.grad[number]), parameter.grad)


# Fitting


def test_it_learns_benign_explanations_and_tells_adversarial_ones(
    detector: ExplanationReconstructor, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    assert detector.training is not None
    losses = [loss for loss, _ in detector.training.losses]
    assert losses[-1] < 0.5 * losses[0]
    x, y = digits.test.x[:200], digits.test.y[:200]
    attack = ProjectedGradientDescent(digits_classifier, eps=0.2, eps_step=0.02, max_iter=20, verbose=False)
    x_adv = attack.generate(x, np.eye(10, dtype=np.float32)[y])
    fooled = digits_classifier.predict(x_adv).argmax(axis=1) != y
    benign, adversarial = detector.scores(x), detector.scores(x_adv[fooled])
    assert fooled.mean() > 0.5
    assert (adversarial[:, None] > benign).mean() > 0.68  # the area under the ROC curve
    assert detector.detect(x_adv[fooled])[1].mean() > 2 * detector.detect(x)[1].mean()


def test_it_learns_from_the_benign_images_alone() -> None:
    x = images((1, 4, 4))
    benign = np.arange(len(x)) % 5 != 0
    detectors = [ExplanationReconstructor(small(), hidden=5, false_positive_rate=0.5) for _ in range(2)]
    detectors[0].fit(x, benign=benign, **BRIEFLY)
    detectors[1].fit(x[benign], **BRIEFLY)
    assert_same(*map(state, detectors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": lambda y: y + 9}, "y holds labels from 9 to 9; 0 to [0-9]+ were expected"),
        ({"y": lambda y: np.full((len(y), 2), 0.5)}, "y "),
        ({"y": lambda y: y[:9]}, "y has 9 labels for 60 images; as many were expected"),
        ({"y": lambda y: "benign"}, "y is 'benign'; an array of class indices"),
        (
            {"benign": np.ones(60, int)},
            r"benign is int64 of shape \(60,\); truth values \(60,\), one per image",
        ),
        ({"benign": [True] * 60}, r"benign is \[True, .*; truth values \(60,\)"),
        ({"benign": np.zeros(60, bool)}, r"benign is bool of shape .* one per image and some True"),
        ({"x": lambda x: x.astype(np.float64)}, "x is float64 of shape .*; a numpy array of float32, "),
        ({"x": lambda x: np.where(x > 0.9, np.nan, x).astype(np.float32)}, "x holds NaN or infinite values"),
        ({"checkpoint": "nowhere/training"}, "checkpoint is 'nowhere/training'; a file in an existing folder was exp"),
        ({"epochs": 3}, "epochs is no option of Settings; one of"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted(small(), scaling="benign")
    before, training = state(detector), detector.training
    arguments: dict[str, Any] = {"x": images((1, 4, 4)), "y": np.zeros(60, int)} | BRIEFLY
    changed = {name: value(arguments[name]) if callable(value) else value for name, value in changes.items()}
    monkeypatch.setattr(fitting, "explained", lambda *_: pytest.fail("it began"))
    with pytest.raises(InputError, match=f"^{message}") as error:
        detector.fit(**arguments | changed)
    assert "\n" not in str(error.value)
    assert_same(state(detector), before)
    assert detector.training is training


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "train", lambda *_, **__: pytest.fail("training began"))


@pytest.mark.usefixtures("no_training")
def test_a_class_that_no_image_is_predicted_as_is_named() -> None:
    classifier = small()
    with torch.no_grad():
        classifier.model.out.bias[1] = -1e3
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.5)
    with pytest.raises(
        InputError, match=r"^x has no image that is predicted as class 1; images of each class were exp"
    ):
        detector.fit(images((1, 4, 4)), **BRIEFLY)
    assert not detector.network.is_fitted


@pytest.mark.usefixtures("no_training")
def test_too_few_images_for_a_quantile_are_refused_with_the_numbers() -> None:
    """To flag 5 % at most takes 19 images held out; of all classes alike."""
    classifier, x = small(), images((1, 4, 4), 400)
    counts = np.bincount(classifier.predict(x).argmax(axis=1), minlength=NB_CLASSES)
    split = 18.5 / counts.min()
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.05)
    message = (
        rf"^x has {counts.min()} images predicted as class {counts.argmin()}, of which a validation_split of .* holds "
        rf"out 18 \(too few in class .*\); at least 19 held out of each class were expected for a false_pos.* of 0.05"
    )
    with pytest.raises(InputError, match=message) as error:
        detector.fit(x, **BRIEFLY, validation_split=split)
    suggested = float(str(error.value).split("validation_split=")[1].split()[0])
    assert 19 <= suggested * counts.min() < 19 + counts.min() / 100
    with pytest.raises(InputError, match=r"^validation_split is .*, which leaves no image of class .* to learn from"):
        detector.fit(x, **BRIEFLY, validation_split=1 - 1e-12)


def as_pipeline(classifier: PyTorchClassifier) -> Any:
    return as_module(classifier)


def by_brightness() -> PyTorchClassifier:
    """Logits that are linear in the mean pixel: each explanation has one value, which depends on the class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, NB_CLASSES))
    with torch.no_grad():
        slopes = torch.tensor([-1.0, 0.5, 1.0])
        model[1].weight.copy_(slopes[:, None].expand(-1, 16))
        model[1].bias.copy_(torch.tensor([8.0, -3.6, -7.7]))
    return wrap(model, (1, 4, 4))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("scaling", ["image", "benign"])
def test_explanations_of_a_single_value_each_are_refused(scaling: str) -> None:
    """Alone, and beside others."""
    classifier, x = by_brightness(), images((1, 4, 4), 400)
    assert len(set(classifier.predict(x).argmax(axis=1))) == NB_CLASSES
    for explanation in ("input_gradient", ["gradient_x_input", "input_gradient"]):
        detector = ExplanationReconstructor(
            classifier, explanation=explanation, scaling=scaling, false_positive_rate=0.5
        )
        with pytest.raises(
            InputError, match=r"^x has input_gradient explanations of a single value each; explanations that vary"
        ):
            detector.fit(x, **BRIEFLY)
        assert not detector.network.is_fitted


def test_the_same_seed_gives_the_same_detector_and_another_gives_another() -> None:
    """And the caller's random numbers are left alone."""
    fits = []
    for seed in (1, 1, 2):
        detector = ExplanationReconstructor(small(), hidden=5, false_positive_rate=0.5)
        before = torch.get_rng_state()
        detector.fit(images((1, 4, 4)), **BRIEFLY, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        fits.append((state(detector), detector.training))
        torch.rand(5)
    assert_same(fits[0][0], fits[1][0])
    assert fits[0][1] == fits[1][1]
    for name in ("thresholds", "reconstructors.encoder"):
        assert not torch.equal(fits[0][0][name], fits[2][0][name])


@pytest.mark.parametrize(("epochs_done", "earlier"), [(1, True), (3, False)])
def test_a_fit_that_was_stopped_goes_on_to_the_same_detector(
    epochs_done: int, earlier: bool, tmp_path: Path, stopped_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    """After any epoch, in the same process or another; meanwhile it is what it was."""
    options, path = BRIEFLY | {"nb_epochs": 3, "seed": 4}, tmp_path / "training"
    x = images((1, 4, 4))

    def fresh() -> ExplanationReconstructor:
        detector = ExplanationReconstructor(small(), scaling="benign", hidden=5, false_positive_rate=0.5)
        if earlier:
            detector.fit(0.9 * x, **BRIEFLY)
        return detector

    uninterrupted, interrupted = fresh(), fresh()
    before, training = state(interrupted), interrupted.training
    uninterrupted.fit(x, **options)
    with stopped_after(epochs_done):
        interrupted.fit(x, **options, checkpoint=path)
    assert_same(state(interrupted), before)
    assert interrupted.training is training
    assert interrupted.network.is_fitted is earlier
    assert not any(parameter.requires_grad for parameter in interrupted.network.parameters())
    for detector in (interrupted, fresh()):
        detector.fit(x, **options, checkpoint=str(path))
        assert_same(state(detector), state(uninterrupted))
        assert detector.training == uninterrupted.training


def test_a_fit_only_reads_the_classifier(only_read: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
    """Its parameters, statistics, modes and gradients, also those of a model in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout())
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, 3))
    classifier, x = wrap(model, (1, 4, 4)), images((1, 4, 4))
    with torch.no_grad():
        model[-1].bias.sub_(torch.from_numpy(np.median(classifier.predict(x), axis=0)))
    expected = state(fitted(classifier))
    model.train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    with only_read(model):
        detector = fitted(classifier)
        detector.detect(x)
    assert_same(state(detector), expected)
    assert not {id(parameter) for parameter in model.parameters()} & {
        id(parameter) for parameter in detector.network.parameters()
    }


# Thresholds


@pytest.mark.parametrize("rate", [0.25])
def test_thresholds_are_conformal_quantiles_of_scores_held_out(
    own_detector: ExplanationReconstructor, digits: Dataset, rate: float
) -> None:
    """The least of a class's scores above which, a new one counted along, lie at most the share ``rate``."""
    own_detector.set_params(false_positive_rate=rate)
    scores, classes = (
        tensor.numpy() for tensor in (own_detector.network.held_out_scores, own_detector.network.held_out_classes)
    )
    report = own_detector.detect(digits.train.x)[0]
    for number in range(10):
        held_out = np.sort(scores[classes == number])
        assert len(held_out) == int(0.1 * (report["classes"] == number).sum())
        class_scores = report["scores"][report["classes"] == number]
        assert all(np.abs(class_scores - score).min() < 1e-6 for score in held_out)
        share_above = np.array([1 + (held_out > score).sum() for score in held_out]) / (len(held_out) + 1)
        assert own_detector.network.thresholds[number] == held_out[share_above <= rate + 1e-9].min()


@pytest.mark.parametrize(("rate", "count"), [(0.1, 25), (0.05, 19)])
def test_in_the_mean_no_larger_share_of_fresh_scores_is_flagged(rate: float, count: int) -> None:
    """Whatever their distribution; the share is the largest below the rate that so many held out allow."""
    network = DetectorNetwork(as_pipeline(small()), 2, (1, 4, 4), ["input_gradient"], "image", "l1", 3)
    random = np.random.default_rng(0)
    shares, classes = [], torch.arange(2).repeat(count)
    for _ in range(600):
        network.keep(torch.from_numpy(random.lognormal(size=2 * count)).float(), classes, rate)
        fresh = random.lognormal(size=(40, 2))
        shares.append((fresh > network.thresholds.numpy()).mean())
    exact = math.floor(rate * (count + 1) + 1e-9) / (count + 1)
    assert exact <= rate + 1e-9
    assert np.mean(shares) == pytest.approx(exact, abs=4 * float(np.std(shares)) / math.sqrt(600))


def test_other_parameters_cannot_be_set(own_detector: ExplanationReconstructor) -> None:
    before, params = state(own_detector), own_detector.get_params()
    for name, value in {"explanation": "relevance", "scaling": "benign", "score": "l1", "hidden": 5}.items():
        with pytest.raises(
            InputError, match=f"^{name} is {value!r}, and the ExplanationReconstructor was made for .*; a new one was"
        ):
            own_detector.set_params(**{"false_positive_rate": 0.5, name: value})
    with pytest.raises(InputError, match=r"^strength: no parameter of ExplanationReconstructor; it has \["):
        own_detector.set_params(false_positive_rate=0.5, strength=1)
    for value in (0, 1, -1, float("nan"), True, "5 %", None):
        with pytest.raises(InputError, match=r"^false_positive_rate is .*; a number between 0 and 1 was expected"):
            own_detector.set_params(false_positive_rate=value)
    # One class has fewer held out than others: whichever is asked first, none has moved.
    held_out_counts = own_detector.network.held_out_classes.bincount()
    impossible = 1 / (int(held_out_counts.min()) + 2)
    assert needed(impossible) <= int(held_out_counts.max())
    with pytest.raises(InputError, match=r"too few images held out \("):
        own_detector.set_params(false_positive_rate=impossible)
    assert_same(state(own_detector), before)
    assert own_detector.get_params() == params
    own_detector.set_params(**params)
    assert_same(state(own_detector), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explanation": ["input_gradient", "lime"]}, r"explanation is \[.*\]; one of input_gradient, .* was expected"),
        (
            {"explanation": [["input_gradient"]]},
            r"explanation is \[\['input_gradient'\]\]; one of input_gradient, .* was e",
        ),
        ({"explanation": []}, r"explanation is \[\]; one of input_gradient, .* was expected"),
        (
            {"explanation": ["relevance", "relevance"]},
            r"explanation is \[.*\]; one of input_gradient, .* was expected",
        ),
    ],
)
def test_unknown_explanations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ExplanationReconstructor(small(), **options)


@pytest.mark.parametrize("explanation", ["relevance", ["input_gradient", "relevance"]])
def test_relevance_is_refused_where_the_network_sees_images_of_another_size(explanation: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 4, 4), 2, clip_values=(0.0, 1.0), preprocessing_defences=Larger(1.0)
    )
    ExplanationReconstructor(classifier)
    with pytest.raises(
        InputError, match=r"^explanation is 'relevance', of network inputs \(1, 8, 8\) for images \(1, 4"
    ):
        ExplanationReconstructor(classifier, explanation=explanation)


def test_a_value_that_an_option_does_not_declare_is_refused(wrong_values: Callable[[Kind], list[Any]]) -> None:
    """Of the detector, and of its fit before any work."""
    classifier = small()
    for name, kind in declared_of(ExplanationReconstructor).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                ExplanationReconstructor(classifier, **{name: value})
    detector = ExplanationReconstructor(classifier)
    for name, kind in declared_of(ExplanationReconstructor.fit).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                detector.fit(images((1, 4, 4)), **BRIEFLY | {name: value})
    assert not detector.network.is_fitted


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="an ART PyTorchClassifier was expected"):
        ExplanationReconstructor(small().model)


# Detecting


def test_the_report_says_what_the_detector_s_network_says(detector: ExplanationReconstructor, x: FloatArray) -> None:
    report, flagged = detector.detect(x)
    logits = detector.detector.predict(x)
    assert {name: (value.shape, value.dtype) for name, value in report.items()} == {
        "predictions": ((50, 2), np.float32),
        "scores": ((50,), np.float32),
        "thresholds": ((50,), np.float32),
        "classes": ((50,), np.int64),
    }
    np.testing.assert_allclose(report["predictions"], logits, atol=1e-6)
    np.testing.assert_array_equal(report["predictions"][:, 0], 0)
    assert flagged.dtype == bool
    np.testing.assert_array_equal(flagged, report["scores"] > report["thresholds"])
    np.testing.assert_array_equal(flagged, report["predictions"].argmax(axis=1) == 1)
    np.testing.assert_array_equal(flagged, BinaryInputDetector(detector.detector).detect(x)[1])
    np.testing.assert_array_equal(report["scores"], detector.scores(x))
    np.testing.assert_array_equal(report["classes"], detector.classifier.predict(x).argmax(axis=1))
    with torch.no_grad():
        np.testing.assert_allclose(as_module(detector.detector)(torch.from_numpy(x)).numpy(), logits, atol=1e-6)


def test_the_size_of_the_batches_does_not_matter(detector: ExplanationReconstructor, x: FloatArray) -> None:
    expected = detector.detect(x, batch_size=1)[0]
    for batch_size in (7, 50, 1000):
        report = detector.detect(x, batch_size=batch_size)[0]
        for name, value in expected.items():
            np.testing.assert_allclose(report[name], value, atol=1e-5)
        np.testing.assert_allclose(
            detector.detector.predict(x, batch_size=batch_size), report["predictions"], atol=1e-5
        )


@pytest.mark.parametrize("explanation", EXPLANATIONS)
def test_no_score_depends_on_the_other_images(explanation: str) -> None:
    detector, x = fitted(small(), explanation=explanation), images((1, 4, 4), 20, seed=1)
    expected = np.concatenate([detector.scores(image[None]) for image in x])
    np.testing.assert_allclose(detector.scores(x), expected, atol=1e-5)
    np.testing.assert_allclose(detector.scores(x[::-1], batch_size=7)[::-1], expected, atol=1e-5)


def test_a_score_that_is_no_number_is_flagged(own_detector: ExplanationReconstructor, x: FloatArray) -> None:
    """As by ART's argmax; not passed as benign."""

    def with_nan(batch: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(batch),), torch.nan), torch.zeros(len(batch), dtype=torch.long)

    own_detector.network.scores = with_nan
    report, flagged = own_detector.detect(x)
    assert flagged.all()
    np.testing.assert_array_equal(report["predictions"].argmax(axis=1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.tolist(), "x is .*; a numpy array of float32, "),
        (lambda x: torch.from_numpy(x), "x is .*; a numpy array of float32, "),
        (lambda x: x.astype(np.float64), "x is float64 of shape .*; a numpy array of float32, "),
        (lambda x: x[0], r"x has shape \(1, 8, 8\); \(N, 1, 8, 8\) was expected"),
        (lambda x: x[:0], "x is empty; at least one image was expected"),
        (lambda x: x + 1, "x ranges from 1 to 2; values inside"),
        (lambda x: np.where(x > 0.9, np.nan, x).astype(np.float32), "x holds NaN or infinite values"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    detector: ExplanationReconstructor, x: FloatArray, change: Callable[[FloatArray], Any], message: str
) -> None:
    for call in (detector.scores, detector.detect):
        with pytest.raises(InputError, match=f"^{message}"):
            call(change(x))
    with pytest.raises(InputError, match=r"^batch_size is 0; a whole number of at least 1 was expected"):
        detector.detect(x, batch_size=0)


def test_before_it_is_fitted_it_gives_no_answer(tmp_path: Path) -> None:
    detector, x = ExplanationReconstructor(small()), images((1, 4, 4))
    for call in (
        lambda: detector.scores(x),
        lambda: detector.detect(x),
        lambda: detector.detector.predict(x),
        lambda: detector.network(torch.from_numpy(x)),
        lambda: detector.save(tmp_path / "detector"),
    ):
        with pytest.raises(InputError, match=r"is not fitted yet; fit\(\) or load\(\) first was expected"):
            call()
    assert not list(tmp_path.iterdir())
    assert detector.training is None


def test_many_images_need_memory_for_one_batch_and_the_answer(
    own_detector: ExplanationReconstructor, x: FloatArray
) -> None:
    """In an array that is larger than what it takes memory for, as one that is mapped from a file."""
    count, batch_size = 200_000, 10_000
    repeated = np.broadcast_to(x[0], (count, 1, 8, 8))
    batch_sizes: list[int] = []

    def scores(batch: Tensor) -> tuple[Tensor, Tensor]:
        batch_sizes.append(len(batch))
        return batch[:, 0, 0, 0], torch.zeros(len(batch), dtype=torch.long)

    own_detector.network.scores = scores
    answer_bytes = count * (2 * 4 + 8 + 2 * 4 + 1)  # scores, thresholds, classes, predictions, flags
    tracemalloc.start()
    try:
        report, flagged = own_detector.detect(repeated, batch_size=batch_size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch_sizes == [batch_size] * (count // batch_size)
    assert len(flagged) == len(report["scores"]) == count
    assert repeated.nbytes > 10 * answer_bytes
    assert peak < 1.5 * answer_bytes + 4 * repeated[:batch_size].nbytes


# Gradients


def smooth_network(activation: nn.Module, explanation: Any, scaling: str, score: str) -> tuple[DetectorNetwork, Tensor]:
    """A fitted detector's network in float64, and images away from where the median or the clamp has a kink."""
    classifier = small((2, 3, 3), activation)
    detector = fitted(classifier, explanation=explanation, scaling=scaling, score=score)
    classifier.model.double()
    network = detector.network.double()
    network.pipeline.double()
    return network, torch.from_numpy(images((2, 3, 3), 3, seed=5)).double().requires_grad_()


@pytest.mark.parametrize(
    ("activation", "explanation", "scaling", "score"),
    [
        (nn.Softplus(beta=3), "input_gradient", "image", "above_median"),
        (nn.Tanh(), "gradient_x_input", "benign", "l1"),
        (nn.Softplus(beta=3), ["loss_gradient", "input_gradient"], "image", "l2"),
    ],
)
def test_the_exact_gradient_is_that_of_finite_differences(
    activation: nn.Module, explanation: Any, scaling: str, score: str
) -> None:
    network, x = smooth_network(activation, explanation, scaling, score)
    assert torch.autograd.gradcheck(lambda points: network.scores(points)[0], x, eps=1e-7, atol=1e-5, rtol=1e-3)
    (gradient,) = torch.autograd.grad(network.scores(x)[0].sum(), x)
    assert bool((gradient.flatten(1).abs().amax(dim=1) > 1e-4).all())


@pytest.mark.parametrize("activation", [nn.Softplus(beta=3), nn.ReLU()], ids=["softplus", "relu"])
def test_the_exact_gradient_of_relevance_is_that_of_finite_differences(activation: nn.Module) -> None:
    network, x = smooth_network(activation, "relevance", "image", "l1")
    assert torch.autograd.gradcheck(lambda points: network.scores(points)[0], x, eps=1e-7, atol=1e-5, rtol=1e-3)


def test_a_relu_network_s_exact_gradient_is_zero_and_the_smooth_one_lowers_the_score(
    detector: ExplanationReconstructor, digits: Dataset
) -> None:
    """The logit's gradient is constant near an image, so the exact mode would show an attacker nothing."""
    network = detector.network
    x = torch.from_numpy(digits.test.x[:200])
    with torch.no_grad():
        before, classes = network.scores(x)
    gradients = {}
    for mode in ("exact", "smooth"):
        with gradient_mode(detector.detector, mode):
            live = x.clone().requires_grad_()
            scores, _ = network.scores(live)
            torch.testing.assert_close(scores.detach(), before, rtol=0, atol=0)
            (gradients[mode],) = torch.autograd.grad(scores.sum(), live)
    assert torch.equal(gradients["exact"], torch.zeros_like(x))
    assert bool((gradients["smooth"].flatten(1).norm(dim=1) > 1e-4).all())
    with torch.no_grad():
        stepped = x - 0.01 * gradients["smooth"].sign()
        after = network.score_of(network.scaled(network.explained(stepped, classes)), classes)
    assert float((after < before).float().mean()) > 0.65
    assert float(((after - before) / before).mean()) < -0.01


@pytest.mark.parametrize("explanation", EXPLANATIONS)
def test_the_surrogate_s_width_changes_the_smooth_gradient_alone(explanation: str) -> None:
    """And a very narrow one gives the gradient of the ReLU network."""
    detector = fitted(small(activation=nn.ReLU()), explanation=explanation)
    network, x = detector.network, torch.from_numpy(images((1, 4, 4), 20, seed=1))
    assert annealable_modes(detector.detector) == ("smooth",)

    def score_and_gradient(mode: str, width: float) -> tuple[Tensor, Tensor]:
        live = x.clone().requires_grad_()
        with gradient_mode(detector.detector, mode), surrogate_width(detector.detector, width):
            scores = network.scores(live)[0]
        return scores.detach(), torch.autograd.grad(scores.sum(), live)[0]

    (values, exact), (values_again, exact_again) = score_and_gradient("exact", 1.0), score_and_gradient("exact", 0.1)
    assert torch.equal(values, values_again)
    assert torch.equal(exact, exact_again)
    for width, is_exact in ((4.0, False), (1.0, False), (1e-6, True)):
        scores, gradient = score_and_gradient("smooth", width)
        assert torch.equal(scores, values)
        assert bool(gradient.isfinite().all())
        assert torch.allclose(gradient, exact, rtol=1e-3, atol=1e-6) is is_exact
    assert network.surrogate_width == 1.0


def test_the_smooth_relevance_is_that_of_a_smooth_network(digits_classifier: Any, digits: Dataset) -> None:
    """Whose gradient stays of the size of the exact one: see ``softplus`` of ``relevance``."""
    detector = ExplanationReconstructor(digits_classifier, explanation="relevance", false_positive_rate=RATE)
    detector.fit(digits.train.x, **BRIEFLY)
    network, x = detector.network, torch.from_numpy(digits.test.x[:100]).requires_grad_()
    normalised = (x - network.pipeline.steps[0].mean) / network.pipeline.steps[0].std
    classes = network.predicted(x)
    for beta, softplus in ((None, None), (7.0, 7.0)):
        expected = relevance(digits_classifier.model, normalised, classes, epsilon_plus(), softplus=softplus)
        torch.testing.assert_close(network._explained_with(x, classes, beta)[:, 0], expected.abs().sum(dim=1))
    sizes = []
    for mode in ("exact", "smooth"):
        with gradient_mode(detector.detector, mode):
            (gradient,) = torch.autograd.grad(network.scores(x)[0].sum(), x)
        sizes.append(gradient.flatten(1).norm(dim=1))
    assert float(sizes[1].max()) < 20 * float(sizes[0].max())


def test_art_s_gradients_are_those_of_autograd(detector: ExplanationReconstructor, x: FloatArray) -> None:
    labels = np.zeros(len(x), int)
    for mode in ("exact", "smooth"):
        with gradient_mode(detector.detector, mode):
            live = torch.from_numpy(x).requires_grad_()
            loss = F.cross_entropy(detector.network(live), torch.from_numpy(labels))
            (gradient,) = torch.autograd.grad(loss, live)
            actual = detector.detector.loss_gradient(x, np.eye(2, dtype=np.float32)[labels])
            np.testing.assert_allclose(actual, gradient.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["fast gradient", "pgd"])
def test_art_s_attacks_run_on_it(detector: ExplanationReconstructor, digits: Dataset, name: str) -> None:
    """Targeted at "benign", they lower the score."""
    x = digits.test.x[:100]
    benign = np.eye(2, dtype=np.float32)[np.zeros(len(x), int)]
    with gradient_mode(detector.detector, "smooth"):
        if name == "pgd":
            attack: Any = ProjectedGradientDescent(
                detector.detector, eps=0.03, eps_step=0.005, max_iter=10, targeted=True, verbose=False
            )
        else:
            attack = FastGradientMethod(detector.detector, eps=0.01, targeted=True)
        adversarial = attack.generate(x, benign)
    assert (adversarial >= 0).all()
    assert (adversarial <= 1).all()
    assert np.abs(adversarial - x).max() <= 0.0301
    before, after = detector.scores(x), detector.scores(adversarial)
    assert (after < before).mean() > 0.6
    assert np.median(after / before) < 0.99


# What it watches


@pytest.mark.parametrize(
    ("explanation", "scaling"), [*((name, "image") for name in EXPLANATIONS), ("relevance", "benign")]
)
def test_every_explanation_runs_on_a_small_network(explanation: str, scaling: str) -> None:
    """With mean and deviation before it, pooling and batch norm inside it; differentiable in each mode."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3)
    )
    shape = (3, 4, 4)
    classifier = wrap(model, shape, preprocessing=(np.array([0.3, 0.4, 0.5]), np.array([0.5, 0.4, 0.3])))
    x = images(shape)
    with torch.no_grad():
        model[-1].bias.sub_(torch.from_numpy(np.median(classifier.predict(x), axis=0)))
    detector = fitted(classifier, explanation=explanation, scaling=scaling)
    report, _ = detector.detect(x)
    assert np.isfinite(report["scores"]).all()
    assert (report["scores"] >= 0).all()
    assert report["scores"].std() > 0
    live = torch.from_numpy(x).requires_grad_()
    for mode in ("exact", "smooth"):
        with gradient_mode(detector.detector, mode):
            (gradient,) = torch.autograd.grad(detector.network.scores(live)[0].sum(), live)
        assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0
    views = detector.network.views(torch.from_numpy(x))
    assert {name: view.shape for name, view in views.items()} == dict.fromkeys(views, (len(x), 1, 4, 4))
    assert all(view.min() >= 0 and view.max() <= 1 for view in views.values())


@pytest.mark.parametrize("explanation", ["input_gradient", "relevance"])
def test_it_watches_a_classifier_behind_a_restorer(own_classifier: Any, digits: Dataset, explanation: str) -> None:
    """And explains the whole of it: its classes are those of the defended classifier."""
    restorer = HeatAndBlur.for_classifier(own_classifier, sigma=0.8)
    defended = defend(own_classifier, restorer)
    detector = ExplanationReconstructor(defended, explanation=explanation, false_positive_rate=RATE)
    detector.fit(digits.train.x, **BRIEFLY)
    x = digits.test.x[:60]
    report, flagged = detector.detect(x)
    np.testing.assert_array_equal(report["classes"], defended.predict(x).argmax(axis=1))
    bare = ExplanationReconstructor(own_classifier, explanation=explanation, false_positive_rate=RATE)
    bare.network.load(detector.network.state_dict())
    assert np.abs(bare.scores(x) - report["scores"]).max() > 1e-3
    assert flagged.mean() < 0.5
    live = torch.from_numpy(x[:8]).requires_grad_()
    for mode in ("exact", "smooth"):
        with gradient_mode(detector.detector, mode):
            (gradient,) = torch.autograd.grad(detector.network.scores(live)[0].sum(), live)
        assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


def test_a_float64_model_is_watched_too(digits_classifier: Any, detector: ExplanationReconstructor, x: Any) -> None:
    """With the same scores, but for rounding: the autoencoders compute in float32 all the same."""
    double = rebuild(digits_classifier, model=copy.deepcopy(digits_classifier.model).double())
    double_detector = ExplanationReconstructor(double, false_positive_rate=RATE)
    double_detector.network.load(detector.network.state_dict())
    np.testing.assert_allclose(double_detector.scores(x), detector.scores(x), atol=1e-4)
    assert double_detector.scores(x).dtype == np.float32
    np.testing.assert_allclose(
        double_detector.detector.predict(x), double_detector.detect(x)[0]["predictions"], atol=1e-6
    )
    with gradient_mode(double_detector.detector, "smooth"):
        live = torch.from_numpy(x).double().requires_grad_()
        scores, _ = double_detector.network.scores(live)
        assert scores.dtype == torch.float64
        (gradient,) = torch.autograd.grad(scores.sum(), live)
    assert float(gradient.abs().max()) > 0


# Files and copies


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"explanation": ["input_gradient", "gradient_x_input"], "scaling": "benign", "score": "l2", "hidden": 7},
        {"reconstructor": "convolutional", "hidden": 32},
        {"reconstructor": "statistics", "explanation": ["input_gradient", "noise_response"]},
    ],
)
def test_it_is_saved_and_loaded_whole(options: dict[str, Any], tmp_path: Path) -> None:
    classifier, x = small((3, 4, 4)), images((3, 4, 4), seed=1)
    detector = fitted(classifier, **options)
    detector.save(tmp_path / "detector")
    loaded = ExplanationReconstructor.load(tmp_path / "detector", classifier=classifier)
    assert loaded.get_params() == detector.get_params()
    for name, value in detector.detect(x)[0].items():
        np.testing.assert_array_equal(loaded.detect(x)[0][name], value)
    assert_same(state(loaded), state(detector))
    assert loaded.training == detector.training
    assert loaded.network.trainings == detector.network.trainings == [detector.training]
    assert loaded.network.describe() == detector.network.describe()
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    for copied in (detector, loaded):
        copied.set_params(false_positive_rate=0.6)
    assert_same(state(loaded), state(detector))


def test_files_that_hold_something_else_are_refused(
    detector: ExplanationReconstructor, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "detector"
    detector.save(path)
    other_model = copy.deepcopy(digits_classifier.model)
    with torch.no_grad():
        next(other_model.parameters()).add_(0.01)
    for classifier, message in (
        (rebuild(digits_classifier, model=other_model), "was built for another network than the classifier's"),
        (defend(digits_classifier, Darker(0.5)), "was built for another network than the classifier's"),
        (rebuild(digits_classifier, clip_values=(0.0, 2.0)), r"made for .*\(clip values, mean, std, .* were expected"),
        (digits_classifier.model, "an ART PyTorchClassifier was expected"),
    ):
        with pytest.raises(InputError, match=message):
            ExplanationReconstructor.load(path, classifier=classifier)
    HeatAndBlur.for_classifier(digits_classifier).save(tmp_path / "other")
    with pytest.raises(InputError, match="which holds a heat_and_blur; a explanation_reconstructor was expected"):
        ExplanationReconstructor.load(tmp_path / "other", classifier=digits_classifier)
    with pytest.raises(InputError, match="which holds a explanation_reconstructor; a heat_and_blur was expected"):
        HeatAndBlur.load(path, classifier=digits_classifier)


def test_a_file_belongs_to_one_strength_of_the_defences_before_it(
    own_detector: ExplanationReconstructor, own_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    """Which no weight tells: the jump of a JumpReLU, the blur of Heat and Blur, a parameter of another's."""

    def blurred(sigma: float) -> PyTorchClassifier:
        return defend(own_classifier, HeatAndBlur.for_classifier(own_classifier, sigma=sigma))

    def jumping(jump: float) -> PyTorchClassifier:
        return JumpReLU(own_classifier, jump=jump)()

    def darkened(factor: float) -> PyTorchClassifier:
        return defend(own_classifier, Darker(factor))

    for build, strength, other_strength in ((blurred, 0.5, 0.8), (jumping, 0.5, 1.0), (darkened, 0.5, 0.9)):
        detector = ExplanationReconstructor(build(strength), false_positive_rate=RATE)
        detector.network.load(own_detector.network.state_dict())
        detector.save(tmp_path / "detector")
        ExplanationReconstructor.load(tmp_path / "detector", classifier=build(strength))
        with pytest.raises(InputError, match=r"made for .* and the classifier has .* the same were expected"):
            ExplanationReconstructor.load(tmp_path / "detector", classifier=build(other_strength))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda detector: pickle.loads(pickle.dumps(detector)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_whole_and_independent(own_detector: ExplanationReconstructor, x: FloatArray, way: str) -> None:
    """The copy's network, its two-output classifier and the classifier that it watches stay one."""
    own_detector.network.gradient_mode = "smooth"
    copied = COPIES[way](own_detector)
    own_detector.network.gradient_mode = "exact"
    assert copied.network.gradient_mode == "smooth"
    copied.network.gradient_mode = "exact"
    before = own_detector.scores(x)
    np.testing.assert_array_equal(copied.scores(x), before)
    np.testing.assert_array_equal(copied.detector.predict(x), own_detector.detector.predict(x))
    assert copied.training == own_detector.training
    assert copied.detector.model is copied.network
    assert copied.network.pipeline.model is copied.classifier.model
    assert not {id(parameter) for parameter in own_detector.classifier.model.parameters()} & {
        id(parameter) for parameter in copied.classifier.model.parameters()
    }
    with gradient_mode(copied.detector, "smooth"):
        assert copied.network.gradient_mode == "smooth"
        assert own_detector.network.gradient_mode == "exact"
    copied.set_params(false_positive_rate=0.5)
    with torch.no_grad():
        next(copied.classifier.model.parameters()).add_(0.5)  # what it watches, it sees change
    assert np.abs(copied.scores(x) - before).max() > 1e-3
    np.testing.assert_allclose(copied.detector.predict(x), copied.detect(x)[0]["predictions"], atol=1e-6)
    np.testing.assert_array_equal(own_detector.scores(x), before)
    assert own_detector.false_positive_rate == RATE
