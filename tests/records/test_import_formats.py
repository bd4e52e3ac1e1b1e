"""Each format: what is taken from it, that a second import takes only what is new, and how it is recognized."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_sets import (
    HEIGHT,
    WIDTH,
    WRITERS,
    coco_instances,
    image_bytes,
    write_coco,
    write_json,
    write_lvis,
    write_parquet_of_images,
    write_table,
    write_visual_genome,
)

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.coco import import_coco, import_lvis
from foveate.records.importers.folder import import_folder
from foveate.records.importers.formats import detect_format, load_formats
from foveate.records.importers.table import import_table
from foveate.records.importers.visual_genome import import_visual_genome
from naming import raises_naming

# Data sets are stored in two parts, so that one more image means one more in each.
PARTS = {"datasets": 2}


def _needs(name: str) -> None:
    if name == "datasets":
        pytest.importorskip("datasets")


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_again_takes_nothing_and_one_more_image_is_one(tmp_path: Path, name: str) -> None:
    _needs(name)
    parts = PARTS.get(name, 1)
    source = WRITERS[name](tmp_path / "set", 4)
    counts = []
    for count in (4, 4, 5):
        WRITERS[name](tmp_path / "set", count)
        summary = load_formats()[name].run(source, tmp_path / "c", workers=2)
        assert not summary.quarantined
        counts.append((summary.imported, summary.existing))
    assert counts == [(4 * parts, 0), (0, 4 * parts), (parts, 4 * parts)]
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 5 * parts
    assert {collection.image_bytes(row) for row in range(len(collection))} >= {image_bytes(n) for n in range(5)}
    for kind in ("captions", "regions"):
        ids = collection.table(kind).column(1).to_pylist()
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_auto_recognizes_what_the_format_is(tmp_path: Path, name: str) -> None:
    _needs(name)
    source = WRITERS[name](tmp_path / "set", 2)
    chosen, found = detect_format(str(source))
    assert chosen.name == name
    assert found


def test_auto_asks_where_two_formats_are_possible_and_names_what_is_near(tmp_path: Path) -> None:
    write_coco(tmp_path / "both", 1)
    write_lvis(tmp_path / "both", 1)
    with raises_naming(UserError, "--format"):
        detect_format(str(tmp_path / "both"))
    (tmp_path / "notes.md").write_text("x")
    with raises_naming(UserError, "--format"):
        detect_format(str(tmp_path / "notes.md"))
    with raises_naming(UserError, "Did you mean", "both"):
        detect_format(str(tmp_path / "bothh"))
    (tmp_path / "plain").mkdir()
    assert detect_format(str(tmp_path / "plain"))[0].name == "folder"


def test_coco_boxes_categories_captions_and_crowds(tmp_path: Path) -> None:
    summary = import_coco(write_coco(tmp_path / "set", 3), tmp_path / "c", name="mine", license="CC-BY-4.0")
    collection = Collection.open(tmp_path / "c")
    assert (collection.name, collection.license) == ("mine", "CC-BY-4.0")
    assert collection.keys == [f"{1000 + 7 * number:012d}" for number in range(3)]
    record = collection.record(1)
    expected = np.array([10.25 + 1 / 7, 5.5, 10.25 + 1 / 7 + 30.13, 5.5 + 20.77]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert np.abs(record.regions[0].box.to_array() - expected).max() < 1e-7
    assert [(region.phrase, region.label, region.slice) for region in record.regions] == [
        ("car", "car", ""),
        ("dog", "dog", "crowd"),
    ]
    assert [caption.kind for caption in record.captions] == ["caption", "caption"]
    assert summary.further == {
        "crowd boxes (iscrowd) imported, with the slice 'crowd'": 1,
        "outlines (polygons or RLE) left out; their boxes are used": 6,
    }
    assert collection.dataset_table("coco_categories")["name"].to_pylist() == ["car", "dog", "toothbrush"]


def test_coco_captions_with_a_box_are_phrases_of_regions(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 1)
    content = coco_instances(1)
    first, second = content["annotations"][:2]
    content["annotations"] = [
        {**first, "caption": "a red car at night"},
        {name: value for name, value in second.items() if name != "category_id"} | {"caption": "the dog", "iscrowd": 0},
        {"id": 900, "image_id": first["image_id"], "caption": "a street"},
        {"id": 901, "image_id": first["image_id"], "caption": "some cars", "bbox": []},
    ]
    write_json(folder / "annotations" / "dense_val2017.json", content)
    import_coco(folder / "annotations" / "dense_val2017.json", tmp_path / "c")
    record = Collection.open(tmp_path / "c").record(0)
    assert [(region.phrase, region.label) for region in record.regions] == [
        ("a red car at night", "car"),
        ("the dog", ""),
    ]
    assert [caption.text for caption in record.captions] == ["a street", "some cars"]


def test_a_captions_file_alone_and_one_without_captions(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 3)
    import_coco(folder / "annotations" / "captions_val2017.json", tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert (collection.table("captions").num_rows, collection.table("regions").num_rows) == (6, 0)
    (folder / "annotations" / "captions_val2017.json").unlink()
    import_coco(folder, tmp_path / "d")
    collection = Collection.open(tmp_path / "d")
    assert (collection.table("captions").num_rows, collection.table("regions").num_rows) == (0, 6)


def test_boxes_follow_an_image_that_was_made_smaller_and_not_one_that_was_turned(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 3)
    content = coco_instances(3)
    content["images"][0] |= {"width": 10 * WIDTH, "height": 10 * HEIGHT}
    content["images"][1] |= {"width": HEIGHT, "height": WIDTH}
    content["annotations"][0]["bbox"] = [80, 60, 400, 300]
    write_json(folder / "annotations" / "instances_val2017.json", content)
    summary = import_coco(folder, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert np.allclose(collection.read_regions(0)[0].box.to_array(), [0.1, 0.1, 0.6, 0.6])
    assert collection.read_regions(1) == ()
    assert summary.quarantined == {"region: other image shape": 1}
    assert sum(count for what, count in summary.further.items() if "scaled" in what) == 1


def test_lvis_names_synonyms_and_frequencies(tmp_path: Path) -> None:
    import_lvis(write_lvis(tmp_path / "set", 4), tmp_path / "c", group_by="folder")
    collection = Collection.open(tmp_path / "c")
    assert collection.keys[:2] == ["train2017/000000001000", "val2017/000000001007"]
    assert set(collection.groups) == {"train2017", "val2017"}
    assert [(one.phrase, one.label, one.slice) for one in collection.read_regions(0)] == [
        ("car (automobile)", "car_(automobile)", "frequent"),
        ("aerosol can", "aerosol_can", "rare"),
    ]
    rows = collection.dataset_table("coco_categories").to_pylist()
    assert rows[1]["synonyms"] == ["aerosol_can", "spray_can"]


def test_visual_genome_regions(tmp_path: Path) -> None:
    source = write_visual_genome(tmp_path / "set", 4)
    import_visual_genome(source, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == ["2000", "2001", "2002", "2003"]
    assert [region.phrase for region in collection.read_regions(2)] == [f"thing {place} of 2" for place in range(3)]
    expected = np.array([4, 3, 24, 33]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert np.allclose(collection.read_regions(2)[1].box.to_array(), expected)
    assert collection.table("origin")["url"][1].as_py().endswith("VG_100K_2/2001.jpg")
    # All images in one folder, as some unpack them.
    for path in list(source.glob("VG_100K*/*.jpg")):
        path.rename(source / path.name)
    assert import_visual_genome(source, tmp_path / "c").existing == 4


@pytest.mark.parametrize("suffix", ["csv", "tsv", "semicolons", "parquet"])
def test_a_table_in_each_form_gives_the_same(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / "set", 3)
    rows = [
        {"Image_Path": f"photos/{number}.jpg", "alt text": "", "Caption": text, "url": "http://x"}
        for number, text in itertools.product(range(3), ["größer, als", 'says "hello"\nand goes'])
    ]
    if suffix == "parquet":
        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        delimiter = {"csv": ",", "tsv": "\t", "semicolons": ";"}[suffix]
        quoted = [[f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row.values()] for row in rows]
        lines = [delimiter.join(row) for row in [list(rows[0]), *quoted]]
        path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8", newline="")
    summary = import_table(path, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == ["photos/0", "photos/1", "photos/2"]
    assert [one.text for one in collection.read_captions(1)] == ["größer, als", 'says "hello"\nand goes']
    assert "path from 'Image_Path', text from 'Caption'" in summary.notes[0]


def test_a_table_with_boxes_and_with_named_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "set", 3)
    import_table(path, tmp_path / "c", images=tmp_path / "set")
    collection = Collection.open(tmp_path / "c")
    assert [one.text for one in collection.read_captions(2)] == ["title 2, 0", "title 2, 1"]
    assert [one.phrase for one in collection.read_regions(2)] == ["part 2"]
    rows = [{"where": str(tmp_path / "set/photos/1.jpg"), "what": ["a", "b"], "regions": [{"box": [0, 0, 9, 9.5]}]}]
    rows += [{"where": "photos/2.jpg", "what": [], "regions": [{"box": [1, 1, 9, 9], "phrase": "x", "score": 0.5}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "t.parquet")
    columns = {"path_column": "where", "text_column": "what"}
    summary = import_table(tmp_path / "set" / "t.parquet", tmp_path / "d", **columns)
    collection = Collection.open(tmp_path / "d")
    assert collection.keys == ["photos/1", "photos/2"]
    assert [one.text for one in collection.read_captions(0)] == ["a", "b"]
    assert collection.read_regions(1)[0].score == 0.5
    assert summary.quarantined == {"region: malformed region": 1}, "a box without words"


def test_data_sets_parts_texts_and_keys(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from foveate.records.importers.datasets import import_datasets

    source = write_parquet_of_images(tmp_path / "set", 3)
    import_datasets(source, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert set(collection.splits) == {"train", "test"}
    assert [one.text for one in collection.read_captions(0)] == [f"one {n}" for n in range(1)] + ["two 0"]
    import_datasets(source, tmp_path / "d", part="test")
    assert set(Collection.open(tmp_path / "d").splits) == {"test"}
    loaded = datasets.load_dataset("parquet", data_files=str(source / "train*.parquet"), cache_dir=tmp_path / "cache")
    named = loaded["train"].add_column("id", [f"{n}.jpg" for n in range(3)])
    named = named.cast_column("image", datasets.Image()).rename_column("caption", "words")
    named.save_to_disk(tmp_path / "saved")
    assert detect_format(str(tmp_path / "saved"))[0].name == "datasets"
    import_datasets(tmp_path / "saved", tmp_path / "e", text_column="words", key_column="id")
    collection = Collection.open(tmp_path / "e")
    assert collection.keys == ["0", "1", "2"]
    assert [collection.image_bytes(row) for row in range(3)] == [image_bytes(n) for n in range(3)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("default/test/0000.parquet", "test"),
        ("val-00000-of-00001.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("valid_1.parquet", "validation"),
        ("eval.parquet", "test"),
        ("train/eval-0.parquet", "test"),
        ("latest/retrained.parquet", "unnamed"),
    ],
)
def test_the_part_of_a_parquet_file_is_in_its_name_or_its_folders(tmp_path: Path, name: str, part: str) -> None:
    from foveate.records.importers.datasets import _find_part

    assert _find_part(tmp_path / name, tmp_path) == part


def test_parquet_files_without_a_part_give_no_split(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from foveate.records.importers.datasets import import_datasets

    source = write_parquet_of_images(tmp_path / "set", 1)
    (source / "test-00000-of-00001.parquet").rename(source / "photos.parquet")
    import_datasets(source, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert sorted(collection.index["split"]) == ["", "train"]
    assert {key.split("/")[0] for key in collection.keys} == {"train"}, "as before there were parts"
    photos = source / "photos.parquet"
    import_datasets(photos, tmp_path / "of-one", part="train")
    assert list(Collection.open(tmp_path / "of-one").index["split"]) == [""]


def test_the_library_of_data_sets_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with raises_naming(UserError, "foveate[datasets]"):
        load_formats()["datasets"].run(write_parquet_of_images(tmp_path / "set", 1), tmp_path / "c")


@pytest.mark.parametrize("name", ["coco", "lvis", "visual-genome", "table"])
def test_referenced_images_stay_where_they_are(tmp_path: Path, name: str) -> None:
    source = WRITERS[name](tmp_path / "set", 3)
    load_formats()[name].run(source, tmp_path / "c", reference=True)
    collection = Collection.open(tmp_path / "c")
    assert [collection.image_bytes(row) for row in range(3)] == [image_bytes(number) for number in range(3)]
    assert not list((tmp_path / "c").rglob("*.tar"))


def test_a_referenced_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "p.jpg").write_bytes(image_bytes(1))
    import_folder(tmp_path / "set", tmp_path / "c", reference=True)
    assert Collection.open(tmp_path / "c").image_bytes(0) == image_bytes(1)
    assert not list((tmp_path / "c").rglob("*.tar"))


def test_a_repeated_import_by_reference_follows_files_that_moved(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(2):
        (tmp_path / "set" / f"{number}.jpg").write_bytes(image_bytes(number))
    import_folder(tmp_path / "set", tmp_path / "c", reference=True)
    (tmp_path / "set").rename(tmp_path / "moved")
    summary = import_folder(tmp_path / "moved", tmp_path / "c", reference=True)
    assert (summary.imported, summary.existing) == (0, 2)
    assert summary.further == {"referenced files found at another place": 2}
    collection = Collection.open(tmp_path / "c")
    assert [collection.image_bytes(row) for row in range(2)] == [image_bytes(0), image_bytes(1)]


def test_names_written_on_windows_and_absolute_ones_lead_into_the_folder(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 2)
    content = coco_instances(2)
    inside = tmp_path / "set" / "val2017"
    for image, name in zip(content["images"], ["val2017\\{}", f"{inside}/{{}}"], strict=True):
        image["file_name"] = name.format(image["file_name"])
    write_json(folder / "annotations" / "instances_val2017.json", content)
    import_coco(folder, tmp_path / "c", images=tmp_path / "set")
    assert Collection.open(tmp_path / "c").keys == ["val2017/000000001000", "val2017/000000001007"]
