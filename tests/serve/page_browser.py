"""Work the playground's page in Chromium: open it, choose an image, draw, ask, and measure what is visible."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from page_server import PAGE, FakeServer
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]
SIZES = {"desktop": (1280, 860), "phone": (400, 800), "small": (320, 640)}
EXAMPLE = "Take the example"


@contextmanager
def opened(
    browser: Any, server: FakeServer, *, size: str = "desktop", problems: int = 0, fragment: str = "", **options: Any
) -> Iterator[Any]:
    """Open the page; at the end no request has left the origin, and the console has that many errors.

    Args:
        fragment: of the page's address, with its "#".
        options: `bypass_csp` lets the test's own JavaScript run, which the page's policy forbids.
    """
    width, height = SIZES[size]
    fields = {"viewport": {"width": width, "height": height}, "has_touch": size != "desktop", **options}
    context = browser.new_context(**fields, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    console: list[str] = []
    addresses: list[str] = []
    page.on("console", lambda message: console.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(f"{server.url}{fragment}")
    try:
        yield page
        assert [address for address in addresses if not address.startswith((server.url, "blob:", "data:"))] == []
        assert len(console) == problems, console
    finally:
        context.close()


def take_example(page: Any) -> None:
    page.get_by_role("button", name=EXAMPLE).click()
    page.get_by_role("img", name="example.jpg").wait_for()


def draw(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the image, from and to fractions of its sides."""
    frame = page.locator("#layer").bounding_box()
    points = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=5)
    page.mouse.up()


def animate(file_format: str, num_frames: int) -> bytes:
    """Encode frames of the example with a view that moves."""
    with Image.open(PAGE / "example.jpg") as example:
        frames = [example.crop((8 * index, 200, 8 * index + 160, 320)) for index in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], duration=250)
    return buffer.getvalue()


def choose(page: Any, name: str, kind: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": data})


def ask(page: Any, question: str) -> Any:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    return page.get_by_role("article").first


def done(article: Any) -> Any:
    """Wait until an answer has ended."""
    article.and_(article.page.locator("[aria-busy=false]")).wait_for()
    return article


MEASURE = """() => {
  const wide = document.documentElement.clientWidth;
  const visible = (e) => e.checkVisibility() && e.getClientRects().length && !e.closest(".hidden, .skip");
  const all = [...document.body.querySelectorAll("*")].filter(visible);
  const numbers = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ({ rgb }) => { const [r, g, b] = rgb.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.a > .99) return color;
    }
    return { rgb: [255, 255, 255] };
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const texts = all.filter((e) => e.matches("input, select, textarea") ||
    [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const controls = "button:not(.box), select, textarea, input:not([type=radio], [type=checkbox])";
  const box = (e) => e.getBoundingClientRect();
  const scrolls = (e) => e.closest("pre");
  return {
    scroll: document.documentElement.scrollWidth,
    outside: all.filter((e) => box(e).right > wide + 1 && !scrolls(e)).map((e) => `${e.tagName}.${e.className}`),
    faint: texts.filter((e) => ratio(numbers(getComputedStyle(e).color), ground(e)) < 4.5)
      .map((e) => `${e.tagName} ${e.textContent.slice(0, 30)}`),
    small: all.filter((e) => e.matches(controls) && box(e).height < 32).map((e) => e.id || e.textContent),
  };
}"""
