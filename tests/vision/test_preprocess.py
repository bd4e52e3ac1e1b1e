"""Preprocessing into rectangles and by stretching: pixels and boxes move together."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.geometry import Letterbox, Placement, View
from foveate.vision.preprocess import Preprocess, compute_draft_side, place_image, render_image
from naming import raises_naming

HALF = (0.5, 0.5, 0.5)
SIZES = [(272, 640), (270, 480), (720, 1280), (23, 57), (34, 120), (640, 480), (336, 336), (400, 500), (1, 9)]


def preprocess(size: int | tuple[int, int], geometry: str, interpolation: str = "bicubic") -> Preprocess:
    return Preprocess(size, HALF, HALF, interpolation=interpolation, geometry=geometry)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [56, (40, 72)])
def test_stretching_is_two_bicubic_passes_width_first(size: tuple[int, int], target: int | tuple[int, int]) -> None:
    image, how = noise(*size), preprocess(target, "stretch")
    placement = place_image(how, image.size, View())
    wide = image.resize((how.width, image.height), Image.Resampling.BICUBIC)
    expected = np.asarray(wide.resize((how.width, how.height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(render_image(how, image, placement).numpy().transpose(1, 2, 0), expected)
    flipped = render_image(how, image, place_image(how, image.size, View(flip=True))).numpy()
    np.testing.assert_array_equal(flipped.transpose(1, 2, 0), expected[:, ::-1])
    assert compute_draft_side(placement) >= max(size), "the whole image is decoded"


def test_palette_and_alpha_are_rgb_before_stretching() -> None:
    image = noise(30, 20).convert("P")
    how = preprocess(16, "stretch")
    expected = render_image(how, image.convert("RGB"), place_image(how, image.size, View()))
    assert (render_image(how, image, place_image(how, image.size, View())) == expected).all()


@given(
    width=st.integers(1, 400), height=st.integers(1, 400), rows=st.integers(1, 60), columns=st.integers(1, 60),
    geometry=st.sampled_from(["letterbox", "center_crop", "stretch"]), flip=st.booleans(),
)  # fmt: skip
def test_boxes_come_back_from_any_rectangle(
    width: int, height: int, rows: int, columns: int, geometry: str, flip: bool
) -> None:
    how = preprocess((rows, columns), geometry)
    try:
        placement = place_image(how, (width, height), View(flip=flip))
    except UserError:
        assert geometry != "stretch", "an image is never too narrow to be stretched"
        return
    content = placement.letterbox.content_box.to_array()[None]
    whole = placement.to_original(content)
    x1, y1, x2, y2 = placement.crop_px
    crop = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    np.testing.assert_allclose(whole, crop, atol=1e-9)
    moved, kept = placement.to_input(crop)
    assert kept.all()
    np.testing.assert_allclose(moved, content, atol=1e-9)


@given(width=st.integers(1, 500), height=st.integers(1, 500), size=st.integers(1, 300))
def test_a_square_rectangle_is_the_square(width: int, height: int, size: int) -> None:
    try:
        expected = Letterbox(width, height, size)
    except UserError:
        with pytest.raises(UserError):
            Letterbox(width, height, (size, size))
        return
    found = Letterbox(width, height, (size, size))
    assert (found.resized, found.pad, found.content_box) == (expected.resized, expected.pad, expected.content_box)
    # The rule of TensorFlow's resize_with_pad, written out for squares.
    long_side = max(width, height)
    assert expected.resized == (width * size // long_side, height * size // long_side)
    assert expected.pad[:2] == (
        (long_side - width) * size // (2 * long_side),
        (long_side - height) * size // (2 * long_side),
    )


def test_a_rectangle_is_filled_as_far_as_the_aspect_allows() -> None:
    assert Letterbox(640, 480, (112, 224)).resized == (149, 112)
    assert Letterbox(640, 480, (112, 224)).pad == (37, 0, 38, 0)
    assert Letterbox(640, 160, (112, 224)).resized == (224, 56)
    assert Letterbox(640, 160, (112, 224)).pad == (0, 28, 0, 28)
    crop = place_image(preprocess((112, 224), "center_crop"), (640, 480), View())
    assert crop.crop_px == (0, 80, 640, 400)
    assert crop.letterbox.pad == (0, 0, 0, 0)
    assert render_image(preprocess((112, 224), "letterbox"), noise(64, 48), Placement(64, 48, (0, 0, 64, 48), False, (112, 224))).shape == (3, 112, 224)  # fmt: skip # noqa: E501


def test_rectangles_are_written_and_read() -> None:
    wide = preprocess((112, 224), "stretch")
    assert Preprocess.from_dict(wide.to_dict()) == wide
    assert wide.to_dict()["size"] == [112, 224]
    assert (wide.height, wide.width, wide.long_side, wide.size_name) == (112, 224, 224, "112x224px")
    square = preprocess((112, 112), "letterbox")
    assert (square.size, square.side, square.size_name) == (112, 112, "112px")
    assert square == preprocess(112, "letterbox")
    with raises_naming(UserError, "preprocess.size", "112", "224"):
        _ = wide.side
    for size in (0, (0, 3), (1, 2, 3)):
        with raises_naming(UserError, "preprocess.size", size):
            preprocess(size, "letterbox")  # type: ignore[arg-type]
    with raises_naming(UserError, "224", "112", "30"):
        wide.pixels(noise(30, 30))


def test_a_stretched_jpeg_is_read_whole(tmp_path: Path) -> None:
    from foveate.records.images import decode, decode_fraction

    buffer = io.BytesIO()
    noise(640, 360).resize((1280, 720)).save(buffer, "JPEG", quality=95)
    how = preprocess(64, "stretch")
    placement = place_image(how, (1280, 720), View())
    image, size = decode_fraction(buffer.getvalue(), min_side=compute_draft_side(placement))
    assert image.size == size == (1280, 720)
    assert (render_image(how, image, placement) == render_image(how, decode(buffer.getvalue()), placement)).all()


def test_a_processor_of_transformers_stretches_alike() -> None:
    """Up to three gray levels: Pillow and torchvision round differently between the passes."""
    from foveate.vision.open_clip.export import clip_image_processor

    image = Image.fromarray(np.kron(np.asarray(noise(8, 5)), np.ones((40, 40, 1), np.uint8)))
    how = preprocess((56, 84), "stretch")
    theirs = clip_image_processor(how)(images=image, return_tensors="pt")["pixel_values"][0]
    ours = how.normalize(render_image(how, image, place_image(how, image.size, View())))
    assert theirs.shape == (3, 56, 84)
    assert (theirs - ours).abs().max() <= 3 / 255 / 0.5
