"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_defenses_ext.base.files import replace_file


@pytest.mark.parametrize("path", [Path(), Path("/")])
def test_a_folder_is_no_file_to_write(path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        replace_file(path, b"content")


def test_content_is_replaced_and_none_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        replace_file(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]
    replace_file(path, None)
    assert not path.exists()
