"""Regions that users point at: names in questions, numbers, strokes and masks from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import REGION
from foveate.records.importers.coordinates import CoordinateFrame
from foveate.records.region_prompts import name_regions, parse_box, parse_point, read_mask, read_stroke
from foveate.records.shapes import Mask, Point, Stroke, decode_mask
from naming import raises_naming


@given(st.lists(st.integers(1, 6), max_size=9))
def test_regions_come_in_the_order_of_the_text(numbers: list[int]) -> None:
    points = [Point(number, number) for number in range(1, max(numbers, default=0) + 1)]
    text = " or ".join(f"<{number}>" for number in numbers)
    missing = set(range(1, len(points) + 1)) - set(numbers)
    if missing:
        with raises_naming(UserError, f"region {min(missing)}", f"<{min(missing)}>"):
            name_regions(text, points)
        return
    named, regions = name_regions(text, points)
    assert named == " or ".join([REGION] * len(numbers))
    assert regions == tuple(Point(number, number) for number in numbers)


@pytest.mark.parametrize(
    ("question", "count", "named"),
    [("Is <3> big?", 2, "<3>"), ("Is <0> big?", 1, "<0>"), ("Is <1> a <region>?", 1, "<region>"), ("<1>?", 0, "<1>")],
)
def test_names_without_a_region_are_refused(question: str, count: int, named: str) -> None:
    with raises_naming(UserError, "question", named):
        name_regions(question, [Point(1, 1)] * count)


def test_a_region_without_a_name_is_refused_with_an_example() -> None:
    with raises_naming(UserError, "What is in this box?", "'What is <1>?'"):
        name_regions("What is in this box?", [Point(1, 1)])


def test_placeholders_of_training_stay() -> None:
    assert name_regions("Is <region> big?", [Point(1, 1)]) == ("Is <region> big?", (Point(1, 1),))
    assert name_regions("Is 1 < 2 > 0?", []) == ("Is 1 < 2 > 0?", ())


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4", "1,2,inf,4", "5,1,5,9", "1,9,5,2"])
def test_boxes_that_are_none_are_refused(text: str) -> None:
    with raises_naming(UserError, "--box", text):
        parse_box(text, name="--box")


def test_numbers_are_parsed() -> None:
    assert parse_box("1, 2,3.5,4") == PixelBox(1, 2, 3.5, 4)
    assert parse_point("79.5,0") == Point(79.5, 0)
    with raises_naming(UserError, "point", "1,2,3"):
        parse_point("1,2,3")


def test_strokes_are_read_from_lists_and_from_stored_shapes(tmp_path: Path) -> None:
    file = tmp_path / "stroke.json"
    for content in ([[1, 2], [3, 4.5]], {"stroke": [[1, 2], [3, 4.5]]}):
        file.write_text(json.dumps(content), encoding="utf-8")
        assert read_stroke(file) == Stroke((Point(1, 2), Point(3, 4.5)))
    for content in ("[]", "{}", "[1, 2]", '[["a", "b"]]', "[[1, 2, 3]]", "nothing", '{"point": [1, 2]}', "[[NaN, 1]]"):
        file.write_text(content, encoding="utf-8")
        with raises_naming(UserError, file):
            read_stroke(file)
    with raises_naming(UserError, tmp_path / "absent.json"):
        read_stroke(tmp_path / "absent.json")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_are_what_is_not_black(mode: str, tmp_path: Path) -> None:
    mask_HW = np.zeros((12, 20), bool)
    mask_HW[3:7, 5:11] = True
    if mode in ("RGBA", "LA"):
        # White everywhere: what is transparent does not count.
        image = Image.new("RGBA", (20, 12), (255, 255, 255, 0))
        image.putalpha(Image.fromarray(np.uint8(mask_HW) * 255))
        image = image.convert(mode)
    elif mode == "I;16":
        image = Image.fromarray(np.uint16(mask_HW) * 65535)
    elif mode == "P":
        image = Image.fromarray(np.uint8(mask_HW), mode="P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        image = Image.fromarray(np.uint8(mask_HW) * 255).convert(mode)
    image.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.size == (12, 20)
    np.testing.assert_array_equal(decode_mask({"size": list(mask.size), "counts": list(mask.counts)}), mask_HW)


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for name in ("empty.png", "broken.png", "absent.png"):
        with raises_naming(UserError, name):
            read_mask(tmp_path / name)


@given(
    st.sampled_from(["pixels", "0-1", "0-1000", "0-1-padded", "resized-pixels"]),
    st.tuples(*[st.floats(0, 500) for _ in range(4)]),
)
def test_a_unit_is_written_as_it_is_read(unit: str, values: tuple[float, float, float, float]) -> None:
    frame = CoordinateFrame(unit, 640, 480, resized=(644, 476))
    box = PixelBox(*values)
    back = frame.to_pixels(frame.from_pixels(box))
    assert isinstance(back, PixelBox)
    assert (back.x1, back.y1, back.x2, back.y2) == pytest.approx(values, abs=1e-6)
    with raises_naming(UserError, "region"):
        frame.from_pixels(Mask((480, 640), (480 * 640,)))
