"""54 files that folders of people have among their images: each is taken, or one line of the quarantine says why."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_images import encoded, jpeg, noise, png_header
from PIL import Image

from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.quarantine import REMEDIES

TAKEN = ""
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
Content = bytes | Callable[[Path], None]


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", jpeg(1))
    return buffer.getvalue()


def _animation() -> bytes:
    buffer = io.BytesIO()
    noise(1).save(buffer, "GIF", save_all=True, append_images=[noise(2), noise(3)])
    return buffer.getvalue()


def _gray(mode: str, kind: type[np.generic], format: str = "TIFF") -> bytes:
    values = (np.arange(32 * 48).reshape(32, 48) * 40).astype(kind)
    return encoded(Image.fromarray(values).convert(mode) if mode != "F" else Image.fromarray(values), format)


def _rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(4), exif=exif)


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _bmp_of_size(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


# name -> content (or what makes the file), and the reason of the quarantine, "" for a file that is taken
FILES: dict[str, tuple[Content, str]] = {
    # images that are unusual and fine
    "taken/plain.jpg": (jpeg(1), TAKEN),
    "taken/upper.JPEG": (jpeg(2), TAKEN),
    "taken/png named.jpg": (encoded(noise(3), "PNG"), TAKEN),
    "taken/rotated.jpg": (_rotated(6), TAKEN),
    "taken/bad orientation.jpg": (_rotated(99), TAKEN),
    "taken/cmyk.jpg": (encoded(noise(5).convert("CMYK")), TAKEN),
    "taken/gray.jpg": (encoded(noise(6).convert("L")), TAKEN),
    "taken/palette.png": (encoded(noise(7).convert("P"), "PNG"), TAKEN),
    "taken/one bit.png": (encoded(noise(8).convert("1"), "PNG"), TAKEN),
    "taken/transparent.png": (encoded(noise(9).convert("RGBA"), "PNG"), TAKEN),
    "taken/gray with alpha.png": (encoded(noise(10).convert("LA"), "PNG"), TAKEN),
    "taken/16 bits.png": (_gray("I;16", np.uint16, "PNG"), TAKEN),
    "taken/16 bits of a scan.tif": (_gray("I;16", np.uint16), TAKEN),
    "taken/animated.gif": (_animation(), TAKEN),
    "taken/lossless.webp": (encoded(noise(11), "WEBP", lossless=True), TAKEN),
    "taken/progressive.jpg": (encoded(noise(12), progressive=True), TAKEN),
    "taken/one pixel.png": (encoded(noise(13, width=1, height=1), "PNG"), TAKEN),
    "taken/very wide.png": (encoded(noise(14, width=3000, height=1), "PNG"), TAKEN),
    "taken/old.bmp": (encoded(noise(15), "BMP"), TAKEN),
    "taken/bytes behind.jpg": (jpeg(16) + b"PK" + bytes(500), TAKEN),
    "taken/日本の猫 🐈.jpg": (jpeg(17), TAKEN),
    "taken/e\u0301 combining.jpg": (jpeg(18), TAKEN),
    "taken/ blanks and 'quotes' \".jpg": (jpeg(19), TAKEN),
    "taken/two.dots.in.it.jpg": (jpeg(20), TAKEN),
    "taken/100% & #1 [x].jpg": (jpeg(21), TAKEN),
    "taken/" + "n" * 200 + ".jpg": (jpeg(22), TAKEN),
    "taken/stem.jpg": (jpeg(23), TAKEN),
    "taken/stem.png": (encoded(noise(24), "PNG"), TAKEN),
    "taken/link.jpg": (_link("plain.jpg"), TAKEN),
    "taken/-rf.jpg": (jpeg(25), TAKEN),
    # broken
    "empty.jpg": (b"", "empty file"),
    "cut.jpg": (jpeg(26)[:600], "truncated"),
    "cut.png": (encoded(noise(27), "PNG")[:-40], "truncated"),
    "cut.webp": (encoded(noise(28), "WEBP")[:-60], "damaged"),
    "cut.gif": (encoded(noise(29), "GIF")[:-300], "truncated"),
    "head only.jpg": (jpeg(30)[:3], "damaged"),
    "head only.png": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "flipped.png": (_flip(encoded(noise(31), "PNG"), 60), "damaged"),
    "zeros.jpg": (bytes(5000), "format not allowed"),
    "no pixels.bmp": (_bmp_of_size(48, 32), "truncated"),
    "no width.bmp": (_bmp_of_size(0, 32), "damaged"),
    # something else
    "page.jpg": (HTML, "not an image"),
    "error.png": (b'{"error": "not found"}', "not an image"),
    "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "vector graphic"),
    "drawing.png": (b'<svg width="1"></svg>', "vector graphic"),
    "archive.jpg": (_zip(), "format not allowed"),
    "paper.jpg": (b"%PDF-1.7\n", "format not allowed"),
    "layers.psd": (b"8BPS\0\1" + bytes(50), "format not allowed"),
    "new.jxl": (b"\xff\x0a" + bytes(50), "format not allowed"),
    "clip.heic": (b"\0\0\0\x18ftypqt  \0\0\0\0qt  qt  ", "format not allowed"),
    "floats.tif": (_gray("F", np.float32), "pixel type not allowed"),
    "bomb.png": (png_header(30_000, 30_000), "too many pixels"),
    **({"pipe.jpg": (os.mkfifo, "no regular file")} if hasattr(os, "mkfifo") else {}),
    "away.jpg": (_link("/etc/hostname"), "link leaves the folder"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("nasty")
    for name, (content, _) in FILES.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    summary = import_folder(folder / "source", folder / "c")
    assert summary.imported + summary.images_quarantined == len(FILES) == 54
    return Collection.open(folder / "c")


def test_every_fine_file_is_taken(imported: Collection) -> None:
    expected = [name.rpartition(".")[0] for name, (_, reason) in FILES.items() if not reason]
    expected[expected.index("taken/stem", expected.index("taken/stem") + 1)] = "taken/stem.png"
    assert sorted(imported.keys) == sorted(expected)
    for record in imported:
        assert record.open().size == (record.width, record.height)
    assert (imported["taken/rotated"].width, imported["taken/rotated"].height) == (32, 48)


def test_every_other_file_has_one_line_with_its_reason_and_what_to_do(imported: Collection) -> None:
    rows = imported.quarantine().to_pylist()
    expected = {name: reason for name, (_, reason) in FILES.items() if reason}
    assert {row["source"]: row["reason"] for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert ";" in row["detail"], row
        assert "\n" not in row["detail"]


def test_remedies_are_of_reasons_that_exist() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "collections.md").read_text(encoding="utf-8")
    assert [reason for _, reason in REMEDIES if f"`{reason}`" not in documented] == []
