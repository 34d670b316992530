"""Everything stays on the device: run on a simulated accelerator, forwards and backwards, with no GPU at hand.

Its tensors have shapes and a device and no values. An operation on two devices is an error there, and so is reading a
value, which on a GPU would make the host wait. ``test_accelerator.py`` runs this file in a process of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode
from torch.nn import functional
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Surrogate,
    TwoStreamRestoration,
    as_module,
    defend,
    gradient_mode,
    gradient_modes,
    rejecting,
)
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, RejectionAttack, SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attribution.gradient import input_gradient
from art_defenses_ext.attribution.relevance import relevance
from art_defenses_ext.attribution.rules import ZBox
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector import explanations
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.preprocessor.heat_and_blur import RULES, STARTS
from art_defenses_ext.training import loop
from art_defenses_ext.training.inputs import bim, mixture, pgd
from art_defenses_ext.training.loop import train
from art_defenses_ext.training.settings import Settings
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset

NAME = "simulated"


class Accelerator:
    """A device of which torch knows the name, the shapes of its tensors, and nothing else."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def copy(self, network: nn.Module) -> nn.Module:
        """The network with all parameters and buffers there."""
        with FakeCopyMode(self.mode):
            moved = deepcopy(network).requires_grad_(False)
        with self.mode:
            for module in moved.modules():
                for held in (module._parameters, module._buffers):
                    for name, tensor in held.items():
                        if tensor is not None:
                            there = tensor.to(NAME)
                            held[name] = nn.Parameter(there, False) if held is module._parameters else there
        return moved

    def images(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=NAME, requires_grad=True)

    def labels(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.long, device=NAME)


class Waits(TorchDispatchMode):
    """Counts how often the host asks for a value, and answers: yes, 1, or that the first half of the rows is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if operation is aten._local_scalar_dense.default:
            self.count += args[0].device.type == NAME
            return True if args[0].dtype == torch.bool else 1
        if operation is aten.nonzero.default:
            self.count += 1
            return self._first_half(args[0])
        if operation is aten.index.Tensor and any(at is not None and at.dtype == torch.bool for at in args[1]):
            self.count += 1
            indices = [
                at if at is None or at.dtype != torch.bool else self._first_half(at).squeeze(1) for at in args[1]
            ]
            return operation(args[0], indices)
        if operation is aten.exponential_.default:  # torch knows no shape for it where a generator is given
            return args[0]
        device = (kwargs or {}).get("device")
        if operation is aten._to_copy.default and device is not None and device.type == NAME:  # else it copies for real
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=NAME)
        return operation(*args, **(kwargs or {}))

    @staticmethod
    def _first_half(mask: Tensor) -> Tensor:
        return torch.zeros(len(mask) // 2, mask.ndim, dtype=torch.long, device=mask.device)


@pytest.fixture(scope="session")
def device() -> None:
    """Registers the device, once a process."""
    told = {
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    backend_registration._setup_privateuseone_for_python_backend(NAME, SimpleNamespace(**told))
    # Autocast changes types, which is no matter here: its key hands every operation on.
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel)
    device.library = library  # the registration ends with the object


@pytest.fixture(scope="session")
def digits_classifier(digits: Dataset) -> PyTorchClassifier:
    """Trained for long enough to predict each class: no test here looks at a value."""
    return load_classifier(digits, epochs=5, progress=False)


@pytest.fixture
def accelerator(device: None) -> Accelerator:
    return Accelerator()


def assert_stays_there(accelerator: Accelerator, network: nn.Module) -> None:
    """Logits and gradients in every gradient mode."""
    there = accelerator.copy(network)
    for mode in gradient_modes(network):
        with accelerator.mode, gradient_mode(there, mode):
            x = accelerator.images(2, 1, 8, 8)
            logits = there(x)
            (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
        assert logits.device.type == gradient.device.type == NAME, mode
        assert gradient.shape == x.shape, mode


def test_two_devices_in_one_operation_and_reading_a_value_are_errors(accelerator: Accelerator) -> None:
    """Else the tests below would say nothing."""
    network = accelerator.copy(nn.Linear(4, 2))
    with accelerator.mode:
        x = accelerator.images(3, 4)
        with pytest.raises(RuntimeError, match="same device"):
            network(torch.empty(3, 4))
        with pytest.raises(RuntimeError, match="device"):
            network(x) + torch.ones(3, 2)
        with pytest.raises(DataDependentOutputException):
            bool((network(x) > 0).any())


def test_jump_relu(accelerator: Accelerator, digits_classifier: PyTorchClassifier) -> None:
    assert_stays_there(accelerator, as_module(JumpReLU(digits_classifier, jump=0.5)()))


class Rounding(PreprocessorPyTorch):
    """Somebody else's, without a gradient."""

    def __init__(self) -> None:
        super().__init__(apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return (8 * x).round() / 8, y


def test_a_surrogate(accelerator: Accelerator, digits_classifier: PyTorchClassifier) -> None:
    assert_stays_there(accelerator, as_module(defend(digits_classifier, Surrogate(Rounding()))))


@pytest.mark.parametrize(
    "options",
    [
        *({"rules": rules, "start": start} for rules, start in zip(RULES, cycle(STARTS), strict=False)),
        {"mix": "soft_mask", "scale": "percentile", "passes": 2, "heat_sigma": 1.0},
    ],
    ids=str,
)
def test_heat_and_blur(
    accelerator: Accelerator, digits_classifier: PyTorchClassifier, options: dict[str, object]
) -> None:
    restorer = HeatAndBlur.for_classifier(digits_classifier, **options)
    assert_stays_there(accelerator, as_module(defend(digits_classifier, restorer)))


ATTACKS: dict[str, tuple[type[TensorAttack], dict[str, Any], int]] = {
    "fgsm": (IterativeFGSM, {"eps_step": 0.02, "max_iter": 6}, 2),
    "deep fool": (DeepFoolLp, {"norm": 2, "max_iter": 3, "nb_grads": 3}, 3),
    "pgd": (MarginPGD, {"eps": 0.2, "max_iter": 5, "nb_starts": 2}, 4),
    "pgd in l2": (MarginPGD, {"norm": 2, "eps": 0.2, "max_iter": 2, "nb_starts": 1}, 1),
    "pgd in l1": (MarginPGD, {"norm": 1, "eps": 0.2, "max_iter": 2, "nb_starts": 1}, 1),
    "auto-pgd": (AutoPGD, {"eps": 0.2, "max_iter": 3}, 13),
    "auto-pgd in l1": (AutoPGD, {"norm": 1, "eps": 0.2, "max_iter": 2}, 13),
    "annealed": (AnnealedPGD, {"eps": 0.2, "max_iter": 2, "factors": (1.0, 0.2)}, 25),
    "noise": (RandomNoise, {"eps": 0.2, "nb_draws": 5}, 0),
    "square": (Square, {"eps": 0.2, "max_queries": 12}, 1),
}
"""An attack, its options, and how often it asks for a value: at most once in several steps, DeepFool in each."""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(
    accelerator: Accelerator, own_classifier: PyTorchClassifier, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options, expected = ATTACKS[name]
    waits = attack_there(accelerator, kind(JumpReLU(own_classifier, jump=0.5)(), **options), monkeypatch)
    assert waits == expected


@pytest.fixture(scope="module")
def rejecting_classifier(device: None, digits_classifier: PyTorchClassifier, digits: Dataset) -> PyTorchClassifier:
    return rejecting(digits_classifier, fitted_detector(digits_classifier, digits))


def fitted_detector(classifier: PyTorchClassifier, digits: Dataset, **options: Any) -> ExplanationReconstructor:
    detector = ExplanationReconstructor(classifier, false_positive_rate=0.1, **options)
    detector.fit(digits.train.x[:700], nb_epochs=1, validation_split=0.25, progress=False)
    return detector


@pytest.mark.parametrize(
    ("kind", "options"), [(SelectivePGD, {}), (OrthogonalPGD, {}), (LagrangianPGD, {"weights": (0.5, 1.0)})]
)
def test_an_attack_on_classifier_and_detector(
    accelerator: Accelerator,
    rejecting_classifier: PyTorchClassifier,
    kind: type[RejectionAttack],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits once at the end of each run, not in a step."""
    attack = kind(rejecting_classifier, eps=0.2, max_iter=2, **options)
    assert attack_there(accelerator, attack, monkeypatch) == len(options.get("weights", (1.0,)))


def attack_there(accelerator: Accelerator, attack: TensorAttack, monkeypatch: pytest.MonkeyPatch) -> int:
    """Attack 16 images on the device; return how often the attack asks for a value."""
    there, waits = accelerator.copy(as_module(attack.estimator)), Waits()
    generator = torch.Generator()  # random numbers are drawn there all the same
    monkeypatch.setattr(torch, "Generator", lambda *_: generator)
    with accelerator.mode, waits:
        adv = attack.perturb(there, accelerator.images(16, 1, 8, 8).detach(), accelerator.labels(16), generator)
    assert (adv.device.type, adv.shape) == (NAME, (16, 1, 8, 8))
    return waits.count


def test_training_waits_once_an_epoch_for_each_term(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once for the check that the weights are finite; an epoch has four steps."""
    generator, waits = torch.Generator(), Waits()
    monkeypatch.setattr(torch, "Generator", lambda *_: generator)
    monkeypatch.setattr(loop, "_channels_last", lambda _: nullcontext())  # simulated weights have no layout to change
    network = accelerator.copy(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).requires_grad_(True)

    def objective(images: Tensor, labels: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        logits = network(images + 0.1 * torch.randn(images.shape, generator=noise, device=images.device))
        return {"class": functional.cross_entropy(logits, labels), "size": logits.square().mean()}

    with accelerator.mode, waits:
        data = accelerator.images(32, 1, 8, 8).detach(), accelerator.labels(32)
        train(network, data, objective, Settings(nb_epochs=1, batch_size=8, clip_norm=1.0), progress=False)
    assert waits.count <= 3


RESTORERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "autoencoder": (FeatureAutoencoder, {}),
    **{
        name: (TwoStreamRestoration, {"map": name, "top_k": 2, "blocks": 1}) for name in ("stacked", "sum", "predicted")
    },
}


@pytest.fixture(scope="module", params=RESTORERS)
def restored(
    device: None, digits_classifier: PyTorchClassifier, digits: Dataset, request: pytest.FixtureRequest
) -> PyTorchClassifier:
    """The classifier behind a restorer."""
    kind, options = RESTORERS[request.param]
    restorer = kind.for_classifier(digits_classifier, **options)
    restorer.fit(digits.train.x[:64], digits.train.y[:64], nb_epochs=1, validation_split=0.0, progress=False)
    return defend(digits_classifier, restorer)


def test_the_restorers(accelerator: Accelerator, restored: PyTorchClassifier) -> None:
    assert_stays_there(accelerator, as_module(restored))


def test_a_training_step_of_the_restorers(
    accelerator: Accelerator, restored: PyTorchClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: Any = find_defences(accelerator.copy(as_module(restored)))[0]
    generator, waits = torch.Generator(), Waits()
    monkeypatch.setattr(torch, "Generator", lambda *_: generator)
    weights = list(there.network.requires_grad_(True).parameters())
    inputs = mixture(["clean", "noise", "fgsm", bim(0.1, nb_steps=2), pgd(0.1, nb_steps=2, through="defence")], 0.1)
    with accelerator.mode, waits:
        objective = there._objective(inputs, there.usual_loss, "exact")
        terms = objective(accelerator.images(8, 1, 8, 8).detach(), accelerator.labels(8), generator)
        gradients = torch.autograd.grad(sum(terms.values()), weights, allow_unused=True)
    assert {gradient.device.type for gradient in gradients if gradient is not None} == {NAME}
    assert waits.count == 0


DETECTORS: dict[str, dict[str, Any]] = {
    "dense": {"reconstructor": "autoencoder", "explanation": list(explanations.EXPLANATIONS)},
    "convolutional": {"reconstructor": "convolutional", "explanation": "loss_gradient", "scaling": "benign"},
    "statistics": {"reconstructor": "statistics", "explanation": ["input_gradient", explanations.SURFACE]},
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_classifier_that_rejects_and_its_detector(
    accelerator: Accelerator,
    digits_classifier: PyTorchClassifier,
    digits: Dataset,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for count in ("SAMPLES", "DRAWS"):  # each is like the others
        monkeypatch.setattr(explanations, count, 2)
    detector = fitted_detector(digits_classifier, digits, **DETECTORS[name])
    assert_stays_there(accelerator, as_module(rejecting(digits_classifier, detector)))


def test_what_is_not_read_on_a_device_is_checked_on_the_cpu(digits_classifier: PyTorchClassifier) -> None:
    model, x = digits_classifier.model, torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match="class indices from 0 to 9"):
        input_gradient(model, x, torch.tensor([3, 10]))
    with pytest.raises(InputError, match="from 0 to 9"):
        relevance(model, x, torch.tensor([3, 10]))
    with pytest.raises(InputError, match="low < high"):
        ZBox(torch.zeros(1), torch.zeros(1))
