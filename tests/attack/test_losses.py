"""The gradient of losses, also where there is none."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from art_defenses_ext.attack.losses import LOSSES, gradient_of, margin
from art_defenses_ext.estimator.rejecting import merge_rejection


def test_nothing_that_passes_is_zero() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    weight = torch.rand(2, requires_grad=True)
    assert torch.equal(gradient_of(x.detach().sum(dim=1), x), torch.zeros(3, 2))  # no graph at all
    assert torch.equal(gradient_of(x.detach() @ weight, x), torch.zeros(3, 2))  # a graph that x is no part of


def test_what_is_no_number_is_zero_and_the_rest_stays() -> None:
    x = torch.tensor([[0.0, 4.0]], requires_grad=True)
    torch.testing.assert_close(gradient_of(x.sqrt().sum(dim=1), x), torch.tensor([[0.0, 0.25]]))


def test_losses_rise_towards_another_class() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(50, 6), torch.randint(6, (50,))
    target = (y + 1) % 6
    towards = logits + 0.5 * F.one_hot(target, 6) - 0.5 * F.one_hot(y, 6)
    for name in ("cross_entropy", "margin", "margin_targeted"):
        assert (LOSSES[name](towards, y, target) >= LOSSES[name](logits, y, target)).all()


def test_with_rejection_merged_the_margin_is_negative_only_for_another_class_that_is_not_rejected() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(500, 4), torch.randint(3, (500,))
    before = logits.clone()
    merged = merge_rejection(logits, y)
    predicted = logits.argmax(dim=1)
    assert merged.shape == (500, 3)
    assert torch.equal(logits, before)
    assert torch.equal(margin(merged, y) < 0, (predicted != y) & (predicted != 3))
    rivals = F.one_hot(y, 3) == 0
    assert torch.equal(merged[rivals], logits[:, :3][rivals])


def test_the_gradient_of_a_merged_logit_goes_to_the_larger_of_the_two() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.5]], requires_grad=True)
    merge_rejection(logits, torch.tensor([0, 0]))[:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0, 1], [1, 0, 0]]
