"""The page in a real browser with the network off. Skipped by name where Chromium is not installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import made_run
import numpy as np
import pytest
from PIL import Image

from foveate.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]
PROBE = """<script>
addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  const inside = (e) => { for (let p = e.parentElement; p; p = p.parentElement) {
    if (["auto", "hidden", "scroll"].includes(getComputedStyle(p).overflowX)) return true; } return false; };
  const out = [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > wide + 1 && !inside(e))
    .map((e) => e.tagName + "." + e.getAttribute("class"));
  const loaded = performance.getEntriesByType("resource")
    .map((r) => r.name).filter((n) => !n.startsWith("data:"));
  parent.postMessage([wide, document.documentElement.scrollWidth,
    out.slice(0, 5).join("/") || "none", loaded.join("/") || "none"].join("|"), "*");
});
</script>"""
# A window of Chromium is at least 500 wide; a frame can be as narrow as a phone.
PHONE = """<!doctype html><script>
addEventListener("message", (event) => document.documentElement.setAttribute("data-probe", event.data));
</script><iframe src="probed.html" style="width:390px;height:844px;border:0"></iframe>"""


def browse(tmp_path: Path, page: Path, *options: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=1500", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def made(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / kind
    result = made_run.tour_result(folder) if kind == "tour" else made_run.small_results(folder)[kind]
    return render(made_run.write_run(folder, result))


@pytest.mark.parametrize("kind", ["tour", "caption", "pretrain", "evaluate", "inspect", "locate", "search"])
def test_no_sideways_scrolling_on_a_phone_and_nothing_is_loaded(tmp_path: Path, kind: str) -> None:
    page = made(tmp_path, kind)
    html = page.read_text(encoding="utf-8")
    probed = page.with_name("probed.html")
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert without_policy != html
    probed.write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    phone = page.with_name("phone.html")
    phone.write_text(PHONE, encoding="utf-8")
    dom = browse(tmp_path, phone, "--window-size=800,900", "--dump-dom")
    found = re.search(r'data-probe="(\d+)\|(\d+)\|([^|]*)\|([^"]*)"', dom)
    assert found, "the probe ran"
    wide, scroll, outside, loaded = found.groups()
    assert int(wide) == 390
    assert int(scroll) <= 390, outside
    assert (outside, loaded) == ("none", "none")


def test_the_page_works_under_its_own_policy_and_hostile_captions_do_not(tmp_path: Path) -> None:
    dom = browse(tmp_path, made(tmp_path, "tour"), "--window-size=1280,900", "--dump-dom")
    assert "<title>The Foveate tour</title>" in dom, "a caption's script did not run"
    assert re.search(r'class="stage live"', dom), "the page's own script ran"
    assert re.search(r'class="box box-hero lit"', dom)


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots_follow_the_colour_scheme(tmp_path: Path, width: int, scheme: int, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    options = (f"--window-size={width},1400", f"--blink-settings=preferredColorScheme={scheme}")
    browse(tmp_path, made(tmp_path, "tour"), *options, f"--screenshot={shot}")
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("L")).astype(int)
    assert pixels.shape == (1400, width)
    ground = int(np.bincount(pixels.ravel()).argmax())
    assert ground < 40 if dark else ground > 230
    assert len(np.unique(pixels)) > 100, "pictures and text are drawn"
