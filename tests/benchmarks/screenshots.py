"""Pictures of three reports, as a browser shows them: the defence helps, it does not, the attacks were too weak.

    python tests/benchmarks/screenshots.py --runs OUT [--out docs/images]
    python tests/benchmarks/screenshots.py --site out/docs [--out docs/images]

The second makes those of the documentation site that `make docs` has built. Needs Chromium on the PATH. The
evaluations, of digits, take about ten minutes on one core; a finished one in OUT is taken as it is. Pictures show the
heads of pages, at 1280 pixels and, several beside each other, at 400.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from art_defenses_ext import AttackSpec, FeatureAutoencoder, JumpReLU, Linf, defend, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

KINDS = ("helps", "does_not_help", "not_established")
THREAT = Linf(0.1)
THREE_STEPS = AttackSpec(
    "APGD",
    lambda classifier, threat, seed: AutoPGD(classifier, threat.norm, threat.eps, max_iter=3, seed=seed),
    "three steps",
    kind="white-box",
    modes="all",
    curve=True,
)
"""Too few: the checks find what it misses."""

WIDE, NARROW = (1280, 800), (400, 800)
COLOURS = 240
GAP = 20


def run_evaluation(kind: str, folder: Path) -> None:
    """Write the report of one kind into a folder."""
    digits = load_dataset("digits")
    classifier = load_classifier(digits)
    if kind == "helps":
        restorer = FeatureAutoencoder.for_classifier(classifier)
        restorer.fit(digits.train.x, digits.train.y, eps=THREAT.eps, adversarial=True, nb_epochs=25)
        defended = defend(classifier, restorer)
    else:
        defended = JumpReLU(classifier, jump=1.0)()
    samples = 80 if kind == "does_not_help" else 60
    data = digits.test.x[:samples], digits.test.y[:samples]
    attacks = [THREE_STEPS] if kind == "not_established" else "standard"
    evaluate(defended, data, THREAT, attacks, out=folder, curve_samples=40, check_samples=20)


def picture_of(page: Path, size: tuple[int, int]) -> Image.Image:
    """Return the head of a page in a frame of so many pixels: a browser's own window is never narrower than 500."""
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder, "frame.html")
        style = f"position: absolute; inset: 0; width: {width}px; height: {height}px; border: 0"
        frame.write_text(f'<!doctype html><iframe src="{page.resolve().as_uri()}" style="{style}"></iframe>')
        target = Path(folder, "page.png")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}")
        window = (f"--window-size={max(width, 500)},{height}", f"--screenshot={target}")
        browser = shutil.which("chromium") or "chromium-browser"
        subprocess.run([browser, *options, *window, frame.as_uri()], check=True, capture_output=True, timeout=120)
        return Image.open(target).convert("RGB").crop((0, 0, width, height))


def save(image: Image.Image, path: Path) -> None:
    """Write a picture as a small file."""
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def side_by_side(pages: Sequence[Path], size: tuple[int, int]) -> Image.Image:
    """Return the heads of several pages beside each other."""
    beside = Image.new("RGB", (len(pages) * (size[0] + GAP) - GAP, size[1]), "#d9dde3")
    for number, page in enumerate(pages):
        beside.paste(picture_of(page, size), (number * (size[0] + GAP), 0))
    return beside


def main() -> None:
    """Make what is missing, and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--runs", type=Path, help="folder of the evaluations")
    source.add_argument("--site", type=Path, help="folder of the built documentation")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    arguments = parser.parse_args()
    if arguments.site:
        pages = [arguments.site / name for name in ("index.html", "results/README.html", "checks.html")]
        save(side_by_side(pages[:2], WIDE), arguments.out / "site.png")
        save(side_by_side(pages, NARROW), arguments.out / "site_narrow.png")
        return
    reports = {kind: arguments.runs / kind / "report.html" for kind in KINDS}
    for kind, page in reports.items():
        if not page.is_file():
            run_evaluation(kind, page.parent)
        save(picture_of(page, WIDE), arguments.out / f"report_{kind}.png")
    save(side_by_side(list(reports.values()), NARROW), arguments.out / "report_narrow.png")


if __name__ == "__main__":
    main()
