"""The tour's page with a calibration: its sentence, table, curve, and images with the answers of three models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_run

from foveate.core.errors import UserError
from foveate.report import render
from naming import raises_naming

ACCURACIES = {"Y/Y": 40.0, "S/Y": 72.4, "U/Y": 7.5, "R/Y": None, "S/S": 72.4, "U/U": 54.9, "R/R": None}


def calibration(image: str) -> dict[str, Any]:
    row = {"title": "fine-tuned", "key": "after", "gamma": None, "accuracies": ACCURACIES, "ausuc": 0.348, "ncm": {}}
    answers = {"before": "fruit", "after": "animal", "calibrated": "fruit"}
    example = {"image": image, "title": "a <pear>", "group": "absent", "label": "fruit", "answers": answers}
    changes = {"samples": 165, "changed": 103, "righted": 49, "spoiled": 7}
    return {
        "kind": "calibrate", "method": "pcv", "gamma": 5.0, "sentence": "Features are fine.", "samples": 1347,
        "rows": [row], "curves": {"after": [[0.0, 72.4, 7.5, 40.0], [4.4, 64.7, 36.8, 50.7]]},
        "classes": {"seen": ["animal"], "absent": ["fruit"], "rest": 0}, "notes": ["Without PCV: no run"],
        "trained": {"pretrained": 1487, "tuned": 240, "classes": 24}, "changes": {"absent": changes},
        "examples": [example],
    }  # fmt: skip


def test_calibration_is_on_the_page(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    shown = calibration(result["pictures"]["located"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "calibration": shown})).read_text(encoding="utf-8")
    for said in ("Fine-tuned on half of the classes", "1,487 drawings", "Features are fine.", "a &lt;pear&gt;"):
        assert said in page
    for said in ("103 of 165", "49 become right, 7 wrong", "all 1,347", "Without PCV: no run", "fruit · absent kind"):
        assert said in page
    section = page.split('id="calibration"', 1)[1].split("</section>", 1)[0]
    assert section.count('class="is-right"') == 2
    assert section.count('class="is-wrong"') == 1
    assert section.count('<svg class="chart"') == 2
    assert 'href="#calibration"' in page
    assert 'class="figure"' not in section, "the calibrated row is missing"


def test_without_a_calibration_nothing_is_said(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert "Fine-tuned on half" not in page


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    shown = calibration(result["pictures"]["located"][0]["image"])
    del shown["trained"]
    with raises_naming(UserError, "trained"):
        render(made_run.write_run(tmp_path, {**result, "calibration": shown}))
