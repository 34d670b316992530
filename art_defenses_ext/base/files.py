"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from art_defenses_ext.base.validation import RunError, check_path


def write_files(folder: str | Path, contents: Mapping[str, bytes | None]) -> None:
    """Put files into a folder, which is made if need be; those whose content is None are removed.

    Raises:
        InputError: if it cannot be written to.
    """
    path = check_path("folder", folder, "a folder")
    try:
        for name, content in contents.items():
            replace_file(path / name, content)
    except OSError as error:
        raise RunError(
            f"folder is {folder}, which cannot be written ({error.strerror}); a folder was expected"
        ) from None


def replace_file(path: Path, content: bytes | None) -> None:
    """Put ``content`` at ``path`` in one step, so that a crash leaves the old file or the new; None removes it."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # what a kill leaves of it, leftovers finds
    try:
        temporary.write_bytes(content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or the name may be on the disk before the bytes are
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(folder: Path, name: str) -> list[Path]:
    """What is left in ``folder`` of files called ``name`` (a pattern) whose writers were killed."""
    return [path for path in folder.glob(f".{name}.*") if path.suffix[1:].isdigit()]
