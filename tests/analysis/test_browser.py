"""The page as a browser shows it. Needs Chromium or Chrome; skipped where there is none."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.report import load, write_report
from experiments.pack import unpack

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
STUDY = Path(__file__).resolve().parents[2] / "experiments" / "results" / "adalora_table1" / "seeds"
DESKTOP, PHONE = (1400, 900), (390, 844)
SCREENS = 8  # of 900 px, before anything is unfolded
# uses every control of the page and writes down what is seen
LOOK = """
<script>
window.addEventListener("load", () => {
  const find = (query) => [...document.querySelectorAll(query)];
  const box = (element) => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const shown = (query) => find(query).filter((each) => each.offsetParent !== null).length;
  const seen = {window: [innerWidth, innerHeight], height: document.documentElement.scrollHeight,
                wide: document.documentElement.scrollWidth};
  seen.places = Object.fromEntries(["h1", ".answers", ".card", ".card svg", ".lines details", ".matrix", ".maps svg", "[data-difference] svg"]
    .map((query) => [query, document.querySelector(query) && box(document.querySelector(query))]));
  seen.verdicts = find("section:not(#overview) table").filter((table) => table.offsetParent).flatMap((table) => {
    const place = [...table.tHead.rows[0].cells].findIndex((th) => th.textContent === "verdict");
    return place < 0 ? [] : [...table.tBodies[0].rows].map((row) => box(row.cells[place])[2]);
  });
  window.scrollTo(0, 1500); seen.bar = box(document.querySelector(".bar"))[1]; window.scrollTo(0, 0);

  const results = document.querySelector("section:not(#overview) table"), head = [...results.tHead.rows[0].cells];
  const visible = () => head.filter((th) => th.offsetParent).length, before = visible();
  results.closest(".table").querySelector(".columns").click();
  seen.columns = [before, visible(), head.length];
  const column = (i) => [...results.tBodies[0].rows].map((row) => row.cells[i].textContent.trim());
  const sorted = (name) => {
    const place = head.findIndex((th) => th.textContent === name), button = head[place].firstElementChild;
    button.click(); const down = column(place), mark = head[place].getAttribute("aria-sort");
    button.click(); return {down, mark, up: column(place)};
  };
  seen.trainable = sorted("trainable"); seen.triplets = sorted("triplets");

  const folded = find("details").filter((each) => !each.open).length;
  for (const each of find("details")) each.open = true;
  seen.figures = find("figure img").map((img) => [img.complete && img.naturalWidth > 0, img.offsetWidth, img.offsetHeight]);
  const dialog = document.querySelector("dialog"), button = document.querySelector(".zoom");
  button.click();
  seen.zoom = [button.offsetWidth, dialog.querySelector("img").offsetWidth, dialog.open];
  dialog.click(); seen.zoom.push(dialog.open); seen.folded = folded;

  const counts = () => [shown("#overview .card, .lines details"), shown(".matrix tbody tr"), shown("main > section[data-place]")];
  const choose = (id, text) => {
    const select = document.getElementById(id);
    if (!select) return;
    select.value = [...select.options].find((option) => option.textContent === text).value;
    select.dispatchEvent(new Event("change"));
  };
  const everything = counts();
  choose("method", METHOD); const one = counts(); choose("method", "all");
  seen.filter = [everything, one, counts()];
  const differing = () => [...document.querySelector("#differing tbody").rows].map((row) => [...row.cells].map((c) => c.textContent));
  seen.settings = differing();
  const second = document.getElementById("second");
  second.value = document.getElementById("first").value; second.dispatchEvent(new Event("change"));
  seen.same = differing();
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""
# holds the page in a window of exactly the asked size: a browser's own is never narrower than 500 px
FRAME = """
<!doctype html><body style="margin: 0"><iframe src="SOURCE" style="border: 0; width: WIDTHpx; height: HEIGHTpx"></iframe>
<script>
window.addEventListener("message", (event) => {
  const found = document.createElement("pre"); found.id = "found"; found.textContent = event.data;
  document.body.append(found);
});
</script>
"""


def chromium(size, *arguments):
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=5000",
                 "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]  # fmt: skip
        return subprocess.run([CHROMIUM, *flags, *arguments], capture_output=True, text=True, timeout=120, check=True)


def look(page, size, method="adalora"):
    """What LOOK saw in a window of this size, and what the browser logged."""
    watched = page.with_name(f"watched_{size[0]}.html")
    script = LOOK.replace("METHOD", json.dumps(method))
    watched.write_text(page.read_text().replace("</body>", script + "</body>"))
    frame = page.with_name(f"frame_{size[0]}.html")
    frame.write_text(
        FRAME.replace("SOURCE", watched.name).replace("WIDTH", str(size[0])).replace("HEIGHT", str(size[1]))
    )
    done = chromium(size, "--dump-dom", frame.as_uri())
    assert not re.search(r"CONSOLE.*(error|Uncaught|Refused|Failed)", done.stderr, re.IGNORECASE), done.stderr
    return json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from tests.analysis.conftest import write_quickstart

    out = write_quickstart(tmp_path_factory.mktemp("browser") / "runs", seeds=3)
    return write_report(out, load(out))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The page of the committed study: 168 runs, three tasks."""
    out = tmp_path_factory.mktemp("study") / "table1"
    assert len(unpack(STUDY, out)) == 168
    return write_report(out, load(out))


def test_the_page_works_on_a_desktop(page):
    seen = look(page, DESKTOP)
    assert seen["window"] == list(DESKTOP)
    assert seen["wide"] <= DESKTOP[0]
    assert seen["bar"] == 0  # the navigation stays in view
    sizes = [int(text.replace(",", "")) for text in seen["trainable"]["down"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert seen["trainable"]["up"] == seen["trainable"]["down"][::-1]
    assert seen["trainable"]["mark"] == "descending"
    assert seen["triplets"]["down"][-1] == seen["triplets"]["up"][-1] == "–"  # blanks stay below
    few, every, count = seen["columns"]
    assert few < every == count
    assert len(seen["figures"]) == page.read_text().count('class="zoom"') > 5
    assert all(loaded and width > 300 and height > 100 for loaded, width, height in seen["figures"])
    small, large, opened, still_open = seen["zoom"]
    assert large > 1.3 * small
    assert (opened, still_open) == (True, False)
    assert seen["folded"] > 3
    everything, one, again = seen["filter"]
    assert everything == again == [2, 3, 1]
    assert one == [1, 1, 1]
    assert ["train.lr", "0.0001", "0.002"] in seen["settings"] or ["train.lr", "0.01", "0.002"] in seen["settings"]
    assert seen["same"] == [["no setting differs", "", ""]]


@pytest.mark.slow
def test_the_first_screen_answers_on_both_sizes(page):
    for size in (DESKTOP, PHONE):
        seen = look(page, size)
        assert seen["window"] == list(size)
        assert seen["wide"] <= size[0]
        for query in ("h1", ".answers", ".card"):
            left, _, right, bottom = seen["places"][query]
            assert left >= 0
            assert right <= size[0], query
            assert bottom <= size[1], query
        assert seen["verdicts"]
        assert max(seen["verdicts"]) <= size[0]  # no scrolling sideways to the verdict


@pytest.mark.slow
def test_a_page_of_168_runs_is_short_and_its_first_screen_complete(study):
    seen = look(study, DESKTOP, "adalora (uniform)")
    assert seen["height"] <= SCREENS * DESKTOP[1]
    for query in (".answers", ".card", ".lines details", ".matrix", "[data-difference] svg"):
        assert seen["places"][query][3] <= DESKTOP[1], query
    phone = look(study, PHONE, "adalora (uniform)")
    assert phone["wide"] <= PHONE[0]
    assert max(phone["verdicts"]) <= PHONE[0]
    assert phone["places"][".answers"][3] <= PHONE[1]
    assert phone["places"][".card svg"][3] <= PHONE[1]


@pytest.mark.slow
def test_the_screenshot_is_not_blank(page, tmp_path):
    chromium(DESKTOP, f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert pixels.shape == DESKTOP[::-1]
    assert 0.01 < np.mean(pixels < 200) < 0.5
