"""The programs that exports are for open them: supervision, Label Studio's converter and FiftyOne.

`make test-export-oracles` installs them; each test is skipped where its program is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_exports import KEYS, make_difficult

from foveate.records.collection import Collection
from foveate.records.exporters.fiftyone import export_fiftyone
from foveate.records.exporters.label_studio import export_label_studio
from foveate.records.exporters.yolo import export_yolo
from foveate.records.image_export import ImageExport
from foveate.records.region_sources import ALL_SOURCES


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_difficult(tmp_path_factory.mktemp("difficult") / "c")


def test_supervision_opens_yolo(collection: Collection, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    export_yolo(collection, tmp_path / "out")
    keys = json.loads((tmp_path / "out" / "keys.json").read_text(encoding="utf-8"))
    seen = set()
    for split in ("train", "val", "test", "unassigned"):
        opened = supervision.DetectionDataset.from_yolo(
            str(tmp_path / "out" / "images" / split),
            str(tmp_path / "out" / "labels" / split),
            str(tmp_path / "out" / "data.yaml"),
        )
        assert opened.classes == ImageExport(collection, None).classes
        for path, pixels, detections in opened:
            record = collection[keys[f"{split}/{Path(path).name}"]]
            seen.add(record.key)
            assert pixels.shape == (record.height, record.width, 3)
            regions = [region for region in record.regions if region.source != "vesl:nanodet"]
            assert [opened.classes[number] for number in detections.class_id] == [
                region.label or "object" for region in regions
            ]
            boxes = np.array([region.box.to_array() for region in regions]).reshape(-1, 4)
            scale = np.array([record.width, record.height] * 2)
            # supervision has float32 pixels.
            assert np.allclose(detections.xyxy, boxes * scale, rtol=0, atol=1e-5)
    assert seen == set(KEYS)


def test_label_studio_parses_validates_and_converts(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    out = tmp_path / "out"
    export_label_studio(collection, out, region_sources=(ALL_SOURCES,))
    config = (out / "labeling.xml").read_text(encoding="utf-8")
    interface = LabelInterface(config)
    interface.validate()
    assert list(interface.get_control("box").labels) == ImageExport(collection, None, (ALL_SOURCES,)).classes
    tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        for prediction in (*task.get("annotations", []), *task.get("predictions", [])):
            assert interface.validate_prediction(prediction, return_errors=True) == []
    # A project's export has ids, which the server gives on import.
    for number, task in enumerate(tasks):
        task["id"] = number
        task["annotations"] = [{"id": number, **annotation} for annotation in task.get("annotations", [])]
    (tmp_path / "project.json").write_text(json.dumps(tasks), encoding="utf-8")
    monkeypatch.setenv("LOCAL_FILES_SERVING_ENABLED", "true")
    monkeypatch.setenv("LOCAL_FILES_DOCUMENT_ROOT", str(out))
    converter = Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(tmp_path / "project.json"), str(tmp_path / "coco"), is_dir=False)
    found = json.loads((tmp_path / "coco" / "result.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert len(found["images"]) == len(KEYS)
    for row in range(len(collection)):
        record = collection.record(row)
        annotations = [entry for entry in found["annotations"] if entry["image_id"] == row]
        regions = [region for region in record.regions if region.source != "vesl:nanodet"]
        assert [names[entry["category_id"]] for entry in annotations] == [
            region.label or "object" for region in regions
        ]
        for entry, region in zip(annotations, regions, strict=True):
            box = region.box.to_xywh(record.width, record.height)
            assert entry["bbox"] == pytest.approx([box.x, box.y, box.width, box.height], rel=0, abs=1e-10)


def test_fiftyone_imports_samples(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read when it is imported: no database of the user, no message to its makers.
    monkeypatch.setenv("FIFTYONE_DATABASE_DIR", str(tmp_path / "database"))
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    fiftyone = pytest.importorskip("fiftyone")
    try:
        fiftyone.list_datasets()
    except fiftyone.core.config.FiftyOneConfigError as error:
        pytest.skip(f"FiftyOne has no MongoDB here: {error}")
    export_fiftyone(collection, tmp_path / "out", region_sources=(ALL_SOURCES,))
    dataset = fiftyone.Dataset.from_dir(str(tmp_path / "out"), dataset_type=fiftyone.types.FiftyOneDataset)
    try:
        assert dataset.default_classes == ImageExport(collection, None, (ALL_SOURCES,)).classes
        assert dataset.distinct("key") == sorted(KEYS)
        assert dataset.count("ground_truth.detections") + dataset.count("predictions.detections") == sum(
            len(record.regions) for record in collection
        )
        for sample in dataset:
            record = collection[sample["key"]]
            assert Path(sample.filepath).read_bytes() == collection.image_bytes(collection.find_row(record.key))
            assert (sample.metadata.width, sample.metadata.height) == (record.width, record.height)
            assert (sample.tags, sample["group_name"]) == ([record.split] if record.split else [], record.group)
            texts = zip(sample["captions"], sample["caption_kinds"], sample["caption_sources"], strict=True)
            assert [*texts] == [(caption.text, caption.kind, caption.source) for caption in record.captions]
            labels = sample["labels"].classifications if sample["labels"] else []
            assert {label["field"]: label.label for label in labels} == record.labels
            lists = [sample[name].detections if sample[name] else [] for name in ("ground_truth", "predictions")]
            assert {box["source"] for box in lists[1]} <= {"vesl:nanodet"}
            for box, region in zip([*lists[0], *lists[1]], record.regions, strict=True):
                corners = region.box
                assert box.bounding_box == [corners.x1, corners.y1, corners.width, corners.height]
                assert (box.label, box.confidence) == (region.label or "object", region.score)
                assert (box["phrase"], box["slice"], box["source"]) == (region.phrase, region.slice, region.source)
                assert box["iscrowd"] is False
    finally:
        dataset.delete()
