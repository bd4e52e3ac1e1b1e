"""The page of a calibration: what is measured is shown, what is not is left out, broken results are refused."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.results import CalibrateResult
from foveate.report import render
from foveate.report.charts import Mark, Series, tradeoff_chart
from foveate.report.numbers import decimal, signed
from foveate.report.pages.calibrate import table
from naming import raises_naming

ACCURACIES = {"Y/Y": 40.0, "S/Y": 72.4, "U/Y": 7.5, "R/Y": None, "S/S": 72.4, "U/U": 54.9, "R/R": None}


def result(**changes: Any) -> dict[str, Any]:
    row = {"title": "fine-tuned", "key": "after", "gamma": None, "accuracies": ACCURACIES, "ausuc": 0.348,
           "ncm": {"Y/Y": 52.7, "U/U": 61.4}}  # fmt: skip
    star = {**row, "title": "+ gamma* (peeks)", "key": "star", "gamma": 4.4, "ausuc": None, "ncm": {}, "peeks": True}
    curve = [[-2.0, 72.4, 0.0, 36.2], [0.0, 72.4, 7.5, 40.0], [4.4, 64.7, 36.8, 50.7], [12.0, 0.0, 54.9, 27.4]]
    return {
        "kind": "calibrate", "method": "pcv", "gamma": -4.4, "sentence": "Features are fine <b>here</b>.",
        "verdict": "level", "samples": 2160, "rows": [row, star], "curves": {"after": curve},
        "gammas": {"pcv": {"gamma": -4.4, "each": [-4.0, None], "spread": None, "feasible": [True, False]}},
        "gaps": {"S": {"mean": 5.0, "lower_quartile": 3.0, "median": 5.0, "upper_quartile": 7.0}, "U": None},
        "head": {"S": {"norm_before": 1.09, "norm_after": 1.24, "update_norm": 0.42, "update_cosine": None}, "U": None},
        "classes": {"seen": ["<script>", "b"], "absent": ["c"], "rest": 0}, "command": ["foveate", "calibrate"],
    } | changes  # fmt: skip


def page(folder: Path, **changes: Any) -> str:
    (folder / "result.json").write_text(json.dumps(result(**changes)))
    return render(folder).read_text(encoding="utf-8")


def test_what_is_measured_is_shown(tmp_path: Path) -> None:
    text = page(tmp_path)
    for words in ("−4.40", "not feasible", "0.348", "AUSUC", "+ gamma* (peeks)", "it peeks", "NCM U/U", "61.4"):
        assert words in text
    assert "&lt;b&gt;here&lt;/b&gt;" in text
    assert "<script>" not in text.split("<main", 1)[1].split("<footer", 1)[0]
    assert "R/Y" not in text.split("<main", 1)[1]
    assert "R/Y" in page(tmp_path, classes={"seen": [], "absent": [], "rest": 3})


def test_the_page_leads_with_what_the_absent_classes_gain(tmp_path: Path) -> None:
    row = {
        **result()["rows"][0],
        "title": "+ PCV",
        "key": "pcv",
        "gamma": -4.4,
        "accuracies": {**ACCURACIES, "U/Y": 36.8},
    }
    text = page(tmp_path, rows=[*result()["rows"], row])
    assert "Absent classes: 8 % → <em>37 %</em> right" in text
    assert "<title>Absent classes: 8 % to 37 % right" in text


def test_curves_are_named_without_the_accuracy_at_the_largest_gamma(tmp_path: Path) -> None:
    assert re.findall(r">(seen|absent|all)[ .0-9]*</text>", page(tmp_path)) == ["seen", "absent", "all"]
    assert "absent  54.9" not in page(tmp_path)


def test_gamma_alone_has_no_table_and_no_curve(tmp_path: Path) -> None:
    text = page(tmp_path, rows=[], curves={}, gaps={}, head={}, samples=0)
    assert 'id="numbers"' not in text
    assert 'id="curve"' not in text
    assert "−4.40" in text


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "gamma"):
        page(tmp_path, gamma="much")


def test_numbers_as_people_read_them() -> None:
    assert (signed(-1.5), signed(None), decimal(49.96, 1), decimal(None)) == ("−1.50", "", "50.0", "–")
    shown = table(CalibrateResult.model_validate(result()))
    assert shown.heads[-3:] == ["AUSUC", "NCM Y/Y", "NCM U/U"]
    assert shown.rows[1][-3:] == ["–", "–", "–"]


def test_the_chart_says_its_points() -> None:
    series = [Series("fine-tuned", [(0.0, 50.0), (70.0, 5.0)], 1)]
    drawn = tradeoff_chart(series, [Mark("a", 70.0, 5.0), Mark("b", 69.0, 6.0)], title="t")
    assert "a 70.0 seen, 5.0 absent" in drawn
    assert drawn.count("<circle") == 2
    assert tradeoff_chart([Series("x", [])], [], title="t") == ""
    # Names that would meet, also at the lower edge, stand on lines of their own.
    low = [Mark(name, 70.0, height) for name, height in (("a", 0.5), ("b", 0.2), ("c", 0.0))]
    drawn = tradeoff_chart(series, low, title="t")
    heights = [float(found) for found in re.findall(r'y="([\d.]+)"[^>]*>[abc]</text>', drawn)]
    assert len(heights) == 3
    assert min(abs(one - other) for one, other in itertools.combinations(heights, 2)) >= 15
