"""What the tests of evaluations share."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without their pictures, which take a second to draw."""
    monkeypatch.setattr("art_defenses_ext.evaluation.report.figures.drawn.draw_figures", lambda *_: {})
