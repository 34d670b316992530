"""Threat models: a radius and a norm, and which sizes lie inside."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from art_defenses_ext.evaluation.threats import L2, Linf, Threat
from art_defenses_ext.validation import InputError

THREATS = [Linf, L2]


def test_the_norms_are_those_that_art_knows() -> None:
    assert (Linf(0.1).norm, Linf(0.1).norm_name) == (np.inf, "linf")
    assert (L2(0.1).norm, L2(0.1).norm_name) == (2, "l2")


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("eps", [8 / 255, 1, 1e-6, np.float64(0.5), np.float32(0.25)])
def test_a_positive_number_is_a_radius(threat: type[Threat], eps: Any) -> None:
    """Whatever kind of number: a radius computed from float32 images is one of numpy's."""
    assert threat(eps).eps == eps
    assert json.loads(json.dumps(threat(eps).eps)) == eps


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf, -math.inf, "0.1", None, True, [0.1], 1j])
def test_anything_else_is_refused_in_a_sentence(threat: type[Threat], eps: Any) -> None:
    with pytest.raises(InputError, match=r"eps is .*; a finite number > 0 was expected") as caught:
        threat(eps)
    assert repr(eps) in str(caught.value)


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
def test_its_text_names_norm_and_radius(threat: type[Threat]) -> None:
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
    x = np.random.default_rng(0).uniform(0, 1 - eps, size=10_000).astype(np.float32)
    sizes = ((x + np.float32(eps)) - x).astype(np.float64)
    assert sizes.max() > eps
    assert Linf(eps).allows(float(sizes.max()))
