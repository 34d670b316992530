"""Everything stays on the device: run on a simulated accelerator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


def test_defences_and_attacks_stay_on_a_simulated_accelerator() -> None:
    """In a process of its own: a device must be registered before the first backward pass of any test."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot register a device from Python")
    tests = Path(__file__).with_name("simulated_accelerator.py")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", str(tests)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:]
