"""The doctor: each trap is found where it is set, and nothing in a classifier that is well."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ReverseSigmoid
from art.defences.preprocessor import FeatureSqueezing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import HeatAndBlur, JumpReLU, Surrogate, defend
from art_defenses_ext.cli.traps import TRAPS, environment, examine


class Network(nn.Module):
    """A convolution and a dense layer, and something in between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu, double: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 36, 3)
        self.between, self.double = between, double

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.out.weight.dtype) if self.double else x
        logits: Tensor = self.out(self.between(self.conv(x)).flatten(1))
        return logits


class Scaled(Network):
    """Logits so many times as large."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class Answering(Network):
    """Returns something else than logits."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


class Own(nn.Sequential):
    """A sequential network with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(2 * x)
        return out


class Sub(PyTorchClassifier):
    """A subclass."""


class Stopping(PreprocessorPyTorch):
    """A preprocessor that detaches."""

    params: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x.detach(), y


def wrap(network: nn.Module, kind: type[PyTorchClassifier] = PyTorchClassifier, **options: Any) -> PyTorchClassifier:
    arguments: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu", "nb_classes": 3} | options
    return kind(network.eval(), nn.CrossEntropyLoss(), (1, 6, 6), **arguments)


def sequential() -> nn.Sequential:
    return Own(nn.Flatten(), nn.Linear(36, 3))


def hooked() -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    network.register_forward_hook(lambda module, inputs, output: output + torch.tensor([17.0, 0, 0]))
    return network


CASES: dict[str, Callable[[], PyTorchClassifier]] = {
    "subclass": lambda: wrap(Network(), Sub),
    "sequential with a forward": lambda: wrap(sequential()),
    "sequential with a hook": lambda: wrap(hooked()),
    "channels": lambda: wrap(Network(), channels_first=False),
    "numpy preprocessing": lambda: wrap(Network(), preprocessing_defences=FeatureSqueezing(clip_values=(0, 1))),
    "postprocessing": lambda: wrap(Network(), postprocessing_defences=ReverseSigmoid()),
    "detached preprocessing": lambda: wrap(Network(), preprocessing_defences=Stopping()),
    "no gradient": lambda: wrap(Network(lambda x: x.round().detach())),
    "float64": lambda: wrap(Network(double=False)),
    "random": lambda: wrap(Network(lambda x: x + torch.randn_like(x))),
    "saturation": lambda: wrap(Scaled(1e4)),
    "batches": lambda: wrap(Network(lambda x: torch.relu(x - x.mean(dim=0)))),
    "precision": lambda: wrap(Network(double=False).to(torch.float64)),
    "no clip values": lambda: wrap(Network(), clip_values=None),
    "output": lambda: wrap(Network(), nb_classes=4),
}


def names(classifier: PyTorchClassifier) -> set[str]:
    return {trap.name for trap in examine(classifier)}


@pytest.mark.parametrize("trap", CASES)
def test_each_trap_is_found(trap: str) -> None:
    assert trap in names(CASES[trap]())


def test_every_trap_has_a_case() -> None:
    assert set(CASES) == set(TRAPS)


def test_every_trap_has_a_paragraph() -> None:
    text = (Path(__file__).parents[1] / "docs" / "traps.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(TRAPS)


def test_probabilities_are_no_logits() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(dim=1))
    (trap,) = [finding for finding in examine(wrap(network)) if finding.name == "output"]
    assert "probabilities" in trap.finding


def test_a_classifier_that_is_well_holds_none() -> None:
    assert names(wrap(Network())) == set()
    assert names(wrap(Network(), preprocessing=(0.5, 0.5))) == set()


def test_our_defences_are_no_traps() -> None:
    classifier = wrap(Network())
    assert names(JumpReLU(classifier, 0.01)()) == set()
    assert names(defend(classifier, HeatAndBlur.for_classifier(classifier))) == set()


def test_a_gradient_under_another_mode_is_named() -> None:
    """A surrogate is there, but not for who attacks with the exact gradient."""
    (trap,) = examine(defend(wrap(Network()), Surrogate(Stopping(), backward="identity")))
    assert trap.name == "no gradient"
    assert "(not under gradient_mode surrogate, which evaluate attacks too)" in trap.finding


def test_looking_changes_nothing() -> None:
    classifier = wrap(Network())
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    x = np.random.default_rng(0).random((2, 1, 6, 6), dtype=np.float32)
    logits = classifier.predict(x)
    examine(classifier)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.model.state_dict().items())
    np.testing.assert_array_equal(classifier.predict(x), logits)


def test_the_environment_names_what_a_report_of_an_error_needs() -> None:
    facts = environment()
    assert facts["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "adversarial-robustness-toolbox", "GPU", "CPU threads"} <= set(facts)


PATIENTS: dict[str, tuple[Callable[[], PyTorchClassifier], str, str]] = {
    "float64": (lambda: wrap(Network(double=False).to(torch.float64)), "precision", "float64"),
    "float16": (lambda: wrap(Network(double=False).half()), "precision", "float16"),
    "bfloat16": (lambda: wrap(Network(double=False).bfloat16()), "precision", "bfloat16"),
    "tuple": (lambda: wrap(Answering(lambda z: (z, z))), "output", "tuple"),
    "dict": (lambda: wrap(Answering(lambda z: {"logits": z})), "output", "dict"),
    "integers": (lambda: wrap(Answering(lambda z: z.long())), "output", "int64"),
    "too narrow": (lambda: wrap(Network(), nb_classes=10), "output", "10"),
    "too wide": (lambda: wrap(Network(), nb_classes=2), "output", "2"),
    "one logit": (lambda: wrap(Answering(lambda z: z[:, :1]), nb_classes=2), "output", "single logit"),
    "three axes": (lambda: wrap(Answering(lambda z: z[:, None])), "output", "(4, 1, 3)"),
    "raising": (lambda: wrap(Answering(lambda z: 1 / 0)), "output", "ZeroDivisionError"),
}


@pytest.mark.parametrize("patient", PATIENTS)
def test_a_patient_that_art_cannot_run_is_told_its_illness_and_nothing_else(patient: str) -> None:
    build, name, word = PATIENTS[patient]
    (trap,) = examine(build())
    assert (trap.name, word in trap.finding) == (name, True)
    assert "\n" not in trap.finding


def test_a_network_of_another_dtype_that_casts_by_itself_is_well() -> None:
    class Casting(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float()

    assert names(wrap(Casting().to(torch.float64))) == set()


@pytest.mark.parametrize(("scale", "saturated"), [(1.0, False), (10.0, False), (1e4, True), (1e6, True)])
def test_saturation_is_where_the_cross_entropy_of_the_prediction_is_exactly_zero(scale: float, saturated: bool) -> None:
    """Told by what autograd gives for it in this test, not by ART."""
    classifier = wrap(Scaled(scale))
    x = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = classifier.model(x)
    nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
    share = float((x.grad.flatten(1) == 0).all(dim=1).float().mean())
    assert (share > 0.5) == saturated
    traps = [trap for trap in examine(classifier) if trap.name == "saturation"]
    assert bool(traps) == saturated
    assert names(classifier) == ({"saturation"} if saturated else set())


class OwnStatistics(nn.Module):
    """A batch norm that is put into training mode by each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(1, momentum=0.0), Network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.norm.train()(x.to(self.inner.out.weight.dtype)))
        return logits


@pytest.mark.parametrize(
    "build",
    [OwnStatistics, lambda: Answering(lambda z: z.softmax(dim=0).log()), lambda: Answering(lambda z: z.roll(1, 0))],
)
def test_what_depends_on_the_batch_is_named_with_its_consequence(build: Callable[[], nn.Module]) -> None:
    (trap,) = [finding for finding in examine(wrap(build())) if finding.name == "batches"]
    assert "batch size" in trap.finding


def test_the_doctor_survives_a_preprocessor_that_raises() -> None:
    class Raising(Stopping):
        def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
            raise OSError("no more paper")

    findings = {trap.name: trap.finding for trap in examine(wrap(Network(), preprocessing_defences=Raising()))}
    assert "no more paper" in findings["output"]
