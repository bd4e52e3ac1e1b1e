"""Exports for other programs: files, names, boxes and refusals, read back without the programs where it can be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from made_exports import CLASSES, GONE, KEYS, make_difficult
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.boxes import Box, CenterBox
from foveate.records.collection import Collection
from foveate.records.exporters.datasets import export_datasets
from foveate.records.exporters.fiftyone import export_fiftyone
from foveate.records.exporters.label_studio import export_label_studio
from foveate.records.exporters.yolo import export_yolo
from foveate.records.image_export import ExportSummary, ImageExport, make_unique_names
from foveate.records.images import decode
from foveate.records.importers.datasets import import_datasets
from foveate.records.record import Region
from foveate.records.region_sources import ALL_SOURCES, SelectedRegions
from foveate.records.writer import CollectionWriter
from naming import raises_naming

EXPORTERS = [export_datasets, export_fiftyone, export_label_studio, export_yolo]
Exporter = Callable[..., ExportSummary]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_difficult(tmp_path_factory.mktemp("difficult") / "c")


def test_names_are_unique_short_and_safe() -> None:
    names = make_unique_names([*KEYS, "e\u0301", "é", "É", "..", "x" * 300], keep=".-")
    folded = {name.casefold() for name in names}
    assert len(folded) == len(names)
    for name in names:
        assert len(name.encode()) < 200
        assert not set(name) & set('/\\<>:"|?*% \n')
        assert name[0] not in ".-"
        assert name.upper() != "CON"
    assert make_unique_names(["plain", "IMG-1.x"], keep=".-") == ["plain", "IMG-1.x"]


def test_classes_are_those_of_the_selected_sources_and_of_all_rows(collection: Collection) -> None:
    export = ImageExport(collection, [0])
    # "" is "object", a class of its own as well; a collection stores " blank" without the blank.
    assert export.classes == sorted(set(CLASSES) - {"", " blank"})
    assert "猫" in ImageExport(collection, [0], (ALL_SOURCES,)).classes


def test_regions_of_other_sources_are_counted_for_the_selected_images(collection: Collection) -> None:
    regions = SelectedRegions(collection)
    expected = [sum(region.source == "vesl:nanodet" for region in record.regions) for record in collection]
    assert [regions.count_left_out([row]) for row in range(len(collection))] == expected
    assert regions.count_left_out(range(len(collection))) == regions.left_out == sum(expected) > 0
    assert regions.describe_left_out([0]) == ""


@pytest.mark.parametrize("export", EXPORTERS)
def test_an_export_appears_whole_and_overwrites_nothing(
    collection: Collection, export: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = export(collection, tmp_path / "out")
    expected = [collection.record(row) for row in range(len(collection))]
    assert (summary.images, summary.unreadable) == (len(KEYS), {})
    assert summary.captions in (0, sum(len(record.captions) for record in expected))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(GONE in path.read_bytes().decode(errors="ignore") for path in files if path.suffix != ".parquet")
    with raises_naming(UserError, tmp_path / "out"):
        export(collection, tmp_path / "out")
    with raises_naming(UserError, "nothing to export"):
        export(collection, tmp_path / "none", rows=[])
    with raises_naming(UserError, "vesl:other"):
        export(collection, tmp_path / "none", region_sources=("vesl:other",))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageExport, "finish", fail)
    with raises_naming(UserError, "No space left"):
        export(collection, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("export", EXPORTERS)
def test_unreadable_images_are_left_out_and_named(export: Exporter, tmp_path: Path) -> None:
    collection = make_difficult(tmp_path / "c")
    (collection.path / "images" / "00001.tar").unlink()
    summary = export(collection, tmp_path / "out")
    assert (summary.images, len(summary.unreadable)) == (len(KEYS) - 5, 5)
    assert "missing shard" in summary.unreadable["x/images/y"] or "is missing" in summary.unreadable["x/images/y"]
    with raises_naming(UserError, "none of 5 images can be read"):
        export(collection, tmp_path / "none", rows=range(5, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "out"]


def test_datasets_opens_images_texts_and_boxes(collection: Collection, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_datasets(collection, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    counts = {"train": 4, "validation": 3, "test": 3, "unassigned": 3}
    assert {name: len(rows) for name, rows in loaded.items()} == counts
    names = loaded["train"].features["objects"]["category"].feature.names
    assert names == ImageExport(collection, None).classes
    rows = {row["key"]: row for split in loaded.values() for row in split}
    assert set(rows) == set(KEYS)
    for number in range(len(collection)):
        record, row = collection.record(number), rows[collection.keys[number]]
        assert np.array_equal(
            np.asarray(row["image"].convert("RGB")), np.asarray(decode(collection.image_bytes(number)))
        )
        assert [tuple(caption.values()) for caption in row["captions"]] == [
            (caption.text, caption.kind, caption.source) for caption in record.captions
        ]
        assert {label["field"]: label["value"] for label in row["labels"]} == record.labels
        regions = [region for region in record.regions if region.source != "vesl:nanodet"]
        size = (row["width"], row["height"])
        assert size == (record.width, record.height) == row["image"].size
        boxes = [region.box.to_xywh(*size) for region in regions]
        assert row["objects"]["bbox"] == [[box.x, box.y, box.width, box.height] for box in boxes]
        assert [names[number] for number in row["objects"]["category"]] == [
            region.label or "object" for region in regions
        ]
        for name in ("phrase", "score", "slice", "source"):
            assert row["objects"][name] == [getattr(region, name) for region in regions]


def test_our_importer_reads_images_captions_and_splits_of_datasets(collection: Collection, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    export_datasets(collection, tmp_path / "out")
    summary = import_datasets(tmp_path / "out", tmp_path / "again", key_column="key")
    assert (summary.imported, len(summary.quarantined)) == (len(KEYS), 0)
    again = Collection.open(tmp_path / "again")
    assert sorted(again.keys) == sorted(KEYS)
    for record in collection:
        row = again.find_row(record.key)
        assert again.image_bytes(row) == collection.image_bytes(collection.find_row(record.key))
        assert [caption.text for caption in again.read_captions(row)] == [caption.text for caption in record.captions]
        assert again.splits[row] == record.split


def test_datasets_has_files_of_bounded_size_and_splits_of_any_name(
    tmp_path: Path, tiny_collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    from foveate.records.exporters import datasets as module

    monkeypatch.setattr(module, "_MAX_GROUP_ROWS", 3)
    monkeypatch.setattr(module, "_MAX_FILE_BYTES", 1)
    collection = Collection.open(tiny_collection)
    monkeypatch.setattr(Collection, "splits", np.array(["a-b", "a_b"] * (len(collection) // 2), dtype=object))
    export_datasets(collection, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert [len(rows) for rows in loaded.values()] == [len(collection) // 2] * 2
    files = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert len(files) == 2 * -(-len(collection) // 6)
    keys = [key for rows in loaded.values() for key in rows["key"]]
    assert sorted(keys) == sorted(collection.keys)


def test_yolo_gives_the_boxes_again(collection: Collection, tmp_path: Path) -> None:
    summary = export_yolo(collection, tmp_path / "out")
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text(encoding="utf-8"))
    assert {name: data[name] for name in ("train", "val", "test")} == {
        name: f"images/{name}" for name in ("train", "val", "test")
    }
    assert summary.notes == ["images/unassigned: data.yaml has no key for this split"]
    keys = json.loads((tmp_path / "out" / "keys.json").read_text(encoding="utf-8"))
    assert sorted(keys.values()) == sorted(KEYS)
    assert len({file.casefold() for file in keys}) == len(KEYS)
    count = 0
    for file, key in keys.items():
        row = collection.find_row(key)
        assert (tmp_path / "out" / "images" / file).read_bytes() == collection.image_bytes(row)
        lines = (tmp_path / "out" / "labels" / file).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        regions = [region for region in collection.read_regions(row) if region.source != "vesl:nanodet"]
        assert len(lines) == len(regions)
        count += len(lines)
        for line, region in zip(lines, regions, strict=True):
            number, *values = line.split()
            assert data["names"][int(number)] == (region.label or "object")
            box = Box.from_center(CenterBox(*map(float, values)))
            assert np.abs(box.to_array() - region.box.to_array()).max() <= 1e-9
    assert summary.regions == count > 0


def test_yolo_names_required_splits_and_leaves_out_crowds(tiny_collection: Path, tmp_path: Path) -> None:
    collection = Collection.open(tiny_collection)
    rows = collection.rows("test")
    summary = export_yolo(collection, tmp_path / "out", rows=rows)
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text(encoding="utf-8"))
    assert {data[name] for name in ("train", "val", "test")} == {"images/test"}
    assert len(summary.notes) == 2
    assert data["names"] == dict(enumerate(ImageExport(collection, None).classes))
    with CollectionWriter(tmp_path / "c", source="tests") as writer:
        writer.add("a", jpeg(0), regions=[Region(Box(0, 0, 1, 1), "", slice="crowd"), Region(Box(0, 0, 1, 0.5), "")])
    summary = export_yolo(Collection.open(tmp_path / "c"), tmp_path / "none")
    assert summary.regions == 1
    assert summary.notes[0] == "1 crowd boxes are left out"
    assert (tmp_path / "none" / "labels" / "train" / "a.txt").read_text() == "0 0.5 0.25 1 0.5\n"


def test_label_studio_has_annotations_predictions_and_files(collection: Collection, tmp_path: Path) -> None:
    summary = export_label_studio(collection, tmp_path / "out", region_sources=(ALL_SOURCES,))
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["key"] for task in tasks] == list(KEYS)
    interface = ElementTree.parse(tmp_path / "out" / "labeling.xml")
    names = [label.get("value") for label in interface.iter("Label")]
    assert names == ImageExport(collection, None, (ALL_SOURCES,)).classes
    assert (summary.images, summary.regions) == (len(KEYS), sum(len(record.regions) for record in collection))
    for row, task in enumerate(tasks):
        record = collection.record(row)
        name = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        assert (tmp_path / "out" / name).read_bytes() == collection.image_bytes(row)
        assert (task["data"].get("labels", {}), task["data"].get("split", "")) == (record.labels, record.split)
        results = [
            (origin.get("model_version", ""), result)
            for origin in (*task.get("annotations", []), *task.get("predictions", []))
            for result in origin["result"]
        ]
        texts = [result["value"]["text"] for _, result in results if result["from_name"] == "caption"]
        assert texts == ([[caption.text for caption in record.captions]] if record.captions else [])
        phrases = {result["id"]: result["value"]["text"] for _, result in results if result["from_name"] == "phrase"}
        boxes = [(version, result) for version, result in results if result["type"] == "rectanglelabels"]
        assert len(boxes) == len(record.regions)
        for (version, result), region in zip(boxes, record.regions, strict=True):
            assert version == ("vesl:nanodet" if region.source == "vesl:nanodet" else "")
            assert phrases.get(result["id"], [""]) == [region.phrase]
            value = result["value"]
            assert (value["rectanglelabels"], result["score"]) == ([region.label or "object"], region.score)
            assert (result["original_width"], result["original_height"]) == (record.width, record.height)
            corner, size = (value["x"], value["y"]), (value["width"], value["height"])
            assert all(0 <= number <= 100 for number in (*corner, *size))
            found = np.array([*corner, corner[0] + size[0], corner[1] + size[1]]) / 100
            assert np.allclose(found, region.box.to_array(), rtol=0, atol=1e-15)


def test_fiftyone_has_samples_with_boxes_and_tags(collection: Collection, tmp_path: Path) -> None:
    export_fiftyone(collection, tmp_path / "out", region_sources=(ALL_SOURCES,))
    # A `version` would make FiftyOne expect the fields of a release.
    assert set(json.loads((tmp_path / "out" / "metadata.json").read_text(encoding="utf-8"))) == {"media_type", "info"}
    samples = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert [sample["key"] for sample in samples] == list(KEYS)
    for row, sample in enumerate(samples):
        record = collection.record(row)
        assert (tmp_path / "out" / sample["filepath"]).read_bytes() == collection.image_bytes(row)
        assert sample["tags"] == ([record.split] if record.split else [])
        lists = [sample.get(name, {"detections": []})["detections"] for name in ("ground_truth", "predictions")]
        assert {box["source"] for box in lists[1]} <= {"vesl:nanodet"}
        for box, region in zip([*lists[0], *lists[1]], record.regions, strict=True):
            corners = region.box
            assert box["bounding_box"] == [corners.x1, corners.y1, corners.width, corners.height]
            assert (box["label"], box["phrase"]) == (region.label or "object", region.phrase)
