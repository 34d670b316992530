"""Costs: passes are counted image by image, exactly, however ART or anyone else runs the network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.transformer.jump_relu import JumpReLU

NB_CLASSES = 4
SHAPE = (1, 6, 6)


class Plain(nn.Module):
    """A network with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, kernel_size=3)
        self.linear = nn.Linear(3 * 4 * 4, NB_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.relu(self.convolution(x)).flatten(1))
        return logits


def sequential(*first_layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        *first_layers, nn.Conv2d(1, 3, kernel_size=3), nn.ReLU(), nn.Flatten(), nn.Linear(48, NB_CLASSES)
    )


def wrap(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, NB_CLASSES, clip_values=(0, 1), device_type="cpu")


NETWORKS = {
    "module": Plain,
    "Sequential": sequential,
    "Sequential that begins without parameters": lambda: sequential(nn.Identity()),
}


@pytest.fixture(params=[*NETWORKS, "jump_relu", "jump_relu on a Sequential"])
def classifier(request: pytest.FixtureRequest) -> Iterator[PyTorchClassifier]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param in NETWORKS:
            yield wrap(NETWORKS[request.param]().eval())
        else:
            yield JumpReLU(wrap(sequential() if "Sequential" in request.param else Plain()), 0.1)()


@pytest.fixture
def x() -> FloatArray:
    return np.random.default_rng(0).random((7, *SHAPE), dtype=np.float32)


def passes_of(cost: Cost) -> tuple[int, int]:
    return cost.forward, cost.backward


def count_hooks(classifier: PyTorchClassifier) -> int:
    modules = classifier._model.modules()  # ART's wrapper and all within
    return sum(
        len(module._forward_hooks) + len(module._backward_hooks) + len(module._forward_pre_hooks) for module in modules
    )


def test_passes_of_a_loop_in_torch_are_counted(classifier: PyTorchClassifier, x: FloatArray) -> None:
    module = as_module(classifier)
    images = torch.from_numpy(x)
    with measured(classifier) as cost:
        with torch.no_grad():
            for _ in range(3):
                module(images[:4])
        assert passes_of(cost) == (3 * 4, 0)
        for _ in range(2):
            leaf = images[:5].clone().requires_grad_()
            torch.autograd.grad(module(leaf).sum(), leaf)
        assert passes_of(cost) == (3 * 4 + 2 * 5, 2 * 5)
        leaf = images[:6].clone().requires_grad_()
        logits = module(leaf)
        for label in range(3):
            torch.autograd.grad(logits[:, label].sum(), leaf, retain_graph=True)
    assert passes_of(cost) == (3 * 4 + 2 * 5 + 6, 2 * 5 + 3 * 6)


def test_passes_of_arts_own_methods_are_counted(classifier: PyTorchClassifier, x: FloatArray) -> None:
    y = np.eye(NB_CLASSES, dtype=np.float32)[np.arange(len(x)) % NB_CLASSES]
    with measured(classifier) as cost:
        classifier.predict(x, batch_size=3)
    assert passes_of(cost) == (len(x), 0)
    with measured(classifier) as cost:
        classifier.loss_gradient(x, y)
    assert passes_of(cost) == (len(x), len(x))
    with measured(classifier) as cost:
        classifier.class_gradient(x, label=None)
    assert passes_of(cost) == (len(x), NB_CLASSES * len(x))


def test_passes_of_arts_projected_gradient_descent_are_counted(
    classifier: PyTorchClassifier, x: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes one gradient of each image; all other passes are calls of ``predict``, counted here."""
    steps, y = 5, np.eye(NB_CLASSES, dtype=np.float32)[np.arange(len(x)) % NB_CLASSES]
    batch_sizes = []
    predict = classifier.predict

    def counting_predict(images: FloatArray, *args: object, **kwargs: object) -> FloatArray:
        batch_sizes.append(len(images))
        logits: FloatArray = predict(images, *args, **kwargs)
        return logits

    monkeypatch.setattr(classifier, "predict", counting_predict)
    attack = ProjectedGradientDescent(classifier, max_iter=steps, batch_size=4, verbose=False)
    with measured(classifier) as cost:
        attack.generate(x, y)
    assert passes_of(cost) == (steps * len(x) + sum(batch_sizes), steps * len(x))


def test_nothing_is_counted_outside_the_measurement_and_no_hook_stays(
    classifier: PyTorchClassifier, x: FloatArray
) -> None:
    before = count_hooks(classifier)
    with measured(classifier) as cost:
        assert passes_of(cost) == (0, 0)
        assert count_hooks(classifier) == before + 1
        classifier.predict(x)
    counted = passes_of(cost)
    assert count_hooks(classifier) == before
    classifier.loss_gradient(x, np.eye(NB_CLASSES, dtype=np.float32)[np.zeros(len(x), int)])
    assert passes_of(cost) == counted == (len(x), 0)


def test_after_an_exception_no_hook_stays_and_the_cost_is_known(classifier: PyTorchClassifier, x: FloatArray) -> None:
    before = count_hooks(classifier)
    cost = Cost()

    def fail() -> None:
        nonlocal cost
        with measured(classifier) as cost:
            classifier.predict(x)
            raise KeyError("the attack failed")

    with pytest.raises(KeyError):
        fail()
    assert count_hooks(classifier) == before
    assert passes_of(cost) == (len(x), 0)
    assert cost.seconds > 0


def test_nested_measurements_count_the_same_network(classifier: PyTorchClassifier, x: FloatArray) -> None:
    with measured(classifier) as outer:
        classifier.predict(x)
        with measured(classifier) as inner:
            classifier.predict(x[:2])
    assert (outer.forward, inner.forward) == (len(x) + 2, 2)


def test_seconds_and_memory_are_measured(x: FloatArray) -> None:
    classifier = wrap(Plain())
    with measured(classifier) as cost:
        classifier.predict(x)
        assert cost.seconds == cost.peak_memory == 0  # not before the end
    assert cost.seconds > 0
    assert cost.peak_memory > 2**20  # a process with torch in it


@pytest.mark.gpu
def test_on_cuda_memory_is_what_the_work_allocated(cuda: torch.device) -> None:
    classifier = PyTorchClassifier(Plain().to(cuda), nn.CrossEntropyLoss(), SHAPE, NB_CLASSES, device_type="gpu")
    x = np.zeros((1024, *SHAPE), np.float32)
    with measured(classifier) as cost:
        classifier.predict(x, batch_size=1024)
    assert passes_of(cost) == (1024, 0)
    assert cost.peak_memory >= x.nbytes
