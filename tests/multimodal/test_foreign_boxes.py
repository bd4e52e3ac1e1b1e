"""What each family of transformers writes for boxes and points, read and written by hand."""

from __future__ import annotations

import re

import pytest

from foveate.multimodal.foreign_boxes import FAMILIES, FORMS, UNITS, read_boxes, read_points, write_values
from foveate.multimodal.foreign_turns import _UNCERTAIN
from foveate.records.boxes import PixelBox
from foveate.records.importers.coordinates import CoordinateFrame, list_values
from foveate.records.shapes import Point

# One box, 400 to 1,000 and 120 to 360 in an image of 1,600 x 800 pixels, as each family would answer. Qwen2.5-VL saw
# the image at 812 x 420; LLaVA saw the 800 x 800 pixels in the middle, or a square padded to 1,600.
BOX = PixelBox(400, 120, 1000, 360)
ANSWERS = {
    "florence2": ("car<loc_249><loc_149><loc_624><loc_449>", "car"),
    "gemma4": ('[{"box_2d": [150, 250, 450, 625], "label": "car"}]', ""),
    "glm4v": ("The car is at <|begin_of_box|>[250,150,625,450]<|end_of_box|>.", "The car is at"),
    "glm46v": ('[{"bbox_2d": [250, 150, 625, 450], "label": "car"}]', ""),
    "internvl": ("<ref>car</ref><box>[[250, 150, 625, 450]]</box>", "car"),
    "kosmos-2": ("<grounding><phrase> a car</phrase><object><patch_index_0136><patch_index_0467></object>", "a car"),
    "llava": ("The car [0.00, 0.15, 0.75, 0.45]", "The car"),
    "paligemma": ("<loc0153><loc0256><loc0460><loc0640> car", "car"),
    "qwen2_5_vl": ('```json\n[{"bbox_2d": [203, 63, 508, 189], "label": "car"}]\n```', ""),
    "qwen2_vl": ("<|object_ref_start|>car<|object_ref_end|><|box_start|>(250,150),(625,450)<|box_end|>", "car"),
    "qwen3_vl": ('{"bbox_2d": [250, 150, 625, 450]}', ""),
    "qwen3_vl_moe": ('{"bbox_2d": [625, 450, 250, 150]}', ""),
}


def frame_of(unit: str) -> CoordinateFrame:
    return CoordinateFrame(FORMS[unit].frame, 1600, 800, resized=(812, 420))


@pytest.mark.parametrize("family", ANSWERS)
def test_an_answer_of_each_family(family: str) -> None:
    unit = "0-1-cropped" if family == "llava" else UNITS[family]
    written, words = ANSWERS[family]
    text, (box,) = read_boxes(written, frame_of(unit), y_first=FORMS[unit].y_first)
    # Kosmos-2's cells are 50 x 25 pixels.
    slack = 26 if family == "kosmos-2" else 2
    assert list_values(box) == pytest.approx(list_values(BOX), abs=slack)
    assert f"[{', '.join(str(round(value)) for value in list_values(box))}]" in text
    assert words in text
    assert "<" not in text.replace("<|object", "").replace("<|box", "")


@pytest.mark.parametrize("unit", [unit for unit in FORMS if unit not in ("none", "points")])
@pytest.mark.parametrize("box", [BOX, PixelBox(401, 0, 1199, 800), PixelBox(700, 300, 731, 333)])
def test_what_is_written_is_read_again(unit: str, box: PixelBox) -> None:
    frame = frame_of(unit)
    written = write_values(list_values(frame.from_pixels(box)), unit)
    _, (read,) = read_boxes(f"It is {written}", frame, y_first=FORMS[unit].y_first)
    slack = {"patches": 27, "0-1": 9, "0-1-padded": 9, "0-1-cropped": 5}.get(unit, 2)
    assert list_values(read) == pytest.approx(list_values(box), abs=slack)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_regions_in_questions_have_the_unit_of_the_family(family: str) -> None:
    unit = UNITS[family]
    frame = frame_of(unit)
    written = write_values(list_values(frame.from_pixels(BOX)), unit, family=family)
    if unit == "points":
        assert written == '<points coords="1 1 438 300">'
    else:
        _, (read,) = read_boxes(written, frame, y_first=FORMS[unit].y_first)
        assert list_values(read) == pytest.approx(list_values(BOX), abs=27 if unit == "patches" else 9)
    point = write_values(list_values(frame.from_pixels(Point(800, 400))), unit, family=family)
    assert re.search(r"\d", point)


@pytest.mark.parametrize(
    ("written", "text", "points"),
    [
        ('<points coords="1 1 250 150 2 625 450">cars</points>', "cars [400, 120] [1000, 360]", 2),
        ('Here <point x="25.0" y="15.0" alt="car">car</point>.', "Here car [400, 120].", 1),
        ('<points x1="25.0" y1="15.0" x2="62.5" y2="45" alt="cars">cars</points>', "cars [400, 120] [1000, 360]", 2),
        ('[{"point_2d": [250, 150], "label": "car"}]', '[{"point_2d": [400, 120], "label": "car"}]', 1),
        ('<point x="250" y="15">car</point> (3, 4)', '<point x="250" y="15">car</point> (3, 4)', 0),
    ],
)
def test_points_are_read_in_pixels(written: str, text: str, points: int) -> None:
    rewritten, read = read_points(written, CoordinateFrame("0-1000", 1600, 800))
    assert rewritten == text
    assert read == (Point(400, 120), Point(1000, 360))[:points]


@pytest.mark.parametrize("family", [*ANSWERS, "molmo2"])
def test_a_stream_shows_no_half_of_a_box(family: str) -> None:
    written = '<points coords="1 1 250 150">car</points> is here' if family == "molmo2" else ANSWERS[family][0]
    unit = "0-1-cropped" if family == "llava" else UNITS[family]
    frame = frame_of(unit)

    def read(text: str) -> str:
        return read_boxes(read_points(text, frame)[0], frame, y_first=FORMS[unit].y_first)[0]

    whole = read(written)
    for end in range(len(written)):
        assert whole.startswith(_UNCERTAIN.sub("", read(written[:end])).rstrip())
