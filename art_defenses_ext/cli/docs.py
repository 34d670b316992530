"""``art-defenses docs``: the pages of the documentation."""

from __future__ import annotations

import sys

import click

from art_defenses_ext.base.pages import page_names, read_page, title_of


def _matching_pages(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    return [name for name in page_names() if name.startswith(start)]


@click.command("docs")
@click.argument("name", required=False, shell_complete=_matching_pages)
def docs_command(name: str | None) -> None:
    """List the pages of the documentation, or show one.

    NAME is a page, such as checks, or a section of it, such as checks#more-effort. A terminal shows the page formatted;
    a pipe receives Markdown.
    """
    text = _contents() if name is None else read_page(name)
    if name is None or not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def _contents() -> str:
    names = page_names()
    width = max(map(len, names), default=0)
    return "".join(f"{name:{width}}  {title_of(read_page(name))}\n" for name in names)
