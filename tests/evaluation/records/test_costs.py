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


def sequential(*first: nn.Module) -> nn.Sequential:
    return nn.Sequential(*first, nn.Conv2d(1, 3, kernel_size=3), nn.ReLU(), nn.Flatten(), nn.Linear(48, NB_CLASSES))


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


def passes(cost: Cost) -> tuple[int, int]:
    return cost.forward, cost.backward


def hooks(classifier: PyTorchClassifier) -> int:
    modules = classifier._model.modules()  # ART's wrapper and all within
    return sum(len(one._forward_hooks) + len(one._backward_hooks) + len(one._forward_pre_hooks) for one in modules)


def test_a_loop_in_torch(classifier: PyTorchClassifier, x: FloatArray) -> None:
    module = as_module(classifier)
    images = torch.from_numpy(x)
    with measured(classifier) as cost:
        with torch.no_grad():
            for _ in range(3):
                module(images[:4])
        assert passes(cost) == (3 * 4, 0)
        for _ in range(2):
            leaf = images[:5].clone().requires_grad_()
            torch.autograd.grad(module(leaf).sum(), leaf)
        assert passes(cost) == (3 * 4 + 2 * 5, 2 * 5)
        leaf = images[:6].clone().requires_grad_()
        logits = module(leaf)
        for label in range(3):
            torch.autograd.grad(logits[:, label].sum(), leaf, retain_graph=True)
    assert passes(cost) == (3 * 4 + 2 * 5 + 6, 2 * 5 + 3 * 6)


def test_arts_own_ways_through_the_network(classifier: PyTorchClassifier, x: FloatArray) -> None:
    y = np.eye(NB_CLASSES, dtype=np.float32)[np.arange(len(x)) % NB_CLASSES]
    with measured(classifier) as cost:
        classifier.predict(x, batch_size=3)
    assert passes(cost) == (len(x), 0)
    with measured(classifier) as cost:
        classifier.loss_gradient(x, y)
    assert passes(cost) == (len(x), len(x))
    with measured(classifier) as cost:
        classifier.class_gradient(x, label=None)
    assert passes(cost) == (len(x), NB_CLASSES * len(x))


def test_arts_projected_gradient_descent(
    classifier: PyTorchClassifier, x: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gradient of each image a step; the rest is what the attack asks ``predict``, listened to here."""
    steps, y = 5, np.eye(NB_CLASSES, dtype=np.float32)[np.arange(len(x)) % NB_CLASSES]
    predicted = []
    predict = classifier.predict

    def listened(images: FloatArray, *args: object, **kwargs: object) -> FloatArray:
        predicted.append(len(images))
        answer: FloatArray = predict(images, *args, **kwargs)
        return answer

    monkeypatch.setattr(classifier, "predict", listened)
    attack = ProjectedGradientDescent(classifier, max_iter=steps, batch_size=4, verbose=False)
    with measured(classifier) as cost:
        attack.generate(x, y)
    assert passes(cost) == (steps * len(x) + sum(predicted), steps * len(x))


def test_nothing_is_counted_outside_and_no_hook_stays(classifier: PyTorchClassifier, x: FloatArray) -> None:
    before = hooks(classifier)
    with measured(classifier) as cost:
        assert passes(cost) == (0, 0)
        assert hooks(classifier) == before + 1
        classifier.predict(x)
    counted = passes(cost)
    assert hooks(classifier) == before
    classifier.loss_gradient(x, np.eye(NB_CLASSES, dtype=np.float32)[np.zeros(len(x), int)])
    assert passes(cost) == counted == (len(x), 0)


def test_after_an_exception_no_hook_stays_and_the_cost_is_known(classifier: PyTorchClassifier, x: FloatArray) -> None:
    before = hooks(classifier)
    kept = Cost()

    def fail() -> None:
        nonlocal kept
        with measured(classifier) as kept:
            classifier.predict(x)
            raise KeyError("the attack failed")

    with pytest.raises(KeyError):
        fail()
    assert hooks(classifier) == before
    assert passes(kept) == (len(x), 0)
    assert kept.seconds > 0


def test_one_network_in_two_measurements_at_once(classifier: PyTorchClassifier, x: FloatArray) -> None:
    with measured(classifier) as outer:
        classifier.predict(x)
        with measured(classifier) as inner:
            classifier.predict(x[:2])
    assert (outer.forward, inner.forward) == (len(x) + 2, 2)


def test_seconds_and_memory_are_there(x: FloatArray) -> None:
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
    assert passes(cost) == (1024, 0)
    assert cost.peak_memory >= x.nbytes
