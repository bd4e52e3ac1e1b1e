"""Category means and MMBase of MM1.5 against stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.metrics.answers import CATEGORIES, category_scores, normalize_benchmark
from naming import raises_naming

SCORES = json.loads((Path(__file__).parents[1] / "goldens" / "mm15" / "scores.json").read_text())


def test_categories_are_the_papers() -> None:
    assert {name: list(benchmarks) for name, benchmarks in CATEGORIES.items()} == SCORES["groups"]


@pytest.mark.parametrize("case", SCORES["cases"])
def test_golden_scores(case: dict) -> None:
    scores = category_scores(case["raw"])
    assert scores.categories == pytest.approx(case["category"], abs=1e-9)
    assert scores.mmbase == pytest.approx(case["MMBase"], abs=1e-9)
    assert scores.five_category_mean == pytest.approx(case["five_category_mean"], abs=1e-9)
    assert scores.missing == ()


def test_a_missing_benchmark_leaves_its_category_out() -> None:
    raw = {name: value for name, value in SCORES["cases"][0]["raw"].items() if name not in ("BLINK", "AI2D")}
    scores = category_scores(raw)
    assert scores.missing == ("AI2D", "BLINK")
    assert scores.categories["knowledge"] is scores.categories["multi_image"] is None
    assert scores.mmbase is scores.five_category_mean is None
    assert scores.categories["general"] == pytest.approx(SCORES["cases"][0]["category"]["general"])


def test_hostile_scores_are_named() -> None:
    with raises_naming(UserError, "DocVAQ", "Did you mean 'DocVQA'"):
        normalize_benchmark("DocVAQ", 1)
    with raises_naming(UserError, "POPE", "-1"):
        normalize_benchmark("POPE", -1)
    with raises_naming(UserError, "MMMU", "nan"):
        normalize_benchmark("MMMU", float("nan"))
    for raw in (1430.0, {"perception": 1000.0}, {"perception": 1000.0, "cognition": 1.0, "sum": 1.0}):
        with raises_naming(UserError, "MME", "cognition"):
            normalize_benchmark("MME", raw)
    with raises_naming(UserError, "POPE", "perception"):
        normalize_benchmark("POPE", {"perception": 1.0})
