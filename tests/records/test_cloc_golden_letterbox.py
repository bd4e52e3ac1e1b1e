"""Boxes in pixels -> model input, against the stored numbers for both kinds of padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.records.geometry import Letterbox, original_to_padded_square, padded_square_to_original
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "cloc"
CASES = json.loads((GOLDENS / "letterbox.json").read_text())
ENTRY = next(
    entry for entry in json.loads((GOLDENS / "index.json").read_text())["files"] if entry["file"] == "letterbox.json"
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['W']}x{case['H']}-{case['S']}")
def test_letterbox(case: dict[str, Any]) -> None:
    width, height = case["W"], case["H"]
    letterbox = Letterbox(width, height, case["S"])
    assert list(letterbox.resized) == case["resized"]
    assert letterbox.pad == tuple(case[f"pad_{side}"] for side in ("left", "top", "right", "bottom"))
    boxes = np.array(case["boxes_px"]) / np.array((width, height) * 2)
    tolerance = {"rtol": 0, "atol": ENTRY["tolerance"]}
    np.testing.assert_allclose(letterbox.to_input(boxes), case["centred_padded"], **tolerance)
    np.testing.assert_allclose(letterbox.to_original(case["centred_padded"]), boxes, rtol=0, atol=1e-6)
    square = original_to_padded_square(boxes, width, height)
    np.testing.assert_allclose(square, case["bottom_right_padded"], **tolerance)
    np.testing.assert_allclose(padded_square_to_original(square, width, height), boxes, **tolerance)


def test_a_collapsed_side_is_refused() -> None:
    with raises_naming(UserError, "1000", "1", "224"):
        Letterbox(1000, 1, 224)
    with raises_naming(UserError, "too narrow"):
        Letterbox(1, 1000, 224)
