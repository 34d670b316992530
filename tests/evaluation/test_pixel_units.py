"""The unit of pixels does not matter: the same problem in other ranges has the same answers, and the true ones."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import L2, AttackSpec, HeatAndBlur, Linf, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.square import Square
from art_defenses_ext.defence.registry import load_face
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.report.figures.examples import examples_figure
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.attacker import for_any_attack
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.suites import FAST, FULL
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.datasets import Dataset

UNIT = (0.0, 1.0)
SHAPE = (1, 6, 6)
SHARE = 3.3 / 4095
"""eps of the linear problems in units of the clip range: 3.3 Hounsfield units."""


BRIEF = [
    *(spec for spec in FAST if spec.name in ("APGD margin, 30 steps", "FGSM", "noise")),
    AttackSpec(
        "APGD cross-entropy",
        lambda c, t, seed: AutoPGD(c, t.norm, t.eps, loss="cross_entropy", max_iter=30, seed=seed),
        "b",
        kind="white-box",
        modes="all",
    ),
    AttackSpec("Square", lambda c, t, seed: Square(c, t.norm, t.eps, max_queries=50, seed=seed), "b", kind="queries"),
]
"""An attack of each kind, with few steps."""


def linear_problem(clip_values: tuple[float, float] | None, norm: float, span: tuple[float, float]) -> Any:
    """A linear classifier, 24 images, their labels, and each one's distance to the boundary in units of the range.

    The distance of an image to a hyperplane is its gap over the dual norm of the weights. The images lie in the middle
    of the range, so that its ends do not matter.
    """
    random = np.random.default_rng(0)
    low, width = span[0], span[1] - span[0]
    weight = random.normal(size=36) / width  # per pixel value
    x = 0.5 + 0.1 * random.uniform(-1, 1, size=(24, 36))
    distances = SHARE * np.linspace(0.5, 1.5, 24)
    labels = np.arange(24) % 2
    dual = np.linalg.norm(weight * width, ord=1 if norm == np.inf else 2)
    gaps = np.where(labels == 1, 1, -1) * distances * dual
    unit = weight * width
    x += ((gaps - (x - 0.5) @ unit) / (unit @ unit))[:, None] * unit
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(np.stack([np.zeros(36), weight])))
        model[1].bias.copy_(torch.tensor([0.0, -weight @ np.full(36, low + width / 2)]))
    classifier = PyTorchClassifier(
        model.double(), nn.CrossEntropyLoss(), SHAPE, 2, clip_values=clip_values, device_type="cpu"
    )
    return classifier, (low + width * x).astype(np.float32).reshape(24, *SHAPE), labels, distances


@pytest.mark.parametrize(
    ("span", "clipped", "threat_type"),
    [
        (UNIT, True, Linf),
        ((0.0, 255.0), True, L2),
        ((-1024.0, 3071.0), False, Linf),
        ((0.0, 1e6), False, L2),
        ((0.0, 1e6), True, Linf),
    ],
)
def test_a_linear_network_is_as_robust_as_its_closed_form_says(
    span: tuple[float, float], clipped: bool, threat_type: type[Threat]
) -> None:
    """Half of the images lie within eps of the boundary; attacks that rounding put outside would leave them all."""
    classifier, x, y, distances = linear_problem(span if clipped else None, threat_type.norm, span)
    threat = threat_type(SHARE * (span[1] - span[0]))
    report = evaluate(classifier, (x, y), threat, BRIEF, curve_samples=0, check_samples=0, progress=False)
    assert report.summary.clean.rate == 1
    assert [record.robust() for record in report.records] == (distances > SHARE).tolist()
    outcomes = [outcome for record in report.records for outcome in record.attacks.values()]
    assert all(getattr(outcome, threat.norm_name) <= threat.eps * (1 + 1e-8) for outcome in outcomes)


class Rescaled(nn.Module):
    """A network of [0, 1] behind the way there from another range."""

    def __init__(self, model: nn.Module, span: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.low, self.width = model, span[0], span[1] - span[0]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.low) / self.width)
        return logits


def evaluate_digits(
    span: tuple[float, float], threat: Threat, classifier: PyTorchClassifier, digits: Dataset
) -> Report:
    """An evaluation of 12 digits, with checks, where black and white are the ends of ``span``."""
    low, width = span[0], span[1] - span[0]

    model = nn.Sequential(Rescaled(deepcopy(classifier.model), span))
    rescaled = PyTorchClassifier(
        model.eval(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=span, device_type="cpu"
    )
    x = (low + width * digits.test.x[:12].astype(np.float64)).astype(np.float32)
    ball = threat.at(threat.eps * width)
    return evaluate(rescaled, (x, digits.test.y[:12]), ball, BRIEF, curve_samples=0, check_samples=2, progress=False)


def test_attacks_and_checks_give_the_same_verdicts_in_every_unit(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    in_unit_range = evaluate_digits(UNIT, Linf(0.1), digits_classifier, digits)
    in_other_range = evaluate_digits((-1024.0, 3071.0), Linf(0.1), digits_classifier, digits)
    assert 0 < in_unit_range.summary.worst_case.count < 12
    assert [record.robust() for record in in_other_range.records] == [
        record.robust() for record in in_unit_range.records
    ]
    for row, unit_row in zip(in_other_range.summary.rows, in_unit_range.summary.rows, strict=True):
        assert row.broke == unit_row.broke, row.key
    verdicts = [
        [(check.name, check.verdict) for check in report.summary.checks] for report in (in_other_range, in_unit_range)
    ]
    assert verdicts[0] == verdicts[1]


def test_features_without_a_range_have_no_check_at_a_larger_eps() -> None:
    """Values in the hundreds: half of [0, 1] would be no limit there, and an honest network would fail at it."""
    random = np.random.default_rng(0)
    x = (300 * random.normal(size=(12, 8))).astype(np.float32)
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (8,), 2, device_type="cpu")
    y = classifier.predict(x).argmax(axis=1)
    report = evaluate(classifier, (x, y), Linf(20), BRIEF, curve_samples=0, check_samples=4, progress=False)
    verdicts = {check.name: check for check in report.summary.checks}
    assert verdicts["larger eps"].verdict == "not run"
    assert "without clip values" in verdicts["larger eps"].finding
    assert verdicts["more effort"].verdict == "passed"  # the other checks keep their attacks
    weight = model.weight.detach().double().numpy()
    gap = np.abs(
        (x.astype(np.float64) @ (weight[1] - weight[0])) + float(model.bias[1].detach() - model.bias[0].detach())
    )
    expected = gap > 20 * np.abs(weight[1] - weight[0]).sum()
    assert 0 < expected.sum() < 12
    assert [record.robust() for record in report.records] == expected.tolist()


@pytest.mark.parametrize(
    "name", ["IFGSM, white-box", "DeepFool linf, white-box", "DeepFool l2, white-box", "PGD-40, gray-box"]
)
def test_the_papers_steps_are_shares_of_the_range_without_a_normalisation(name: str) -> None:
    """The papers give them in pixel values of [0, 1]; unscaled they would be negligible on 256 grey levels."""
    specs = [
        spec
        for method in ("jump_relu", "explanation_reconstructor")
        for spec in paper_specs(load_face(method))
        if spec.name == name
    ]
    sizes = []
    for width in (1.0, 256.0):
        classifier, x, y, _ = linear_problem((0.0, width), np.inf, (0.0, width))
        adversarial = (
            specs[0].build(for_any_attack(classifier), Linf(0.1 * width), 0).generate(x, np.eye(2, dtype=np.float32)[y])
        )
        sizes.append(np.abs(adversarial.astype(np.float64) - x).max(axis=(1, 2, 3)) / width)
    assert sizes[0].min() > 0
    np.testing.assert_allclose(sizes[1], sizes[0], rtol=1e-4)


def test_deep_fool_crosses_the_boundary_in_every_unit() -> None:
    (spec,) = [spec for spec in FULL if spec.name == "DeepFool"]
    for span in (UNIT, (-1024.0, 3071.0), (0.0, 1e6)):
        classifier, x, y, distances = linear_problem(span, np.inf, span)
        classifier.model.float()
        adversarial = spec.build(classifier, Linf(1.0), 0).generate(x, np.eye(2, dtype=np.float32)[y])
        assert (classifier.predict(adversarial).argmax(axis=1) != y).all()
        sizes = np.abs(adversarial.astype(np.float64) - x).max(axis=(1, 2, 3)) / (span[1] - span[0])
        np.testing.assert_allclose(sizes, (distances + 1e-4) * 1.02, rtol=0.02)


def test_pictures_are_as_bright_as_the_clip_range_says() -> None:
    """A dark image of 256 grey levels, all of whose values lie in [0, 1], is shown dark."""
    dark = np.full((1, 4, 4), 1.0, np.float32)
    figure = examples_figure([Example(0, 0, 1, "PGD", dark, dark + 1)], (0.0, 255.0))
    assert np.asarray(figure.axes[0].images[0].get_array()) == pytest.approx(1 / 255)
    assert np.asarray(figure.axes[1].images[0].get_array()) == pytest.approx(2 / 255)


@pytest.mark.parametrize("span", [UNIT, (0.0, 255.0)], ids=str)
def test_views_of_a_defence_lie_between_black_and_white(span: tuple[float, float], digits: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    classifier = PyTorchClassifier(
        Rescaled(model, span), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=span, device_type="cpu"
    )
    defence = HeatAndBlur.for_classifier(classifier, mix="blur", sigma=0.5)
    views = defence.views(torch.tensor(digits.test.x[:4] * span[1]))
    expected = defence.restore(torch.tensor(digits.test.x[:4] * span[1])) / span[1]
    torch.testing.assert_close(views["what the network is shown"], expected)
    assert 0.5 < views["what the network is shown"].max() <= 1


@pytest.mark.parametrize(("span", "threat_type"), [(UNIT, Linf), ((-1024.0, 3071.0), L2), ((0.0, 1e6), Linf)], ids=str)
def test_art_s_attacks_at_the_edge_of_the_ball_stay_inside_in_every_unit(
    span: tuple[float, float], threat_type: type[Threat]
) -> None:
    """Each of ART's attacks breaks exactly the images of a linear network within eps of the boundary."""
    classifier, x, y, distances = linear_problem(span, threat_type.norm, span)
    classifier.model.float()
    attacks = {"numpy": ProjectedGradientDescentNumpy, "torch": ProjectedGradientDescentPyTorch}

    def make_builder(attack: Any) -> Any:
        return lambda c, t, s: attack(c, norm=t.norm, eps=t.eps, eps_step=t.eps / 4, max_iter=20, verbose=False)

    specs = [AttackSpec(name, make_builder(attack), name, samples="all") for name, attack in attacks.items()]
    specs.append(AttackSpec("one step", lambda c, t, s: FastGradientMethod(c, t.norm, t.eps), "fgm", samples="all"))
    threat = threat_type(SHARE * (span[1] - span[0]))
    report = evaluate(classifier, (x, y), threat, specs, curve_samples=0, check_samples=0, progress=False)
    for spec in specs:
        broken = [record.attacks[spec.name].success for record in report.records]
        assert broken == (distances < SHARE).tolist()
