"""What all tests share."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import art.config
import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import settings
from safetensors.torch import save_file
from torch import nn

from art_defenses_ext import JumpReLU, Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.declared import Kind
from art_defenses_ext.evaluation.records.sample import Outcome
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run import block
from art_defenses_ext.evaluation.run.added import Addition, write_addition
from art_defenses_ext.evaluation.run.folder import read_manifest, read_records
from art_defenses_ext.evaluation.suite import plan, suites
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.training import loop as training
from art_defenses_ext.training.classifier import train_classifier
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset, Split, load_dataset
from art_defenses_ext.zoo.networks import DigitsCNN

# The same examples in each run, and no verdict that depends on how busy the machine is.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # Foolbox imports GitPython, which else insists on the program git


LONGEST = (
    "tests/test_docs.py::test_the_code_of_a_page_runs",
    "tests/test_examples.py",
    "tests/evaluation/checks/test_broken_defences.py",
    "tests/defence/test_accelerator.py",
    "tests/test_verdicts.py",
    "tests/test_fuzz.py",
)
"""What takes longest begins first: begun last, it would leave the other workers without work."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Keep the measurement of coverage, whose trace function the authors' AutoAttack removes."""
    trace = sys.gettrace()
    try:
        return (yield)
    finally:
        sys.settrace(trace)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _art_writes_to_a_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """ART writes a model file into its data folder whenever a classifier is pickled."""
    before = art.config.ART_DATA_PATH
    art.config.set_data_path(str(tmp_path_factory.mktemp("art_data")))
    yield
    art.config.set_data_path(before)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On small networks threads gain nothing, and where several test runs share the cores they cost a factor of 50."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing that it has written; only a machine that stops does, and no test stops one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets."""
    root = os.environ.get("ART_DEFENSES_DATA")
    if not root:
        pytest.skip("ART_DEFENSES_DATA is not set")
    return Path(root)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A CUDA device that computes in full float32 precision."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda", torch.cuda.current_device())
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def few_digits(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a data set by name gets the digits with 160 training and 40 validation images."""
    parts = ((digits.train, 160), (digits.validation, 40))
    x, y = (np.concatenate([getattr(part, kind)[:count] for part, count in parts]) for kind in "xy")
    smaller = replace(digits, nb_validation=40, read_training=lambda: Split(x, y))
    monkeypatch.setattr("art_defenses_ext.zoo.datasets.load_dataset", lambda *_, **__: smaller)


@pytest.fixture
def command_folder(
    digits_classifier: PyTorchClassifier, few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder for a command, empty but for the network's ``weights.safetensors``; reports lack pictures."""
    monkeypatch.chdir(tmp_path)
    omit_pictures(monkeypatch)
    save_file(digits_classifier.model.state_dict(), "weights.safetensors")
    return tmp_path


@pytest.fixture(scope="session")
def diffusion_purifier(digits: Dataset) -> Any:
    """The purifier of the example, with two steps, trained on the digits."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
        example = importlib.import_module("diffusion_purifier_mnist")
        torch.manual_seed(0)
        predictor, betas = example.NoisePredictor(width=8), (0.05, 0.2)
        example.train_predictor(predictor, digits.train.x, digits.train.y, nb_epochs=25, betas=betas)
    return example.DiffusionPurifier(predictor, betas)


@pytest.fixture(scope="session")
def digits_classifier(digits: Dataset) -> PyTorchClassifier:
    """A network trained on the digits, for all tests to share: whoever changes it takes ``own_classifier``."""
    spec = MODELS["digits_cnn"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsCNN()
    train_classifier(
        model, digits.train.x, digits.train.y, nb_epochs=30, batch_size=64, mean=spec.mean, std=spec.std, progress=False
    )
    return _wrap_digits(model)


@pytest.fixture
def own_classifier(digits_classifier: PyTorchClassifier) -> PyTorchClassifier:
    """The network trained on the digits, wrapped and with parameters for one test alone."""
    return _wrap_digits(deepcopy(digits_classifier.model))


def _wrap_digits(model: nn.Module) -> PyTorchClassifier:
    spec = MODELS["digits_cnn"]
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        spec.input_shape,
        spec.nb_classes,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(spec.mean), np.array(spec.std)),
        device_type="cpu",
    )


@dataclass(frozen=True)
class FinishedRun:
    """A finished evaluation of digits behind a JumpReLU: its folder, its report, and the call that repeats it."""

    folder: Path
    report: Report
    classifier: PyTorchClassifier
    x: FloatArray
    y: IntArray
    threat: Linf
    attacks: list[AttackSpec]
    options: dict[str, Any]

    @property
    def call(self) -> dict[str, Any]:
        """The arguments that :func:`evaluate` has no default for, and the attacks."""
        given = {"model": self.classifier, "data": (self.x, self.y), "threat": self.threat, "attacks": self.attacks}
        return given

    def repeat(self, **changes: Any) -> Report:
        """The same call of ``evaluate``, without a folder and but for ``changes``."""
        return evaluate(**(self.call | self.options | changes))


FEW_STEPS = [
    AttackSpec(
        "PGD, undefended",
        lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=5, seed=seed),
        "transfer",
        source="paper",
        crafted_on="undefended",
        samples="all",
    ),
    AttackSpec(
        "Square", lambda c, t, seed: Square(c, t.norm, t.eps, max_queries=20, seed=seed), "queries", kind="queries"
    ),
    AttackSpec(
        "APGD",
        lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=5, seed=seed),
        "gradients",
        kind="white-box",
        modes="all",
        curve=True,
    ),
]
"""One attack of each kind, with so few steps that a whole evaluation takes seconds."""


def add_breaking_examples(folder: Path, name: str) -> None:
    """Add examples from elsewhere to a run, one that breaks each of its samples."""
    manifest, records = read_manifest(folder), read_records(folder)
    eps, labels = manifest.run.settings.eps, manifest.run.labels
    outcomes = {
        str(record.index): Outcome((record.label + 1) % labels, misclassified=True, linf=eps, l2=eps, success=True)
        for record in records
    }
    nothing = np.zeros((0, 1), dtype=np.float32), np.zeros(0, dtype=np.int64)  # images are evidence and may be missing
    write_addition(folder, manifest, Addition(name, None, "0" * 64, outcomes), *nothing)


def omit_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let reports be written without their pictures, which take a second to draw."""
    patch.setattr("art_defenses_ext.evaluation.report.figures.drawn.draw_figures", lambda *_: {})


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without their pictures."""
    omit_pictures(monkeypatch)


@pytest.fixture(scope="session")
def shortened_suite() -> Callable[[], AbstractContextManager[None]]:
    """Within it the suite ``standard`` has one attack of each kind with few steps, and the checks' own are as short."""
    short = tuple(spec for spec in suites.FAST if spec.name != "APGD staged" and spec.kind != "queries")
    effort = replace(plan.EFFORT, build=lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=30, seed=seed))

    @contextmanager
    def shortened() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(suites.SUITES, "standard", short)
            patch.setattr(plan, "EFFORT", effort)
            patch.setattr(block, "BINARIZED", 3)
            yield

    return shortened


@pytest.fixture
def short_suite(shortened_suite: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A test for which ``standard`` may be short."""
    with shortened_suite():
        yield


@pytest.fixture(scope="session")
def finished_run(
    digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    """One finished run for all tests to read, with checks, curve, examples and pictures: 23 digits in six blocks.

    Whoever changes a file of its folder copies the folder first (``shutil.copytree``).
    """
    folder = tmp_path_factory.mktemp("finished") / "run"
    options: dict[str, Any] = {"block_size": 4, "curve_samples": 6, "check_samples": 5, "progress": False}
    defended, x, y = JumpReLU(digits_classifier, 1.0)(), digits.test.x[:23].copy(), digits.test.y[:23].copy()
    report = evaluate(defended, (x, y), Linf(0.1), FEW_STEPS, out=folder, **options)
    return FinishedRun(folder, report, defended, x, y, Linf(0.1), FEW_STEPS, options)


@pytest.fixture(scope="session")
def wrong_values() -> Callable[[Kind], list[Any]]:
    """Gives, for the kind that an option is declared to be, values of all sorts that are none of it."""
    values = [-1, 0, 0.5, 1.5, 2**70, math.nan, math.inf, True, "no", "", None, [], {}, (1.0, -1.0)]

    def wrong(kind: Kind) -> list[Any]:
        def is_wrong(value: Any) -> bool:
            try:
                kind.accept(value)
            except ValueError:
                return True
            return False

        found = [value for value in values if is_wrong(value)]
        assert found
        return found

    return wrong


@pytest.fixture(scope="session")
def only_read() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Asserts that a block leaves a network as it was: modes, frozen parameters, gradients, hooks and state."""

    def everything(model: nn.Module) -> list[Any]:
        parameters, state = list(model.parameters()), model.state_dict().values()
        return [
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in parameters],
            [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            [(value._version, value.tolist()) for value in state],
        ]

    @contextmanager
    def watched(model: nn.Module) -> Iterator[None]:
        before = everything(model)
        yield
        assert everything(model) == before

    return watched


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within it, training is killed right after it has written its file for the given time."""

    class Stopped(Exception):
        pass

    @contextmanager
    def stopped(epochs: int) -> Iterator[None]:
        save, written = training.save_state, []

        def save_and_stop(*arguments: Any) -> None:
            save(*arguments)
            written.append(1)
            if len(written) == epochs:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(training, "save_state", save_and_stop)
            with pytest.raises(Stopped):
                yield

    return stopped


@pytest.fixture
def linear_classifier() -> Callable[..., PyTorchClassifier]:
    """Builds a classifier whose logits are W x + b, so that every distance to a boundary has a closed form."""

    def build(
        weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], input_shape: tuple[int, ...]
    ) -> PyTorchClassifier:
        """``weight`` (K, D) and ``bias`` (K,) on images of ``input_shape``, which holds D values."""
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        model = nn.Sequential(nn.Flatten(), linear)
        return PyTorchClassifier(
            model, nn.CrossEntropyLoss(), input_shape, len(weight), clip_values=(0.0, 1.0), device_type="cpu"
        )

    return build


@pytest.fixture
def at_distance(
    linear_classifier: Callable[..., PyTorchClassifier],
) -> Callable[..., tuple[PyTorchClassifier, Any, Any, Any]]:
    """Builds a linear problem in which every image lies at a known distance from the boundary."""

    def problem(shape: tuple[int, ...], norm: float, distance: float) -> tuple[PyTorchClassifier, Any, Any, Any]:
        """Two classes, and 16 images at exactly this distance from their boundary; their labels; W_0 - W_1."""
        random = np.random.default_rng(0)
        weight = random.normal(size=(2, int(np.prod(shape)))).astype(np.float32)
        direction = (weight[0] - weight[1]).astype(np.float64)
        bias = np.array([0, direction.sum() / 2], np.float32)
        x = 0.5 + 0.1 * random.uniform(-1, 1, size=(16, direction.size))
        y = np.arange(16) % 2
        # Along the direction w a step t changes the gap by t ||w||^2, and the distance is gap / dual norm of w.
        wanted = np.where(y == 0, 1, -1) * distance * np.linalg.norm(direction, ord={1: np.inf, 2: 2, np.inf: 1}[norm])
        x += ((wanted - (x - 0.5) @ direction) / (direction @ direction))[:, None] * direction
        return linear_classifier(weight, bias, shape), x.astype(np.float32).reshape(16, *shape), y, direction

    return problem
