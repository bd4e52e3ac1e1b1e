"""The captions golden `assertions.json`: how many assertions the rule splitter finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.caption.splitter import count, split

CASES = json.loads((Path(__file__).resolve().parents[1] / "goldens" / "captions" / "assertions.json").read_text())


@pytest.mark.parametrize("case", [case for case in CASES if case["strict"]], ids=lambda case: case["text"][:40])
def test_strict_counts(case: dict) -> None:
    assert count(case["text"]) == case["n"], split(case["text"])


def test_most_of_the_others() -> None:
    others = [case for case in CASES if not case["strict"]]
    assert sum(count(case["text"]) == case["n"] for case in others) >= 0.75 * len(others)
