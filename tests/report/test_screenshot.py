"""The page in a real browser with the network off. Skipped by name where Chromium is not installed."""

from __future__ import annotations

import re
from pathlib import Path

import made_run
import numpy as np
import pytest
from browser import NEEDED, browse, probe
from PIL import Image
from test_tour_ask_page import asked
from test_tour_calibration_page import calibration
from test_tour_captions_page import captions
from test_tour_federated_page import federated
from test_tour_video_page import video

from foveate.report import render

pytestmark = NEEDED


def made(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / kind
    result = made_run.tour_result(folder) if kind == "tour" else made_run.small_results(folder)[kind]
    return render(made_run.write_run(folder, result))


@pytest.mark.parametrize("kind", ["tour", "caption", "pretrain", "evaluate", "inspect", "locate", "search"])
def test_no_sideways_scrolling_on_a_phone_and_nothing_is_loaded(tmp_path: Path, kind: str) -> None:
    seen = probe(tmp_path, made(tmp_path, kind), width=390)
    assert seen.wide == 390
    assert seen.scroll <= 390, seen.outside
    assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])


def test_a_whole_tour_is_short_while_it_is_folded(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    image = result["pictures"]["located"][0]["image"]
    sections = {"ask": asked, "captions": captions, "video": video, "calibration": calibration, "federated": federated}
    result |= {name: make(image) for name, make in sections.items()}
    seen = probe(tmp_path, render(made_run.write_run(tmp_path, result)), width=1280)
    assert 2000 < seen.height <= 9000
    assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])


def test_the_probe_sees_what_sticks_out_and_what_is_cut(tmp_path: Path) -> None:
    page = made(tmp_path, "inspect")
    bad = (
        '<div class="much" style="width:900px">wide</div>'
        '<svg class="chart" aria-label="cut" viewBox="0 0 440 220"><text x="438" y="100">a label</text></svg>'
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", bad + "</main>"), encoding="utf-8")
    seen = probe(tmp_path, page, width=390)
    assert seen.scroll > 800
    assert "DIV.much" in seen.outside
    assert seen.cut == ["a label"]


def test_the_page_works_under_its_own_policy_and_hostile_captions_do_not(tmp_path: Path) -> None:
    dom = browse(tmp_path, made(tmp_path, "tour"), "--window-size=1280,900", "--dump-dom")
    assert "<title>The Foveate tour</title>" in dom, "a caption's script did not run"
    assert re.search(r'class="stage live"', dom), "the page's own script ran"
    assert re.search(r'class="box box-hero lit"', dom)


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots_follow_the_color_scheme(tmp_path: Path, width: int, scheme: int, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    options = (f"--window-size={width},1400", f"--blink-settings=preferredColorScheme={scheme}")
    browse(tmp_path, made(tmp_path, "tour"), *options, f"--screenshot={shot}")
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("L")).astype(int)
    assert pixels.shape == (1400, width)
    ground = int(np.bincount(pixels.ravel()).argmax())
    assert ground < 40 if dark else ground > 230
    assert len(np.unique(pixels)) > 100, "images and text are drawn"
