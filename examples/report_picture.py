"""The picture in README: a report in the terminal.

    python examples/report_picture.py out/digits docs/images/report.svg

The first argument is the folder of a finished run, here that of `make evaluate`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.segment import Segment, Segments
from rich.terminal_theme import DIMMED_MONOKAI

from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.terminal import render

# Rich's own frame around a terminal, without its web font, which pages with pictures block.
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>{styles} .{unique_id}-matrix {{ font: {char_height}px monospace; line-height: {line_height}px; }}</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def picture(report: Report, title: str, width: int, height: int) -> str:
    """Return the first ``height`` lines of a report as an SVG, ``width`` columns wide."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in console.render_lines(render(report.summary), pad=False)[:height]:
        console.print(Segments([*line, Segment.line()]), end="")
    svg = console.export_svg(title=title, theme=DIMMED_MONOKAI, code_format=FRAME, unique_id="report")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="SVG file to write")
    parser.add_argument("--title", default="make evaluate", help="in the window's frame")
    parser.add_argument("--width", type=int, default=100, help="columns")
    parser.add_argument("--height", type=int, default=48, help="lines, from the top")
    run = parser.parse_args()
    run.out.parent.mkdir(parents=True, exist_ok=True)
    run.out.write_text(picture(Report.load(run.run), run.title, run.width, run.height))


if __name__ == "__main__":
    main()
