"""A compiled network is attacked and evaluated as the eager one is, and refused where its operations are needed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import (
    ExplanationReconstructor,
    HeatAndBlur,
    JumpReLU,
    Linf,
    TwoStreamRestoration,
    as_classifier,
    as_module,
    evaluate,
)
from art_defenses_ext.attack.auto_pgd import auto_pgd
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.suites import FAST
from art_defenses_ext.zoo.datasets import Dataset


def test_it_finds_the_same_images_without_compiling_again(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    network = as_module(JumpReLU(digits_classifier, 0.3)())
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(network, backend=count)
    x, y = torch.tensor(digits.test.x[:60]), torch.tensor(digits.test.y[:60])
    adv = [_attack(module, x, y) for module in (network, compiled)]
    broken = [network(images).argmax(dim=1) != y for images in adv]
    assert 0 < broken[0].sum() < len(y)  # images leave the batch on the way
    assert torch.equal(*broken)
    assert len(graphs) <= 3  # for the full batch, for any number of images, and for one


def _attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return auto_pgd(lambda images, _: network(images), x, y, Linf(0.1), max_iter=20, batch_size=40)


def returned(network: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(network, backend="aot_eager")  # type: ignore[assignment]
    return compiled


def in_place(network: nn.Module) -> nn.Module:
    network = deepcopy(network)
    network.compile(backend="aot_eager")
    return network


COMPILE = pytest.mark.parametrize("compile_network", [returned, in_place])


@COMPILE
def test_an_evaluation_gives_the_same_verdicts(
    digits_classifier: PyTorchClassifier, digits: Dataset, compile_network: Callable[[nn.Module], nn.Module]
) -> None:
    """Also where an attack takes several gradients of a forward pass: the staged one chooses its targets by them."""
    staged, verdicts = [spec for spec in FAST if spec.name == "APGD staged"], []
    for network in (digits_classifier.model, compile_network(digits_classifier.model)):
        classifier = as_classifier(network, digits.test.x[:20], clip_values=(0, 1))
        images = digits.test.x[:6], digits.test.y[:6]
        report = evaluate(classifier, images, Linf(0.06), staged, curve_samples=0, check_samples=0, progress=False)
        verdicts.append([record.robust() for record in report.records])
    assert verdicts[0] == verdicts[1]
    assert 0 < sum(verdicts[0]) < 6


@pytest.mark.parametrize(
    "defend_with",
    [
        JumpReLU,
        HeatAndBlur.for_classifier,
        TwoStreamRestoration.for_classifier,
        ExplanationReconstructor,
    ],
)
@COMPILE
def test_a_defence_that_looks_into_the_network_refuses_a_compiled_one(
    digits_classifier: PyTorchClassifier,
    digits: Dataset,
    defend_with: Callable[[PyTorchClassifier], Any],
    compile_network: Callable[[nn.Module], nn.Module],
) -> None:
    classifier = as_classifier(compile_network(digits_classifier.model), digits.test.x[:20], clip_values=(0, 1))
    with pytest.raises(InputError, match=r"compiled by torch\.compile"):
        defend_with(classifier)
