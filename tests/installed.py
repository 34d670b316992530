"""The installed package works without the checkout: in an empty folder, this runs what a user runs first.

cd EMPTY_FOLDER; ENVIRONMENT/bin/python -I CHECKOUT/tests/installed.py [--all]

With --all also README's three doors and the tutorial, which `make test` runs from the checkout; two minutes more.
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

NAMES = """
from torch.utils.data import DataLoader, TensorDataset
import torch
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

digits = load_dataset("digits")
classifier = load_classifier(digits)
model, mean, std = classifier.model, MODELS["digits_cnn"].mean, MODELS["digits_cnn"].std
x_validation, y_validation = digits.validation.x, digits.validation.y
x_test, y_test = x, y = digits.test.x[:20], digits.test.y[:20]
loader = DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)))
"""
"""What README's doors speak of without making it: the user's own network and images."""


def run(*line: str, status: int = 0) -> str:
    """What a command of the environment prints; an error where its exit status is another one."""
    start = time.monotonic()
    process = subprocess.run([str(SCRIPTS / line[0]), *line[1:]], capture_output=True, text=True, timeout=600)
    print(f"{time.monotonic() - start:6.1f} s  {' '.join(line)}", flush=True)
    if process.returncode != status:
        raise SystemExit(f"exit status {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process.stdout


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return [part.split("```")[0] for part in page.split("```python\n")[1:]]


def readme() -> list[str]:
    """The Python blocks of README, which is the package's description: the ten lines, and a block for each door."""
    return blocks(str(metadata("art-defenses-ext").get_payload()))


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
    options = ("--epochs", "1", "--samples", "4", "--attacks", "papers", "--out", "first_report")
    assert "jump_relu" in run("art-defenses", "evaluate", *options)
    page = Path("first_report", "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("art-defenses docs checks", "Why it matters", "toSorted"))
    Path("ten_lines.py").write_text(readme()[0])
    assert "robust accuracy" in run("python", "ten_lines.py")
    Path("test_own.py").write_text(TEST)
    assert "1 passed" in run("python", "-m", "pytest", "-p", "no:cacheprovider", "test_own.py")
    if "--all" in sys.argv:
        doors_and_tutorial()


def doors_and_tutorial() -> None:
    """README's three doors, each from a file of its own, and the tutorial from top to bottom."""
    _, own_model, workflow, suite = readme()
    Path("own_model.py").write_text(NAMES + own_model)
    assert run("python", "own_model.py").split()[1] in ("True", "False")
    Path("workflow.py").write_text(NAMES + workflow + "print(len(x_adv), 'adversarial images')\n")
    assert "20 adversarial" in run("python", "workflow.py")
    Path("test_door.py").write_text("from art_defenses_ext import Linf\n" + NAMES + suite)
    # Undefended digits do not reach what the test demands, so this is a red build, as the door promises.
    assert "robust accuracy" in run("python", "-m", "pytest", "-p", "no:cacheprovider", "test_door.py", status=1)
    Path("test_tutorial.py").write_text("\n".join(blocks(run("art-defenses", "docs", "tutorial"))))
    output = run("python", "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_tutorial.py")
    assert "worst case" in output
    assert "1 passed" in output


if __name__ == "__main__":
    main()
