"""Bad images are quarantined with their reason, unusual ones are taken, boxes follow EXIF rotation."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile import folder_of_files, reasons, tar_of
from made_images import encoded, jpeg, noise, png_header
from PIL import Image

from foveate.records import images
from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.webdataset import import_webdataset


def _frames(format: str) -> bytes:
    return encoded(noise(1), format, save_all=True, append_images=[noise(2), noise(3)])


BAD_IMAGES = {
    "cut": ("jpg", jpeg(1, width=200, height=100)[:1500], "truncated"),
    "empty": ("jpg", b"", "empty file"),
    "bomb": ("png", png_header(30_000, 30_000), "too many pixels"),
    "html": ("jpg", b"<!DOCTYPE html><html>moved</html>", "not an image"),
    "heic": ("heic", b"\0\0\0\x18ftypheic" + bytes(50), "format needs an extra"),
    "ppm": ("jpg", encoded(noise(2), "PPM"), "format not allowed"),
    "garbage": ("jpg", bytes(range(256)), "format not allowed"),
}


UNUSUAL_IMAGES = {
    "cmyk": ("jpg", encoded(noise(3).convert("CMYK"))),
    "gray16": ("png", encoded(Image.fromarray(np.arange(2048, dtype=np.uint16).reshape(32, 64) * 32), "PNG")),
    "palette": ("png", encoded(noise(4).convert("P"), "PNG", transparency=3)),
    "alpha": ("png", encoded(noise(5).convert("RGBA"), "PNG")),
    "gif": ("gif", _frames("GIF")),
    "webp": ("webp", _frames("WEBP")),
    "apng": ("png", _frames("PNG")),
    "misnamed": ("jpg", encoded(noise(6), "PNG")),
}


def _import_images(tmp_path: Path, how: str, images: dict[str, tuple[str, bytes]]) -> tuple[object, Path]:
    target = tmp_path / "collection"
    if how == "folder":
        source = folder_of_files(tmp_path, {f"{key}.{suffix}": data for key, (suffix, data) in images.items()})
        return import_folder(source, target), target
    members = [(f"{key}.{suffix}", data) for key, (suffix, data) in sorted(images.items())]
    return import_webdataset(tar_of(tmp_path / "source.tar", members), target), target


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the library of the extra `heif`, which some environments have."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._find_decoder.cache_clear()
    yield
    # What was found without the library must not outlive the test.
    images._find_decoder.cache_clear()


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_bad_images_are_quarantined_and_unusual_ones_taken(tmp_path: Path, how: str) -> None:
    bad = {key: (suffix, data) for key, (suffix, data, _) in BAD_IMAGES.items()}
    summary, target = _import_images(tmp_path, how, {**bad, **UNUSUAL_IMAGES})
    assert Collection.open(target).keys == sorted(UNUSUAL_IMAGES)
    assert reasons(target) == {key: [f"image: {reason}"] for key, (_, _, reason) in BAD_IMAGES.items()}
    assert summary.imported == len(UNUSUAL_IMAGES)
    assert summary.images_quarantined == len(BAD_IMAGES)
    assert summary.animated == 3
    counted = Counter(f"image: {reason}" for _, _, reason in BAD_IMAGES.values())
    assert summary.quarantined == counted
    told = "\n".join(summary.lines())
    assert "1 quarantined: image: format not allowed" not in told
    assert "2 quarantined: image: format not allowed" in told


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_boxes_refer_to_the_image_after_exif_rotation(tmp_path: Path, how: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded(noise(1, width=100, height=40), "JPEG", exif=exif)
    sidecar = {"regions": [{"box": [10, 20, 30, 90], "phrase": "low"}, {"box": [50, 0, 90, 40], "phrase": "wide"}]}
    if how == "folder":
        import_folder(folder_of_files(tmp_path, {"p.jpg": image, "p.json": sidecar}), tmp_path / "c")
    else:
        import_webdataset(tar_of(tmp_path / "s.tar", [("p.jpg", image), ("p.json", sidecar)]), tmp_path / "c")
    record = Collection.open(tmp_path / "c").record(0)
    assert (record.width, record.height) == (40, 100)
    assert [region.phrase for region in record.regions] == ["low"]
    assert np.allclose(record.regions[0].box.to_array(), [0.25, 0.2, 0.75, 0.9])
    assert reasons(tmp_path / "c") == {"p": ["region: box outside the image"]}
