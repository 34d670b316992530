"""Threat models: a radius and a norm, and which sizes lie inside."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.attack.ball import L1, L2, Linf
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.threat import Threat, check_threat, named_threat

THREATS = [Linf, L2]


def test_the_norms_are_those_that_art_knows() -> None:
    assert (Linf(0.1).norm, Linf(0.1).norm_name) == (np.inf, "linf")
    assert (L2(0.1).norm, L2(0.1).norm_name) == (2, "l2")


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("eps", [8 / 255, 1, 1e-6, np.float64(0.5), np.float32(0.25)])
def test_a_positive_number_is_a_radius(threat: type[Threat], eps: Any) -> None:
    """Numbers of numpy are radii, too: those computed from float32 images are of that kind."""
    assert threat(eps).eps == eps
    assert json.loads(json.dumps(threat(eps).eps)) == eps


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize(
    ("text", "eps"), [("8/255", 8 / 255), ("0.1", 0.1), ("1e-2", 0.01), (" 2 / 255 ", 2 / 255), ("1/8", 0.125)]
)
def test_a_radius_may_be_text_as_papers_write_it(threat: type[Threat], text: str, eps: float) -> None:
    assert threat(text) == threat(eps)


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf, -math.inf, None, True, [0.1], 1j, np.bool_(True)])
def test_a_value_that_is_no_radius_is_refused_in_a_sentence(threat: type[Threat], eps: Any) -> None:
    with pytest.raises(InputError, match=r"eps is .*; a finite number > 0, or a fraction .* was expected") as caught:
        threat(eps)
    assert repr(eps) in str(caught.value)


BAD = ["abc", "", "8/0", "8/", "/255", "1/2/3", "nan", "inf", "-1/255", 10**400, 10**5000]


@pytest.mark.parametrize("eps", BAD, ids=lambda eps: eps if isinstance(eps, str) else "long")
def test_malformed_text_and_huge_numbers_are_refused_in_a_short_sentence(eps: Any) -> None:
    with pytest.raises(InputError, match=r"^eps is .*; a finite number > 0, or a fraction such as '8/255'") as caught:
        Linf(eps)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("linf", Linf),
        ("inf", Linf),
        ("Linf", Linf),
        (np.inf, Linf),
        ("l2", L2),
        ("2", L2),
        (2, L2),
        ("l1", L1),
        (1, L1),
    ],
)
def test_a_threat_is_named_by_any_spelling_of_its_norm(norm: Any, expected: type[Threat]) -> None:
    assert named_threat(norm, "1/8") == expected(0.125)
    assert str(named_threat(norm, 0.125)) == f"{expected.norm_name} 0.125"


@pytest.mark.parametrize("norm", ["l0.5", "", 0.5, None, True, math.nan, [2], np.array([2, 2])])
def test_another_norm_names_no_threat(norm: Any) -> None:
    with pytest.raises(InputError, match=r"norm is .*; linf, l2.* was expected"):
        named_threat(norm, 0.1)


def test_a_threat_is_a_value() -> None:
    assert Linf(0.1) == Linf(0.1) != Linf(0.2)
    assert Linf(0.1) != L2(0.1)
    assert len({Linf(0.1), Linf(0.1), L2(0.1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linf(0.1).eps = 0.2  # type: ignore[misc]


@pytest.mark.parametrize("threat", THREATS)
def test_another_radius_keeps_the_norm(threat: type[Threat]) -> None:
    assert threat(0.1).at(0.3) == threat(0.3)
    with pytest.raises(InputError):
        threat(0.1).at(0)


@pytest.mark.parametrize("threat", THREATS)
def test_the_text_of_a_threat_names_norm_and_radius(threat: type[Threat]) -> None:
    assert threat.norm_name in str(threat(0.125))
    assert "0.125" in str(threat(0.125))


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3, 1, 5])
def test_the_ball_is_closed_and_hardly_wider_than_eps(threat: type[Threat], eps: float) -> None:
    ball = threat(eps)
    assert ball.allows(0)
    assert ball.allows(eps)
    assert not ball.allows(1.001 * eps)
    assert not ball.allows(math.nan)


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.1, 0.3])
def test_the_rounding_of_float32_does_not_leave_the_ball(eps: float) -> None:
    """Images moved by eps in float32 arithmetic differ by up to half a unit of their last place more."""
    x = np.random.default_rng(0).uniform(0, 1 - eps, size=(10_000, 1)).astype(np.float32)
    adversarial = x + np.float32(eps)
    assert (adversarial.astype(np.float64) - x).max() > eps
    assert all(Linf(eps).allows(size) for size in Linf(eps).sizes(x, adversarial, (0.0, 1.0)))


# Which balls an evaluation takes


def make_classifier(clip_values: Any) -> PyTorchClassifier:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 2, 2), 2, clip_values=clip_values, device_type="cpu")


X = np.full((4, 3, 2, 2), 200, np.float32)


@pytest.mark.parametrize(
    ("threat", "clip_values", "half"),
    [
        (Linf(8), (0.0, 1.0), 0.5),
        (Linf(0.501), (0.0, 1.0), 0.5),
        (Linf(300), (0.0, 255.0), 127.5),
        (L2(1.74), (0.0, 1.0), 12**0.5 / 2),
        (Linf(2), (np.zeros((3, 1, 1)), np.array([1.0, 2, 3]).reshape(3, 1, 1)), 1.5),
    ],
)
def test_a_ball_that_reaches_grey_from_everywhere_needs_permission(
    threat: Threat, clip_values: Any, half: float
) -> None:
    with pytest.raises(InputError, match=r"beyond half the clip range .*allow_large_eps=True") as caught:
        check_threat(threat, make_classifier(clip_values), X)
    assert f"({half:g} in {threat.norm_name})" in str(caught.value)
    assert check_threat(threat, make_classifier(clip_values), X, allow_large_eps=True) is threat
    assert check_threat(threat.at(half), make_classifier(clip_values), X)


def test_without_clip_values_there_is_no_half_of_the_range() -> None:
    assert check_threat(Linf(1e4), make_classifier(None), X)


@pytest.mark.parametrize(
    ("threat", "clip_values", "x"),
    [
        (Linf(0.1), (0.0, 1e6), X),  # pixels near 1e6 are multiples of 1/16
        (Linf(1e-6), (0.0, 1.0), X),
        (L2(1e-6), (0.0, 1.0), X),
        (Linf(1e-3), None, 1e5 * X),
    ],
)
def test_a_ball_that_float32_cannot_resolve_is_refused(threat: Threat, clip_values: Any, x: Any) -> None:
    with pytest.raises(InputError, match=r"eps is .*float32 rounds .*; at least .* was expected"):
        check_threat(threat, make_classifier(clip_values), x)


def test_without_clip_values_the_images_decide_what_float32_resolves() -> None:
    assert check_threat(Linf(1e-3), make_classifier(None), X / 200)


def test_a_threat_is_linf_or_l2() -> None:
    with pytest.raises(InputError, match=r"threat is 0\.1; a ball such as Linf"):
        check_threat(0.1, make_classifier((0.0, 1.0)), X)
    with pytest.raises(InputError, match="allow_large_eps is 'no'"):
        check_threat(Linf(0.1), make_classifier((0.0, 1.0)), X, allow_large_eps="no")  # type: ignore[arg-type]
