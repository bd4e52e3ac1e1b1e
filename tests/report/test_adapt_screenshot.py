"""The pages of adapt and calibrate in a real browser, wide and on a phone: nothing sticks out, no label is cut."""

from __future__ import annotations

from pathlib import Path

import made_adapt
import made_run
import numpy as np
import pytest
from browser import NEEDED, browse, framed, probe
from PIL import Image

from foveate.report import render

pytestmark = NEEDED
FIGURES = {
    "adapt": [
        *("total loss", "gradient norm", "samples per second"),
        *("Accuracy (%) by class", "Images by true class and answer", "Share of answers that are right (%)"),
    ],
    "adapt_compare": [
        *(f"Mean accuracy (%) by {cost}: " for cost in ("size", "memory", "time")),
        *(f"{title}: accuracy (%), 2,160 test images" for title, *_ in made_adapt.TASKS),
        *(f"{title}: same answer (% of test images)" for title, *_ in made_adapt.TASKS),
    ],
    "adapt_wise": ["Accuracy (%) from the original network", "Shifted against own test images (%)"],
    "calibrate": ["Absent against seen classes", "Accuracy of the fine-tuned model by gamma"],
}
ACCENT = np.array([0xC2, 0x41, 0x0C])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", list(made_adapt.PAGES))
def test_pages_fit_and_their_figures_are_drawn(tmp_path: Path, kind: str, width: int) -> None:
    folder = tmp_path / kind
    page = render(made_run.write_run(folder, made_adapt.PAGES[kind](folder)))
    seen = probe(tmp_path, page, width=width)
    assert seen.wide == width
    assert seen.scroll <= width, seen.outside
    assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])
    labels = [label for label, *_ in seen.charts]
    assert len(labels) == len(FIGURES[kind])
    for label, start in zip(sorted(labels), sorted(FIGURES[kind]), strict=True):
        assert label.startswith(start)
    assert all(wide >= 300 and high >= 150 for _, wide, high in seen.charts), seen.charts
    shot = tmp_path / "shot.png"
    frame = framed(page, page.name, width=width, height=5_000)
    light = "--blink-settings=preferredColorScheme=1"
    browse(tmp_path, frame, f"--window-size={max(800, width)},5000", light, f"--screenshot={shot}")
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)[:, :width]
    assert (abs(pixels - ACCENT).max(axis=2) < 8).sum() > 300, "lines, dots or bars of the page's own series"
    assert len(np.unique(pixels.mean(axis=2).round())) > 60, "text is drawn"


def test_the_names_of_classes_are_no_code(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path / "run", made_adapt.calibrate(tmp_path)))
    dom = browse(tmp_path, page, "--window-size=1280,900", "--dump-dom")
    assert "<title>Absent classes: 8 % to 37 % right" in dom
