"""The diffusion purifier of the examples, on the digits: what it learns, its gradient, its memory."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext import as_module, defend
from art_defenses_ext.zoo.datasets import Dataset


@pytest.fixture
def x(digits: Dataset) -> Tensor:
    return torch.tensor(digits.validation.x[:20])


def without_checkpoints(purifier: Any) -> Any:
    plain = copy(purifier)
    plain.checkpointed = False
    return plain


def test_purified_images_are_nearer_to_the_clean_ones_than_noisy_images(diffusion_purifier: Any, x: Tensor) -> None:
    share = diffusion_purifier.signal_shares()[-1]
    with torch.no_grad():
        torch.manual_seed(0)
        noisy = x + 0.5 * ((1 - share) / share).sqrt() * torch.randn_like(x)
        purified, purified_again = (diffusion_purifier.forward(x)[0] for _ in range(2))
    assert purified.shape == x.shape
    assert not torch.equal(purified, purified_again)
    assert F.mse_loss(purified, x) < 0.6 * F.mse_loss(noisy, x)


def test_checkpointed_steps_have_the_value_and_the_gradient_of_the_plain_ones(
    diffusion_purifier: Any, digits_classifier: PyTorchClassifier, x: Tensor
) -> None:
    """Through the classifier, over two passes with their own draws."""
    results = []
    for purifier in (diffusion_purifier, without_checkpoints(diffusion_purifier)):
        module = as_module(defend(digits_classifier, purifier))
        live = x.clone().requires_grad_()
        torch.manual_seed(3)
        logits = module(live) + module(live)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(dim=1)), live)
        results.append((logits.detach(), gradient))
    for checkpointed, plain in zip(*results, strict=True):
        assert plain.abs().max() > 1e-3
        assert (checkpointed - plain).abs().max() <= 1e-6


def test_of_each_step_little_is_kept(diffusion_purifier: Any, x: Tensor) -> None:
    kept_sizes = []
    for purifier in (diffusion_purifier, without_checkpoints(diffusion_purifier)):
        sizes: dict[int, int] = {}
        longer = copy(purifier)
        longer.betas = (0.05,) * 10

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = longer.forward(x.clone().requires_grad_())[0]
        assert value.requires_grad
        kept_sizes.append(sum(sizes.values()))
    assert kept_sizes[0] < kept_sizes[1] / 10
