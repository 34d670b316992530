"""The quickest of the fixed runs (tests/verdicts.py) still say the same of each image."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "verdicts.py"
QUICKEST = ("undefended", "two_stream_restoration", "autoencoder_beside_detector")
SHARE = 0.02
"""Of the verdicts of a run, how many may differ on a machine that rounds, and so trains, otherwise."""


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("verdicts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickest_runs_say_the_same_of_each_image(script: Any) -> None:
    """In one test, since all runs attack the same network, which is trained first."""
    known_runs = json.loads(script.EXPECTED.read_text())
    made = dict(script.made_verdicts(QUICKEST))
    assert set(made) == set(QUICKEST)
    for name, actual in made.items():
        expected = known_runs[name]
        assert actual.keys() == expected.keys()
        total = sum(map(len, expected.values()))
        differing = sum(
            verdict != known for key in expected for verdict, known in zip(actual[key], expected[key], strict=True)
        )
        assert differing <= SHARE * total, name
