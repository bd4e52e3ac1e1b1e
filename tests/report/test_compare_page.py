"""The first sentence of a comparison: a winner is named with the methods that the data do not tell it from."""

from __future__ import annotations

import pytest

from foveate.adapt.results import ComparedResult
from foveate.core.results import parse_result
from foveate.report.pages.adapt import compare_lead as lead


def compared(*spans: tuple[float, float | None, float | None]) -> ComparedResult:
    names = ("lora", "bitfit", "linear")
    lines = [
        {
            "variant": name, "method": name, "means": {"mean": value}, "trained": 100.0, "unbeaten": name == "lora",
            "tasks": {"t": {"value": value, "low": low, "high": high, "seeds": [value, value], "candidate": "a"}},
        }
        for name, (value, low, high) in zip(names, spans, strict=False)
    ]  # fmt: skip
    content = {"kind": "adapt_compare", "grid": {"name": "small"}, "tasks": [{"key": "t", "title": "t"}]}
    return parse_result(ComparedResult, {**content, "lines": lines})


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([(0.9, 0.8, 1.0), (0.7, 0.6, 0.79), (0.5, 0.4, 0.6)], None),
        ([(0.9, 0.8, 1.0), (0.7, 0.6, 0.82), (0.5, 0.4, 0.6)], "do not tell it from 1 of 2 others"),
        ([(0.9, 0.4, 1.0), (0.7, 0.6, 0.82), (0.5, 0.4, 0.6)], "do not tell it from all 2 others"),
        ([(0.9, 0.8, 1.0), (0.7, 0.6, 0.82)], "do not tell it from the other"),
        ([(0.9, None, None), (0.7, 0.6, 0.7)], "do not tell it from the other"),
    ],
)
def test_the_first_sentence(spans: list[tuple[float, float | None, float | None]], words: str | None) -> None:
    said = lead(compared(*spans))
    assert said.startswith("Highest mean accuracy: lora, 90.0%")
    assert (words in said) if words else ("do not tell" not in said)
