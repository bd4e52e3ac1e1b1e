"""The playground before a real `foveate serve mini`, in Chromium."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import IN_BROWSER, animate, ask, choose, done, draw, opened, take_example
from page_server import FakeServer

pytestmark = IN_BROWSER


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_mini_reads_a_clip_in_the_playground(browser: Any, tmp_path: Path, size: str) -> None:
    with serving(tmp_path, "mini") as server, opened(browser, server, size=size) as page:
        page.set_default_timeout(120_000)
        choose(page, "pan.webp", "image/webp", animate("WEBP", 24))
        article = done(ask(page, "What is in the image?"))
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        frames = article.get_by_role("list", name="Sampled frames").get_by_role("listitem")
        assert frames.count() == 24, article.inner_text()
        assert len([text for text in frames.all_inner_texts() if "slow" in text]) == 10
        assert article.locator(".answer-text").inner_text()


def test_mini_answers_in_the_playground(browser: Any, tmp_path: Path) -> None:
    """With FOVEATE_WRITE_IMAGES=1 its screenshots become those of docs and README."""
    with serving(tmp_path, "mini") as server, opened(browser, server) as page:
        page.set_default_timeout(120_000)
        take_example(page)
        page.get_by_role("button", name="Ask", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert article.locator(".chips button").count() == 1, article.inner_text()
        draw(page, (0.28, 0.65), (0.52, 0.89))
        assert page.get_by_role("textbox", name="Question").input_value() == "What is <1>?"
        page.get_by_role("button", name="Ask", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert article.locator(".answer-text").inner_text() == "satellite antenna"
        page.get_by_role("radio", name="Where is").check(force=True)
        page.get_by_role("textbox", name="Phrase").fill("keyboard; bar of soap; shamrock; zebra")
        page.get_by_role("button", name="Find", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert article.get_by_role("listitem").count() == 3
        assert "Not found: zebra" in article.inner_text()
        frame, box = (page.locator(name).bounding_box() for name in ("#layer", "#layer .answer:has-text('keyboard')"))
        corners = [(box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"]]
        corners += [corners[0] + box["width"] / frame["width"], corners[1] + box["height"] / frame["height"]]
        assert corners == pytest.approx([0.0, 0.40, 0.346, 0.63], abs=0.06), "where the scene has its keyboard"
        page.mouse.move(0, 0)
        write_screenshot(page, "serve.webp", tmp_path)
        page.set_viewport_size({"width": 900, "height": 640})
        write_screenshot(page, "jobs/serve.webp", tmp_path, width=450)


@contextmanager
def serving(folder: Path, *models: str) -> Iterator[FakeServer]:
    """Run `foveate serve` on a free port until the end."""
    port_file = folder / "port"
    command = [sys.executable, "-m", "foveate", "serve", *models, "--port", "0", "--port-file", str(port_file)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not port_file.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the server listens"
            time.sleep(0.1)
        try:
            yield FakeServer(url=f"http://127.0.0.1:{port_file.read_text().strip()}/")
        finally:
            process.terminate()
            process.communicate(timeout=60)


def write_screenshot(page: Any, name: str, folder: Path, *, width: int | None = None) -> None:
    """Write a screenshot, into the docs where FOVEATE_WRITE_IMAGES asks for it."""
    root = Path(__file__).parents[2] / "docs" / "images" if os.environ.get("FOVEATE_WRITE_IMAGES") else folder
    with Image.open(io.BytesIO(page.screenshot())) as image:
        size = (width, round(image.height * width / image.width)) if width else image.size
        path = root / name
        path.parent.mkdir(exist_ok=True)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=88, method=6)
    assert path.stat().st_size < 90_000
