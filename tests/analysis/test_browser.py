"""The page as a browser shows it. Needs Chromium; skipped where there is none."""

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
# sorts the first table by its last but one column and back, enlarges a figure, then writes down what is seen
LOOK = """
<script>
window.addEventListener("load", () => {
  const column = (i) => [...document.querySelector("tbody").rows].map((row) => row.cells[i].textContent.trim());
  const head = [...document.querySelectorAll("table")[0].querySelectorAll("th")];
  const trainable = head.findIndex((th) => th.textContent === "trainable");
  head[trainable].click(); const down = column(trainable);
  head[trainable].click(); const up = column(trainable);
  const images = [...document.querySelectorAll("figure img")];
  const before = images[0].offsetWidth; images[0].click(); const after = images[0].offsetWidth;
  const seen = images.map((img) => [img.complete && img.naturalWidth > 0, img.offsetWidth, img.offsetHeight]);
  const found = document.createElement("pre"); found.id = "found";
  found.textContent = JSON.stringify({down, up, before, after, seen});
  document.body.append(found);
});
</script>
"""


def chromium(*arguments):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *flags, "--window-size=1300,3000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_real_browser(quickstart, tmp_path):
    page = write_report(quickstart, *load(quickstart))
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text().replace("</body>", LOOK + "</body>"))
    done = chromium("--dump-dom", watched.as_uri())
    assert not re.search(r"CONSOLE.*(error|Uncaught)", done.stderr, re.IGNORECASE)
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    sizes = [int(text.replace(",", "")) for text in found["down"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["up"] == found["down"][::-1]
    assert len(found["seen"]) == page.read_text().count("<figure>") > 5
    assert all(loaded and width > 300 and height > 100 for loaded, width, height in found["seen"])
    assert found["after"] > found["before"]

    chromium(f"--screenshot={tmp_path / 'page.png'}", page.as_uri())
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("L"))
    assert 0.005 < np.mean(pixels < 200) < 0.5
