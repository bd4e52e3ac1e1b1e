"""Chromium without a network: what a page looks like in it, and what of it cannot be seen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]
PROBE = """<script>
addEventListener("load", () => {
  const height = document.querySelector("footer").getBoundingClientRect().bottom;
  for (const one of document.querySelectorAll("details")) one.open = true;
  const wide = document.documentElement.clientWidth;
  const inside = (e) => { for (let p = e.parentElement; p; p = p.parentElement) {
    if (["auto", "hidden", "scroll"].includes(getComputedStyle(p).overflowX)) return true; } return false; };
  const outside = [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > wide + 1 && !inside(e))
    .map((e) => e.tagName + "." + e.getAttribute("class"));
  const loaded = performance.getEntriesByType("resource")
    .map((r) => r.name).filter((n) => !n.startsWith("data:"));
  const box = (e) => e.getBoundingClientRect();
  const charts = [...document.querySelectorAll("svg.chart")];
  const cut = charts.flatMap((chart) => [...chart.querySelectorAll("text")]
    .filter((t) => box(t).right > box(chart).right + 1 || box(t).left < box(chart).left - 1 ||
      box(t).top < box(chart).top - 1 || box(t).bottom > box(chart).bottom + 1).map((t) => t.textContent));
  parent.postMessage(JSON.stringify({wide, height, scroll: document.documentElement.scrollWidth,
    outside: outside.slice(0, 5), loaded, cut,
    charts: charts.map((c) => [c.getAttribute("aria-label"), box(c).width, box(c).height])}), "*");
});
</script>"""
# A window of Chromium is at least 500 wide; a frame can be as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0"><script>
addEventListener("message", (event) => document.documentElement.setAttribute("data-probe", event.data));
</script><iframe src="NAME" style="width:WIDTHpx;height:HEIGHTpx;border:0"></iframe>"""


@dataclass(frozen=True)
class Seen:
    """What a page was found to be.

    Attributes:
        wide, scroll: pixels of the window, and of what can be scrolled to. height: of the page while it is folded.
        outside: elements beyond the right edge. loaded: addresses. cut: labels that leave their chart.
        charts: their descriptions, widths and heights.
    """

    wide: int
    height: float
    scroll: int
    outside: list[str]
    loaded: list[str]
    cut: list[str]
    charts: list[tuple[str, float, float]]


def browse(tmp_path: Path, page: Path, *options: str) -> str:
    """Opens a page; its content after its scripts ran, with --dump-dom."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=1500", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def framed(page: Path, name: str, *, width: int, height: int = 844) -> Path:
    """A page beside `page` that shows the page called `name` in a frame of that size."""
    frame = page.with_name(f"frame-{width}-{name}")
    content = FRAME.replace("NAME", name).replace("WIDTH", str(width)).replace("HEIGHT", str(height))
    frame.write_text(content, encoding="utf-8")
    return frame


def probe(tmp_path: Path, page: Path, *, width: int) -> Seen:
    """Opens a page that wide, with all its details unfolded, and measures it. Its own policy would forbid that."""
    given = page.read_text(encoding="utf-8")
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", given)
    assert without_policy != given
    page.with_name("probed.html").write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = framed(page, "probed.html", width=width)
    dom = browse(tmp_path, frame, f"--window-size={max(800, width)},900", "--dump-dom")
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, "the probe ran"
    return Seen(**json.loads(html.unescape(found[1])))
