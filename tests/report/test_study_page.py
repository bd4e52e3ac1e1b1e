"""The page of a study: every claim with its verdict, every number, and what was not installed."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import made_run
import made_study
import pytest
from browser import CHROMIUM, browse, probe
from markupsafe import escape
from PIL import Image
from pydantic import TypeAdapter

from foveate.core.errors import UserError
from foveate.core.results import Value
from foveate.report import render
from foveate.report.charts import ForestRow, difference_bar, forest
from foveate_labs.pages.study import mean_and_half, signed
from foveate_labs.studies.results import StudyResult
from naming import raises_naming


def page_of(folder: Path, **changes: object) -> Path:
    return render(made_run.write_run(folder, made_study.study_result() | changes))


def test_claims_and_numbers_are_all_on_the_page(tmp_path: Path) -> None:
    result = made_study.study_result()
    html = page_of(tmp_path).read_text(encoding="utf-8")
    assert html.count('class="claim ') == len(result["claims"])
    for claim in result["claims"]:
        assert str(escape(claim["text"])) in html
    for name in ("shown", "not shown", "opposite"):
        expected = sum(claim["verdict"] == name for claim in result["claims"])
        assert len(re.findall(rf'class="claim {name.replace(" ", "-")}"', html)) == expected
    entry = next(one for one in result["table"] if one["row"] == "roi")
    assert f"{entry['values']['name']['value']:.3f} ±" in html
    assert html.count("not installed (package") == 2
    assert "Real regions" not in html, "a condition without numbers has no section"


def test_one_seed_has_no_intervals(tmp_path: Path) -> None:
    html = render(made_run.write_run(tmp_path, made_study.study_result(seeds=1))).read_text(encoding="utf-8")
    assert "±" not in html
    assert 'class="claim shown"' not in html, "without an interval nothing is shown"


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "claims"):
        page_of(tmp_path, claims=[{"text": "no verdict"}])


def test_forest_places_means_and_intervals() -> None:
    rows = [ForestRow("ours", 0.4, 0.3, 0.5, "reference"), ForestRow("<b>", 0.2, None, None)]
    chart = str(forest(rows, title="Right", line=0.4))
    means = [float(x) for x in re.findall(r'class="mean" cx="([\d.]+)"', chart)]
    through = float(re.search(r'class="through" x1="([\d.]+)"', chart).group(1))  # type: ignore[union-attr]
    assert means[0] == through > means[1]
    assert "&lt;b&gt;" in chart
    assert "<b>" not in chart
    assert str(forest([ForestRow("a", float("nan"), None, None)], title="none")) == ""


def test_numbers_have_true_minus_signs() -> None:
    assert signed(-0.05) == "−0.050"
    assert mean_and_half(Value(value=-0.5, low=-0.6, high=-0.4, n=5), seeds=5) == "−0.500 ± 0.100"
    assert mean_and_half(Value(value=-0.5, low=-0.6, high=-0.4, n=3), seeds=5) == "−0.500 ± 0.100 (n 3)"
    assert mean_and_half(None, seeds=5) == "–"


def test_difference_bar_is_centered_on_zero() -> None:
    bar = str(difference_bar(0.25, 0.0, 0.5, margin=0.0, reach=0.5))
    assert 'x1="75.00"' in bar
    assert 'x="50.00" y="4" width="50.00"' in bar
    beyond = str(difference_bar(-3.0, -4.0, -2.0, margin=0.1, reach=0.5))
    assert 'x1="0.00"' in beyond, "what lies beyond the scale stays at its end"
    assert 'class="margin" x1="60.00"' in beyond


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
def test_the_page_fits_a_phone(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run")
    seen = probe(tmp_path, page, width=390)
    assert seen.wide == 390
    assert seen.scroll <= 390
    assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])
    shot = tmp_path / "shot.png"
    browse(tmp_path, page, "--window-size=1280,1400", f"--screenshot={shot}")
    with Image.open(shot) as opened:
        assert opened.size == (1280, 1400)


@pytest.mark.parametrize("name", ["calibration", "captions", "cloc", "deepfeca", "feca", "fedne", "petl", "vesl"])
def test_the_page_takes_the_sizes_of_every_study(name: str) -> None:
    module = importlib.import_module(f"foveate_labs.studies.{name}")
    kind = TypeAdapter(StudyResult.model_fields["scale"].annotation)
    sizes = json.loads(json.dumps(asdict(module.FULL)))
    assert kind.validate_python(sizes) == sizes, "none is left out or changed on the way to the page"
