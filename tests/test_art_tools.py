"""ART's own tools take the transformed classifier for one of theirs, under NumPy 2 as well."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    CarliniL2Method,
    DeepFool,
    HopSkipJump,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerFBFPyTorch
from art.estimators.classification import PyTorchClassifier
from art.evaluations.security_curve import SecurityCurve
from art.metrics import empirical_robustness, loss_gradient_check

from art_defenses_ext import JumpReLU, gradient_mode
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import undefended
from art_defenses_ext.zoo.datasets import Dataset

NB_IMAGES = 8
JUMP = 0.5


def autopgd(classifier: PyTorchClassifier, loss_type: str | None) -> EvasionAttack:
    return AutoProjectedGradientDescent(
        classifier, eps=0.3, eps_step=0.1, max_iter=10, nb_random_init=1, loss_type=loss_type, verbose=False
    )


# Name -> (attack, norm, radius of its ball or None where it has none).
ATTACKS: dict[str, tuple[Callable[[PyTorchClassifier], EvasionAttack], float, float | None]] = {
    "pgd": (
        lambda c: ProjectedGradientDescent(c, eps=0.3, eps_step=0.05, max_iter=10, num_random_init=1, verbose=False),
        np.inf,
        0.3,
    ),
    "auto pgd": (lambda c: autopgd(c, None), np.inf, 0.3),
    "auto pgd, cross-entropy": (lambda c: autopgd(c, "cross_entropy"), np.inf, 0.3),
    "auto pgd, logit ratio": (lambda c: autopgd(c, "difference_logits_ratio"), np.inf, 0.3),
    "deep fool": (lambda c: DeepFool(c, max_iter=20, epsilon=0.02, verbose=False), 2, None),
    "carlini wagner": (
        lambda c: CarliniL2Method(
            c, learning_rate=0.1, max_iter=20, binary_search_steps=4, initial_const=1, batch_size=8, verbose=False
        ),
        2,
        None,
    ),
    "square": (lambda c: SquareAttack(c, eps=0.4, max_iter=150, nb_restarts=1, verbose=False), np.inf, 0.4),
    "hop skip jump": (
        lambda c: HopSkipJump(c, norm=2, max_iter=3, max_eval=100, init_eval=10, init_size=50, verbose=False),
        2,
        None,
    ),
    "auto attack": (
        lambda c: AutoAttack(
            c,
            eps=0.3,
            eps_step=0.1,
            batch_size=8,
            attacks=[
                autopgd(c, "cross_entropy"),
                autopgd(c, "difference_logits_ratio"),
                SquareAttack(c, verbose=False),
            ],
        ),
        np.inf,
        0.3,
    ),
    "auto attack, as it comes": (lambda c: AutoAttack(c, eps=0.3, eps_step=0.1, batch_size=8), np.inf, 0.3),
}


@pytest.fixture
def defended(own_classifier: PyTorchClassifier) -> PyTorchClassifier:
    return JumpReLU(own_classifier, JUMP)()


@pytest.fixture
def x(digits: Dataset, digits_classifier: PyTorchClassifier) -> Any:
    """Images that the bare and the transformed network both get right."""
    return _select_correct(digits, digits_classifier)[0]


@pytest.fixture
def y(digits: Dataset, digits_classifier: PyTorchClassifier) -> Any:
    return _select_correct(digits, digits_classifier)[1]


def _select_correct(digits: Dataset, classifier: PyTorchClassifier) -> tuple[Any, Any]:
    x, y = digits.test.x[:40], digits.test.y[:40]
    correct = (classifier.predict(x).argmax(axis=1) == y) & (
        JumpReLU(classifier, JUMP)().predict(x).argmax(axis=1) == y
    )
    return x[correct][:NB_IMAGES].copy(), y[correct][:NB_IMAGES].copy()


def one_hot(y: Any) -> Any:
    return np.eye(10, dtype=np.float32)[y]


def accuracy(classifier: PyTorchClassifier, x: Any, y: Any) -> float:
    return float((classifier.predict(x).argmax(axis=1) == y).mean())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_art_succeeds_within_its_bounds(name: str, defended: PyTorchClassifier, x: Any, y: Any) -> None:
    build, norm, radius = ATTACKS[name]
    np.random.seed(0)  # noqa: NPY002 (ART draws from the global generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = copy.deepcopy(defended.model.state_dict())
        x_before = x.copy()
        x_adv = build(defended).generate(x, one_hot(y)).astype(np.float32)
    np.testing.assert_array_equal(x, x_before)
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    size = np.linalg.norm((x_adv - x).reshape(len(x), -1), ord=norm, axis=1)
    if radius is not None:
        assert size.max() <= radius * (1 + 1e-5)
    broken = defended.predict(x_adv).argmax(axis=1) != y
    assert broken.mean() >= 0.75
    assert (size[broken] > 0).all()
    assert all(torch.equal(state[key], value) for key, value in defended.model.state_dict().items())


def test_art_s_gradient_attacks_follow_the_gradient_mode(defended: PyTorchClassifier, x: Any, y: Any) -> None:
    results = []
    for mode in ("exact", "relu", "smooth"):
        with gradient_mode(defended, mode):
            attack = ProjectedGradientDescent(defended, eps=0.1, eps_step=0.02, max_iter=5, verbose=False)
            results.append(attack.generate(x, one_hot(y)))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert not np.array_equal(results[1], results[2])


@pytest.mark.parametrize("full_copy", [False, True], ids=["shared", "own"])
def test_a_trainer_that_never_asks_for_training_mode_moves_no_shared_weights(
    full_copy: bool, own_classifier: PyTorchClassifier, x: Any, y: Any
) -> None:
    """FBF steps the optimizer of a network in evaluation mode."""
    before = copy.deepcopy(own_classifier.model.state_dict())
    transformed = JumpReLU(own_classifier, JUMP, copy=full_copy)()
    first = copy.deepcopy(transformed.model.state_dict())
    trainer = AdversarialTrainerFBFPyTorch(transformed, eps=0.1)
    if full_copy:
        trainer.fit(x, one_hot(y), nb_epochs=3)
    else:
        with pytest.raises(InputError, match=r"cannot be trained; JumpReLU\(classifier, copy=True\) was expected"):
            trainer.fit(x, one_hot(y), nb_epochs=3)
    changed = any(not torch.equal(first[name], tensor) for name, tensor in transformed.model.state_dict().items())
    assert changed == full_copy
    assert all(torch.equal(before[name], tensor) for name, tensor in own_classifier.model.state_dict().items())


def test_a_transformed_classifier_is_saved_and_copied_by_art_as_before(
    defended: PyTorchClassifier, x: Any, tmp_path: Any
) -> None:
    predicted = defended.predict(x)
    defended.save("network", str(tmp_path))
    for copied in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended))):
        np.testing.assert_array_equal(copied.predict(x), predicted)
        with pytest.raises(InputError, match="cannot be trained"):
            AdversarialTrainerFBFPyTorch(copied, eps=0.1).fit(x, one_hot(np.zeros(len(x), int)), nb_epochs=1)


def test_predictions_in_float64_are_those_in_float32(defended: PyTorchClassifier, x: Any) -> None:
    """HopSkipJump and the boundary attack send float64 under NumPy 2, which bare ART networks cannot take."""
    np.testing.assert_allclose(defended.predict(x.astype(np.float64)), defended.predict(x), atol=1e-5)


def test_the_security_curve_starts_at_the_clean_accuracy_and_falls(defended: PyTorchClassifier, x: Any, y: Any) -> None:
    curve = SecurityCurve(eps=[0.02, 0.15, 0.4])
    radii, attacked, clean = curve.evaluate(defended, x, one_hot(y), max_iter=10, eps_step=0.05, verbose=False)
    assert radii == [0.02, 0.15, 0.4]
    assert clean == 1
    assert attacked[0] >= attacked[1] >= attacked[2]
    assert attacked[2] == 0
    assert curve.detected_obfuscating_gradients is False


def test_no_gradient_is_zero_or_no_number(defended: PyTorchClassifier, x: Any, y: Any) -> None:
    for mode in ("exact", "relu", "smooth"):
        with gradient_mode(defended, mode):
            bad = loss_gradient_check(defended, x, one_hot(y), verbose=False)
        assert bad.shape == (NB_IMAGES, 3)
        assert not bad.any()


def test_the_empirical_robustness_is_the_size_of_the_smallest_step_that_breaks(
    defended: PyTorchClassifier, x: Any
) -> None:
    """ART's minimal FGSM tries the steps .05, .1, .15 and so on; the size is relative to that of the image."""
    robustness = empirical_robustness(defended, x, "fgsm", {"eps_step": 0.05, "eps": 1.0})
    predicted = defended.predict(x).argmax(axis=1)
    signs = np.sign(defended.loss_gradient(x, one_hot(predicted)))
    ratios = []
    for image, sign, label in zip(x, signs, predicted, strict=True):
        for step in np.arange(1, 21) * 0.05:
            adversarial = np.clip(image + step * sign, 0, 1).astype(np.float32)
            if defended.predict(adversarial[None]).argmax() != label:
                ratios.append(np.abs(adversarial - image).max() / np.abs(image).max())
                break
    assert len(ratios) >= NB_IMAGES // 2
    assert robustness == pytest.approx(np.mean(ratios), rel=1e-3)


def test_adversarial_training_changes_the_copy_and_makes_it_more_robust(
    own_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    x, y = digits.train.x[:600], digits.train.y[:600]
    x_test, y_test = digits.test.x[:200], digits.test.y[:200]
    defended = JumpReLU(own_classifier, 0.2, copy=True)()
    plain_before = own_classifier.predict(x_test)
    weights = [parameter.detach().clone() for parameter in defended.model.parameters()]

    def attacked() -> float:
        attack = ProjectedGradientDescent(defended, eps=0.1, eps_step=0.025, max_iter=10, verbose=False)
        return accuracy(defended, attack.generate(x_test, one_hot(y_test)), y_test)

    before, clean_before = attacked(), accuracy(defended, x_test, y_test)
    np.random.seed(0)  # noqa: NPY002 (ART draws from the global generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attack = ProjectedGradientDescent(defended, eps=0.1, eps_step=0.05, max_iter=4, verbose=False)
        AdversarialTrainer(defended, attack, ratio=0.5).fit(x, one_hot(y), nb_epochs=6, batch_size=64)
    changed = [not torch.equal(*pair) for pair in zip(weights, defended.model.parameters(), strict=True)]
    assert all(changed)
    assert attacked() > before + 0.05
    assert accuracy(defended, x_test, y_test) >= clean_before - 0.03
    np.testing.assert_array_equal(own_classifier.predict(x_test), plain_before)
    assert undefended(defended) is own_classifier
