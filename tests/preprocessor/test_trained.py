"""TrainedRestorer: how restorers are trained, kept, and met by ART, whatever network they have."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    DeepFool,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import (
    FeatureAutoencoder,
    HeatAndBlur,
    RestorationLoss,
    TwoStreamRestoration,
    as_module,
    defend,
    gradient_mode,
    gradient_modes,
)
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.training.inputs import SignedGradient, pgd
from art_defenses_ext.zoo.datasets import Dataset

# Each option by name: the defaults are chosen by an ablation and no business of these tests.
AUTOENCODER: dict[str, Any] = {"architecture": "unet", "width": 8, "stem": 2}
TWO_STREAM: dict[str, Any] = {
    "map": "sum",
    "top_k": None,
    "weights": "uniform",
    "scale": "image",
    "gradient_stream": "estimated",
    "width": 6,
    "blocks": 1,
    "stem": 2,
}
KINDS: dict[str, tuple[type[TrainedRestorer], dict[str, Any]]] = {
    "autoencoder": (FeatureAutoencoder, AUTOENCODER),
    "two-stream": (TwoStreamRestoration, TWO_STREAM),
}
EPS = 0.15
HOW: dict[str, Any] = {
    "eps": EPS,
    "inputs": ["clean", "fgsm"],
    "loss": RestorationLoss(pixel="l2", pixel_weight=1.0, feature_weight=1.0, class_weight=0.1),
    "nb_epochs": 6,
    "batch_size": 50,
    "learning_rate": 5e-3,
    "progress": False,
}
BRIEFLY: dict[str, Any] = HOW | {"nb_epochs": 2, "batch_size": 20, "validation_split": 0.2}
END_TO_END = pgd(EPS, 2, through="defence")
"""As ``"end_to_end"``, with a fifth of its steps."""

Fresh = Callable[..., TrainedRestorer]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


one_kind = pytest.mark.parametrize("kind", ["autoencoder"], indirect=True)
"""For what does not depend on the restorer's network."""


@pytest.fixture(scope="module")
def fresh(kind: str, digits_classifier: PyTorchClassifier) -> Fresh:
    """Makes an untrained restorer, for the shared classifier unless another one is given."""
    cls, options = KINDS[kind]
    return lambda classifier=digits_classifier, **changes: cls.for_classifier(classifier, **(options | changes))


@pytest.fixture(scope="module")
def trained(fresh: Fresh, digits: Dataset) -> TrainedRestorer:
    """For all tests to share: whoever changes it takes ``own_restorer``."""
    restorer = fresh()
    restorer.fit(digits.train.x[:500], digits.train.y[:500], **HOW)
    return restorer


@pytest.fixture
def own_restorer(trained: TrainedRestorer, own_classifier: PyTorchClassifier, fresh: Fresh) -> TrainedRestorer:
    """The trained restorer for one test alone, before ``own_classifier``."""
    restorer = fresh(own_classifier)
    restorer.load_state_dict(trained.state_dict())
    return restorer


@pytest.fixture
def training_data(digits: Dataset) -> tuple[FloatArray, IntArray]:
    return digits.train.x[:60].copy(), digits.train.y[:60].copy()


@pytest.fixture
def x(digits: Dataset) -> FloatArray:
    return digits.test.x[:23].copy()


@pytest.fixture
def y(digits: Dataset) -> FloatArray:
    return np.eye(10, dtype=np.float32)[digits.test.y[:23]]


def weights(restorer: TrainedRestorer) -> Tensor:
    return torch.cat([value.flatten().clone() for value in restorer.state_dict().values()])


def pgd_accuracy(victim: PyTorchClassifier, source: PyTorchClassifier, digits: Dataset, nb: int = 100) -> float:
    """Of ``victim`` on images that PGD made on ``source``."""
    x, y = digits.test.x[:nb], digits.test.y[:nb]
    attack = ProjectedGradientDescentPyTorch(source, eps=EPS, eps_step=EPS / 4, max_iter=10, verbose=False)
    adversarial = attack.generate(x, np.eye(10, dtype=np.float32)[y])
    return float((victim.predict(adversarial).argmax(axis=1) == y).mean())


# What training achieves


def test_training_lowers_the_loss_and_withstands_what_was_made_on_the_bare_classifier(
    trained: TrainedRestorer, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    losses = [sum(epoch.training.values()) for epoch in trained.history]
    assert losses[-1] < 0.95 * losses[0]
    assert list(trained.history[0].training) == ["pixels", "features", "class"]
    defended = defend(digits_classifier, trained)
    before = pgd_accuracy(digits_classifier, digits_classifier, digits)
    assert pgd_accuracy(defended, digits_classifier, digits) >= before + 0.15
    x, y = digits.test.x[:100], digits.test.y[:100]
    assert (defended.predict(x).argmax(axis=1) == y).mean() >= 0.9


@one_kind
def test_training_against_end_to_end_attacks_withstands_them_better_than_denoising(
    trained: TrainedRestorer, fresh: Fresh, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """Than a restorer that has only seen what was made on the undefended classifier."""
    adversarial = fresh()
    steps = SignedGradient(EPS, EPS, 2, random_start=True, through="defence")
    options = HOW | {"inputs": [steps], "loss": None, "learning_rate": 1e-2, "nb_epochs": 3}
    adversarial.fit(digits.train.x[:600], digits.train.y[:600], **options, adversarial=True)
    assert list(adversarial.history[0].training) == ["class"]
    denoised, withstood = (
        pgd_accuracy(defended, defended, digits)
        for defended in (defend(digits_classifier, restorer) for restorer in (trained, adversarial))
    )
    assert withstood >= denoised + 0.05


def test_training_goes_on_from_where_it_is(
    own_restorer: TrainedRestorer, fresh: Fresh, training_data: tuple[FloatArray, IntArray]
) -> None:
    before = weights(own_restorer)
    own_restorer.fit(*training_data, **BRIEFLY | {"learning_rate": 1e-9})
    torch.testing.assert_close(weights(own_restorer), before, rtol=0, atol=1e-6)
    own_restorer.fit(*training_data, **BRIEFLY)
    assert not torch.allclose(weights(own_restorer), before, rtol=0, atol=1e-3)
    assert [training.settings["learning_rate"] for training in own_restorer.trainings] == [1e-9, 5e-3]
    assert len(own_restorer.history) == 2


@one_kind
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_beyond_the_range_a_pixel_goes_on_with_the_slope_of_the_leak(
    fresh: Fresh, training_data: tuple[FloatArray, IntArray], leak: float
) -> None:
    restorer = fresh(leak=leak)
    restorer.load_state_dict(restorer.state_dict())
    for value in restorer.network.state_dict().values():
        value.zero_()
    (*_, bias) = restorer.network.state_dict().values()  # the correction's
    bias.fill_(5.0)
    x = torch.from_numpy(training_data[0]).requires_grad_()
    restored = restorer(x)[0]
    torch.testing.assert_close(restored, 1 + leak * (x + 4))
    (gradient,) = torch.autograd.grad(restored.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, leak))
    assert float(restorer.views(torch.from_numpy(training_data[0]))["restored"].max()) == 1


# Which training it is


@one_kind
def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    fresh: Fresh, training_data: tuple[FloatArray, IntArray]
) -> None:
    """And the caller's random numbers are left alone."""
    options = BRIEFLY | {"inputs": ["noise", END_TO_END], "nb_epochs": 1}
    runs = []
    for seed in (1, 1, 2):
        restorer = fresh()
        before = torch.get_rng_state()
        restorer.fit(*training_data, **options, seed=seed, adversarial=True)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append((restorer.history, weights(restorer)))
        torch.rand(5)
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


@one_kind
def test_labels_may_be_indices_rows_or_the_classifier_s_own(
    fresh: Fresh, digits_classifier: PyTorchClassifier, training_data: tuple[FloatArray, IntArray]
) -> None:
    x, y = training_data[0][:, :, ::-1], training_data[1]  # upside down, where the classifier errs
    predicted = digits_classifier.predict(np.ascontiguousarray(x)).argmax(axis=1)
    fits = []
    for labels in (predicted, np.eye(10, dtype=np.float32)[predicted], None, y):
        restorer = fresh()
        restorer.fit(x, labels, **BRIEFLY | {"nb_epochs": 1})
        fits.append(weights(restorer))
    assert torch.equal(fits[0], fits[1])
    assert torch.equal(fits[0], fits[2])
    assert not torch.equal(fits[0], fits[3])


@one_kind
@pytest.mark.parametrize(("epochs_done", "adversarial"), [(2, False), (1, True)])
def test_training_that_was_stopped_goes_on_to_the_same_weights(
    fresh: Fresh,
    training_data: tuple[FloatArray, IntArray],
    tmp_path: Path,
    stopped_after: Callable[[int], AbstractContextManager[None]],
    epochs_done: int,
    adversarial: bool,
) -> None:
    """After any epoch, in another process or the same one, for a first stage or a further one."""
    options: dict[str, Any] = BRIEFLY | {"inputs": ["noise", END_TO_END] if adversarial else ["noise", "fgsm"]}
    options |= {"nb_epochs": 2 if adversarial else 3, "adversarial": adversarial}
    first, uninterrupted = BRIEFLY | {"nb_epochs": 1}, fresh()
    for restorer in (uninterrupted, interrupted := fresh(), another := fresh()):
        restorer.fit(*training_data, **first)
    start = weights(interrupted)
    uninterrupted.fit(*training_data, **options)

    path = tmp_path / "training"
    with stopped_after(epochs_done):
        interrupted.fit(*training_data, **options, checkpoint=path)
    assert torch.equal(weights(interrupted), start)  # not those of half a training
    assert not any(parameter.requires_grad for parameter in interrupted.parameters())
    assert len(interrupted.trainings) == 1
    for restorer in (interrupted, another):
        restorer.fit(*training_data, **options, checkpoint=str(path))
        assert torch.equal(weights(restorer), weights(uninterrupted))
        assert restorer.history == uninterrupted.history


@one_kind
def test_a_first_training_that_was_stopped_goes_on_too(
    fresh: Fresh,
    training_data: tuple[FloatArray, IntArray],
    tmp_path: Path,
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    uninterrupted, restorer = fresh(), fresh()
    uninterrupted.fit(*training_data, **BRIEFLY, seed=3)
    with stopped_after(1):
        restorer.fit(*training_data, **BRIEFLY, seed=3, checkpoint=tmp_path / "training")
    with pytest.raises(InputError, match="is not trained yet"):
        restorer(training_data[0])
    restorer.fit(*training_data, **BRIEFLY, seed=3, checkpoint=tmp_path / "training")
    assert torch.equal(weights(restorer), weights(uninterrupted))


def by_two(x: Tensor, y: Tensor, networks: Any, noise: torch.Generator) -> Tensor:
    return x / 2


@one_kind
def test_the_file_of_another_training_is_refused(
    fresh: Fresh, own_classifier: PyTorchClassifier, training_data: tuple[FloatArray, IntArray], tmp_path: Path
) -> None:
    x, y = training_data
    path = tmp_path / "training"
    features = nn.Sequential(nn.Conv2d(1, 2, 3))
    options = BRIEFLY | {"nb_epochs": 1, "inputs": ["clean", by_two], "checkpoint": path}
    options["loss"] = RestorationLoss(feature_weight=1.0, network=features)
    fresh().fit(x, y, **options)
    content = path.read_bytes()
    fresh().fit(x, y, **options)
    with torch.no_grad():
        other_features = copy.deepcopy(features)
        other_features[0].weight.add_(1)
        other_model = copy.deepcopy(own_classifier.model)
        next(other_model.parameters()).add_(0.01)
    for restorer, changes, message in (
        (fresh(), {"x": x[::-1]}, "data"),
        (fresh(), {"eps": 0.1}, "eps"),
        (fresh(), {"inputs": ["clean", "noise"]}, "inputs"),
        (fresh(), {"attack_mode": "identity"}, "attack_mode"),
        (fresh(), {"loss": RestorationLoss(feature_weight=0.5, network=features)}, "loss"),
        (fresh(), {"loss": RestorationLoss(feature_weight=1.0, network=other_features)}, "loss network"),
        (fresh(rebuild(own_classifier, preprocessing=(0.5, 0.5))), {}, "normalisation"),
        (fresh(rebuild(own_classifier, clip_values=(0.0, 2.0))), {}, "normalisation"),
        (fresh(rebuild(own_classifier, model=other_model)), {}, "classifier"),
    ):
        arguments: dict[str, Any] = {"x": x, "y": y} | options | changes
        with pytest.raises(
            InputError, match=f"checkpoint is .*, written by a run whose {message}.* was .* was expected"
        ):
            restorer.fit(**arguments)
        assert path.read_bytes() == content
    path.write_bytes(content[:100])
    with pytest.raises(InputError, match="which is no safetensors file"):
        fresh().fit(x, y, **options)


# What must stay as it is


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


def wrap(model: nn.Module, shape: tuple[int, ...] = (1, 8, 8), **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "preprocessing": (0.3, 0.4), "device_type": "cpu"}
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **(settings | arguments))


@one_kind
def test_training_only_reads_the_classifier(
    fresh: Fresh,
    training_data: tuple[FloatArray, IntArray],
    only_read: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    """Its parameters, statistics, modes, gradients and hooks; and trains before what it is in evaluation mode."""
    model = Everything()
    classifier = wrap(model)
    options = BRIEFLY | {"inputs": ["fgsm", END_TO_END], "nb_epochs": 1}
    model.eval()
    restorer = fresh(classifier)
    restorer.fit(*training_data, **options)
    expected = weights(restorer)
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.out.weight.grad = torch.ones_like(model.out.weight)
    restorer = fresh(classifier)
    with only_read(model):
        restorer.fit(*training_data, **options)
    assert torch.equal(weights(restorer), expected)


def test_a_trained_restorer_is_frozen(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier, x: Any, y: Any
) -> None:
    """Whoever attacks the whole pays for no gradient of its weights, and ART piles none up."""
    before = weights(own_restorer)
    defended = defend(own_classifier, own_restorer)
    defended.loss_gradient(x, y)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in own_restorer.parameters())
    defended.fit(x, y, batch_size=len(x), nb_epochs=1)
    assert torch.equal(weights(own_restorer), before)
    assert len(list(own_restorer.parameters())) == len(
        list(own_restorer.network.parameters())
    )  # nothing of the classifier's


@one_kind
def test_training_that_breaks_down_leaves_the_former_weights(
    own_restorer: TrainedRestorer, fresh: Fresh, training_data: tuple[FloatArray, IntArray]
) -> None:
    before, restored = weights(own_restorer), own_restorer(training_data[0])[0]
    with pytest.raises(InputError, match=r"^learning_rate is"):
        own_restorer.fit(*training_data, **BRIEFLY | {"learning_rate": 1e20, "clip_norm": None})
    assert torch.equal(weights(own_restorer), before)
    np.testing.assert_array_equal(own_restorer(training_data[0])[0], restored)
    assert own_restorer.trainings == []
    assert not any(parameter.requires_grad for parameter in own_restorer.parameters())


# What cannot be trained on


@one_kind
def test_a_value_that_fit_does_not_declare_is_refused(
    own_restorer: TrainedRestorer, training_data: tuple[FloatArray, IntArray], wrong_values: Callable[[Kind], list[Any]]
) -> None:
    own_restorer.network.register_forward_hook(lambda *_: pytest.fail("the network ran"))
    for name, kind in declared_of(type(own_restorer).fit).items():
        for value in wrong_values(kind):
            with pytest.raises(InputError, match=rf"^{name} is "):
                own_restorer.fit(*training_data, **BRIEFLY | {name: value})


@one_kind
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [[0.0]]}, r"x is \[\[0.0\]\]; a numpy array of float32, \(N, 1, H, W\) with N > 0, was"),
        ({"x": lambda x: x.astype(np.float64)}, "x is float64 of shape .*; a numpy array of float32, "),
        ({"x": lambda x: x[:, 0]}, r"x is float32 of shape \(60, 8, 8\); .* \(N, 1, H, W\) with N > 0, was expected"),
        ({"x": lambda x: x[:0]}, r"x is .*; .* \(N, 1, H, W\) with N > 0, was expected"),
        ({"x": lambda x: x.repeat(3, axis=1)}, r"x is float32 of shape \(60, 3, 8, 8\); .* \(N, 1, H, W\) with"),
        ({"x": lambda x: x[:, :, :4]}, r"x has images of shape \(1, 4, 8\), which the DigitsCNN cannot take \("),
        ({"x": lambda x: x + 1}, r"x ranges from 1 to 2; values inside the clip values \[0, 1\] were expected"),
        ({"x": lambda x: np.where(x > 0.5, np.nan, x).astype(np.float32)}, "x ranges from nan to nan; values inside"),
        ({"x": lambda x: np.where(x > 0.5, np.inf, x).astype(np.float32)}, "x ranges from 0 to inf; values inside"),
        ({"x": lambda x: np.full_like(x, 0.5)}, "x holds images of a single value each; images with something on"),
        ({"y": lambda y: y[:9]}, "y has 9 labels for 60 images; as many were expected"),
        ({"y": lambda y: np.zeros_like(y)}, "y holds class 0 alone; images of at least two classes were expected"),
        ({"y": lambda y: np.eye(11)[y]}, "y is one-hot of width 11; 10 classes were expected"),
        ({"y": lambda y: y + 1}, "y holds labels from 1 to 10; 0 to 9 were expected"),
        ({"y": lambda y: y / 2}, r"y is float64 of shape \(60,\); an array of class indices"),
        ({"y": lambda y: y.tolist()}, "y is .*; an array of class indices"),
        ({"validation_split": 0.01}, "x has 60 images, of which a validation_split of 0.01 holds out none; more"),
        ({"attack_mode": "estimated"}, "attack_mode is 'estimated'; one of exact, .*identity was expected"),
        ({"inputs": ["clean", "cw"]}, r"inputs is .*; a list of clean, .*, or of functions, or None, was expected"),
        ({"inputs": "clean"}, "inputs is 'clean'; a list of clean, .*, or of functions, or None, was expected"),
        ({"inputs": []}, r"inputs is \[\]; a list of clean, .*, or of functions, or None, was expected"),
        ({"loss": "l1"}, "loss is 'l1'; a RestorationLoss, or None, was expected"),
        ({"checkpoint": "nowhere/training"}, "checkpoint is 'nowhere/training'; a file in an existing folder was exp"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_training(
    own_restorer: TrainedRestorer, training_data: tuple[FloatArray, IntArray], changes: dict[str, Any], message: str
) -> None:
    before = weights(own_restorer)
    arguments: dict[str, Any] = {"x": training_data[0], "y": training_data[1]} | BRIEFLY
    changed = {name: value(arguments[name]) if callable(value) else value for name, value in changes.items()}
    own_restorer.network.register_forward_hook(lambda *_: pytest.fail("the network ran"))
    with pytest.raises(InputError, match=f"^{message}") as error:
        own_restorer.fit(**arguments | changed)
    assert "\n" not in str(error.value)
    assert torch.equal(weights(own_restorer), before)
    assert own_restorer.trainings == []
    assert not any(parameter.requires_grad for parameter in own_restorer.parameters())


# Before it is trained


@one_kind
def test_an_untrained_restorer_refuses_images_and_is_not_saved(
    fresh: Fresh, digits_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray, tmp_path: Path
) -> None:
    restorer = fresh()
    defended = defend(digits_classifier, restorer)
    for call in (
        lambda: restorer(x),
        lambda: restorer(torch.from_numpy(x)),
        lambda: defended.predict(x),
        lambda: defended.loss_gradient(x, y),
        lambda: restorer.save(tmp_path / "defence"),
    ):
        with pytest.raises(InputError, match=r"is not trained yet; fit\(\) or load\(\) first was expected"):
            call()
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(restorer.restore(torch.from_numpy(x)), x)


# Files


def test_it_is_saved_and_loaded_with_how_it_was_trained(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier, training_data: Any, x: FloatArray, tmp_path: Path
) -> None:
    own_restorer.set_params(chunk_size=5, apply_fit=True)
    briefly = BRIEFLY | {"nb_epochs": 1}
    own_restorer.fit(*training_data, **briefly | {"inputs": ["clean", by_two]})
    own_restorer.fit(
        *training_data, **briefly | {"inputs": ["clean", "end_to_end"]}, adversarial=True, attack_mode="identity"
    )
    own_restorer.save(tmp_path / "defence")
    loaded = type(own_restorer).load(tmp_path / "defence", classifier=own_classifier)
    np.testing.assert_array_equal(loaded(x)[0], own_restorer(x)[0])
    assert {name: getattr(loaded, name) for name in own_restorer.params} == {
        name: getattr(own_restorer, name) for name in own_restorer.params
    }
    assert loaded.trainings == own_restorer.trainings
    assert [training.settings["inputs"] for training in loaded.trainings] == [
        ["clean", "by_two"],
        ["clean", "end_to_end"],
    ]
    assert loaded.describe() == own_restorer.describe() == json.loads(json.dumps(own_restorer.describe()))
    assert loaded.describe()["width"] == own_restorer.width
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.fit(*training_data, **briefly)
    own_restorer.fit(*training_data, **briefly)
    assert torch.equal(weights(loaded), weights(own_restorer))


@one_kind
def test_files_that_hold_something_else_are_refused(
    trained: TrainedRestorer, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    path, cls = tmp_path / "defence", type(trained)
    trained.save(path)
    other_model = copy.deepcopy(digits_classifier.model)
    with torch.no_grad():
        next(other_model.parameters()).add_(0.01)
    with pytest.raises(InputError, match="was built for another network than the classifier's"):
        cls.load(path, classifier=rebuild(digits_classifier, model=other_model))
    with pytest.raises(InputError, match="an ART PyTorchClassifier was expected"):
        cls.load(path, classifier=digits_classifier.model)
    for another in {FeatureAutoencoder, TwoStreamRestoration, HeatAndBlur} - {cls}:
        with pytest.raises(InputError, match=f"which holds a {cls.name}; a {another.name} was exp"):
            another.load(path, classifier=digits_classifier)
    with pytest.raises(InputError, match="an existing file was expected"):
        cls.load(tmp_path / "nothing", classifier=digits_classifier)


# Options


@one_kind
def test_an_adversarial_fit_needs_inputs_made_through_the_defence(
    own_restorer: TrainedRestorer, training_data: Any
) -> None:
    with pytest.raises(InputError, match="but adversarial is True; one made through the defence was expected"):
        own_restorer.fit(*training_data, **BRIEFLY | {"inputs": ["clean", pgd(EPS, 2)]}, adversarial=True)


@one_kind
def test_a_batch_holds_each_kind_of_input(own_restorer: TrainedRestorer, training_data: Any) -> None:
    kinds = ["clean", "noise", "fgsm", "bim"]
    with pytest.raises(
        InputError, match=r"batch_size is 3, .* at least as many as the 4 kinds of inputs were expected"
    ):
        own_restorer.fit(*training_data, **BRIEFLY | {"inputs": kinds, "batch_size": 3})


@one_kind
def test_rebind_refuses_a_classifier_of_another_shape(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier
) -> None:
    colour = PyTorchClassifier(
        nn.Conv2d(3, 10, 8), nn.CrossEntropyLoss(), (3, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    with pytest.raises(InputError, match="classifier has channels 3; 1 was expected"):
        own_restorer.rebind(colour)
    assert own_restorer.model is own_classifier.model


def test_what_the_network_was_made_for_cannot_be_set(own_restorer: TrainedRestorer, x: FloatArray) -> None:
    expected = own_restorer(x)[0]
    settings = {name: getattr(own_restorer, name) for name in own_restorer.params}
    other_values = {"architecture": "paper", "map": "stacked", "top_k": 5, "weights": "softmax", "scale": "channel"}
    other_values = {name: value for name, value in other_values.items() if getattr(own_restorer, name, None) != value}
    for name in own_restorer.network_params:
        value = other_values.get(name, 7)
        with pytest.raises(
            InputError, match=f"^{name} is {value!r}, and the {type(own_restorer).__name__} was made for"
        ):
            own_restorer.set_params(**{"chunk_size": 3, name: value})
        assert {param: getattr(own_restorer, param) for param in own_restorer.params} == settings
    own_restorer.set_params(**settings)
    own_restorer.set_params(chunk_size=3, apply_fit=True, apply_predict=False)
    assert (own_restorer.chunk_size, own_restorer.apply_fit, own_restorer.apply_predict) == (3, True, False)
    np.testing.assert_allclose(own_restorer(x)[0], expected, atol=1e-6)


# What ART meets


def by_hand(restorer: TrainedRestorer, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Without our helpers, as an ART user writes it."""
    return PyTorchClassifier(
        classifier.model,
        nn.CrossEntropyLoss(),
        classifier.input_shape,
        classifier.nb_classes,
        optimizer=classifier.optimizer,
        clip_values=(0.0, 1.0),
        preprocessing_defences=[restorer],
        preprocessing=(classifier.preprocessing.mean, classifier.preprocessing.std),
        device_type="cpu",
    )


BUILDS: dict[str, Callable[[TrainedRestorer, PyTorchClassifier], PyTorchClassifier]] = {
    "defend": lambda restorer, classifier: defend(classifier, restorer),
    "by hand": by_hand,
}


@pytest.fixture(params=BUILDS)
def defended(
    request: pytest.FixtureRequest, trained: TrainedRestorer, digits_classifier: PyTorchClassifier
) -> PyTorchClassifier:
    return BUILDS[request.param](trained, digits_classifier)


def test_art_s_gradients_are_those_of_autograd_to_the_last_bit(
    defended: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    assert gradient_modes(defended)[0] == "exact"
    x, y, gradients = x[::3], y[::3], []
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
            gradients.append(gradient.numpy())
    for i, mode_gradient in enumerate(gradients):
        assert np.isfinite(mode_gradient).all()
        for earlier in gradients[:i]:
            assert np.abs(mode_gradient - earlier).max() > 0.01 * np.abs(mode_gradient).max()


def test_the_size_of_the_batches_does_not_matter(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray
) -> None:
    own_classifier.model.double()
    defended = defend(own_classifier, own_restorer)
    results = []
    for chunk_size in (64, 7):
        own_restorer.set_params(chunk_size=chunk_size)
        results.append((own_restorer(x)[0], defended.predict(x), defended.loss_gradient(x, y)))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_a_float64_classifier_is_defended_and_trained_before(
    own_restorer: TrainedRestorer,
    own_classifier: PyTorchClassifier,
    fresh: Fresh,
    training_data: tuple[FloatArray, IntArray],
    x: FloatArray,
    y: FloatArray,
) -> None:
    single = fresh(own_classifier)
    single.fit(*training_data, **BRIEFLY)
    expected = own_restorer(x)[0], defend(own_classifier, own_restorer).predict(x)
    own_classifier.model.double()
    np.testing.assert_allclose(own_restorer(x)[0], expected[0], atol=1e-4)
    defended = defend(own_classifier, own_restorer)
    np.testing.assert_allclose(defended.predict(x), expected[1], rtol=1e-2, atol=1e-2)
    assert np.isfinite(defended.loss_gradient(x, y)).all()
    assert own_restorer(torch.from_numpy(x))[0].dtype == torch.float64
    double = fresh(own_classifier)
    double.fit(*training_data, **BRIEFLY)
    assert double.history[-1].validation_loss == pytest.approx(single.history[-1].validation_loss, rel=0.05)


@one_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_classifier_s_restorer_is_its_own(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier, x: FloatArray, y: FloatArray, duplicate: Any
) -> None:
    defended = defend(own_classifier, own_restorer)
    twin = duplicate(defended)
    (copied,) = twin.preprocessing_defences
    assert [weight.data_ptr() for weight in copied.model.parameters()] == [
        weight.data_ptr() for weight in twin.model.parameters()
    ]
    addresses = [{weight.data_ptr() for weight in face.parameters()} for face in (copied, own_restorer)]
    assert not addresses[0] & addresses[1]
    np.testing.assert_array_equal(twin.predict(x), defended.predict(x))
    np.testing.assert_array_equal(twin.loss_gradient(x, y), defended.loss_gradient(x, y))
    assert copied.trainings == own_restorer.trainings
    expected = own_restorer(x)[0]
    with torch.no_grad():
        for parameter in (*copied.parameters(), *twin.model.parameters()):
            parameter.mul_(0.5)
    assert not np.array_equal(copied(x)[0], expected)
    np.testing.assert_array_equal(own_restorer(x)[0], expected)


ATTACKS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "PGD in torch": (ProjectedGradientDescentPyTorch, 12, {"eps": 0.2, "eps_step": 0.05, "max_iter": 8}),
    "Square": (SquareAttack, 4, {"eps": 0.3, "max_iter": 10}),
    "DeepFool": (DeepFool, 2, {"max_iter": 4}),
}
"""Attack, number of images, options."""


@one_kind
@pytest.mark.parametrize("name", ATTACKS)
def test_art_s_attacks_run(
    trained: TrainedRestorer,
    digits_classifier: PyTorchClassifier,
    x: FloatArray,
    y: FloatArray,
    name: str,
    assert_attack_of_art_runs: Callable[..., None],
) -> None:
    attack, nb, options = ATTACKS[name]
    assert_attack_of_art_runs(attack, defend(digits_classifier, trained), x[:nb], y[:nb], "PGD" in name, **options)


@one_kind
@pytest.mark.parametrize("build", BUILDS)
def test_art_s_adversarial_training_trains_the_classifier_alone(
    own_restorer: TrainedRestorer, own_classifier: PyTorchClassifier, digits: Dataset, build: str
) -> None:
    defended = BUILDS[build](own_restorer, own_classifier)
    before, model = weights(own_restorer), copy.deepcopy(own_classifier.model.state_dict())
    attack = ProjectedGradientDescent(defended, eps=EPS, eps_step=EPS / 2, max_iter=3, verbose=False)
    x, y = digits.train.x[:64], np.eye(10, dtype=np.float32)[digits.train.y[:64]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AdversarialTrainer(defended, attack, ratio=0.5).fit(x, y, batch_size=32, nb_epochs=1)
    assert torch.equal(weights(own_restorer), before)
    assert not all(torch.equal(value, model[key]) for key, value in own_classifier.model.state_dict().items())
    assert np.isfinite(defended.predict(x)).all()


@pytest.mark.parametrize("face", [FeatureAutoencoder, TwoStreamRestoration])
def test_weights_grow_neither_with_images_nor_with_classes(face: type[TrainedRestorer]) -> None:
    sizes = []
    for size, nb_classes in ((8, 2), (32, 1000)):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, nb_classes), nn.Softplus())
        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), (3, size, size), nb_classes, clip_values=(0.0, 1.0), device_type="cpu"
        )
        state = face.for_classifier(classifier, width=16, stem=2).state_dict()
        sizes.append(sum(values.nbytes for values in state.values()))
    assert sizes[0] == sizes[1] < 2**18


def test_moving_a_copy_leaves_the_original(digits_classifier: PyTorchClassifier) -> None:
    restorer = FeatureAutoencoder.for_classifier(digits_classifier)
    before = {name: value.clone() for name, value in restorer.state_dict().items()}
    copy.copy(restorer).half()
    for name, value in restorer.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
