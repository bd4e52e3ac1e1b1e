"""Questions about regions for models that never saw one: drawn into the image, as a crop beside it, or as numbers.

None of the three needs new weights, so they are baselines for models with regions of their own. Drawn marks follow
ViP-LLaVA (arXiv 2312.00784), the crop that of Describe Anything (arXiv 2504.16072): three times the sides of the
region's box, 48 pixels at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageDraw

from foveate.core.errors import UserError
from foveate.multimodal.answers import Answer
from foveate.multimodal.foreign import ForeignMllm, read_images
from foveate.multimodal.prepare import Question
from foveate.multimodal.questions import ask_turns, check_regions
from foveate.multimodal.settings import RegionPrompt
from foveate.records.box_text import format_region
from foveate.records.conversations import IMAGE, REGION, Conversation, locate_regions
from foveate.records.images import ImageInput
from foveate.records.shapes import Mask, Point, Shape, Stroke, decode_mask, enclosing_box

Mark = Literal["rectangle", "ellipse", "arrow"]
# The order of the colors that regions of one question get; red is what CLIP notices best (arXiv 2304.06712).
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 160, 0), "yellow": (255, 220, 0), "pink": (255, 0, 200)}
_ALPHA = 200
_FILL = 90
_CONTEXT = 3
_MIN_CROP = 48


def choose_region_prompt(model: Any) -> RegionPrompt | None:
    """Return how a model is asked about regions unless the user says it; None: by its own regions.

    Example:
        >>> choose_region_prompt(open_mllm("mini")) is None
        True
    """
    if not isinstance(model, ForeignMllm):
        return None
    return "draw" if model.unit in (None, "none") else "coordinates"


def prompt_regions(
    model: Any,
    images: Sequence[ImageInput] | ImageInput,
    question: str,
    regions: Sequence[Shape],
    prompt: RegionPrompt | None = None,
    *,
    mark: Mark = "rectangle",
) -> Question:
    """Return a question with its regions drawn, cropped or written as coordinates, for any model that is asked.

    Args:
        model: decides the unit of coordinates, and the prompt where `prompt` is None.
        question: see `Mllm.ask`; `<1>` becomes words such as "the thing in the red rectangle".
        mark: drawn around a box; a point gets an arrow, a stroke its line, a mask its area.

    Raises:
        UserError: a region lies outside, or the question does not name it.

    Example:
        >>> question = prompt_regions(open_mllm("mini"), image_file, "What is <1>?", [Point(8, 8)], "draw")
        >>> question.text.removeprefix("<image>").strip(), question.regions
        ('What is the thing at the red arrow?', ())
    """
    prompt = prompt or choose_region_prompt(model)
    # A model of transformers writes coordinates in the unit of its family by itself.
    if not regions or prompt is None or (prompt == "coordinates" and isinstance(model, ForeignMllm)):
        return Question(images, question, regions)
    pictures = read_images(images)
    (turn,) = ask_turns(question, regions, images=len(pictures))
    conversation = Conversation("question", tuple(map(str, range(len(pictures)))), (turn,))
    check_regions(conversation, [image.size for image in pictures], regions)
    (owners,) = locate_regions(conversation)
    # A region that the question names twice has one mark and one crop.
    marks = {id(shape): number for number, shape in reversed([*enumerate(regions)])}
    drawn, crops, words = list(pictures), list[Image.Image](), dict[int, str]()
    pieces = turn.text.split(REGION)
    for place, (shape, owner) in enumerate(zip(turn.regions, owners, strict=True)):
        number = marks[id(shape)]
        if number not in words and prompt == "coordinates":
            width, height = pictures[owner].size
            words[number] = format_region(shape, width=width, height=height)
        elif number not in words and prompt == "draw":
            drawn[owner], words[number] = draw_region(drawn[owner], shape, mark=mark, number=number)
        elif number not in words:
            crops.append(crop_region(pictures[owner], shape))
            words[number] = f"the thing in the middle of image {len(pictures) + len(crops)}"
        pieces[place] += words[number]
    text = "".join(pieces)
    lead = IMAGE * len(pictures)
    # Behind all others, so that the numbers of these stay.
    text = lead + IMAGE * len(crops) + text.removeprefix(lead) if text.startswith(lead) else text + IMAGE * len(crops)
    return Question(cast(Sequence[ImageInput], [*drawn, *crops]), text, ())


def drop_crops(answer: Answer, num_images: int) -> Answer:
    """Return an answer without boxes that lie in crops, behind the first `num_images` images."""
    kept = [number for number, image in enumerate(answer.images) if image < num_images]
    if len(kept) == len(answer.images):
        return answer
    return replace(
        answer,
        boxes=tuple(answer.boxes[number] for number in kept),
        images=tuple(answer.images[number] for number in kept),
        phrases=tuple(answer.phrases[number] for number in kept),
        # Only some models have these.
        digits=tuple(answer.digits[number] for number in kept if answer.digits),
        box_scores=tuple(answer.box_scores[number] for number in kept if answer.box_scores),
    )


def draw_region(
    image: Image.Image, shape: Shape, *, mark: Mark = "rectangle", number: int = 0
) -> tuple[Image.Image, str]:
    """Return a copy of an image with a mark at a shape, and the words for what it marks.

    Args:
        number: of the region, which decides the color.

    Example:
        >>> draw_region(Image.new("RGB", (64, 48)), PixelBox(8, 8, 40, 30), mark="ellipse", number=1)[1]
        'the thing in the blue ellipse'
    """
    if number >= len(COLORS):
        raise UserError(f"region {number + 1}: there is no further color to draw it in; expected at most {len(COLORS)}")
    color, rgb = list(COLORS.items())[number]
    over = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw, line = ImageDraw.Draw(over), (*rgb, _ALPHA)
    width = max(2, round(min(image.size) / 100))
    if isinstance(shape, Stroke):
        draw.line([(point.x, point.y) for point in shape.points], fill=line, width=width, joint="curve")
        words = f"the thing under the {color} line"
    elif isinstance(shape, Mask):
        inside_HW = decode_mask({"size": list(shape.size), "counts": list(shape.counts)})
        over.paste((*rgb, _FILL), mask=Image.fromarray(np.asarray(inside_HW, np.uint8) * 255))
        words = f"the thing in the {color} area"
    elif isinstance(shape, Point) or mark == "arrow":
        box = enclosing_box(shape)
        assert box is not None
        _draw_arrow(draw, ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2), image.size, line, width)
        words = f"the thing at the {color} arrow"
    else:
        corners = (shape.x1, shape.y1, shape.x2, shape.y2)
        (draw.ellipse if mark == "ellipse" else draw.rectangle)(corners, outline=line, width=width)
        words = f"the thing in the {color} {mark}"
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB"), words


def _draw_arrow(
    draw: ImageDraw.ImageDraw, tip: tuple[float, float], size: tuple[int, int], line: tuple[int, ...], width: int
) -> None:
    """Draw an arrow whose tip is at a point, from the side of the image where there is more room."""
    length, head = min(size) / 6, max(3 * width, 5)
    across = -1 if tip[0] > size[0] / 2 else 1
    down = -1 if tip[1] > size[1] / 2 else 1
    tail = (tip[0] + across * length, tip[1] + down * length)
    draw.line([tail, tip], fill=line, width=width)
    draw.polygon([tip, (tip[0] + across * head, tip[1]), (tip[0], tip[1] + down * head)], fill=line)


def crop_region(image: Image.Image, shape: Shape) -> Image.Image:
    """Return what lies around a shape: three times the sides of its box, 48 pixels at least, within the image.

    Example:
        >>> crop_region(Image.new("RGB", (640, 480)), PixelBox(100, 100, 200, 140)).size
        (300, 120)
    """
    box = enclosing_box(shape)
    assert box is not None, "an empty region was refused before"
    edges: list[int] = []
    for low, high, side in ((box.x1, box.x2, image.width), (box.y1, box.y2, image.height)):
        extent = min(max(_CONTEXT * (high - low), _MIN_CROP), side)
        # Moved inwards at the border, so that the crop keeps its size.
        start = min(max((low + high - extent) / 2, 0), side - extent)
        edges += [round(start), max(round(start + extent), round(start) + 1)]
    left, right, upper, lower = edges
    return image.crop((left, upper, right, lower))
