"""A JPEG unpacked at a fraction shows the same image in the same place as the whole one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.geometry import View
from foveate.records.images import decode, decode_fraction
from naming import raises_naming


def photograph(width: int, height: int, *, format: str = "JPEG", orientation: int | None = None) -> bytes:
    """A smooth image with a bright disc in its upper left quarter."""
    y, x = np.mgrid[0:height, 0:width]
    disc = np.hypot(x - width / 4, y - height / 4) < min(width, height) / 8
    array = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 60)], axis=-1).astype(np.uint8)
    array[disc] = 255
    buffer, options = io.BytesIO(), {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.fromarray(array).save(buffer, format, quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("least", "size"), [(2000, (1203, 901)), (601, (602, 451)), (603, (1203, 901)), (300, (301, 226)), (1, (151, 113))]
)
def test_the_smallest_fraction_that_is_large_enough(least: int, size: tuple[int, int]) -> None:
    image, whole = decode_fraction(photograph(1203, 901), min_side=least)
    assert image.size == size
    assert whole == (1203, 901)


def test_other_formats_stay_whole() -> None:
    image, whole = decode_fraction(photograph(400, 300, format="PNG"), min_side=10)
    assert image.size == whole == (400, 300)


def test_a_turned_image_is_turned_before_it_is_measured() -> None:
    image, whole = decode_fraction(photograph(800, 600, orientation=6), min_side=400)
    assert whole == (600, 800)
    assert image.size == (300, 400)


@pytest.mark.parametrize("crop", [None, Box(0.1, 0.2, 0.61, 0.83)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(1203, 901), (900, 675), (677, 1201)])
def test_the_fraction_renders_to_the_same_pixels(size: tuple[int, int], flip: bool, crop: Box | None) -> None:
    data = photograph(*size)
    placement = View(crop=crop, flip=flip).fit(*size, 64)
    whole = np.asarray(placement.render(decode(data))).astype(int)
    part, _ = decode_fraction(data, min_side=256)
    assert part.size != size
    drafted = np.asarray(placement.render(part)).astype(int)
    assert np.abs(whole - drafted).mean() < 1.0, "a shift of one pixel would be 3"
    shifted = np.roll(drafted, 1, axis=1)
    assert np.abs(whole - shifted).mean() > 2 * np.abs(whole - drafted).mean()


def test_an_image_of_another_size_is_refused() -> None:
    placement = View().fit(400, 300, 64)
    with raises_naming(UserError, "399", "300"):
        placement.render(Image.new("RGB", (399, 300)))
    with raises_naming(UserError, "min_side"):
        decode_fraction(photograph(10, 10), min_side=0)
