"""Recognized text: through RapidOCR where it is installed, said where it is not, and kept beside the collection."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from foveate.caption.targets import material
from foveate.core.errors import UserError
from foveate.records import ocr
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from naming import raises_naming


@pytest.fixture
def signs(tmp_path: Path) -> Collection:
    """One image with a word in it and one without."""
    with CollectionWriter(tmp_path / "signs", name="signs", license="CC0-1.0", source="test") as writer:
        for key, word in (("sign", "HARBOR 1908"), ("blank", "")):
            image = Image.new("RGB", (320, 120), "white")
            ImageDraw.Draw(image).text((20, 30), word, font=ImageFont.load_default(size=44), fill="black")
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.add(key, buffer.getvalue())
    return Collection.open(tmp_path / "signs")


def test_text_is_read_once_and_kept(signs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    row = signs.find_row("sign")
    found = material.read_written(signs, [0, 1], "rapidocr")
    assert list(found) == [row]
    assert found[row] == ("HARBOR 1908",)
    file = signs.path / "cache" / ocr.FILE
    with file.open("a") as handle:
        handle.write('{"sha256": "cut o')  # a run that was killed
    monkeypatch.setattr(ocr, "_recognize", lambda *_: pytest.fail("read again"))
    assert material.read_written(signs, [0, 1], "auto") == found


def test_without_ocr_it_is_said_or_refused(
    signs: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert material.read_written(signs, [0, 1], "auto") == {}
    assert "no OCR is installed: text in 2 images is not used" in capsys.readouterr().err
    with raises_naming(UserError, "foveate[ocr]"):
        material.read_written(signs, [0], "rapidocr")
    assert material.read_written(signs, [0], "none") == {}
    assert capsys.readouterr().err == ""
