"""The plan's page in a real browser, as narrow as a phone. Skipped by name where Chromium is not installed."""

from __future__ import annotations

from pathlib import Path

from browser import NEEDED, probe
from PIL import Image

from foveate.mllm.plan import plan_images, resolve_options
from foveate.report import render

pytestmark = NEEDED


def test_tiles_fit_a_phone(tmp_path: Path) -> None:
    files = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for file, size in zip(files, ((3000, 200), (200, 3000)), strict=True):
        Image.new("RGB", size, (90, 120, 150)).save(file)
    result = plan_images(files, resolve_options({})[1])
    images = [image.model_copy(update={"image": Path(image.file).name}) for image in result.images]
    (tmp_path / "result.json").write_text(result.model_copy(update={"images": images}).model_dump_json())
    seen = probe(tmp_path, render(tmp_path), width=400)
    assert (seen.scroll, seen.outside, seen.loaded) == (400, [], [])
