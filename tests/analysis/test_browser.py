"""The page as a browser shows it. Needs Chromium or Chrome; skipped where there is none."""

import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from analysis.report import load, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
# sorts the first table by two of its columns, enlarges a figure and puts it back, then writes down what is seen
LOOK = """
<script>
window.addEventListener("load", () => {
  const column = (i) => [...document.querySelector("tbody").rows].map((row) => row.cells[i].textContent.trim());
  const head = [...document.querySelector("table").querySelectorAll("th")];
  const sorted = (name) => {
    const place = head.findIndex((th) => th.textContent === name);
    head[place].click(); const down = column(place), mark = head[place].getAttribute("aria-sort");
    head[place].dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
    return {down, mark, up: column(place)};
  };
  const trainable = sorted("trainable"), triplets = sorted("triplets");
  const images = [...document.querySelectorAll("figure img")], dialog = document.querySelector("dialog");
  const before = images[0].offsetWidth; images[0].click();
  const after = dialog.querySelector("img").offsetWidth, opened = dialog.open; dialog.click();
  const seen = images.map((img) => [img.complete && img.naturalWidth > 0, img.offsetWidth, img.offsetHeight]);
  const wide = [...document.querySelectorAll(".wide")].map((div) => [div.scrollWidth, div.clientWidth]);
  const page = [document.documentElement.scrollWidth, window.innerWidth];
  const found = document.createElement("pre"); found.id = "found";
  const closed = !dialog.open, sizes = {before, after, opened, closed, seen, wide, page};
  found.textContent = JSON.stringify({trainable, triplets, ...sizes});
  document.body.append(found);
});
</script>
"""


def chromium(width, *arguments):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *flags, "--hide-scrollbars", f"--window-size={width},3000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from tests.analysis.conftest import write_quickstart

    out = write_quickstart(tmp_path_factory.mktemp("browser") / "runs")
    return write_report(out, *load(out))


@pytest.fixture(scope="module")
def look(page):
    """What LOOK found at a width of the window, and what the browser logged."""
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text().replace("</body>", LOOK + "</body>"))

    def at(width):
        done = chromium(width, "--dump-dom", watched.as_uri())
        return json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]), done.stderr

    return at


def test_tables_sort_figures_show_and_enlarge_and_nothing_is_wrong(page, look):
    found, log = look(1300)
    assert not re.search(r"CONSOLE.*(error|Uncaught|Refused|Failed)", log, re.IGNORECASE)
    sizes = [int(text.replace(",", "")) for text in found["trainable"]["down"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert found["trainable"]["up"] == found["trainable"]["down"][::-1]
    assert found["trainable"]["mark"] == "descending"
    assert found["triplets"]["down"][-1] == found["triplets"]["up"][-1] == "–"  # blanks stay below
    assert len(found["seen"]) == page.read_text().count("<figure>") > 5
    assert all(loaded and width > 300 and height > 100 for loaded, width, height in found["seen"])
    assert (found["opened"], found["closed"]) == (True, True)
    assert found["after"] > 1.5 * found["before"]


def test_on_a_narrow_screen_wide_tables_scroll_and_the_page_does_not(look):
    found, _ = look(600)
    assert any(whole > seen for whole, seen in found["wide"])
    assert found["page"][0] <= found["page"][1]
    assert all(width <= 600 for _, width, _ in found["seen"])


def test_the_screenshot_is_not_blank(page, tmp_path):
    chromium(1300, f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("L"))
    assert 0.005 < np.mean(pixels < 200) < 0.5
