"""StagedPGD: one stage after the other, each on the images that came nearest to the boundary."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import JumpReLU, Linf
from art_defenses_ext.attack import staged_pgd as module
from art_defenses_ext.attack.auto_pgd import auto_pgd
from art_defenses_ext.attack.staged_pgd import Stage, StagedPGD, nearest, staged_pgd
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.datasets import Dataset


@pytest.mark.parametrize(
    ("margins", "limit", "expected"),
    [
        ([3.0, 1.0, 2.0], 2, [1, 2]),  # in their order, not in that of their margins
        ([3.0, -1.0, 2.0], 2, [0, 2]),  # a broken one is done with
        ([1.0, 1.0, 1.0], 2, [0, 1]),  # of equal ones the first
        ([0.0, torch.inf], 5, [0, 1]),  # at zero two classes tie, and nothing is broken
        ([-1.0, -torch.inf], 5, []),
    ],
)
def test_the_images_of_lowest_margin_that_are_not_broken_go_on(
    margins: list[float], limit: int, expected: list[int]
) -> None:
    assert nearest(torch.tensor(margins), limit).tolist() == expected


def test_each_stage_has_its_share_of_all_images_its_loss_and_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a linear network of two pixels, the image's distance from the boundary is its first pixel."""
    x = torch.tensor([[8.0, 0.0], [0.05, 0.0], [4.0, 0.0], [2.0, 0.0]])
    calls: list[tuple[list[float], Tensor | None, str, int, int]] = []

    def overheard(
        logits: Any, *, x: Tensor, start: Tensor | None, objective: Any, max_iter: int, nb_runs: int, **options: Any
    ) -> Tensor:
        calls.append((x[:, 0].tolist(), start, objective.loss, max_iter, nb_runs))
        return auto_pgd(logits, x=x, start=start, objective=objective, max_iter=max_iter, nb_runs=nb_runs, **options)

    monkeypatch.setattr(module, "auto_pgd", overheard)
    stages = (
        Stage("margin", 5),
        Stage("cross_entropy", 7, 2, share=0.5),
        Stage("margin", 3, share=0.25, from_best=False),
        Stage("margin", 2, share=0.25, least=2),
    )
    adversarial = staged_pgd(
        lambda images, labels: torch.stack([images[:, 0], -images[:, 0]], dim=1),
        x,
        torch.zeros(4, dtype=torch.long),
        Linf(0.1),
        stages=stages,
        width=lambda factor: nullcontext(),
        generator=torch.Generator().manual_seed(0),
    )
    # The second image breaks in the first stage; of the others half of four, then a quarter of four, then two go on.
    assert [(images, loss, steps, runs) for images, _, loss, steps, runs in calls] == [
        (x[:, 0].tolist(), "margin", 5, 1),
        ([4.0, 2.0], "cross_entropy", 7, 2),
        ([2.0], "margin", 3, 1),
        ([4.0, 2.0], "margin", 2, 1),
    ]
    starts = [start for _, start, _, _, _ in calls]
    assert starts[0] is None  # there is no best point yet
    assert starts[1] is not None
    torch.testing.assert_close(starts[1][:, 0], torch.tensor([3.9, 1.9]))
    assert starts[2] is None
    assert (adversarial[:, 0] < 0).tolist() == [False, True, False, False]
    torch.testing.assert_close(adversarial[:, 0], x[:, 0] - 0.1)  # all were moved as far as the ball allows


def test_each_stage_has_its_width(digits: Dataset, digits_classifier: PyTorchClassifier, monkeypatch: Any) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    (network,) = find_defences(defended)
    widths: list[float] = []

    def overheard(*args: Any, **options: Any) -> Tensor:
        widths.append(network.surrogate_width)
        return auto_pgd(*args, **options)

    monkeypatch.setattr(module, "auto_pgd", overheard)
    stages = tuple(Stage("margin", 2, factor=factor) for factor in (2.0, 0.5))
    StagedPGD(defended, eps=0.001, stages=stages, gradient_mode="smooth").generate(digits.test.x[:3], digits.test.y[:3])
    assert widths == [2.0, 0.5]
    assert network.surrogate_width == 1


@pytest.mark.parametrize("nb_classes", [2, 3, 4])
def test_a_network_of_few_classes_gets_losses_and_targets_that_it_has(nb_classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, nb_classes))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), nb_classes, clip_values=(0, 1))
    stages = (Stage("dlr_targeted", 2, 9), Stage("dlr", 2))
    x = np.random.default_rng(0).random((3, 1, 4, 4), dtype=np.float32)
    adversarial = StagedPGD(classifier, eps=0.1, stages=stages).generate(x, np.zeros(3, int))
    assert adversarial.shape == x.shape


@pytest.mark.parametrize("stages", [(), None, "margin", (Stage("margin", 1), 2)])
def test_what_is_no_stage_is_refused(stages: Any, digits_classifier: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match=r"^stages is"):
        StagedPGD(digits_classifier, stages=stages)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("loss", "hinge"),
        ("max_iter", 0),
        ("nb_runs", 0),
        ("share", 0.0),
        ("share", 1.5),
        ("least", 0),
        ("factor", -1.0),
    ],
)
def test_a_stage_that_cannot_run_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{argument} is"):
        Stage(**({"loss": "margin", "max_iter": 5} | {argument: value}))
