"""Letterbox and views: inverses, and boxes that move with the pixels."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from foveate.core.errors import UserError
from foveate.records.boxes import Box, intersection_over_union
from foveate.records.geometry import Letterbox, Placement, View, padded_square_to_original
from naming import raises_naming

sides = st.integers(8, 3000)
sizes = st.sampled_from((32, 224, 336))


@st.composite
def box_arrays(draw: st.DrawFn) -> np.ndarray:
    rows = draw(st.lists(st.tuples(*(st.floats(0, 1) for _ in range(4))), min_size=1, max_size=6))
    corners = np.array(rows).reshape(-1, 2, 2)
    low, high = corners.min(1) * 0.99, corners.max(1) * 0.99 + 0.01
    return np.concatenate((low, high), axis=1)


def fits(width: int, height: int, size: int) -> bool:
    return min(width, height) * size >= max(width, height)


@given(sides, sides, sizes, box_arrays())
def test_letterbox_there_and_back(width: int, height: int, size: int, boxes: np.ndarray) -> None:
    assume(fits(width, height, size))
    letterbox = Letterbox(width, height, size)
    moved = letterbox.to_input(boxes)
    np.testing.assert_allclose(letterbox.to_original(moved), boxes, atol=1e-6)
    content = letterbox.content_box
    assert (moved[:, 0] >= content.x1).all()
    assert (moved[:, 1] >= content.y1).all()
    assert (moved[:, 2] <= content.x2).all()
    assert (moved[:, 3] <= content.y2).all()
    resized, pad = letterbox.resized, letterbox.pad
    assert resized[0] + pad.left + pad.right == resized[1] + pad.top + pad.bottom == size
    assert max(resized) == size
    assert min(pad) >= 0
    assert 0 <= pad.right - pad.left <= 2
    assert 0 <= pad.bottom - pad.top <= 2


@given(sides, sides, sizes, box_arrays(), st.booleans())
def test_a_view_without_crop_there_and_back(width: int, height: int, size: int, boxes: np.ndarray, flip: bool) -> None:
    assume(fits(width, height, size))
    placement = View(flip=flip).fit(width, height, size)
    moved, kept = placement.to_input(boxes)
    assert kept.all()
    np.testing.assert_allclose(placement.to_original(moved), boxes, atol=1e-6)


@given(st.integers(64, 2000), st.integers(64, 2000), box_arrays(), box_arrays(), st.booleans())
def test_a_cropped_view_returns_the_visible_part(
    width: int, height: int, crops: np.ndarray, boxes: np.ndarray, flip: bool
) -> None:
    crop = crops[0].copy()
    crop[2:] = np.maximum(crop[2:], crop[:2] + 0.25).clip(max=1)
    crop[:2] = np.minimum(crop[:2], crop[2:] - 0.25)
    assume(fits(int(width * (crop[2] - crop[0])), int(height * (crop[3] - crop[1])), 224))
    placement = View(Box.from_array(crop), flip).fit(width, height, 224)
    moved, kept = placement.to_input(boxes, min_visible=0.5)
    window = np.array(placement.crop_px) / np.array((width, height) * 2)
    visible = boxes.clip(np.tile(window[:2], 2), np.tile(window[2:], 2))
    np.testing.assert_allclose(placement.to_original(moved), visible[kept], atol=1e-6)
    assert (placement.visible_fraction(boxes)[~kept] < 0.5).all()
    assert (moved[:, 2:] > moved[:, :2]).all()


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(80, 300), st.integers(80, 300)),
    corners=st.tuples(*(st.floats(0.05, 0.95) for _ in range(4))),
    crop=st.one_of(st.none(), st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.6, 1))),
    flip=st.booleans(),
)
def test_a_drawn_rectangle_is_found_where_its_box_says(
    size: tuple[int, int],
    corners: tuple[float, float, float, float],
    crop: tuple[float, float, float, float] | None,
    flip: bool,
) -> None:
    """Draws a red rectangle on green, renders the view and compares the box with the red pixels."""
    width, height = size
    x1, x2 = sorted((round(corners[0] * width), round(corners[2] * width)))
    y1, y2 = sorted((round(corners[1] * height), round(corners[3] * height)))
    assume(x2 - x1 >= 12 and y2 - y1 >= 12)
    image = Image.new("RGB", size, (0, 255, 0))
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(255, 0, 0))
    view = View(Box(*crop) if crop else None, flip)
    placement = view.fit(width, height, 224)
    box = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    moved, kept = placement.to_input(box, min_visible=0.2)
    assume(kept.all())

    pixels = np.asarray(view.render(image, 224, (0, 0, 255))).astype(int)
    assert pixels.shape == (224, 224, 3)
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]) / 224
    # Each edge of the red area may differ from the box by the pixel that both colors share.
    np.testing.assert_allclose(moved, seen, atol=1.01 / 224)

    content = placement.letterbox.content_box.to_pixels(224, 224)
    inside = np.zeros((224, 224), dtype=bool)
    inside[round(content.y1) : round(content.y2), round(content.x1) : round(content.x2)] = True
    np.testing.assert_array_equal(pixels[..., 2] > 127, ~inside)


def test_flip_mirrors() -> None:
    moved, kept = View(flip=True).fit(100, 100, 50).to_input([[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(moved, [[0.7, 0.2, 0.9, 0.4]])
    assert kept.tolist() == [True]


def test_flip_keeps_the_uneven_padding_in_place() -> None:
    image = Image.new("RGB", (37, 1000), (255, 255, 255))
    columns = np.asarray(View(flip=True).render(image, 224))[100, :, 0]
    assert np.flatnonzero(columns)[[0, -1]].tolist() == [107, 114]


def test_crop_loses_and_clips_boxes() -> None:
    placement = View(Box(0, 0, 0.5, 1)).fit(200, 100, 100)
    boxes = [[0.0, 0.0, 0.25, 0.5], [0.4, 0.0, 0.9, 1.0], [0.25, 0.0, 0.75, 1.0], [0.6, 0.0, 0.9, 1.0]]
    np.testing.assert_allclose(placement.visible_fraction(boxes), [1, 0.2, 0.5, 0])
    moved, kept = placement.to_input(boxes)
    assert kept.tolist() == [True, False, True, False]
    np.testing.assert_allclose(moved, [[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]])
    assert placement.to_input(boxes, min_visible=0)[1].tolist() == [True, True, True, False]
    empty, none = placement.to_input(np.zeros((0, 4)))
    assert empty.shape == (0, 4)
    assert none.shape == (0,)


def test_center_crop_leaves_no_padding() -> None:
    placement = View.center_crop(301, 200).fit(301, 200, 96)
    assert placement.crop_px == (50, 0, 250, 200)
    assert placement.letterbox.pad == (0, 0, 0, 0)


def test_tiny_crops_show_at_least_a_pixel() -> None:
    view = View(Box(0.999, 0.999, 1, 1))
    assert view.fit(10, 10, 32).crop_px == (9, 9, 10, 10)
    with raises_naming(UserError, "too narrow"):
        View(Box(0, 0, 1, 0.001)).fit(1000, 1000, 224)


def test_render_uses_the_same_resizing_as_pillow() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    square = View(Box(0.25, 0, 1, 1)).render(noise, 60)
    direct = noise.crop((20, 0, 80, 60))
    np.testing.assert_array_equal(np.asarray(square), np.asarray(direct))
    gray = noise.convert("L")
    assert View().render(gray, 60).mode == "RGB"
    with raises_naming(UserError, "cannot render"):
        Placement(81, 60, (0, 0, 81, 60), False, 60).render(noise)


def test_padded_square() -> None:
    boxes = padded_square_to_original([[0, 0, 0.5, 0.5], [0.1, 0.6, 0.2, 0.9]], 200, 100)
    np.testing.assert_allclose(boxes, [[0, 0, 0.5, 1], [0.1, 1, 0.2, 1]])
    assert intersection_over_union(boxes[1:], boxes[1:]).tolist() == [0]
