"""Boxes as the families of transformers write them: in lists, as two points, or as tokens of places."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.records.boxes import PixelBox
from foveate.records.conversations import find_shape_problem
from foveate.records.importers.coordinates import CoordinateFrame, fit_shape

# Unit of boxes that are tokens of places instead of numbers.
PLACES = "places"
# What the numbers of a box mean stands in no config. Qwen2-VL and Qwen3-VL write 0 to 1000, Qwen2.5-VL pixels of the
# image as it sees it (QwenLM/Qwen3-VL, threads 676, 866 and 1486); InternVL and GLM-V 0 to 1000 (docs of InternVL 2.0,
# "grounding"; zai-org's GLMV-Grounding); PaliGemma tokens of places, y first, of 1024 (big_vision, PaliGemma's README).
# LLaVA's 0-1 is of a padded square, and its processor in transformers cuts one out instead.
UNITS = {
    "gemma3": "none",
    "glm4v": "0-1000",
    "idefics3": "none",
    "internvl": "0-1000",
    "llava": "none",
    "llava_next": "none",
    "llava_onevision": "none",
    "paligemma": PLACES,
    "qwen2_5_vl": "resized-pixels",
    "qwen2_vl": "0-1000",
    "qwen3_vl": "0-1000",
    "smolvlm": "none",
}
KNOWN_UNITS = ("none", "pixels", "resized-pixels", "0-1", "0-1-padded", "0-1000", PLACES)
_NUM_PLACES = 1024
# Signed, because a box may extend slightly beyond the image; see `read_boxes`.
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
# Lists, also in the double brackets of InternVL and GLM-V, and Qwen2-VL's two points.
BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]|\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_PLACE_BOX = re.compile(r"<loc(\d{4})>\s*" * 4)
# Marks around boxes that are no part of an answer's words.
_MARKS = re.compile(r"</?(?:box|ref)>|<\|(?:begin|end)_of_box\|>")


def read_boxes(text: str, frame: CoordinateFrame) -> tuple[str, tuple[PixelBox, ...]]:
    """Return a text with its boxes rewritten in pixels of the image, and these boxes.

    Corners may be inverted and may reach out of the image by 5 % of a side. Numbers that only look like a box stay as
    they are.

    Args:
        frame: in one of `CoordinateFrame`'s units. Tokens of places are read in any: they mean nothing else.
    """
    boxes: list[PixelBox] = []

    def rewrite(match: re.Match[str]) -> str:
        # `BOX` has four groups for either way of writing a box; those of the other one are None.
        first, second, third, fourth = (float(group) for group in match.groups() if group is not None)
        if match.re is _PLACE_BOX:
            y1, x1, y2, x2 = (place / _NUM_PLACES for place in (first, second, third, fourth))
            used = CoordinateFrame("0-1", frame.width, frame.height)
        else:
            x1, y1, x2, y2, used = first, second, third, fourth, frame
        box = used.to_pixels(PixelBox(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        box = fit_shape(box, width=frame.width, height=frame.height)
        assert isinstance(box, PixelBox)
        if find_shape_problem(box, width=frame.width, height=frame.height):
            return match[0]
        boxes.append(box)
        corners = f"[{', '.join(str(round(edge)) for edge in (box.x1, box.y1, box.x2, box.y2))}]"
        # The pattern of places takes the space behind it, too.
        return f"{corners} " if match.re is _PLACE_BOX else corners

    pattern = _PLACE_BOX if _PLACE_BOX.search(text) else BOX
    rewritten = pattern.sub(rewrite, text)
    # Also without a box: a stream cannot take back a mark that it has shown.
    return _MARKS.sub("", rewritten).strip(), tuple(boxes)


def write_values(values: Sequence[float], unit: str) -> str:
    """Write x and y of a point or of two corners as a question of a unit has them.

    >>> write_values([0.25, 0.5], "0-1"), write_values([250.2, 500.0], "0-1000"), write_values([0.25, 0.5], "places")
    ('[0.25, 0.50]', '[250, 500]', '<loc0512><loc0256>')
    """
    if unit == PLACES:
        y_first = [values[index + 1 - 2 * (index % 2)] for index in range(len(values))]
        return "".join(f"<loc{min(int(value * _NUM_PLACES), _NUM_PLACES - 1):04d}>" for value in y_first)
    # Rounding would turn fractions into 0 or 1.
    digits = 2 if unit.startswith("0-1") and unit != "0-1000" else 0
    return f"[{', '.join(f'{value:.{digits}f}' for value in values)}]"
