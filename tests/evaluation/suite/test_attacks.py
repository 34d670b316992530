"""The sets of attacks, read as data and built: each keeps to what its line says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.attacks.evasion import AutoAttack, FastGradientMethod, ProjectedGradientDescent, SquareAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import ExplanationReconstructor, HeatAndBlur, rejecting
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attack.staged_pgd import StagedPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.defence.registry import installed, load_face
from art_defenses_ext.evaluation.config import SETS
from art_defenses_ext.evaluation.suite.papers import normalisation_scale, paper_specs
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import (
    DETECTOR_SUITE,
    FAST,
    FULL,
    LONG_STAGES,
    STANDARD,
    WHITE_BOX,
    attack_set,
)
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.transformer.jump_relu import JumpReLU
from art_defenses_ext.zoo.datasets import Dataset

JUMP_RELU = paper_specs(JumpReLU)
OWN = AttackSpec("own", lambda classifier, threat, seed: FastGradientMethod(classifier), "of one's own")


@pytest.fixture(scope="module")
def defended(digits_classifier: PyTorchClassifier) -> PyTorchClassifier:
    return JumpReLU(digits_classifier, 1.0)()


def wrap(input_shape: tuple[int, ...], preprocessing: Any) -> PyTorchClassifier:
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 2))
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape, 2, clip_values=(0, 1), preprocessing=preprocessing, device_type="cpu"
    )


# The sets as data


def test_names_are_unique_across_all_that_may_run_together() -> None:
    for papers in (paper_specs(load_face(name)) for name in installed()):
        names = [spec.name for spec in papers + FULL]
        assert len(set(names)) == len(names)


def test_the_papers_of_heat_and_blur_do_not_know_of_the_defence() -> None:
    for spec in paper_specs(HeatAndBlur):
        assert (spec.source, spec.crafted_on, spec.samples, spec.bounded) == ("paper", "undefended", "all", True)


def test_the_papers_of_jump_relu_are_three_attacks_in_two_boxes() -> None:
    """Gray-box is made on the undefended model, white-box on the defended one; none is confined to a ball."""
    names = {"IFGSM", "DeepFool linf", "DeepFool l2"}
    boxes = {"gray": "undefended", "white": "defended"}
    expected = {(f"{name}, {box}-box", crafted_on) for name in names for box, crafted_on in boxes.items()}
    assert {(spec.name, spec.crafted_on) for spec in JUMP_RELU} == expected
    for spec in JUMP_RELU:
        assert spec.samples == "all"
        assert not spec.bounded
        assert spec.modes == "exact"  # the authors knew the native derivative only
        assert spec.kind == "other"  # what they find is no evidence for or against our own white-box attacks


@pytest.mark.parametrize(("input_shape", "iterations"), [((1, 8, 8), 40), ((3, 8, 8), 7)])
def test_the_papers_of_jump_relu_have_the_authors_figures(input_shape: tuple[int, ...], iterations: int) -> None:
    classifier = wrap(input_shape, ((0.5,) * input_shape[0], (0.25,) * input_shape[0]))
    for spec in JUMP_RELU:
        attack: Any = spec.build(classifier, Linf(0.1), 0)
        kind, norm = {
            "IFGSM": (IterativeFGSM, None),
            "DeepFool linf": (DeepFoolLp, np.inf),
            "DeepFool l2": (DeepFoolLp, 2),
        }[spec.name.split(",")[0]]
        assert type(attack) is kind
        assert norm is None or attack.norm == norm
        assert attack.max_iter == iterations
        assert np.allclose(attack.scale, 0.25)
        assert kind is DeepFoolLp or attack.eps_step == 0.01


def test_white_box_attacks_come_before_attacks_without_gradients() -> None:
    """The checks need this order to count what each kind still breaks after the white-box attacks."""
    for suite in (FAST, STANDARD):
        white = [spec.kind == "white-box" for spec in suite]
        assert white == sorted(white, reverse=True)
        assert suite[-1].kind == "noise"


def test_the_fast_suite_has_an_attack_of_each_kind_that_the_checks_ask_about() -> None:
    """Made on the same networks and under the same modes as those of ``standard``, or a check would not be made."""
    properties = {(spec.kind, spec.crafted_on, spec.modes) for spec in STANDARD if spec.modes != "annealable"}
    assert {(spec.kind, spec.crafted_on, spec.modes) for spec in FAST} == properties


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("kind", "whitebox"), ("crafted_on", "undefend"), ("modes", "every"), ("samples", "robust")),
        *(("source", "papers"), ("labels", None), ("build", "PGD")),
    ],
)
def test_an_unknown_property_of_an_attack_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{argument} is {value!r}"):
        replace(WHITE_BOX, **{argument: value})


# With a detector


def test_the_papers_of_jump_relu_keep_their_step_size_beside_a_detector() -> None:
    classifier = wrap((1, 8, 8), ((0.5,), (0.25,)))
    with_detector = rejecting(classifier, BinaryInputDetector(wrap((1, 8, 8), (0.0, 1.0))))
    for spec in JUMP_RELU:
        attack: Any = spec.build(with_detector, Linf(0.1), 0)
        assert np.allclose(attack.scale, 0.25)


@pytest.fixture(scope="module")
def rejecting_classifier(digits_classifier: PyTorchClassifier) -> PyTorchClassifier:
    """A classifier beside a detector with random weights."""
    return rejecting(digits_classifier, BinaryInputDetector(wrap((1, 8, 8), (0.0, 1.0))))


def test_a_detector_s_attacks_follow_the_other_white_box_ones(rejecting_classifier: PyTorchClassifier) -> None:
    for name, suite in (("fast", FAST), ("standard", STANDARD), ("full", FULL)):
        attacks = attack_set(name, rejecting_classifier)
        names = [spec.name for spec in attacks]
        expected = [spec.name for spec in suite if spec.name not in ("C&W", "HopSkipJump")]
        assert [spec_name for spec_name in names if spec_name not in [spec.name for spec in DETECTOR_SUITE]] == expected
        position = names.index("selective PGD")
        assert attacks[position : position + 3] == DETECTOR_SUITE
        assert all(spec.kind == "white-box" for spec in attacks[: position + 3])
        assert names[position + 3].startswith("transfer PGD-")
        assert len(set(names)) == len(names)


def test_a_detector_s_attacks_serve_every_threshold(rejecting_classifier: PyTorchClassifier) -> None:
    kinds = {"selective PGD": SelectivePGD, "orthogonal PGD": OrthogonalPGD, "Lagrangian PGD": LagrangianPGD}
    for spec in DETECTOR_SUITE:
        assert (spec.samples, spec.crafted_on, spec.source) == ("all", "defended", "suite")
        attack: Any = spec.build(rejecting_classifier, L2(0.4), 5)
        assert type(attack) is kinds[spec.name]
        assert (attack.norm, attack.eps, attack.seed) == (2, 0.4, 5)
        assert attack.stop_below == -np.inf  # so that no run ends before its last step
        assert attack.gradient_mode == "exact"


def test_the_papers_of_the_reconstructor_take_steps_of_the_authors_sizes(digits_classifier: PyTorchClassifier) -> None:
    specs = paper_specs(ExplanationReconstructor)
    assert [spec.name.split(",")[0] for spec in specs] == ["FGSM", "PGD-40", "MIM"]
    for spec in specs:
        assert (spec.source, spec.crafted_on, spec.samples, spec.labels) == ("paper", "undefended", "all", "predicted")
    for eps in (0.05, 0.3):
        _, pgd, mim = (spec.build(digits_classifier, Linf(eps), 0) for spec in specs)
        assert (pgd.eps, pgd.eps_step, pgd.max_iter, pgd.num_random_init) == (eps, 0.01, 40, 0)
        assert pgd.decay is None
        assert (mim.eps, mim.eps_step, mim.max_iter, mim.num_random_init, mim.decay) == (eps, 0.06, 10, 0, 1.0)
    assert [spec.build(digits_classifier, L2(2.0), 0).eps_step for spec in specs[1:]] == pytest.approx([0.2, 1.2])


# The attacks built


@pytest.mark.parametrize("spec", STANDARD, ids=lambda spec: spec.name)
def test_a_bounded_attack_stays_in_the_ball_and_in_the_clip_range(
    spec: AttackSpec, defended: PyTorchClassifier, digits: Dataset
) -> None:
    threat = L2(0.5)
    x, y = digits.test.x[:3], np.eye(10, dtype=np.float32)[digits.test.y[:3]]
    adversarial = spec.build(defended, threat, 1).generate(x, y)
    assert adversarial.shape == x.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = (adversarial.astype(np.float64) - x).reshape(len(x), -1)
    assert np.linalg.norm(delta, ord=threat.norm, axis=1).max() <= threat.eps


@pytest.mark.parametrize("spec", [spec for spec in (*FAST, *FULL) if spec.bounded and spec.kind != "single step"])
def test_every_random_attack_is_given_the_seed(spec: AttackSpec, defended: PyTorchClassifier) -> None:
    attack: Any = spec.build(defended, Linf(0.1), 1234)
    assert attack.seed == 1234


@pytest.mark.parametrize("name", ["APGD margin", "transfer PGD-40", "noise"])
def test_the_seed_reaches_the_attack(name: str, defended: PyTorchClassifier, digits: Dataset) -> None:
    (spec,) = [spec for spec in STANDARD if spec.name == name]
    x, y = digits.test.x[:3], np.eye(10, dtype=np.float32)[digits.test.y[:3]]
    first, other = (spec.build(defended, Linf(0.02), seed).generate(x, y) for seed in (1, 2))
    assert not np.array_equal(first, other)


def test_the_single_step_reaches_the_radius_of_the_ball(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    (fgsm,) = [spec for spec in STANDARD if spec.kind == "single step"]
    x, y = digits.test.x[:20], digits.test.y[:20]
    inner_images = np.clip(x, 0.3, 0.7)  # so far from the faces of the cube that nothing is clipped
    for threat in (Linf(0.1), L2(0.3)):
        adversarial = fgsm.build(digits_classifier, threat, 0).generate(inner_images, y)
        sizes = np.linalg.norm((adversarial - inner_images).reshape(20, -1), ord=threat.norm, axis=1)
        correct = digits_classifier.predict(inner_images).argmax(axis=1) == y
        assert correct.sum() > 5
        np.testing.assert_allclose(sizes[correct], threat.eps, rtol=1e-4)
        assert not sizes[~correct].any()


@pytest.mark.parametrize("nb_classes", [2, 3, 4, 15])
def test_the_targeted_attack_has_up_to_nine_target_classes(nb_classes: int) -> None:
    (spec,) = [spec for spec in FULL if spec.name == "APGD targeted"]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, nb_classes))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), nb_classes, clip_values=(0, 1))
    attack: Any = spec.build(classifier, Linf(0.1), 0)
    assert type(attack) is AutoPGD
    assert attack.nb_runs == min(9, nb_classes - 1)
    assert attack.loss == ("dlr_targeted" if nb_classes > 3 else "margin_targeted")  # the former needs four logits
    x = np.random.default_rng(0).random((3, 1, 4, 4), dtype=np.float32)
    assert attack.generate(x, np.zeros(3, int)).shape == x.shape


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("APGD margin", AutoPGD, {"loss": "margin", "max_iter": 100, "nb_runs": 1}),
        ("APGD cross-entropy", AutoPGD, {"loss": "cross_entropy", "max_iter": 100, "nb_runs": 1}),
        ("APGD staged, long", StagedPGD, {"stages": LONG_STAGES}),
        ("APGD annealed", AnnealedPGD, {"loss": "margin", "max_iter": 100, "factors": (1.0, 0.5, 0.25, 0.1, 0.05)}),
        ("Square", Square, {"max_queries": 500}),
        ("APGD restarts", AutoPGD, {"loss": "margin", "max_iter": 100, "nb_runs": 10}),
        ("Square, 5,000 queries", Square, {"max_queries": 5000}),
    ],
)
def test_the_settings_of_an_attack_agree_with_its_name(
    name: str, kind: type, expected: dict[str, Any], defended: PyTorchClassifier
) -> None:
    (spec,) = [spec for spec in FULL if spec.name == name]
    attack: Any = spec.build(defended, L2(0.5), 7)
    assert type(attack) is kind
    settings = {"norm": 2, "eps": 0.5, "seed": 7}
    for setting, value in (expected | settings).items():
        assert getattr(attack, setting) == value, setting


# Settings for fewer steps than an evaluation takes.
BRIEF = {"DeepFool": {}, "C&W": {"max_iter": 20, "learning_rate": 0.1}, "HopSkipJump": {"max_iter": 1, "max_eval": 100}}


@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.5)], ids=str)
@pytest.mark.parametrize("name", BRIEF)
def test_an_attack_without_a_ball_finds_a_change_that_breaks(
    name: str, threat: Threat, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """This holds for an undefended network, too, which takes float32 alone."""
    (spec,) = [spec for spec in FULL if spec.name == name]
    x, y = digits.test.x[:1], digits.test.y[:1]
    assert (digits_classifier.predict(x).argmax(axis=1) == y).all()
    attack = spec.build(digits_classifier, threat, 1)
    attack.set_params(**BRIEF[name])
    with seeded(0):  # ART's own draw from the global generators
        adversarial = attack.generate(x, np.eye(10, dtype=np.float32)[y])
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (digits_classifier.predict(adversarial.astype(np.float32)).argmax(axis=1) != y).all()


# Choosing a set


def test_the_sets_of_a_defended_classifier(defended: PyTorchClassifier) -> None:
    assert tuple(SETS) == ("papers", "fast", "standard", "full")
    assert attack_set("fast", defended) == FAST + JUMP_RELU
    assert attack_set("papers", defended) == JUMP_RELU
    assert attack_set("standard", defended) == STANDARD + JUMP_RELU
    assert attack_set("full", defended) == FULL + JUMP_RELU


def test_a_repeated_defence_has_its_paper_once(defended: PyTorchClassifier) -> None:
    doubly_defended = PyTorchClassifier(
        nn.Sequential(defended.model, nn.Unflatten(1, (1, 1, 10)), nn.Flatten(), _JumpingHead(defended)),
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        device_type="cpu",
    )
    assert attack_set("papers", doubly_defended) == JUMP_RELU


class _JumpingHead(nn.Module):
    """A second network with a jump, behind the first."""

    def __init__(self, defended: PyTorchClassifier) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(10, 10), nn.ReLU())
        classifier = PyTorchClassifier(layers, nn.CrossEntropyLoss(), (10,), 10, device_type="cpu")
        self.network = JumpReLU(classifier, 0.1)().model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x)
        return logits


def test_an_unknown_set_is_refused_with_the_known_ones(defended: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match=r"attacks is 'strong'; one of .* was expected") as caught:
        attack_set("strong", defended)
    assert all(name in str(caught.value) for name in SETS)


def test_custom_attacks_run_in_their_order(defended: PyTorchClassifier) -> None:
    assert attack_set([STANDARD[2], OWN, STANDARD[0]], defended) == (STANDARD[2], OWN, STANDARD[0])
    assert attack_set((OWN,), defended) == (OWN,)


@pytest.mark.parametrize(
    "attacks",
    [[], (), ["standard"], [OWN, None], OWN, None, 3, {"own": OWN}],
    ids=[
        "empty list",
        "empty tuple",
        "a name in a list",
        "None in a list",
        "a spec alone",
        "None",
        "a number",
        "a dict",
    ],
)
def test_anything_but_a_list_of_attacks_is_refused_in_a_sentence(attacks: Any, defended: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match=r"attacks is .*; a set's name or a list of AttackSpec was expected"):
        attack_set(attacks, defended)


def test_two_attacks_of_one_name_are_refused(defended: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match="attacks holds two of one name; distinct names were expected"):
        attack_set([OWN, STANDARD[0], OWN], defended)


# The unit of the paper's steps


@pytest.mark.parametrize(
    ("input_shape", "preprocessing", "expected"),
    [
        ((1, 2, 2), ((0.5,), (0.25,)), [[[0.25]]]),
        ((3, 2, 2), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), [[[0.2]], [[0.3]], [[0.4]]]),
        ((3, 2, 2), (0.5, 0.25), 0.25),
        ((3, 2, 2), None, 1.0),
    ],
)
def test_a_step_in_normalised_space_is_scaled_to_pixel_values(
    input_shape: tuple[int, ...], preprocessing: Any, expected: Any
) -> None:
    """(x + scale * step - mean) / std is (x - mean) / std + step."""
    classifier = wrap(input_shape, preprocessing and tuple(np.array(value, np.float32) for value in preprocessing))
    scale: npt.NDArray[np.float32] = np.asarray(normalisation_scale(classifier))
    assert np.allclose(scale, expected)
    x = np.full((2, *input_shape), 0.5, np.float32)
    mean, std = preprocessing or (0, 1)
    broadcast = [np.reshape(value, (-1, 1, 1)) for value in (mean, std)]
    normalised = [(image - broadcast[0]) / broadcast[1] for image in (x, x + scale * np.float32(0.1))]
    assert np.allclose(normalised[1] - normalised[0], 0.1, atol=1e-6)


@pytest.mark.parametrize("kind", [ProjectedGradientDescent, SquareAttack, AutoAttack, FastGradientMethod])
def test_art_s_attacks_show_no_progress_bars(kind: Any, digits_classifier: PyTorchClassifier) -> None:
    spec = AttackSpec("own", lambda classifier, threat, seed: kind(classifier), "by default")
    attack: Any = spec.attack_on(digits_classifier, Linf(0.1), 0)
    parts = [attack, *getattr(attack, "attacks", ()), getattr(attack, "_attack", None)]
    shows = [part.verbose for part in parts if hasattr(part, "verbose")]
    assert bool(shows) is (kind is not FastGradientMethod)  # a single step, which shows none
    assert not any(shows)
