"""What ``pyproject.toml`` cannot declare: the documentation in the wheel, and README as the package index shows it."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*")
PAGES = "\nThe pages that are named here are installed with the package: `art-defenses docs` lists and shows them.\n"
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def description(readme: str) -> str:
    """README where no files lie beside it: without pictures and links whose targets are files."""
    return LINK.sub(r"\1", IMAGE.sub("", readme)) + PAGES


class BuildWithPages(build_py):
    """Copies the pages of ``docs/`` into the package; in an editable installation they are read where they are."""

    def run(self) -> None:
        """Build the package, and put the pages beside its modules."""
        super().run()
        if self.editable_mode:
            return
        for page in sorted((ROOT / "docs").rglob("*.md")):
            target = Path(self.build_lib, "art_defenses_ext", page.relative_to(ROOT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)


if __name__ == "__main__":
    setup(
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
        cmdclass={"build_py": BuildWithPages},
    )
