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
from foveate.records.exporters.yolo import export_yolo
from foveate.records.image_export import ImageExport


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
