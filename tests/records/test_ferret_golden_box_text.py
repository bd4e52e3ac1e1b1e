"""Coordinates in text and the official parsers, against the stored numbers of apple/ml-ferret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.records.box_text import (
    decode_coordinate,
    decode_region,
    encode_coordinate,
    encode_region,
    format_region,
    is_same_phrase,
    parse_regions,
    parse_streaming,
    parse_template,
)
from foveate.records.boxes import PixelBox, intersection_over_union
from foveate.records.shapes import Mask, Point, Stroke, encode_mask
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "ferret"
COORDINATES = json.loads((GOLDENS / "coord_quantisation.json").read_text())
TEXTS = json.loads((GOLDENS / "box_text_parser.json").read_text())


def corners(box: PixelBox | Point) -> list[float]:
    assert isinstance(box, PixelBox)
    return [box.x1, box.y1, box.x2, box.y2]


def test_coordinates() -> None:
    assert len(COORDINATES["rows"]) == 138
    for width, height, box, _, numbers, integers, centers in COORDINATES["rows"]:
        size = {"width": width, "height": height}
        assert list(encode_region(PixelBox(*box), **size, rounding="official")) == numbers
        assert corners(decode_region(numbers, **size, decoding="integer")) == integers
        np.testing.assert_allclose(corners(decode_region(numbers, **size)), centers, rtol=0, atol=1e-9)


def test_float_order_traps() -> None:
    traps = COORDINATES["float_order_traps"]["rows"]
    assert len(traps) == 31
    for side, value, official, exact in traps:
        assert encode_coordinate(value, side, rounding="official") == official
        assert encode_coordinate(value, side) == exact
        assert encode_coordinate(np.float64(value), np.int64(side)) == exact


def test_mean_iou_of_round_trips() -> None:
    generator = np.random.default_rng(0)
    for width, height, side, official, center, bias in COORDINATES["mean_iou"]["rows"]:
        origins = generator.uniform(0, [width - side - 1, height - side - 1], size=(1500, 2))
        boxes = [PixelBox(x, y, x + side, y + side) for x, y in origins.tolist()]
        numbers = [encode_region(box, width=width, height=height, rounding="official") for box in boxes]
        for decoding, expected in (("integer", official), ("bin-center", center)):
            decoded = [decode_region(four, width=width, height=height, decoding=decoding) for four in numbers]
            ious = intersection_over_union([corners(box) for box in boxes], [corners(box) for box in decoded])
            assert ious.mean() == pytest.approx(expected, abs=0.01)
            if decoding == "integer":
                shift = np.mean([corners(b)[0] - corners(a)[0] for a, b in zip(boxes, decoded, strict=True)])
                assert shift == pytest.approx(bias, abs=0.1)


@pytest.mark.parametrize("case", TEXTS["decode"], ids=lambda case: f"{case['text'][:30]!r}-{case['w']}")
def test_official_parsers(case: dict[str, Any]) -> None:
    size = {"width": case["w"], "height": case["h"]}
    if case["error"]:
        with pytest.raises({"ValueError": ValueError, "IndexError": IndexError}[case["error"]]):
            parse_streaming(case["text"], **size)
    else:
        regions = parse_streaming(case["text"], **size)
        assert [phrase for phrase, _ in regions] == case["entities"]
        assert [corners(box) for _, box in regions] == case["boxes"]
    phrases, boxes = parse_template(case["text"], **size)
    assert phrases == case["template"]["entities"]
    assert [corners(box) for box in boxes] == case["template"]["boxes"]


# Not well formed: five numbers, inverted corners, numbers out of range. The official parser passes them on.
_UNUSUAL = ("extra", "reversed", "over")


@pytest.mark.parametrize("case", TEXTS["decode"], ids=lambda case: f"{case['text'][:30]!r}-{case['w']}")
def test_robust_parser_reads_every_well_formed_box(case: dict[str, Any]) -> None:
    parsed = parse_regions(case["text"], width=case["w"], height=case["h"], decoding="integer")
    if not case["error"] and not case["text"].startswith(_UNUSUAL):
        assert [corners(region.region) for region in parsed.regions] == case["boxes"]


@pytest.mark.parametrize(("a", "b", "same"), TEXTS["phrase_similar"])
def test_same_phrase(a: str, b: str, *, same: bool) -> None:
    assert is_same_phrase(a, b) is same


@pytest.mark.parametrize(
    ("text", "phrases", "problems"),
    [
        ("a man [0, 0, 999, 999] and a cat [10, 20, 30, 40].", ["a man", "a cat"], 0),
        ("two dogs [1, 2, 3, 4] and [5, 6, 7, 8].", ["two dogs", "two dogs"], 0),
        ("One thing. The boy: [9, 9, 20, 20]", ["The boy"], 0),
        ("The dog [1, 2, 3, 4]. [5, 6, 7, 8]", ["The dog", ""], 0),
        ("as in [3] and [a, b], see [] or [12", [], 2),
        ("a point [100, 200]", ["a point"], 0),
        ("edge [0, 0, 1000, 1000]", ["edge"], 0),
        ("fractions [0.1, 0.2, 0.3, 0.4]", [], 1),
        ("pixels [10, 20, 1920, 1080], inverted [9, 9, 1, 1]", ["inverted"], 1),
        ("[١, 2, 3, 4] [1e3, 2, 3, 4] [--1, 2, 3, 4]", [], 0),
    ],
)
def test_robust_parser(text: str, phrases: list[str], problems: int) -> None:
    parsed = parse_regions(text, width=640, height=480)
    assert [region.phrase for region in parsed.regions] == phrases
    assert len(parsed.problems) == problems
    assert all(text[region.start] == "[" and text[region.end - 1] == "]" for region in parsed.regions)


@given(st.text(alphabet="[]0123456789,.;- a\n\u0661", max_size=80) | st.text(max_size=80))
def test_robust_parser_never_raises(text: str) -> None:
    for region in parse_regions(text, width=640, height=480).regions:
        if isinstance(region.region, PixelBox):
            x1, y1, x2, y2 = corners(region.region)
            assert 0 <= x1 <= x2 <= 640
            assert 0 <= y1 <= y2 <= 480


@given(st.integers(1, 4000), st.data())
def test_round_trip_stays_in_the_bin(side: int, data: st.DataObject) -> None:
    value = data.draw(st.floats(0, side - 1))
    number = encode_coordinate(value, side)
    assert 0 <= number <= 999
    assert number * side <= value * 1000 + 1e-6
    assert value * 1000 <= (number + 1) * side + 1e-6
    # The center of the last bins of a small image lies beyond its last pixel, to which encoding clamps.
    expected = min(number, encode_coordinate(side - 1, side))
    assert encode_coordinate(decode_coordinate(number, side), side) == expected


def test_other_shapes_are_written_as_the_box_around_them() -> None:
    stroke = Stroke((Point(64, 48), Point(320, 240)))
    encoded = encode_mask(np.pad(np.ones((2, 3)), ((4, 94), (10, 87))))
    mask = Mask((100, 100), tuple(encoded["counts"]))
    assert format_region(stroke, width=640, height=480) == "[100, 100, 500, 500]"
    assert format_region(mask, width=100, height=100) == "[100, 40, 130, 60]"
    assert format_region(Point(320, 120), width=640, height=480) == "[500, 250]"
    with raises_naming(UserError, "without pixels"):
        format_region(Stroke(()), width=640, height=480)
    with raises_naming(UserError, "nan", "640"):
        format_region(Point(float("nan"), 0), width=640, height=480)


@pytest.mark.parametrize(
    ("text", "phrases", "boxes"),
    [
        # Several sentences are several phrases.
        (
            "The dog [1, 2, 30, 40] . The cat [5, 6, 70, 80].",
            ["The dog", "The cat"],
            [[1, 2, 30, 40], [5, 6, 70, 80]],
        ),
        ("A [1, 2, 3, 4] . B [5, 6, 7, 8] .", ["A", "B"], [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("man [1, 2, 3, 4] [1, 2, 3, 4] .", ["man"], [[1, 2, 3, 4]]),
        ("[1, 2, 3, 4] . [1, 2, 3, 4] .", [], [[1, 2, 3, 4]]),
        # Numbers with a zero in front are read, but the text with them stays.
        ("dog [001, 2, 3, 4]", ["dog [001, 2, 3, 4]"], [[1, 2, 3, 4]]),
    ],
)
def test_the_template_splits_sentences_and_has_each_box_once(
    text: str, phrases: list[str], boxes: list[list[int]]
) -> None:
    entities, found = parse_template(text, width=1000, height=1000)
    assert (entities, [corners(box) for box in found]) == (phrases, boxes)
