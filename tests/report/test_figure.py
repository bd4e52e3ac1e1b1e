"""The README image."""

from __future__ import annotations

from pathlib import Path

import made_run
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate_labs.studies.results import TourResult
from foveate_labs.tour.figure import BOX, choose_tiles, fit_text, readme_image
from naming import raises_naming


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_image_is_wide_light_and_holds_boxes(tmp_path: Path, suffix: str) -> None:
    run = made_run.write_run(tmp_path / "run", made_run.tour_result(tmp_path / "run"))
    path = readme_image(run, tmp_path / f"readme{suffix}")
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1600
    assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 240, "an opaque light ground up to the corners"
    assert (np.abs(pixels - BOX).sum(axis=2) < 40).sum() > 2000


def test_pick_takes_turns_between_slices_and_prefers_found_ones(tmp_path: Path) -> None:
    tour = parse_result(TourResult, made_run.tour_result(tmp_path))
    tiles = choose_tiles(tour.locate, default="head")
    assert len(tiles) == 6
    assert len({tile.answer.image for tile in tiles}) == 6
    assert [tile.answer.slice for tile in tiles[:4]] == ["seen", "unseen", "seen", "unseen"]
    assert all(tile.answer.iou["head"] >= 0.5 for tile in tiles)


def test_long_texts_are_shortened() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    text = fit_text(draw, "a very long phrase " * 20, font, width=200)
    assert text.endswith("…")
    assert draw.textlength(text, font=font) <= 200
    assert fit_text(draw, "short\n text", font, width=200) == "short text"


def test_other_suffixes_other_kinds_and_too_few_images_are_refused(tmp_path: Path) -> None:
    results = made_run.small_results(tmp_path)
    made_run.write_run(tmp_path, results["locate"])
    with raises_naming(UserError, "readme.gif", ".png", ".webp"):
        readme_image(tmp_path, tmp_path / "readme.gif")
    with raises_naming(UserError, "locate"):
        readme_image(tmp_path, tmp_path / "readme.png")
    made_run.write_run(tmp_path, {"kind": "tour", "collection": {"name": "none"}})
    with raises_naming(UserError, "locate"):
        readme_image(tmp_path, tmp_path / "readme.png")
