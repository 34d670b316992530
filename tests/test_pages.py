"""The documentation's pages come with the package, and ``art-defenses docs`` shows them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import art_defenses_ext
from art_defenses_ext.base import pages
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.pages import headings, page_names, read_page
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.docs import docs_command

PACKAGE = Path(art_defenses_ext.__file__).parent
DOCS = PACKAGE.parent / "docs"

PAGE = """# Attacks

Words.

## More steps, or `restarts`?

```
## a comment
```

### Why

Because.

## Noise

None.
"""


@pytest.fixture
def one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A documentation of one page."""
    (tmp_path / "index.md").touch()
    (tmp_path / "attacks.md").write_text(PAGE)
    monkeypatch.setattr(pages, "FOLDERS", (tmp_path / "nowhere", tmp_path))


def test_every_page_but_the_index_is_listed_with_its_title() -> None:
    files = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert set(page_names()) == files - {"index"}
    listed = [re.split(" {2,}", line, maxsplit=1) for line in CliRunner().invoke(app, ["docs"]).output.splitlines()]
    assert [name for name, _ in listed] == page_names()
    assert all(f"# {title}" == read_page(name).splitlines()[0] for name, title in listed)


@pytest.mark.usefixtures("one_page")
def test_a_section_ends_where_the_next_begins() -> None:
    section = PAGE[PAGE.index("## More") : PAGE.index("\n## Noise")]
    assert read_page("attacks") == PAGE
    assert read_page("attacks#attacks") == PAGE
    assert read_page("attacks#more-steps-or-restarts") == section
    assert read_page("attacks#why") == "### Why\n\nBecause.\n"
    assert [(level, title) for _, level, title in headings(PAGE)][2:] == [(3, "Why"), (2, "Noise")]


@pytest.mark.usefixtures("one_page")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attack", "name is 'attack'; one of attacks was expected"),
        ("../attacks", "name is '../attacks'; one of attacks was expected"),
        ("attacks#a-comment", "section of attacks is 'a-comment'; one of attacks, more-steps-or-restarts, why, noise"),
    ],
)
def test_another_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_page(name)


@pytest.mark.usefixtures("one_page")
def test_a_pipe_gets_markdown_and_a_terminal_its_layout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs_command.main(["attacks#why"], standalone_mode=False)
    assert capsys.readouterr().out == "### Why\n\nBecause.\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    docs_command.main(["attacks#why"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "#" not in shown
    assert "Because." in shown


def test_messages_name_pages_that_exist() -> None:
    named = [
        argument.value
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "shown_by"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]
    assert "traps" in named
    assert all(read_page(name) for name in named)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_text_that_users_see_points_to_a_file_of_the_checkout(path: Path) -> None:
    tree = ast.parse(path.read_text())
    strings = {node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    assert [node.value for node in strings - docstrings if re.search(r"docs/\S+\.md", node.value)] == []
