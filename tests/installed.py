"""The installed package works without the checkout: in an empty folder, this runs what a user runs first.

cd EMPTY_FOLDER; ENVIRONMENT/bin/python -I CHECKOUT/tests/installed.py
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from importlib.metadata import metadata, version
from pathlib import Path

import art_defenses_ext

SCRIPTS = Path(sysconfig.get_path("scripts"))

TEST = """
import numpy as np, torch
from art.estimators.classification import PyTorchClassifier
from art_defenses_ext import Linf

def test_robust_accuracy(assert_robust):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    classifier = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (1, 2, 2), 2, clip_values=(0.0, 1.0))
    x = np.full((4, 1, 2, 2), 0.5, dtype=np.float32)
    y = classifier.predict(x).argmax(axis=1)
    assert_robust(classifier, (x, y), threat=Linf(0.001), at_least=0.9, check_samples=0, established=False)
"""


def run(*line: str) -> str:
    """What a command of the environment prints; an error where it fails."""
    start = time.monotonic()
    done = subprocess.run([str(SCRIPTS / line[0]), *line[1:]], capture_output=True, text=True, timeout=600)
    print(f"{time.monotonic() - start:6.1f} s  {' '.join(line)}", flush=True)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def first_lines() -> str:
    """The first Python lines of README, which is the package's description."""
    description = metadata("art-defenses-ext").get_payload()
    return str(description).split("```python\n")[1].split("```")[0]


def main() -> None:
    """Run it all; an AssertionError or an exit status says what is missing."""
    home = Path(art_defenses_ext.__file__).parent
    assert home.parent == Path(sysconfig.get_path("purelib")), f"imported from {home}"
    assert not list(Path().iterdir()), "an empty folder was expected"
    print(f"Python {sys.version.split()[0]}, torch {version('torch')}, numpy {version('numpy')}, in {sys.prefix}")
    assert run("art-defenses", "--version").strip() == version("art-defenses-ext") == art_defenses_ext.__version__
    names = [line.split()[0] for line in run("art-defenses", "docs").splitlines()]
    assert {"checks", "tutorial", "methods/jump_relu"} <= set(names)
    assert run("art-defenses", "docs", "checks#more-effort").startswith("## more effort\n")
    for name in art_defenses_ext.__all__:
        getattr(art_defenses_ext, name)
    assert "jump_relu" in run("art-defenses", "list")
    options = ("--epochs", "1", "--samples", "4", "--attacks", "papers", "--out", "report")
    assert "jump_relu" in run("art-defenses", "evaluate", *options)
    page = Path("report", "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("art-defenses docs checks", "Why it matters", "toSorted"))
    Path("ten_lines.py").write_text(first_lines())
    assert "robust accuracy" in run("python", "ten_lines.py")
    Path("test_own.py").write_text(TEST)
    assert "1 passed" in run("python", "-m", "pytest", "-p", "no:cacheprovider", "test_own.py")


if __name__ == "__main__":
    main()
