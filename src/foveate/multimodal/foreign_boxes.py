"""Boxes and points as the families of transformers write them: units, order of the numbers, forms of text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from foveate.core.errors import UserError, choose
from foveate.records.boxes import PixelBox
from foveate.records.conversations import find_shape_problem
from foveate.records.importers.coordinates import CoordinateFrame, fit_shape
from foveate.records.shapes import Point

if TYPE_CHECKING:
    from foveate.multimodal.foreign import ForeignMllm

# Units of boxes that are tokens instead of numbers: of PaliGemma, of Florence-2, of Kosmos-2.
PLACES, LOCATIONS, PATCHES = "places", "locations", "patches"
_PATCHES_PER_SIDE = 32


class Form(NamedTuple):
    """How a unit writes a box and a point.

    Attributes:
        frame: unit of `CoordinateFrame` that the numbers are in.
        box, point: formats of their coordinates. No box: a box is written as its center.
        bins: tokens along a side, of units that write tokens.
        y_first: whether y stands in front of x.
    """

    frame: str
    box: str
    point: str
    bins: int = 0
    y_first: bool = False


def _list(frame: str, digits: int, *, y_first: bool = False) -> Form:
    order = ("{{y{0}:.{1}f}}, {{x{0}:.{1}f}}" if y_first else "{{x{0}:.{1}f}}, {{y{0}:.{1}f}}").format
    return Form(frame, f"[{order(1, digits)}, {order(2, digits)}]", f"[{order(1, digits)}]", y_first=y_first)


# Rounding to whole numbers would turn fractions into 0 or 1.
FORMS = {
    "none": _list("pixels", 0),
    "pixels": _list("pixels", 0),
    "resized-pixels": _list("resized-pixels", 0),
    "0-1": _list("0-1", 2),
    "0-1-padded": _list("0-1-padded", 2),
    "0-1-cropped": _list("0-1-cropped", 2),
    "0-1000": _list("0-1000", 0),
    "0-1000-yx": _list("0-1000", 0, y_first=True),
    PLACES: Form("0-1", "<loc{y1}><loc{x1}><loc{y2}><loc{x2}>", "<loc{y1}><loc{x1}>", bins=1024, y_first=True),
    LOCATIONS: Form("0-1", "<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>", "<loc_{x1}><loc_{y1}>", bins=1000),
    PATCHES: Form("0-1", "<object><patch_index_{first:04d}><patch_index_{last:04d}></object>", ""),
    "points": Form("0-1000", "", '<points coords="1 1 {x1:03.0f} {y1:03.0f}">'),
}
KNOWN_UNITS = tuple(FORMS)


class Family(NamedTuple):
    """What a family of transformers writes, by its makers.

    Attributes:
        unit: of `FORMS`. shapes: what its answers have. source: where this is said.
        box: how it writes a box in a question, where not as its unit does.
        where: how it was taught to be asked for the place of a {phrase}, where not in a sentence.
    """

    unit: str
    shapes: str
    source: str
    box: str = ""
    where: str = ""


_QWEN = "QwenLM/Qwen3-VL, issues 676, 866 and 1486"
_GLM = Family("0-1000", "boxes, points", "zai-org, GLMV-Grounding")
_GEMMA_4 = Family("0-1000-yx", "boxes", "ai.google.dev/gemma/docs/capabilities/vision")
_NONE = "says nothing of boxes"
# What the numbers of a box mean stands in no config of a model.
FAMILIES = {
    "florence2": Family(LOCATIONS, "boxes", "transformers, Florence2PostProcessor"),
    "gemma3": Family("none", "", "google/gemma-3-4b-it, discussion 38: no format is documented"),
    "gemma4": _GEMMA_4,
    "gemma4_unified": _GEMMA_4,
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "idefics3": Family("none", "", _NONE),
    "internvl": Family(
        "0-1000", "boxes", "InternVL 2.0, grounding", "<box>[[{x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f}]]</box>"
    ),
    "kosmos-2": Family(PATCHES, "boxes", "transformers, Kosmos2Processor"),
    # The unit is the square that the processor shows, which transformers cuts out of the image unless `do_pad` is set.
    "llava": Family("0-1-padded", "boxes", "haotian-liu/LLaVA, docs of LLaVA-1.5's data"),
    "llava_next": Family("none", "", _NONE),
    "llava_onevision": Family("none", "", _NONE),
    "molmo2": Family("points", "points", "allenai/Molmo2-8B, model card"),
    "paligemma": Family(PLACES, "boxes", "big_vision, PaliGemma's README", where="detect {phrase}"),
    "qwen2_5_vl": Family("resized-pixels", "boxes, points", _QWEN),
    "qwen2_vl": Family("0-1000", "boxes", _QWEN, "<|box_start|>({x1:.0f},{y1:.0f}),({x2:.0f},{y2:.0f})<|box_end|>"),
    "qwen3_vl": Family("0-1000", "boxes, points", _QWEN),
    "qwen3_vl_moe": Family("0-1000", "boxes, points", _QWEN),
    "smolvlm": Family("none", "", _NONE),
}
UNITS = {name: family.unit for name, family in FAMILIES.items()}
# These families exist only as code in a repository, which is never run.
WITHOUT_CLASS = {
    "deepseek_vl_v2": "DeepSeek-VL2",
    "hf_moondream": "Moondream",
    "molmo": "Molmo (Molmo2 has one)",
    "moondream1": "Moondream",
    "moondream3": "Moondream",
}


def check_family(model_type: str, unit: str | None, *, source: str) -> None:
    """Raise UserError for a family without a class, or for a unit of boxes that is none."""
    if model_type in WITHOUT_CLASS:
        raise UserError(
            f"{source}: transformers has no class of {WITHOUT_CLASS[model_type]}, and code of a repository is never "
            "run; expected a model that transformers opens by itself"
        )
    if unit is not None:
        choose(unit, KNOWN_UNITS, "unit of boxes")


def find_unit(model_type: str, processor: Any) -> str | None:
    """Return the unit of a family's boxes; None for a family that is not in the table."""
    unit = UNITS.get(model_type)
    if unit != "0-1-padded":
        return unit
    # LLaVA was trained on padded squares. Its model type is that of others too, whose processors show other images.
    images = processor.image_processor
    if getattr(images, "do_pad", False):
        return unit
    return "0-1-cropped" if getattr(images, "do_center_crop", False) else "none"


def check_unit(model: ForeignMllm) -> str:
    """Return the unit of a model's boxes; raise UserError if it is unknown."""
    if model.unit is None:
        raise UserError(
            f"{model.name}: how '{model.model.config.model_type}' writes boxes is not known; expected --unit-of-boxes "
            f"(unit of open_foreign): {', '.join(KNOWN_UNITS)}"
        )
    return model.unit


# Signed, because a box may extend slightly beyond the image; see `read_boxes`.
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
# Lists, also in the double brackets of InternVL and GLM-V, and Qwen2-VL's two points.
BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]|\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_PLACE_BOX = re.compile(r"<loc(\d{4})>\s*" * 4)
_LOCATION_BOX = re.compile(r"<loc_(\d+)>" * 4)
_PATCH_BOX = re.compile(r"<patch_index_(\d+)>\s*<patch_index_(\d+)>")
_POINT_LIST = re.compile(rf'("point(?:_2d)?"\s*:\s*)\[{_NUMBER},{_NUMBER}\]')
# Molmo2's thousandths behind the number of an image and of each point, Molmo's hundredths.
_POINTS = re.compile(r"<points?\s([^>]*?)(?:/>|>([^<]*)</points?>)")
_COORDS = re.compile(r'coords="([^"]*)"')
_TRIPLE = re.compile(r"\b\d+ (\d{3,4}) (\d{3,4})\b")
_PERCENT = re.compile(r'\bx\d*="([\d.]+)"\s+y\d*="([\d.]+)"')
# Marks around boxes that are no part of an answer's words.
_MARKS = re.compile(r"</?(?:box|ref|object|phrase|grounding|delimiter_of_multi_objects/)>|<\|(?:begin|end)_of_box\|>")


def read_boxes(text: str, frame: CoordinateFrame, *, y_first: bool = False) -> tuple[str, tuple[PixelBox, ...]]:
    """Return a text with its boxes rewritten in pixels of the image, and these boxes.

    Corners may be inverted and may reach out of the image by 5 % of a side. Numbers that only look like a box stay as
    they are.

    Args:
        frame: in one of `CoordinateFrame`'s units. Tokens are read in any: they mean nothing else.
        y_first: whether y stands in front of x in numbers.
    """
    boxes: list[PixelBox] = []
    fractions = CoordinateFrame("0-1", frame.width, frame.height)

    def rewrite(match: re.Match[str]) -> str:
        # `BOX` has four groups for either way of writing a box; those of the other one are None.
        values, used = [float(group) for group in match.groups() if group is not None], fractions
        if match.re is _PLACE_BOX:
            y1, x1, y2, x2 = (place / FORMS[PLACES].bins for place in values)
        elif match.re is _LOCATION_BOX:
            # Microsoft's bins stand for their centers.
            x1, y1, x2, y2 = ((bin + 0.5) / FORMS[LOCATIONS].bins for bin in values)
        elif match.re is _PATCH_BOX:
            x1, y1, x2, y2 = _read_patches(int(values[0]), int(values[1]))
        else:
            used = frame
            x1, y1, x2, y2 = [values[1], values[0], values[3], values[2]] if y_first else values
        box = used.to_pixels(PixelBox(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        box = fit_shape(box, width=frame.width, height=frame.height)
        assert isinstance(box, PixelBox)
        if find_shape_problem(box, width=frame.width, height=frame.height):
            return match[0]
        boxes.append(box)
        corners = f"[{', '.join(str(round(edge)) for edge in (box.x1, box.y1, box.x2, box.y2))}]"
        # The pattern of places takes the space behind it, too.
        return f"{corners} " if match.re is _PLACE_BOX else corners

    tokens = (pattern for pattern in (_PLACE_BOX, _LOCATION_BOX, _PATCH_BOX) if pattern.search(text))
    rewritten = next(tokens, BOX).sub(rewrite, text)
    # Also without a box: a stream cannot take back a mark that it has shown.
    return _MARKS.sub("", rewritten).strip(), tuple(boxes)


def read_points(text: str, frame: CoordinateFrame) -> tuple[str, tuple[Point, ...]]:
    """Return a text with its points rewritten as `[x, y]` in pixels of the image, and these points.

    Args:
        frame: of lists behind "point_2d"; points of Molmo and Molmo2 are read in any.
    """
    points: list[Point] = []

    def place(x: float, y: float, used: CoordinateFrame) -> str:
        point = used.to_pixels(Point(x, y))
        assert isinstance(point, Point)
        if find_shape_problem(point, width=frame.width, height=frame.height):
            return ""
        points.append(point)
        return f"[{round(point.x)}, {round(point.y)}]"

    def rewrite_list(match: re.Match[str]) -> str:
        written = place(float(match[2]), float(match[3]), frame)
        return match[1] + written if written else match[0]

    def rewrite_mark(match: re.Match[str]) -> str:
        coords = _COORDS.search(match[1])
        pairs = _TRIPLE.findall(coords[1]) if coords else _PERCENT.findall(match[1])
        scale = 1000 if coords else 100
        used = CoordinateFrame("0-1", frame.width, frame.height)
        written = [place(float(x) / scale, float(y) / scale, used) for x, y in pairs]
        return " ".join(part for part in [(match[2] or "").strip(), *written] if part) if all(written) else match[0]

    return _POINTS.sub(rewrite_mark, _POINT_LIST.sub(rewrite_list, text)), tuple(points)


def _read_patches(first: int, last: int) -> tuple[float, float, float, float]:
    """Return fractions of a box between two cells of Kosmos-2's grid, as `patch_index_to_coordinate` does."""
    (y1, x1), (y2, x2) = divmod(first, _PATCHES_PER_SIDE), divmod(last, _PATCHES_PER_SIDE)
    # Cells in one row or column are taken whole: from center to center they would have no area.
    low, high = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    x1, y1, x2, y2 = x1 + low, y1 + low, x2 + high, y2 + high
    return x1 / _PATCHES_PER_SIDE, y1 / _PATCHES_PER_SIDE, x2 / _PATCHES_PER_SIDE, y2 / _PATCHES_PER_SIDE


def write_values(values: Sequence[float], unit: str, *, family: str = "") -> str:
    """Write x and y of a point or of two corners as a question of a unit, and of a family, has them.

    >>> write_values([0.25, 0.5], "0-1"), write_values([250.2, 500.0], "0-1000"), write_values([0.25, 0.5], "places")
    ('[0.25, 0.50]', '[250, 500]', '<loc0512><loc0256>')
    """
    form = FORMS[unit]
    box = FAMILIES[family].box if family in FAMILIES and FAMILIES[family].unit == unit else ""
    box = box or form.box
    if unit == PATCHES:
        # A point is the cell that it lies in.
        x1, y1, x2, y2 = (list(values) * 2)[:4] if len(values) == 2 else values
        top = [min(max(math.floor(value * _PATCHES_PER_SIDE), 0), _PATCHES_PER_SIDE - 1) for value in (x1, y1)]
        low = [min(max(math.ceil(value * _PATCHES_PER_SIDE - 1), 0), _PATCHES_PER_SIDE - 1) for value in (x2, y2)]
        low = [max(pair) for pair in zip(top, low, strict=True)]
        return form.box.format(first=top[1] * _PATCHES_PER_SIDE + top[0], last=low[1] * _PATCHES_PER_SIDE + low[0])
    if len(values) == 4 and not box:
        values = [(values[0] + values[2]) / 2, (values[1] + values[3]) / 2]
    named: dict[str, float | str] = {}
    for name, value in zip(("x1", "y1", "x2", "y2"), values, strict=False):
        named[name] = value
        if form.bins:
            number = min(max(int(value * form.bins), 0), form.bins - 1)
            named[name] = f"{number:04d}" if unit == PLACES else str(number)
    return (box if len(values) == 4 else form.point).format(**named)
