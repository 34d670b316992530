"""A compiled network is attacked as the eager one is, and is compiled anew twice at most while images leave."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, Linf, as_module
from art_defenses_ext.attack.auto_pgd import auto_pgd
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
