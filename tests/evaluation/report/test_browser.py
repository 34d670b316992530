"""The page of a finished run in a browser: it fits, its script runs, its links lead somewhere, it can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from art_defenses_ext.evaluation import report as report_folder
from art_defenses_ext.evaluation.report.page import TEMPLATE

from ...conftest import FinishedRun

WIDTHS = (400, 1280)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

EXAMINE = """
const column = (body, number) => [...body.rows].slice(1).map((row) => row.cells[number]?.textContent.trim() ?? "");
const examine = (frame) => {
  const page = frame.contentDocument, root = page.documentElement;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const outside = all("body *").filter((element) => !element.parentElement.closest(".scroll"))
    .filter((element) => element.getBoundingClientRect().right > root.clientWidth + 1);
  const body = page.querySelector("table.sortable tbody"), head = all("table.sortable thead th")[0];
  const orders = [], before = column(body, 0);
  for (const _ of "123") { head.querySelector("button").click(); orders.push([head.ariaSort, column(body, 0)]); }
  const fold = body.querySelector("button"), shown = () => [...body.rows].filter((row) => row.offsetHeight > 0).length;
  const rows = [shown()];
  for (const _ of "12") { fold.click(); rows.push(shown()); }
  const details = all("details").filter((element) => !element.querySelector("summary").textContent.trim());
  return {
    width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth,
    outside: outside.map((element) => element.outerHTML.slice(0, 80)),
    links: all("a[href]").map((link) => link.getAttribute("href")), ids: all("[id]").map((element) => element.id),
    before, orders, rows, unnamed: details.length, pictures: all("img").map((element) => element.naturalWidth),
    duplicates: all("[id]").length - new Set(all("[id]").map((element) => element.id)).size,
  };
};
addEventListener("load", () => {
  const result = document.createElement("output");
  result.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(examine));
  document.body.append(result);
});
"""


def open_in_chromium(page: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What a browser makes of a page in frames of each width, and its messages on the console."""
    assert CHROMIUM is not None
    frames = "".join(
        f'<iframe srcdoc="{html.escape(page)}" style="width: {width}px; height: 800px; border: 0"></iframe>'
        for width in WIDTHS
    )
    source = f"<!doctype html><meta charset=utf-8><body>{frames}<script>{EXAMINE}</script>"
    (folder / "frames.html").write_text(source, encoding="utf-8")
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}",
    )
    command = [CHROMIUM, *options, "--dump-dom", (folder / "frames.html").as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (written,) = re.findall(r"<output>(.*)</output>", process.stdout)
    return json.loads(html.unescape(written)), re.findall(r".*:CONSOLE.*", process.stderr)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
def test_a_browser_shows_the_page_without_errors_at_every_width(finished_run: FinishedRun, tmp_path: Path) -> None:
    page = (finished_run.folder / "report.html").read_text(encoding="utf-8")
    frames, messages = open_in_chromium(page, tmp_path)
    assert messages == []
    for width, frame in zip(WIDTHS, frames, strict=True):
        assert (frame["width"], frame["overflow"], frame["outside"]) == (width, 0, [])
        assert frame["links"]
        assert {link.removeprefix("#") for link in frame["links"]} <= set(frame["ids"])
        assert (frame["duplicates"], frame["unnamed"]) == (0, 0)
        assert all(frame["pictures"])
        before = frame["before"]
        assert len(before) > 2
        upwards, downwards, again = frame["orders"]
        assert upwards == ["ascending", sorted(before, key=str.lower)]
        assert downwards == ["descending", upwards[1][::-1]]
        assert again == ["none", before]
        assert frame["rows"] == [len(before) + 1, 1, len(before) + 1]


def luminance(colour: str) -> float:
    """The relative luminance of a hexadecimal colour (WCAG 2.2)."""
    shares = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_of_text_stands_out_from_every_background() -> None:
    """At least 4.5 to 1, the contrast that WCAG 2.2 asks of text, in light and in dark and on paper."""
    source = files(report_folder).joinpath(TEMPLATE).read_text(encoding="utf-8")
    light, *others = (dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root {([^}]*)}", source))
    assert len(others) == 2
    for colours in (light, *(light | other for other in others)):
        full = {name: re.sub(r"^#(\w)(\w)(\w)$", r"#\1\1\2\2\3\3", colour) for name, colour in colours.items()}
        for text, paper in product(("ink", "soft", "worst", "link", "good"), ("paper", "raised")):
            darker, lighter = sorted((luminance(full[text]), luminance(full[paper])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, paper, full)
