"""Typed results: what a wing writes is what a page reads, and a wrong field is named."""

from __future__ import annotations

import json

import pytest

from foveate.caption.results import RequestTally
from foveate.core.errors import UserError
from foveate.core.results import BoxChoice, Example, Histogram, Region, Value, parse_result
from foveate.report.pages.pretrain import InspectResult
from foveate.search.results import LocateResult
from naming import raises_naming


def test_a_result_survives_json() -> None:
    sample = Example(image="images/a.webp", regions=[Region(box=(0, 0.1, 0.5, 1), phrase="a kite")])
    result = InspectResult(kind="inspect", samples=[sample], histograms={"width": Histogram(edges=[0, 1], counts=[3])})
    assert parse_result(InspectResult, json.loads(json.dumps(result.to_json()))) == result


def test_json_uses_the_names_of_the_file() -> None:
    assert RequestTally(total=3, ok=2, repaired=0).to_json()["in"] == 3


def test_unknown_fields_are_ignored_and_results_are_immutable() -> None:
    value = parse_result(Value, {"value": 0.5, "added_by_a_newer_version": 1})
    with raises_naming(ValueError, "value", "frozen"):
        value.value = 1.0  # type: ignore[misc]


def test_fields_of_earlier_runs_are_read_by_their_old_names() -> None:
    choice = {"image": "a", "phrase": "b", "boxes": [(0, 0, 1, 1)], "scores": [1.0], "right": 0, "chosen": 0}
    assert parse_result(BoxChoice, choice).to_json()["predicted"] == 0
    assert not LocateResult.model_validate({"image": "a", "phrase": "b", "boxes": {}, "found": False}).has_match


@pytest.mark.parametrize("box", [(0.5, 0, 0.1, 1), (0, 0, float("nan"), 1), (0, 0, 1)])
def test_a_wrong_box_is_named(box: tuple[float, ...]) -> None:
    with raises_naming(UserError, "box"):
        parse_result(Region, {"box": box})
