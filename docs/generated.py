"""Generate the pages on the command and the configuration from the declarations of their options (`make docs`).

    python docs/generated.py [--tour]

The pages are committed, so that the package, a forge and the site show the same text; a test fails if one is out of
date.
With --tour the notebook is executed too, which takes minutes; its figure is a picture of the documentation.
As an extension of Sphinx it writes the index for language models, ``llms.txt``, beside the site's pages.
"""

from __future__ import annotations

import argparse
import base64
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

from art_defenses_ext.base.declared import declared_of
from art_defenses_ext.base.pages import title_of
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.declared import as_toml
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.evaluation.config import EvaluationConfig

DOCS = Path(__file__).parent

COMMANDS = """# The command

The option `--help` of each command prints the same text, and `art-defenses docs` shows these pages in a terminal. This
page is generated from the declarations of the options (`docs/generated.py`)."""

CONFIGURATION = """# Configuration

An option of `art-defenses evaluate` can be typed, or written in a TOML file under the same name with underscores. Typed
options take precedence over the file, and the file over the defaults. `--print-config` prints the file that repeats a
call. With its output in `run.toml`, the second command repeats the first:

```
art-defenses evaluate --defence jump_relu -o jump=1 --eps 8/255 --print-config
art-defenses evaluate --config run.toml --out report
```

The report's folder keeps the options too: `art-defenses rerun FOLDER` repeats the run. [A sweep](howto/sweep.md) uses
the same names. This page is generated from the declarations of the options (`docs/generated.py`)."""

SHARED = """## Options of every evaluation

These are the fields of [`EvaluationConfig`](reference.md#evaluation). They are also keyword arguments of `evaluate` and
of the pytest fixtures: `evaluate(..., seed=3)` and `evaluate(..., config=EvaluationConfig(seed=3))` are the same. The
records depend on them, so a folder that holds a run with other values is refused instead of continued."""

OWN = """## Options of the command

These options name the model, the data, the machine and the report. The file below leaves out options without a
default."""


def commands_page() -> str:
    """Return the page of the commands, with their arguments and options from their parser."""
    return "\n\n".join([COMMANDS, *(_command(command) for command in app.commands.values())]) + "\n"


def _command(command: click.Command) -> str:
    with click.Context(command, info_name=command.name) as context:
        usage = " ".join(["art-defenses", str(command.name), *command.collect_usage_pieces(context)])
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    described = [record for record in records if record and record[1] and record[0] != "--help"]
    rows = [(f"`{names}`", _cell(meaning)) for names, meaning in described]
    words = inspect.cleandoc(command.help or "")
    parts = [f"## {command.name}", words, f"```text\n{usage}\n```", *[_table(("option", "meaning"), rows)] * bool(rows)]
    return "\n\n".join(parts)


def configuration_page() -> str:
    """Return the page of the options in a TOML file, with their values and defaults."""
    shared = [each.name for each in fields(EvaluationConfig)]  # type: ignore[arg-type]
    own = [each.name for each in fields(EvaluateOptions) if each.name not in shared]  # type: ignore[arg-type]
    defaults = "\n".join(["```toml", as_toml(EvaluateOptions.of({})).rstrip(), "```"])
    parts = [CONFIGURATION, SHARED, _options(shared), OWN, _options(own), "## All defaults as a file", defaults]
    return "\n\n".join(parts) + "\n"


def _options(names: list[str]) -> str:
    kinds = declared_of(EvaluateOptions)
    declared = {each.name: each for each in fields(EvaluateOptions)}  # type: ignore[arg-type]
    rows = [
        (
            f"`{name}`",
            _default(declared[name].default),
            _cell(
                kinds[name]
                .expected.removesuffix(",")
                .removesuffix(", or None")
                .replace("True or False", "true or false")
            ),
            _cell(declared[name].metadata["description"]),
        )
        for name in names
    ]
    return _table(("name", "default", "value", "meaning"), rows)


def _default(value: Any) -> str:
    if value is None or value is MISSING:
        return ""
    shown = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else value
    return f"`{list(shown) if isinstance(shown, tuple) else shown}`".replace("'", '"')


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("*", "\\*")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def llms_txt() -> str:
    """Return the pages of ``index.md``, a line each, in the format of https://llmstxt.org; links lead to Markdown."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    parts = [f"# {title_of(index)}", f"> {_first_paragraph(index)}"]
    for caption, names in _contents(index):
        pages = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in names}
        lines = [
            f"- [{title_of(text)}](_sources/{name}.md.txt): {_first_sentence(text)}" for name, text in pages.items()
        ]
        parts.append("\n".join([f"## {caption}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _contents(index: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the caption and the pages of each table of contents."""
    for caption, pages in re.findall(r"^:caption: (.*)\n:maxdepth: 1\n\n((?:.+\n)+?)```", index, re.MULTILINE):
        yield caption, pages.split()


def _first_paragraph(text: str) -> str:
    """Return the first paragraph below the title as one line, without links."""
    words = next((part for part in text.split("\n\n")[1:] if re.match(r"[\w`*\[\"]", part)), "")
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(words.split()))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s(?=[A-Z`*])", _first_paragraph(text))[0]


def write_llms_txt(app: Any, error: Exception | None) -> None:
    """Write the index for language models beside the pages."""
    if error is None:
        Path(app.outdir, "llms.txt").write_text(llms_txt(), encoding="utf-8")


def add_script(app: Any, page: str, *_: Any) -> None:
    """Add its script to the page of results."""
    if page == "results/README":
        app.add_js_file("results.js")


def setup(app: Any) -> dict[str, bool]:
    """Register the handlers with Sphinx."""
    app.connect("html-page-context", add_script)
    app.connect("build-finished", write_llms_txt)
    return {"parallel_read_safe": True}


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}

TOUR, FIGURE = DOCS.parent / "examples" / "tour.ipynb", DOCS / "images" / "tour.png"


def execute_tour() -> None:
    """Execute the notebook and save its outputs, without times and warnings."""
    import nbformat
    from nbclient import NotebookClient

    tour = nbformat.read(TOUR, as_version=4)
    NotebookClient(
        tour, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": TOUR.parent}}
    ).execute()
    tour.metadata["language_info"] = {"name": "python"}
    for cell in tour.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(tour, TOUR)


def figure_of_tour() -> bytes:
    """Return the picture that the notebook draws."""
    import nbformat

    outputs = [output for cell in nbformat.read(TOUR, as_version=4).cells for output in cell.get("outputs", [])]
    (picture,) = (output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tour", action="store_true", help="execute the notebook too")
    if parser.parse_args().tour:
        execute_tour()
        FIGURE.write_bytes(figure_of_tour())
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
