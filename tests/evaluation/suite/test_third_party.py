"""Attacks of other libraries in an evaluation: the same images as by hand, in any units of the pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import foolbox
import numpy as np
import numpy.typing as npt
import pyautoattack
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import AttackSpec, JumpReLU, Linf, ThirdParty, as_module, evaluate, gradient_mode
from art_defenses_ext.attack.by_class import ByClass
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.zoo.datasets import Dataset

EPS = 0.1
SEED = 3
STEPS = {"steps": 5, "random_start": False}
Images = npt.NDArray[np.float32]


def tensors(x: Images, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(x), torch.tensor(y, dtype=torch.int64)


def by_foolbox(classifier: PyTorchClassifier, x: Images, y: Any) -> Images:
    model = foolbox.PyTorchModel(as_module(classifier), bounds=(0, 1), device="cpu")
    return foolbox.attacks.LinfPGD(**STEPS)(model, *tensors(x, y), epsilons=EPS)[1].numpy()


def by_foolbox_unbounded(classifier: PyTorchClassifier, x: Images, y: Any) -> Images:
    model = foolbox.PyTorchModel(as_module(classifier), bounds=(0, 1), device="cpu")
    return foolbox.attacks.LinfDeepFoolAttack(steps=5)(model, *tensors(x, y), epsilons=None)[1].numpy()


def by_autoattack(classifier: PyTorchClassifier, x: Images, y: Any) -> Images:
    attack = pyautoattack.AutoAttack(as_module(classifier), norm="Linf", eps=EPS, seed=SEED)
    attack.attacks_to_run, attack.apgd.n_iter = ["apgd-ce"], 5
    return attack.run_standard_evaluation(*tensors(x, y), batch_size=len(x))[0].numpy()


def by_art(classifier: PyTorchClassifier, x: Images, y: Any) -> Images:
    return ProjectedGradientDescent(classifier, np.inf, EPS, EPS / 4, max_iter=5, verbose=False).generate(x, y)


BY_HAND: dict[str, tuple[str, dict[str, Any], Callable[..., Images]]] = {
    "foolbox": ("foolbox:LinfPGD", STEPS, by_foolbox),
    "foolbox, smallest": ("foolbox:LinfDeepFoolAttack", {"steps": 5}, by_foolbox_unbounded),
    "autoattack": ("autoattack:apgd-ce", {"apgd__n_iter": 5}, by_autoattack),
    "art": ("art:ProjectedGradientDescent", {"max_iter": 5}, by_art),
}


def make_images(spec: AttackSpec, classifier: PyTorchClassifier, x: Images, y: Any, eps: float = EPS) -> Images:
    with seeded(SEED):
        return spec.build(classifier, Linf(eps), SEED).generate(x, np.eye(classifier.nb_classes, dtype=np.float32)[y])


@pytest.mark.parametrize("attack", BY_HAND)
def test_the_images_are_those_of_the_library_called_by_hand(
    attack: str, digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    name, options, by_hand = BY_HAND[attack]
    x, y = digits.test.x[:6], digits.test.y[:6]
    defended = JumpReLU(digits_classifier, 1.0)()
    with gradient_mode(defended, "smooth"):
        adversarial = make_images(ThirdParty(name, options=options), defended, x, y)
        with seeded(SEED):
            np.testing.assert_array_equal(adversarial, by_hand(defended, x, y))
    assert not np.array_equal(adversarial, x)


@pytest.mark.parametrize("attack", ["foolbox", "autoattack"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 255.0), (-2.12, 2.64)])
def test_pixels_in_other_units_are_moved_by_the_same_shares(
    attack: str, low: float, high: float, digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    name, options, _ = BY_HAND[attack]
    spec, width = ThirdParty(name, options=options), high - low
    mean, std = digits_classifier.preprocessing.mean, digits_classifier.preprocessing.std
    own_units = rebuild(
        digits_classifier, clip_values=(low, high), preprocessing=(np.float32(low + width * mean), std * width)
    )
    x, y = digits.test.x[:6], digits.test.y[:6]
    expected = make_images(spec, digits_classifier, x, y)
    own = np.clip(low + width * x, low, high).astype(np.float32)
    adversarial = make_images(spec, own_units, own, y, EPS * width)
    assert np.float32(low) <= adversarial.min() <= adversarial.max() <= np.float32(high)
    np.testing.assert_allclose((adversarial - low) / width, expected, atol=1e-5)


def test_an_evaluation_runs_the_attack_under_every_mode(digits: Dataset, digits_classifier: PyTorchClassifier) -> None:
    options = {"square__n_queries": 20, **{f"{attack}__n_iter": 2 for attack in ("apgd", "apgd_targeted", "fab")}}
    spec = ThirdParty("autoattack", options=options)
    x, y = digits.test.x[:8], digits.test.y[:8]
    arguments = JumpReLU(digits_classifier, 1.0)(), (x, y), Linf(EPS)
    report = evaluate(*arguments, [spec], check_samples=0, curve_samples=0, progress=False)
    assert [row.key for row in report.summary.rows] == [f"autoattack [{mode}]" for mode in ("exact", "relu", "smooth")]
    assert report.summary.lacking == ""
    assert report.accuracy_after_attacks < report.summary.clean.rate


def test_the_ensemble_runs_on_two_classes(at_distance: Callable[..., Any]) -> None:
    classifier, x, y, _ = at_distance((1, 4, 4), np.inf, 0.05)
    spec = ThirdParty("autoattack", options={"square__n_queries": 10})
    assert (classifier.predict(make_images(spec, classifier, x, y)).argmax(axis=1) != y).all()
    assert (classifier.predict(make_images(spec, classifier, x, y, 0.04)).argmax(axis=1) == y).all()


def test_a_debugger_or_a_coverage_measurement_keeps_its_trace_function(at_distance: Callable[..., Any]) -> None:
    """AutoAttack removes it, and coverage would miss what runs afterwards."""
    classifier, x, y, _ = at_distance((1, 4, 4), np.inf, 0.05)
    before = sys.gettrace()

    def trace(*_: Any) -> None:
        """Trace no frame."""

    sys.settrace(trace)
    try:
        make_images(ThirdParty("autoattack", options={"square__n_queries": 10}), classifier, x, y)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_a_rejecting_classifier_is_attacked_class_by_class(
    digits_classifier: PyTorchClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("art_defenses_ext.evaluation.suite.third_party.rejects", lambda _: True)
    monkeypatch.setattr("art_defenses_ext.attack.by_class.rejects", lambda _: True)
    assert isinstance(ThirdParty("foolbox:LinfPGD").build(digits_classifier, Linf(EPS), 0), ByClass)


@pytest.mark.parametrize("attack", ["torchattacks:PGD", "adv_lib:pgd_linf"])
def test_a_library_that_is_not_installed_names_its_command(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("art_defenses_ext.evaluation.suite.third_party.version", lambda _: "1")
    for module in ("torchattacks", "adv_lib", "adv_lib.attacks"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"cannot be imported .*`pip install .*` was expected"):
        ThirdParty(attack)


@pytest.mark.parametrize("attack", ["torchattacks:PGD", "adv_lib:pgd_linf"])
def test_libraries_that_are_left_out_of_the_tests_extra(
    attack: str, digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    if find_spec(attack.partition(":")[0]) is None:
        pytest.skip("it is not installed")
    x, y = digits.test.x[:6], digits.test.y[:6]
    adversarial = make_images(ThirdParty(attack, options={"steps": 5}), digits_classifier, x, y)
    assert 0 < np.abs(adversarial - x).max() <= EPS + 1e-6


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("cleverhans:PGD", "attack is 'cleverhans:PGD'; autoattack, or one of"),
        ("foolbox", "attack is 'foolbox'; autoattack, or one of"),
        (3, "attack is 3; autoattack"),
        ("foolbox:NoSuchAttack", "attack is 'NoSuchAttack' of foolbox, which has no such attack"),
        ("autoattack:fastest", "attack is 'fastest' of autoattack, which has no such attack"),
    ],
)
def test_an_unknown_attack_is_refused(attack: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ThirdParty(attack)


def test_an_option_that_the_attack_lacks_is_refused_before_any_work(
    digits: Dataset, digits_classifier: PyTorchClassifier
) -> None:
    for name, options in (("foolbox:LinfPGD", {"stepz": 3}), ("autoattack", {"squares__n_queries": 3})):
        spec = ThirdParty(name, options=options)
        with pytest.raises(InputError, match=f"attacks holds '{name}', which cannot attack"):
            evaluate(digits_classifier, (digits.test.x[:4], digits.test.y[:4]), Linf(EPS), [spec], progress=False)
