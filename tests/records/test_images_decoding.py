"""Images in all the states in which the web has them: taken in rightly, or refused with a reason."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from made_images import encoded, jpeg, noise, png_header
from PIL import Image, ImageFile

from foveate.core.errors import UserError
from foveate.records.images import BadImage, check, decode, examine, read_exif, read_image_info
from naming import raises_naming


def _reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as refused:
        check(data, **options)
    sentence = str(refused.value)
    assert sentence
    assert "\n" not in sentence
    return refused.value.reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_format_is_read(format: str) -> None:
    info = check(encoded(noise(1), format))
    assert (info.width, info.height, info.format, info.frames) == (48, 32, format, 1)
    image = decode(encoded(noise(1), format))
    assert (image.mode, image.size) == ("RGB", (48, 32))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(format: str, kept: float) -> None:
    data = encoded(noise(2, width=200, height=160), format)
    assert _reason(data[: int(len(data) * kept)]) in ("truncated", "damaged")


def test_a_truncated_progressive_jpeg_is_refused() -> None:
    data = encoded(noise(2, width=200, height=160), "JPEG", progressive=True)
    for kept in (0.2, 0.5, 0.8, 0.95):
        assert _reason(data[: int(len(data) * kept)]) in ("truncated", "damaged")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_too_short_for_its_header_is_refused_before_it_is_decoded(progressive: bool) -> None:
    plain = Image.new("L", (4000, 3000))
    data = encoded(plain, "JPEG", progressive=progressive, optimize=True)
    # The shortest JPEG of its size is read: a bit for each block, and more.
    assert decode(data, longest_side=8).size == (8, 6)
    start = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    larger = data[:start] + (8000).to_bytes(2, "big") + (20_000).to_bytes(2, "big") + data[start + 4 :]
    with pytest.raises(BadImage, match="20000 x 8000 pixels need at least 312,500") as refused:
        decode(larger)
    assert refused.value.reason == "truncated"
    # A comment that holds the mark of another code changes nothing.
    with pytest.raises(BadImage, match="need at least 312,500"):
        decode(larger[:2] + b"\xff\xfe\x00\x04\xff\xc9" + larger[2:])


def test_an_empty_file_is_refused() -> None:
    assert _reason(b"") == "empty file"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
        (b"\n  <html>", "not an image"),
        (b'{"error": "gone"}', "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "vector graphic"),
        (b"%PDF-1.7 ", "format not allowed"),
        (b"\0" * 100, "format not allowed"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    assert _reason(data) == reason


def test_a_format_beyond_the_list_is_refused_though_pillow_reads_it() -> None:
    assert _reason(encoded(noise(3), "PPM")) == "format not allowed"
    assert _reason(encoded(noise(3), "TGA")) == "format not allowed"


def test_a_decompression_bomb_is_refused_from_its_header_without_global_settings() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _reason(png_header(30_000, 30_000)) == "too many pixels"
        assert _reason(png_header(10_000, 10_000)) == "too many pixels"
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_jpeg_with_very_many_exif_segments_is_refused() -> None:
    data = jpeg(1)
    segment = b"\xff\xe1" + (2 + 6).to_bytes(2) + b"Exif\0\0"
    assert decode(data[:2] + 200 * segment + data[2:]).size == (48, 32)
    for read in (check, decode, examine, read_image_info, read_exif):
        with raises_naming(BadImage, "300", "EXIF") as bad:
            read(data[:2] + 300 * segment + data[2:])
        assert bad.value.reason == "damaged"


def test_the_pixel_limit_belongs_to_the_call() -> None:
    data = jpeg(4)
    assert _reason(data, max_pixels=48 * 32 - 1) == "too many pixels"
    assert check(data, max_pixels=48 * 32).width == 48


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_the_pixel_limit_holds_for_every_format(format: str) -> None:
    assert _reason(encoded(noise(4), format), max_pixels=100) == "too many pixels"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_lossless_and_extended_webp_sizes_are_read_from_the_header() -> None:
    lossless = encoded(noise(4), "WEBP", lossless=True)
    extended = encoded(noise(4).convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    for data in (lossless, extended):
        assert _reason(data, max_pixels=48 * 32 - 1) == "too many pixels"
        assert check(data, max_pixels=48 * 32).height == 32


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("RGB", (20, 10), (200, 30, 40)).convert("CMYK")
    data = encoded(red, "JPEG", quality=95)
    assert check(data).mode == "CMYK"
    assert np.abs(np.asarray(decode(data)).astype(int) - [200, 30, 40]).max() < 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_shades(format: str) -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = decode(encoded(Image.fromarray(shades), format))
    assert np.abs(np.asarray(image)[..., 0].astype(int) - (shades >> 8)).max() <= 1


def test_float_pixels_are_refused() -> None:
    assert _reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "pixel type not allowed"


def test_transparency_is_laid_on_white() -> None:
    layers = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    layers.putpixel((2, 3), (255, 0, 0, 255))
    layers.putpixel((3, 3), (0, 0, 0, 128))
    for format in ("PNG", "WEBP"):
        image = decode(encoded(layers, format, lossless=True) if format == "WEBP" else encoded(layers, format))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((2, 3)) == (255, 0, 0)
        assert abs(image.getpixel((3, 3))[0] - 127) <= 1


def test_a_palette_with_a_transparent_color_is_laid_on_white() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((1, 1), 1)
    for format in ("PNG", "GIF"):
        image = decode(encoded(palette, format, transparency=0))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((1, 1)) == (10, 200, 30)


def test_gray_with_alpha_and_a_transparent_gray() -> None:
    assert decode(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)).getpixel((0, 0)) == (255,) * 3
    assert decode(encoded(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_noted(format: str) -> None:
    frames = [Image.new("RGB", (12, 10), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    info = check(data)
    assert info.frames == 3
    assert "first of 3 frames" in info.note
    red, green, blue = decode(data).getpixel((5, 5))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 12))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format, exif=exif)
    info = check(data)
    image = decode(data)
    assert (info.width, info.height) == image.size == (40, 24)
    assert image.getpixel((5, 5))[1] < 60
    assert min(image.getpixel((35, 20))) > 200
    assert decode(data, longest_side=20).size == (20, 12)


def test_decode_shrinks_to_the_longest_side_and_never_enlarges() -> None:
    data = jpeg(5, width=640, height=333)
    assert decode(data, longest_side=100).size == (100, 52)
    assert decode(data, longest_side=1000).size == (640, 333)
    assert check(data).width == 640
    small = np.asarray(decode(data, longest_side=160)).astype(int)
    exact = np.asarray(decode(data).resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small - exact).mean() < 8


def test_longest_side_must_be_positive() -> None:
    with raises_naming(UserError, "longest_side"):
        decode(jpeg(1), longest_side=0)


def test_examine_gives_what_the_index_needs() -> None:
    first, again, other = examine(jpeg(6)), examine(jpeg(6)), examine(jpeg(7))
    assert first == again
    assert first.sha256 != other.sha256
    assert 0 <= first.perceptual_hash < 2**64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_give_an_image_or_a_reason_and_nothing_else(format: str) -> None:
    rng = np.random.default_rng(8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if format in ("GIF", "BMP") else {"exif": exif}
    original = np.frombuffer(encoded(noise(9), format, **options), dtype=np.uint8)
    for _ in range(400):
        data = original.copy()
        places = rng.integers(0, min(len(data), int(rng.choice([40, 200, len(data)]))), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        try:
            image = decode(data.tobytes(), max_pixels=1_000_000)
        except BadImage:
            continue  # any other exception fails the test
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 1_000_000
