"""The page of predictions: doubts, map and hours; in a real browser, wide and on a phone, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import made_run
import numpy as np
import pytest
from browser import NEEDED, browse, framed, probe
from made_species import species
from PIL import Image

from foveate.report import render
from foveate.report.pages.species import draw_map
from foveate.species.results import CameraRow


def write_page(folder: Path) -> Path:
    return render(made_run.write_run(folder, species(folder)))


def test_a_map_ends_at_the_poles_and_at_the_date_line() -> None:
    rows = [
        CameraRow(camera=str(number), images=3, events=1, latitude=latitude, longitude=longitude)
        for number, (latitude, longitude) in enumerate([(89.0, -110.5), (-80.0, 133.5)])
    ]
    degrees = [float(text) for text in re.findall(r">(-?[\d.]+)°<", str(draw_map(rows)))]
    assert -180 in degrees
    assert min(degrees) == -180
    assert max(degrees) <= 180
    assert 90 in degrees


def test_doubts_and_rounded_places_are_on_the_page(tmp_path: Path) -> None:
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    assert ["creek-1", "80", "0.31", "0.12", "+3", "h"] in rows
    assert ["hill-1", "(implausible)", "60", "0.58", "0.41", "+12", "h"] in rows
    assert ["oak-1", "(implausible)", "100", "0.70", "creek", "80%"] in rows
    assert len(re.findall(r"<circle[^>]*><title>[^<]*: \d+ images", page)) == 3, "cameras of one rounded place"
    assert "Map of 3 cameras, places rounded" in page


def test_hints_say_how_they_are_read(tmp_path: Path) -> None:
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    assert "What is doubtful" not in page, "right clocks are listed, too"
    assert "Clocks, as the images suggest them" in page
    assert "Clocks that are right have a row, too" in page


def test_settings_are_those_of_stages_that_change_something(tmp_path: Path) -> None:
    stages = {
        "temperature": {"temperature": 1.0},
        "prior": {"source": None, "by_place": False, "strength": 1.0, "floor": 0.01},
        "species_list": {"file": None, "mode": "mask", "walk_down": False},
        "pooling": {"method": "mean_logprob", "weights": "equal"},
        "rules": {"rules": "none", "taxonomy": None},
        "rollup": {"enabled": True, "ranks": ["species", "genus"]},
        "threshold": {"threshold": 0.65},
    }

    def read_settings(**changes: dict[str, object]) -> list[tuple[str, str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        settings = {"stages": {**stages, **changes}, "gap_seconds": 60.0}
        page = render(made_run.write_run(folder, {**species(folder), "settings": settings})).read_text("utf-8")
        return re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.partition('id="settings"')[2])[:-2]

    assert read_settings() == [
        ("Pooling over the event: method", "mean_logprob"),
        ("Pooling over the event: weights", "equal"),
        ("Roll-up: ranks", "species, genus"),
        ("Threshold", "0.65"),
        ("Gap between events", "60 s"),
    ]
    decided = dict(read_settings(temperature={"temperature": 1.5}, rules={"rules": "speciesnet"}))
    assert (decided["Temperature"], decided["SpeciesNet&#39;s rules"]) == ("1.5", "speciesnet")
    assert not {"Roll-up: ranks", "Threshold"} & set(decided), "SpeciesNet's rules replace both"
    assert dict(read_settings(prior={"by_place": True, "strength": 1.0}))["Prior: by place"] == "yes"


def test_names_of_species_alone_are_italic(tmp_path: Path) -> None:
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"<i>([^<]+)</i>", page)) == {"Vulpes vulpes", "Lynx lynx", "Cervus elaphus"}
    assert len(re.findall(">Felidae[ <]", page)) >= 2, "upright in the table and at its image"


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
class TestInABrowser:
    pytestmark = NEEDED

    def test_the_page_fits_and_follows_the_color_scheme(
        self, tmp_path: Path, width: int, scheme: int, dark: bool
    ) -> None:
        page = write_page(tmp_path / "run")
        seen = probe(tmp_path, page, width=width)
        assert seen.scroll <= width, seen.outside
        assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])
        labels = [label for label, *_ in seen.charts]
        assert sum("Map of 3 cameras" in label for label in labels) == 1
        assert sum("events" in label for label in labels) == 4, "hours of four taxa"
        shot = tmp_path / "shot.png"
        frame = framed(page, page.name, width=width, height=6_000)
        light = f"--blink-settings=preferredColorScheme={scheme}"
        browse(tmp_path, frame, f"--window-size={max(800, width)},6000", light, f"--screenshot={shot}")
        with Image.open(shot) as opened:
            pixels = np.asarray(opened.convert("L")).astype(int)[:, :width]
        assert (np.median(pixels) < 100) == dark
        assert len(np.unique(pixels)) > 60, "text is drawn"
