"""Files that are written atomically, and errors of files in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path

from art_defenses_ext.base.errors import InputError, RunError
from art_defenses_ext.base.validation import check_path, one_line


@contextmanager
def writing(argument: str, path: str | Path, expected: str = "a file", hint: str = "") -> Iterator[None]:
    """Turn the system's errors inside the block into an error that names an argument, its path and what was expected.

    Raises:
        InputError: for an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{argument} is {path}, which cannot be written ({error.strerror}); {expected} was expected{hint}"
        ) from None


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn errors inside the block into an error that names a file, the cause and what was expected.

    Raises:
        InputError: for any error but those of memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers raise many types for a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise RunError(f"{path} cannot be read ({reason}); {expected}") from None


def write_files(folder: str | Path, contents: Mapping[str, bytes | None]) -> None:
    """Write files into a folder, which is created if needed; files whose content is None are removed.

    Raises:
        InputError: if it cannot be written to.
    """
    path = check_path("folder", folder, "a folder")
    with writing("folder", folder, "a folder"):
        for name, content in contents.items():
            replace_file(path / name, content)


def replace_file(path: Path, content: bytes | None, wait: bool = True) -> None:
    """Write ``content`` to ``path`` atomically, so that a crash leaves the old file or the new; None removes it.

    Without ``wait`` this does not hold if the machine stops before the content is on the disk.
    """
    if content is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path, wait) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path, wait: bool = True) -> Iterator[Path]:
    """Give a temporary file to be written inside, which becomes ``path`` at the end."""
    if not path.name:
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))  # such as "."
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # found by leftovers after an interruption
    try:
        yield temporary
        if wait:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # otherwise the name may reach the disk before the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, content: bytes, wait: bool = True) -> None:
    """Add ``content`` to the end of a file, and ``wait`` until it is on the disk."""
    with path.open("ab") as file:
        file.write(content)
        if wait:
            file.flush()
            os.fsync(file.fileno())


def leftovers(folder: Path, name: str) -> list[Path]:
    """Return temporary files in ``folder`` of interrupted writes of ``name`` (a pattern)."""
    return [path for path in folder.glob(f".{name}.*") if path.suffix[1:].isdigit()]
