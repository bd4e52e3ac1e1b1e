"""Annotation files and tables that are cut, lie, or lead out: one sentence, or a finding and a count; no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import reasons
from made_sets import (
    HEIGHT,
    WIDTH,
    WRITERS,
    coco_captions,
    coco_instances,
    image_bytes,
    write_coco,
    write_json,
    write_parquet_of_images,
    write_table,
    write_visual_genome,
)

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.coco import import_coco, import_lvis
from foveate.records.importers.formats import load_formats
from foveate.records.importers.table import import_table
from foveate.records.importers.visual_genome import import_visual_genome


def _refused(what: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        what()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


def _coco(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    folder = write_coco(tmp_path / "set", 3)
    content = coco_instances(3)
    change(content)
    write_json(folder / "annotations" / "instances_val2017.json", content)
    return folder


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty or truncated"),
        (b"   ", "empty or truncated"),
        (json.dumps(coco_instances(3)).encode()[:500], "empty or truncated"),
        (b"{'images': []}", "cannot be read as JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"images": [{"id": 1, "file_name": "caf\xe9.jpg"}]}', "not UTF-8"),
        (b"[]", "the field 'images'"),
        (b'"text"', "the field 'images'"),
        (b'{"image": [], "annotations": []}', "field 'images' is missing. Did you mean 'image'?"),
        (b'{"images": {}, "annotations": []}', "field 'images' must be a list (got dict)"),
        (b'{"images": [], "annotations": null}', "field 'annotations' must be a list"),
        (b'{"images": [], "annotations": [{}]}', "field 'categories' is missing"),
        (b'{"images": [], "annotations": [], "categories": []}', "no usable entry"),
        (b'{"images": [1, null, {"id": "7"}], "annotations": []}', "no usable entry"),
    ],
)
@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_an_annotation_file_that_is_none(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert part in _refused(lambda: load_formats()[name].run(path, tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_images_that_are_not_there(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 3)
    (folder / "val2017").rename(tmp_path / "elsewhere")
    sentence = _refused(lambda: import_coco(folder, tmp_path / "c"))
    assert "none of the 3 images" in sentence
    assert "--images" in sentence
    assert "nowhere" in _refused(lambda: import_coco(folder, tmp_path / "c", images=tmp_path / "nowhere"))
    (tmp_path / "elsewhere" / "000000001007.jpg").unlink()
    summary = import_coco(folder, tmp_path / "c", images=tmp_path / "elsewhere")
    assert (summary.imported, summary.quarantined) == (2, {"image: no image": 1})
    assert reasons(tmp_path / "c") == {"000000001007": ["image: no image"]}


def test_no_annotation_file_or_several(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 1)
    path = folder / "annotations" / "instances_val2017.json"
    path.with_name("instances_train2017.json").write_bytes(path.read_bytes())
    assert "instances_train2017.json" in _refused(lambda: import_coco(folder, tmp_path / "c"))
    assert "Did you mean 'set'" in _refused(lambda: import_coco(tmp_path / "sett", tmp_path / "c"))
    (tmp_path / "empty").mkdir()
    assert "has no annotation file" in _refused(lambda: import_lvis(tmp_path / "empty", tmp_path / "c"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../etc/passwd", "path leaves the folder"),
        ("/etc/passwd", "path leaves the folder"),
        ("..\\..\\secret.jpg", "path leaves the folder"),
        ("a/../../outside.jpg", "path leaves the folder"),
        (".", "path leaves the folder"),
        ("http://example.org/p.jpg", "address, no file"),
        ("nul\0.jpg", "no file name"),
        ("", "no file name"),
        (None, "no file name"),
        (7, "no file name"),
        (["p.jpg"], "no file name"),
        ("link.jpg", "link leaves the folder"),
        ("x" * 5000, "no file name"),
        ("x" * 250 + "/" + "y" * 250 + "/" + "z" * 100, "unusable key"),
        ("x" * 300 + ".jpg", "no file name"),
        ("bell\x07.jpg", "unusable key"),
        ("half\ud83d.jpg", "no file name"),
    ],
)
def test_file_names_that_lead_out_or_nowhere(tmp_path: Path, name: object, reason: str) -> None:
    (tmp_path / "outside.jpg").write_bytes(image_bytes(9))
    folder = _coco(tmp_path, lambda content: content["images"][0].update(file_name=name))
    (folder / "val2017" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    summary = import_coco(folder, tmp_path / "c")
    assert summary.imported == 2
    found = {reason for kept in reasons(tmp_path / "c").values() for reason in kept}
    assert found == {f"image: {reason}"}
    assert len(Collection.open(tmp_path / "c")) == 2


def test_boxes_that_are_none(tmp_path: Path) -> None:
    bad = [
        ([float("nan"), 0, 10, 10], "box not finite"),
        ([0, 0, float("inf"), 10], "box not finite"),
        ([10, 10, 0, 5], "box empty"),
        ([10, 10, -5, 5], "box inverted"),
        ([200, 10, 20, 20], "box outside the image"),
        ([10, 10, WIDTH, 20], "box outside the image"),
        ([10, 10, 20], "malformed region"),
        ("10 10 20 20", "malformed region"),
        ([10, 10, "20", 20], "malformed region"),
        (None, "malformed region"),
    ]

    def change(content: dict[str, Any]) -> None:
        boxes = [box for box, _ in bad] + [[-2, 0, WIDTH + 3, HEIGHT]]
        content["annotations"] = [
            {"id": number, "image_id": 1000, "category_id": 3, "bbox": box} for number, box in enumerate(boxes)
        ]
        content["annotations"].append({"id": 99, "image_id": 1000, "category_id": 3})

    summary = import_coco(_coco(tmp_path, change), tmp_path / "c")
    assert (summary.imported, summary.regions_imported, summary.regions_clipped) == (3, 1, 1)
    table = Collection.open(tmp_path / "c").quarantine()
    assert table["reason"].to_pylist() == [reason for _, reason in bad] + ["malformed region"]
    rows = Collection.open(tmp_path / "c").table("coco_regions").to_pylist()
    assert [(row["annotation_id"], row["position"]) for row in rows] == [(len(bad), 0)], "ids stay with their boxes"


def test_ids_that_come_twice_or_lead_nowhere(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"] += [dict(content["images"][0], file_name="other.jpg"), {"id": True}, {"id": 10**30}, "x"]
        content["annotations"] += [
            dict(content["annotations"][0]),
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": "1000", "category_id": 3, "bbox": [1, 1, 5, 5]},
            {"id": 3, "image_id": 1000, "category_id": 77, "bbox": [1, 1, 5, 5]},
            {"id": 4, "image_id": 1000, "bbox": [1, 1, 5, 5]},
            {"id": [5], "image_id": 1000, "category_id": 3, "bbox": [1, 1, 5, 5], "area": "large", "iscrowd": "no"},
            None,
        ]
        content["categories"] += [{"id": 9, "name": "half \ud83d", "synonyms": ["\ud83d", 7]}]
        content["categories"] += [{"id": 3, "name": "again"}, {"id": 4}, {"id": 5, "name": " "}, 6]

    summary = import_coco(_coco(tmp_path, change), tmp_path / "c")
    assert (summary.imported, summary.regions_imported) == (3, 7)
    assert summary.quarantined == {
        "image: duplicate id": 1,
        "image: malformed entry": 3,
        "category: malformed entry": 4,
        "region: duplicate id": 1,
        "region: unknown image": 2,
        "region: unknown category": 2,
        "region: malformed entry": 1,
    }
    reasons(tmp_path / "c")


def test_captions_that_are_none(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 2)
    content = coco_captions(2)
    content["annotations"][0]["caption"] = 7
    content["annotations"][1]["caption"] = "half \ud83d"
    content["annotations"] += [{"id": 900, "image_id": 1, "caption": "whose?"}]
    path = folder / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(content))
    summary = import_coco(folder, tmp_path / "c")
    assert (summary.imported, summary.captions_imported) == (2, 2)
    assert summary.quarantined == {"caption: not text": 1, "caption: not Unicode": 1, "caption: unknown image": 1}
    path.write_text("{")
    assert "captions_val2017.json cannot be read" in _refused(lambda: import_coco(folder, tmp_path / "d"))


def test_visual_genome_files_that_lie(tmp_path: Path) -> None:
    folder = write_visual_genome(tmp_path / "set", 3)
    images = json.loads((folder / "image_data.json").read_text())
    regions = json.loads((folder / "region_descriptions.json").read_text())
    images += [images[0], {"image_id": "x"}, None, {"image_id": 77, "url": "http://x/../../../etc/77.jpg"}]
    images[1]["url"] = "../../etc/2001.jpg"
    region = {"phrase": "x", "x": 1, "y": 1, "width": 5, "height": 5}
    regions[0]["regions"] += [
        {**region, "phrase": 7},
        {**region, "x": "1"},
        {**region, "width": float("nan")},
        {**region, "height": 0},
        {"phrase": "no box"},
        9,
    ]
    regions += [{"id": 5, "regions": [region]}, {"id": 2000}, [], {"id": 2001, "regions": "none"}]
    write_json(folder / "image_data.json", images)
    write_json(folder / "region_descriptions.json", regions)
    summary = import_visual_genome(folder, tmp_path / "c")
    assert (summary.imported, summary.regions_imported) == (3, 9)
    assert summary.quarantined == {
        "image: duplicate id": 1,
        "image: malformed entry": 2,
        "image: no image": 1,
        "region: box empty": 1,
        "region: box not finite": 1,
        "region: malformed entry": 3,
        "region: malformed region": 4,
        "region: unknown image": 1,
    }
    (folder / "image_data.json").rename(folder / "image_dat.json")
    assert "Did you mean 'image_dat.json'" in _refused(lambda: import_visual_genome(folder, tmp_path / "d"))
    write_json(folder / "image_data.json", {})
    assert "image_data.json" in _refused(lambda: import_visual_genome(folder, tmp_path / "d"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"path,text\n", "has no rows"),
        ("path,text\na.jpg,x\n".encode("utf-16")[:-1], "is not UTF-8, UTF-16"),
        ("путь,text\na.jpg,x\n".encode("cp1251"), "is not UTF-8"),
        (b"p\xe4th,text\na.jpg,x\n", "no column path .*Did you mean 'päth'"),
        (b"paht,text\na.jpg,x\n", "no column path or filepath .* --path-column.* Did you mean 'paht'"),
        (b"path,tetx\na.jpg,x\n", "no column text or caption .* --text-column.* Did you mean 'tetx'"),
        (b'path,text\n"a.jpg,x\n', "has no rows that can be read: in row 1 a quote opens a cell"),
        (bytes(range(256)) * 40, "the first line has a NUL"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: bytes, part: str) -> None:
    import re

    path = tmp_path / "t.csv"
    path.write_bytes(content)
    sentence = _refused(lambda: import_table(path, tmp_path / "c"))
    assert re.search(part, sentence), sentence
    assert not (tmp_path / "c").exists()


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    path = write_table(tmp_path / "set", 1)
    for option in ("path_column", "text_column", "boxes_column"):
        sentence = _refused(lambda option=option: import_table(path, tmp_path / "c", **{option: "titel"}))
        assert "no column 'titel'" in sentence
        assert "Did you mean 'title'" in sentence
        assert option.replace("_", "-") in sentence


def test_rows_and_cells_that_are_none(tmp_path: Path) -> None:
    path = write_table(tmp_path / "set", 4)
    huge = b"word " * 2_000_000
    lines = [
        b"path,text,boxes",
        b"photos/0.jpg," + huge + b",",
        b"photos/1.jpg,caf\xe9,",
        b"photos/2.jpg,x,{]",
        b'photos/3.jpg,x,"[{""box"": [NaN, 1, 2, 3], ""phrase"": ""y""}, 5]"',
        # One letter of UTF-8, so that the bytes below are damage and not Windows-1252.
        "photos/3.jpg,nöch,7".encode(),
        b"photos/1.jpg,too,many,cells",
        b"few",
        b"caf\xe9,in,a,line,that,is,too,long",
        b"../../etc/passwd,x,",
        b"/etc/passwd,x,",
        b"https://example.org/1.jpg,x,",
        b",x,",
        b"photos/nowhere.jpg,x,",
        b"caf\xe9.jpg,x,",
        b"photos,a folder,",
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    summary = import_table(path, tmp_path / "c")
    assert summary.imported == 4
    assert summary.quarantined == {
        "row: wrong number of cells": 3,
        "caption: not UTF-8": 1,
        "region: malformed JSON": 1,
        "region: malformed region": 2,
        "region: box not finite": 1,
        "image: path leaves the folder": 2,
        "image: address, no file": 1,
        "image: no file name": 2,
        "image: no image": 1,
        "image: no regular file": 1,
    }
    collection = Collection.open(tmp_path / "c")
    assert len(collection.read_captions(0)[0].text) == len(huge.strip())
    assert [one.text for one in collection.read_captions(collection.find_row("photos/3"))] == ["x", "nöch"]
    reasons(tmp_path / "c")


def test_parquet_tables_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for content in (b"", b"PAR1", bytes(5000)):
        path.write_bytes(content)
        assert "cannot be read as a Parquet table" in _refused(lambda: import_table(path, tmp_path / "c"))
    pq.write_table(pa.table({"path": [1, 2], "text": ["a", "b"]}), path)
    assert "column 'path' has type int64" in _refused(lambda: import_table(path, tmp_path / "c"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "cannot be read as a Parquet table" in _refused(lambda: import_table(path, tmp_path / "c"))
    path.with_suffix(".xlsx").write_bytes(b"PK")
    sentence = _refused(lambda: import_table(path.with_suffix(".xlsx"), tmp_path / "c"))
    assert ".csv, .tsv, .parquet" in sentence
    (tmp_path / "a.jpg").write_bytes(image_bytes(1))
    pq.write_table(pa.table({"path": ["a.jpg", None, ""], "text": [None, "b", "c"]}), path)
    summary = import_table(path, tmp_path / "c")
    assert (summary.imported, summary.quarantined) == (1, {"image: no file name": 2})


def test_data_sets_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    run = load_formats()["datasets"].run
    source = write_parquet_of_images(tmp_path / "set", 2)
    sentence = _refused(lambda: run(source, tmp_path / "c", part="trian"))
    assert "Did you mean 'train'" in sentence
    for option in ("image_column", "text_column", "key_column"):
        sentence = _refused(lambda option=option: run(source, tmp_path / "c", **{option: "captoin"}))
        assert "Did you mean 'caption'" in sentence
    assert "'caption'" in _refused(lambda: run(source, tmp_path / "c", image_column="caption"))
    assert "--revision has no effect" in _refused(lambda: run(source, tmp_path / "c", revision="main"))
    (tmp_path / "empty").mkdir()
    assert "save_to_disk" in _refused(lambda: run(tmp_path / "empty", tmp_path / "c"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    assert "cannot be opened as a data set" in _refused(lambda: run(tmp_path / "saved", tmp_path / "c"))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "empty" / "t.parquet")
    assert "--image-column" in _refused(lambda: run(tmp_path / "empty", tmp_path / "c"))
    (tmp_path / "empty" / "t.parquet").write_bytes(b"PAR1")
    assert "cannot be opened as a data set" in _refused(lambda: run(tmp_path / "empty", tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_images_of_a_data_set_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells: list[dict[str, Any] | None] = [
        {"bytes": image_bytes(1), "path": "p.jpg"},
        {"bytes": b"<html>", "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": "nowhere.jpg"},
        {"bytes": None, "path": None},
        {"bytes": image_bytes(1), "path": "again.jpg"},
        None,
    ]
    (tmp_path / "set").mkdir()
    table = pa.table({"image": pa.array(cells, image), "text": pa.array(["a", None, "c", "d", "e", "f", "g"])})
    pq.write_table(table, tmp_path / "set" / "t.parquet")
    summary = load_formats()["datasets"].run(tmp_path / "set", tmp_path / "c")
    assert summary.imported == 1
    assert summary.quarantined == {
        "image: not an image": 1,
        "image: path leaves the folder": 1,
        "image: no image": 3,
        "image: duplicate key": 1,
    }


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"datasets"}))
def test_images_that_are_damaged_are_quarantined_in_every_format(tmp_path: Path, name: str) -> None:
    source = WRITERS[name](tmp_path / "set", 3)
    path = sorted((tmp_path / "set").rglob("*.jpg"))[0]
    path.write_bytes(path.read_bytes()[:300])
    summary = load_formats()[name].run(source, tmp_path / "c")
    assert (summary.imported, summary.quarantined) == (2, {"image: truncated": 1})


@pytest.mark.parametrize("ending", ["\n", "", '\n49.jpg,"closed, quoted"\n'])
def test_an_unclosed_quote_hides_no_other_row(tmp_path: Path, ending: str) -> None:
    rows = [f'{number}.jpg,5" pipe {number}' for number in range(50)]
    rows[10] = '10.jpg,"two lines,\nwith a ""quote"" in them"'
    rows[26], rows[40] = '26.jpg,"not closed', '40.jpg,"nor, this'
    for number in range(50):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number))
    path = tmp_path / "table.csv"
    path.write_text("path,text\n" + "\n".join(rows) + ending, encoding="utf-8")
    import_table(path, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert sorted(collection.keys) == sorted(str(number) for number in range(50) if number not in (26, 40))
    assert reasons(tmp_path / "c") == {"row 27": ["row: unclosed quote"], "row 41": ["row: unclosed quote"]}
    texts = {record.key: record.captions[0].text for record in map(collection.record, range(len(collection)))}
    assert texts["10"] == 'two lines,\nwith a "quote" in them'
    assert texts["27"] == '5" pipe 27'
