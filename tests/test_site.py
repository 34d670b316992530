"""The documentation site as a browser shows it: results are filtered and unfolded, and nothing is wider than a page.

Skipped where Sphinx or Chromium is missing.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from art_defenses_ext.evaluation.publish.leaderboard import Entry

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ENTRIES = [Entry.read(path) for path in sorted((ROOT / "docs" / "results").rglob("*.json"))]
PAGES = ("index", "configuration", "results/README")
WIDTHS = (400, 1280)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(find_spec("furo") is None, reason="Sphinx and Furo are not installed (make docs)"),
]

PROBE = """<script>
async function widths(page, width) {
    const frame = document.body.appendChild(document.createElement("iframe"));
    frame.style.width = width + "px";
    await new Promise((loaded) => { frame.onload = loaded; frame.src = page + ".html"; });
    const seen = frame.contentDocument;
    const tables = [...seen.querySelectorAll(".table-wrapper")].map((table) => table.scrollWidth - table.clientWidth);
    return [page, width, seen.documentElement.scrollWidth - width, Math.max(0, ...tables)];
}
onload = async () => {
    const all = [];
    for (const page of PAGES) for (const width of WIDTHS) all.push(await widths(page, width));
    document.title = JSON.stringify(all);
};
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Opens an address within the site, and returns the page as its scripts have left it."""
    site = tmp_path_factory.mktemp("site")
    settings = (f"include_patterns={','.join(f'{page}.md' for page in PAGES)}", "suppress_warnings=toc,myst,image,ref")
    overrides = [word for setting in settings for word in ("-D", setting)]
    build = [sys.executable, "-m", "sphinx", "-q", "-b", "html", *overrides, str(ROOT / "docs"), str(site)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    names = f"<script>const PAGES = {json.dumps(PAGES)}, WIDTHS = {json.dumps(WIDTHS)};</script>"
    (site / "probe.html").write_text(f"<!doctype html><body>{names}{PROBE}")

    def dump(address: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
        budget = ["--virtual-time-budget=8000", "--window-size=1400,1200", f"--user-data-dir={site / 'profile'}"]
        process = subprocess.run(
            [str(CHROMIUM), *options, *budget, f"file://{site}/{address}"],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return process.stdout

    return dump


def rows_shown(page: str) -> list[str]:
    """Return the defence of each row that is neither hidden nor in a hidden section."""
    names = []
    for section in re.split(r"(?=<section )", page):
        if re.match(r"<section [^>]*hidden", section):
            continue
        rows = re.findall(r"<tr([^>]*)>\s*<td><p><button[^>]*></button>(.*?)</p>", section, re.DOTALL)
        rows += re.findall(r"<tr([^>]*)>\s*<td><button[^>]*></button>(.*?)</td>", section, re.DOTALL)
        names += [html.unescape(re.sub(r"<[^>]*>", "", name)) for mark, name in rows if "hidden" not in mark]
    return names


def test_every_run_is_shown_and_folded(browse: Callable[[str], str]) -> None:
    page = browse("results/README.html")
    assert f"{len(ENTRIES)} of {len(ENTRIES)} runs" in page
    assert sorted(name.removeprefix("pair: ") for name in rows_shown(page)) == sorted(entry.name for entry in ENTRIES)
    folded = re.findall(r'<tr class="details" hidden="">.*?</tr>', page, re.DOTALL)
    assert len(folded) == page.count('aria-expanded="false"') == len(ENTRIES)
    assert all("art-defenses" in html.unescape(re.sub(r"<[^>]*>", "", row)) for row in folded)


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("data=mnist", lambda entry: entry.dataset == "mnist"),
        ("established=upper+bound", lambda entry: entry.unreliable),
        ("threat=linf,+eps+0.1&defence=autoenc", lambda entry: entry.eps == 0.1 and "autoenc" in entry.name),
    ],
)
def test_a_filter_in_the_address_leaves_what_fits(
    query: str, fits: Callable[[Entry], bool], browse: Callable[[str], str]
) -> None:
    page = browse(f"results/README.html?{query}")
    wanted = sorted(entry.name for entry in ENTRIES if fits(entry))
    assert f"{len(wanted)} of {len(ENTRIES)} runs" in page
    assert sorted(name.removeprefix("pair: ") for name in rows_shown(page)) == wanted != []


def test_nothing_is_wider_than_the_page(browse: Callable[[str], str]) -> None:
    (title,) = re.findall(r"<title>(.*?)</title>", browse("probe.html"))
    measured = json.loads(html.unescape(title))
    assert len(measured) == len(PAGES) * len(WIDTHS)
    assert [line for line in measured if line[2] > 0] == []
    in_full = [line for line in measured if line[1] == max(WIDTHS) or line[0] == "results/README"]
    assert [line for line in in_full if line[3] > 0] == []  # the rows of results are lists where a table is too wide
