"""Folders as people have them: names of sidecars, encodings, boxes of YOLO, files of Google Takeout, odd formats."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile import folder_of_files, reasons
from made_images import encoded, jpeg, noise, png_header
from PIL import Image, features

from foveate.core.encodings import decode_text
from foveate.records import images
from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.sidecar import parse_yolo, read_sidecars
from foveate.records.record import Context

UMLAUTS = "Schöne Grüße aus Zürich, d'été à Besançon"
ENTITIES = "a &amp;quot;boat&amp;quot; &amp; &#99;at; R&D &notin it"


def test_sidecars_by_the_names_that_people_and_programs_give_them(tmp_path: Path) -> None:
    long_name = "a-very-long-name-of-a-photograph-from-a-phone.jpg"
    takeout = {"title": "x.jpg", "photoTakenTime": {"timestamp": "1700000000"}, "geoData": {"latitude": 0.0}}
    files: dict[str, bytes | str | dict] = {
        "upper.JPG": jpeg(0),
        "upper.TXT": "upper case",
        "double.jpg": jpeg(1),
        "double.jpg.txt": "name with extension",
        "old.jpg": jpeg(2),
        "old.jpg.json": takeout | {"description": "Takeout before 2024"},
        "new.jpg": jpeg(3),
        "new.jpg.supplemental-metadata.json": takeout | {"description": "Takeout since 2024"},
        "cut.jpg": jpeg(4),
        "cut.jpg.supplemental-me.json": takeout | {"description": "Takeout, shortened"},
        "copy(1).jpg": jpeg(5),
        "copy.jpg.supplemental-metadata(1).json": takeout | {"description": "Takeout, a copy"},
        "edit-edited.jpg": jpeg(6),
        "edit.jpg.json": takeout | {"geoData": {"latitude": 47.4, "longitude": 8.5}, "description": "edited"},
        long_name: jpeg(7),
        f"{long_name[:46]}.json": takeout | {"description": "a long name"},
        "notes.md": "x",
        "clip.mp4": b"x",
        "README": "x",
    }
    summary = import_folder(folder_of_files(tmp_path, files), tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        texts = {record.key: [caption.text for caption in record.captions] for record in collection}
        assert texts == {
            "upper": ["upper case"],
            "double": ["name with extension"],
            "old": ["Takeout before 2024"],
            "new": ["Takeout since 2024"],
            "cut": ["Takeout, shortened"],
            "copy(1)": ["Takeout, a copy"],
            "edit-edited": ["edited"],
            long_name[:-4]: ["a long name"],
        }
        assert collection["old"].captions[0].kind == "description"
        contexts = [collection.read_context(collection.find_row(key)) for key in ("old", "edit-edited")]
    assert [context and (context.latitude, context.longitude, context.time) for context in contexts] == [
        (None, None, "2023-11-14T22:13:20+00:00"),
        (47.4, 8.5, "2023-11-14T22:13:20+00:00"),
    ]
    assert summary.ignored == {".md": 1, ".mp4": 1, "no extension": 1}
    assert "3 other files ignored (.md 1, .mp4 1, no extension 1)" in summary.lines()


def test_a_long_list_of_boxes_is_read_in_linear_time() -> None:
    boxes = [{"box": [0, 0, 1, number], "phrase": "owl"} for number in range(1, 8001)]
    start = time.process_time()
    sidecar = read_sidecars([], [json.dumps([*boxes, "Owls."]).encode], size=None)
    assert [caption.text for caption in sidecar.captions] == ["Owls."]
    assert time.process_time() - start < 1


@pytest.mark.parametrize("latitude", [float("nan"), 90.5, 10**400, True, "47.4", None])
def test_a_takeout_location_that_is_no_degrees_is_left_out(latitude: object) -> None:
    location = {"latitude": latitude, "longitude": 8.5}
    content = {"photoTakenTime": {"timestamp": "1700000000"}, "geoData": location}
    context = read_sidecars([], [json.dumps(content).encode], size=None).context
    assert context == Context(time="2023-11-14T22:13:20+00:00")
    content["geoDataExif"] = {"latitude": -90, "longitude": 8.5}
    context = read_sidecars([], [json.dumps(content).encode], size=None).context
    assert context is not None
    assert (context.latitude, context.longitude) == (-90.0, 8.5)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (UMLAUTS.encode("utf-8-sig"), (UMLAUTS, "utf-8")),
        (UMLAUTS.encode("utf-16"), (UMLAUTS, "utf-16")),
        (b"\xfe\xff" + UMLAUTS.encode("utf-16-be"), (UMLAUTS, "utf-16")),
        (UMLAUTS.encode("utf-16-le"), (UMLAUTS, "utf-16")),
        (UMLAUTS.encode("utf-16-be"), (UMLAUTS, "utf-16")),
        (UMLAUTS.encode("utf-32"), (UMLAUTS, "utf-32")),
        (UMLAUTS.encode("latin-1"), (UMLAUTS, "windows-1252")),
        ("été “à la mer” – œuvre".encode("cp1252"), ("été “à la mer” – œuvre", "windows-1252")),
        ("猫".encode(), ("猫", "utf-8")),
        (b"", ("", "utf-8")),
    ],
)
def test_encodings_are_recognized(data: bytes, expected: tuple[str, str]) -> None:
    assert decode_text(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        "кошка на окне".encode("cp1251"),
        "кошка на окне".encode("koi8-r"),
        "猫の写真".encode("shift-jis"),
        "一只猫坐在窗台上".encode("gbk"),
        "고양이 사진".encode("euc-kr"),
        bytes(range(256)),
        jpeg(1),
    ],
)
def test_what_is_no_western_text_is_not_read_as_one(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_text(data)


def test_yolo_files_are_boxes_and_never_captions(tmp_path: Path) -> None:
    files: dict[str, bytes | str | dict] = {
        "data.yaml": "names:\n  0: cat\n  1: red boat\n",
        "images/train/1.jpg": jpeg(1),
        "labels/train/1.txt": "1 0.5 0.5 0.5 0.25\n0 0.25 0.25 0.5 0.5 0.75\n",
        "images/train/2.jpg": jpeg(2),
        "labels/train/2.txt": "0 0.1 0.1 0.4 0.2 0.3 0.6\n",
        "images/train/3.jpg": jpeg(3),
        "labels/train/3.txt": "",
        "images/train/4.jpg": jpeg(4),
        "images/train/4.txt": "1984 2 4 6 8",
        "images/train/5.jpg": jpeg(5),
        "labels/train/5.txt": "0.0 -0.0004 0.1 0.4 0.2 0.3 0.6\n1.0 0.5 0.5 0.5 0.25\n",
        "images/train/6.jpg": jpeg(6),
        "labels/train/6.txt": "0 -0.4 0.1 0.4 0.2 0.3 0.6\n",
    }
    summary = import_folder(folder_of_files(tmp_path, files), tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        records = list(collection)
    assert [[caption.text for caption in record.captions] for record in records] == [
        *([[]] * 3),
        ["1984 2 4 6 8"],
        *([[]] * 2),
    ]
    assert summary.quarantined == {"sidecar: malformed boxes": 1}
    assert [region.phrase for region in records[4].regions] == ["cat", "red boat"]
    assert records[4].regions[0].box.x1 == 0
    boxes = [(region.phrase, region.score, region.box.to_array().tolist()) for region in records[0].regions]
    assert boxes == [("red boat", 1.0, [0.25, 0.375, 0.75, 0.625]), ("cat", 0.75, [0.0, 0.0, 0.5, 0.5])]
    assert np.allclose(records[1].regions[0].box.to_array(), [0.1, 0.1, 0.4, 0.6])
    assert parse_yolo("7 .5 .5 1 1", ())[0]["phrase"] == "class 7"  # type: ignore[index]


def test_boxes_without_a_unit_that_can_only_be_fractions(tmp_path: Path) -> None:
    fractions, pixels = [0.25, 0.25, 0.75, 1.0], [12, 8, 36, 32]
    files: dict[str, bytes | str | dict] = {
        "1.jpg": jpeg(1),
        "1.json": json.dumps([ENTITIES, {"box": fractions, "phrase": "x"}]),
        "2.jpg": jpeg(2),
        "2.json": {"regions": [{"box": fractions, "phrase": "thin"}, {"box": pixels, "phrase": "x"}]},
    }
    summary = import_folder(folder_of_files(tmp_path, files), tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        assert collection["1"].captions[0].text == 'a "boat" & cat; R&D &notin it'
        assert collection["1"].regions[0].box.to_array().tolist() == fractions
        assert len(collection["2"].regions) == 2
    assert [count for name, count in summary.further.items() if "fractions" in name] == [1]


def test_more_pixels_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path, {"1.png": png_header(12_000, 1_000)})
    for name, max_pixels in (("a", 11_999_999), ("b", 12_000_000)):
        import_folder(source, tmp_path / name, max_pixels=max_pixels)
    assert reasons(tmp_path / "a") == {"1": ["image: too many pixels"]}
    assert images.decode(Collection.open(tmp_path / "b").image_bytes(0)).size == (12_000, 1_000)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_with_its_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(1), "AVIF", exif=exif)
    assert (images.check(data).format, images.decode(data).size) == ("AVIF", (32, 48))
    for end in (12, 60, len(data) // 2, len(data) - 9):
        with pytest.raises(images.BadImage):
            images.check(data[:end])


def test_heic_is_read_where_its_library_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(noise(1))
    buffer = io.BytesIO()
    file.save(buffer, quality=90)
    assert images.check(buffer.getvalue()).format == "HEIF"
    assert np.abs(np.asarray(images.decode(buffer.getvalue()), int) - np.asarray(noise(1), int)).mean() < 20


def test_heic_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._find_decoder.cache_clear()
    with pytest.raises(images.BadImage, match=r"foveate\[heif\]") as error:
        images.check(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    images._find_decoder.cache_clear()
    assert error.value.reason == "format needs an extra"
