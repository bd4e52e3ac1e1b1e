"""Regions for models that never saw one: what is drawn, what is cropped, what is written, and the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.multimodal.answers import Answer
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.pointing import choose_region_prompt, crop_region, draw_region, drop_crops, prompt_regions
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Mask, Point, Shape, Stroke, encode_mask
from multimodal.foreign_models import save
from naming import raises_naming

BOX = PixelBox(20, 10, 60, 50)


def gray(width: int = 120, height: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def mask() -> Mask:
    mask_HW = np.zeros((90, 120), bool)
    mask_HW[10:50, 20:60] = True
    encoded = encode_mask(mask_HW)
    return Mask((90, 120), tuple(encoded["counts"]))


@pytest.mark.parametrize(
    ("shape", "mark", "words"),
    [
        (BOX, "rectangle", "the thing in the red rectangle"),
        (BOX, "ellipse", "the thing in the red ellipse"),
        (BOX, "arrow", "the thing at the red arrow"),
        (Point(40, 30), "rectangle", "the thing at the red arrow"),
        (Stroke((Point(20, 10), Point(60, 50))), "rectangle", "the thing under the red line"),
        (mask(), "rectangle", "the thing in the red area"),
    ],
)
def test_a_mark_is_red_and_at_its_region(shape: Shape, mark: Any, words: str) -> None:
    image = gray()
    drawn, said = draw_region(image, shape, mark=mark)
    assert said == words
    change_HW = (np.asarray(drawn, int) - np.asarray(image, int)).sum(2) != 0
    assert change_HW.any()
    red_3 = np.asarray(drawn)[change_HW].mean(0)
    assert red_3[0] > red_3[1] + 50
    # Transparent: what lies under it still shows.
    assert red_3[1] > 20
    rows, columns = np.nonzero(change_HW)
    if mark != "arrow" and not isinstance(shape, Point):
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx((20, 10, 60, 50), abs=2)
    else:
        assert change_HW[28:33, 38:43].any()
    if isinstance(shape, PixelBox) and mark != "arrow":
        assert not change_HW[25:35, 35:45].any(), "what is pointed at stays visible"
    assert np.array_equal(np.asarray(image), np.asarray(gray())), "the image itself stays as it is"


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (BOX, (120, 90)),
        (PixelBox(50, 40, 70, 50), (60, 48)),
        (Point(1, 1), (48, 48)),
        (PixelBox(0, 0, 120, 90), (120, 90)),
    ],
)
def test_a_crop_has_context_and_stays_in_the_image(shape: Shape, size: tuple[int, int]) -> None:
    assert crop_region(gray(), shape).size == size


def test_questions_name_what_is_drawn() -> None:
    model: Any = None
    regions = [BOX, Point(100, 70)]
    question = prompt_regions(model, gray(), "Is <2> left of <1>, or <1> of <2>?", regions, "draw")
    red, blue = "the thing in the red rectangle", "the thing at the blue arrow"
    assert question.text == f"<image>\nIs {blue} left of {red}, or {red} of {blue}?"
    assert (len(list(question.images)), question.regions) == (1, ())
    cropped = prompt_regions(model, [gray(), gray()], "Is <1> in <image> or <image>?", [BOX], "crop")
    assert cropped.text == "Is the thing in the middle of image 3 in <image> or <image>?<image>"
    first, second, crop = cropped.images
    assert isinstance(crop, Image.Image)
    assert crop.size == (120, 90)
    lead = prompt_regions(model, gray(), "What are <1> and <2>?", regions, "crop")
    assert lead.text.startswith("<image><image><image>\nWhat are the thing in the middle of image 2 and ")
    written = prompt_regions(model, gray(), "What is <1>?", [BOX], "coordinates")
    assert written.text == "<image>\nWhat is [166, 111, 500, 555]?"
    with raises_naming(UserError, "region 1", "120 x 90"):
        prompt_regions(model, gray(), "What is <1>?", [PixelBox(0, 0, 500, 5)], "draw")
    with raises_naming(UserError, "region 6", "color"):
        prompt_regions(model, gray(), "What are <1> <2> <3> <4> <5> <6>?", [Point(n, n) for n in range(6)], "draw")


def test_boxes_in_crops_are_left_out() -> None:
    answer = Answer("two", boxes=(BOX, BOX), images=(1, 0), phrases=("crop", "whole"), box_scores=(1.0, 2.0))
    kept = drop_crops(answer, 1)
    assert (kept.boxes, kept.images, kept.phrases, kept.box_scores) == ((BOX,), (0,), ("whole",), (2.0,))
    assert drop_crops(answer, 2) is answer


def test_each_model_has_its_default(tmp_path: Path) -> None:
    mini = open_mllm("mini", device="cpu")
    assert choose_region_prompt(mini) is None
    assert prompt_regions(mini, gray(), "What is <1>?", [BOX]).regions == [BOX]
    assert mini.ask(*prompt_regions(mini, gray(), "What is <1>?", [BOX], "crop")[:2], max_tokens=2).text
    for family, expected in (("smolvlm", "draw"), ("qwen2_vl", "coordinates")):
        model = open_mllm(save(family, tmp_path / family), device="cpu")
        assert choose_region_prompt(model) == expected
        question = prompt_regions(model, gray(), "what is <1>", [BOX])
        assert ("red rectangle" in question.text) == (expected == "draw")
        assert model.ask(question.images, question.text, regions=question.regions, max_tokens=2).tokens
