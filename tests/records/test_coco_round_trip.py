"""COCO out and in is the identity, and COCO in and out gives the file's ids, categories and boxes again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import encoded, jpeg, noise
from made_sets import coco_captions, coco_instances, write_coco, write_json, write_lvis

from foveate.core.errors import UserError
from foveate.records.boxes import Box, PixelBox
from foveate.records.collection import Collection
from foveate.records.exporters.coco import NO_PHRASE, export_coco, list_coco_boxes
from foveate.records.importers.coco import import_coco, import_lvis
from foveate.records.record import Caption, Region
from foveate.records.removal import remove_images
from foveate.records.writer import CollectionWriter
from naming import raises_naming


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"{name}.json").read_text(encoding="utf-8"))


def _by_id(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    found = {entry["id"]: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def test_the_current_folder_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_coco(write_coco(tmp_path / "set", 1), tmp_path / "c")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    export_coco(Collection.open(tmp_path / "c"), ".")
    monkeypatch.chdir(tmp_path)
    assert len(_read(tmp_path / "out", "instances")["images"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "out", "set"]


def test_a_coco_file_comes_out_with_its_ids_categories_and_boxes(tmp_path: Path) -> None:
    export = None
    import_coco(write_coco(tmp_path / "set", 5), tmp_path / "c")
    export = export_coco(Collection.open(tmp_path / "c"), tmp_path / "out")
    assert (export.images, export.regions, export.captions) == (5, 10, 10)
    before, after = coco_instances(5), _read(tmp_path / "out", "instances")
    assert _by_id(after["categories"]) == _by_id(before["categories"])
    images = _by_id(after["images"])
    for entry in before["images"]:
        assert {name: images[entry["id"]][name] for name in ("file_name", "width", "height")}.items() <= entry.items()
        copied = tmp_path / "out" / "images" / entry["file_name"]
        assert copied.read_bytes() == (tmp_path / "set" / "val2017" / entry["file_name"]).read_bytes()
    annotations = _by_id(after["annotations"])
    assert annotations.keys() == _by_id(before["annotations"]).keys()
    for entry in before["annotations"]:
        found = annotations[entry["id"]]
        for name in ("image_id", "category_id", "iscrowd", "area"):
            assert found[name] == entry[name]
        assert np.abs(np.subtract(found["bbox"], entry["bbox"])).max() < 1e-3
        assert not found.keys() & {"phrase", "label", "score", "slice", "source"}
    captions = _by_id(_read(tmp_path / "out", "captions")["annotations"])
    assert captions == _by_id(coco_captions(5)["annotations"])


def test_lvis_categories_come_out_whole(tmp_path: Path) -> None:
    import_lvis(write_lvis(tmp_path / "set", 2), tmp_path / "c")
    export_coco(Collection.open(tmp_path / "c"), tmp_path / "out")
    before = json.loads((tmp_path / "set" / "lvis_v1_val.json").read_text())
    after = _read(tmp_path / "out", "instances")
    assert _by_id(after["categories"]) == _by_id(before["categories"])
    assert not {name for entry in after["annotations"] for name in entry} & {"phrase", "label", "slice"}


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    rng = np.random.default_rng(0)
    with CollectionWriter(tmp_path / "c", source="out", images_per_shard=7) as writer:
        for number in range(16):
            corners = np.sort(rng.random((5, 2, 2)), axis=1).reshape(5, 4)
            regions = [
                Region(
                    Box(*box), f"phrase {number} {place}", 0.25, ("", "cat", "dog")[place % 3], ("", "seen")[place % 2]
                )
                for place, box in enumerate(corners)
            ]
            writer.add(
                ["plain", "dots.v1.2", "50% off", "猫/a.b"][number % 4] + f"-{number}",
                jpeg(number, width=1000 + number, height=701) if number % 3 else encoded(noise(number), "PNG"),
                captions=[Caption(f"title {number}", "title", "shop"), Caption(f"\n二 {number}", "alt")][: number % 3],
                regions=[*regions, Region(Box(0, 0, 1, 1), "all", slice="crowd")][: number % 7],
                labels={"kind": "a", "n": str(number)} if number % 2 else {},
                group=f"g{number // 3}" if number else "",
                split="test" if number % 5 == 0 else "train",
            )
    return Collection.open(tmp_path / "c")


def test_coco_out_and_in_is_the_identity(collection: Collection, tmp_path: Path) -> None:
    export = export_coco(collection, tmp_path / "out")
    assert not export.unreadable
    summary = import_coco(tmp_path / "out", tmp_path / "d", source_name="out")
    assert not summary.quarantined
    again = Collection.open(tmp_path / "d")
    assert again.keys == collection.keys
    for row in range(len(collection)):
        assert again.image_bytes(row) == collection.image_bytes(row)
        assert again.record(row) == collection.record(row), "boxes to the last bit of float32"
    export_coco(again, tmp_path / "out2")
    for name in ("instances", "captions"):
        first, second = _read(tmp_path / "out", name), _read(tmp_path / "out2", name)
        assert {**first, "info": 0} == {**second, "info": 0}


def test_ids_of_two_files_that_clash_are_kept_apart(tmp_path: Path) -> None:
    write_coco(tmp_path / "a", 3)
    content = coco_instances(3)
    content["categories"] = [{"id": 3, "name": "boat"}, {"id": 18, "name": "dog"}]
    folder = tmp_path / "b"
    for number, entry in enumerate(content["images"]):
        entry["file_name"] = f"other-{number}.jpg"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / entry["file_name"]).write_bytes(jpeg(100 + number, width=80, height=60))
    write_json(folder / "instances.json", content)
    for source in (tmp_path / "a", folder):
        import_coco(source, tmp_path / "c")
    export_coco(Collection.open(tmp_path / "c"), tmp_path / "out")
    after = _read(tmp_path / "out", "instances")
    images, categories = _by_id(after["images"]), _by_id(after["categories"])
    assert (len(images), len(_by_id(after["annotations"])), len(categories)) == (6, 12, 4)
    told = [
        (images[one["image_id"]]["file_name"][:5], categories[one["category_id"]]["name"])
        for one in after["annotations"]
    ]
    assert told == [("00000", "car"), ("00000", "dog")] * 3 + [("other", "boat"), ("other", "dog")] * 3


def test_an_image_that_cannot_be_read_is_said_and_left_out(collection: Collection, tmp_path: Path) -> None:
    (collection.path / "images" / "00001.tar").unlink()
    export = export_coco(Collection.open(collection.path), tmp_path / "out")
    assert (export.images, len(export.unreadable)) == (9, 7)
    assert len(_read(tmp_path / "out", "instances")["images"]) == 9


def test_chosen_rows_and_no_overwriting(collection: Collection, tmp_path: Path) -> None:
    export_coco(collection, tmp_path / "out", rows=collection.rows("test"))
    assert len(_read(tmp_path / "out", "instances")["images"]) == 4
    with raises_naming(UserError, tmp_path):
        export_coco(collection, tmp_path / "out")
    with raises_naming(UserError, "nothing to export"):
        export_coco(collection, tmp_path / "other", rows=[])
    assert dataclasses.is_dataclass(export_coco(collection, tmp_path / "other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "other", "out"]


def test_categories_stay_when_their_images_are_removed_and_purged(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "set", 3)
    import_coco(source, tmp_path / "c")
    first, second, third = Collection.open(tmp_path / "c").keys
    remove_images(tmp_path / "c", [first], purge=False)
    remove_images(tmp_path / "c", [second])
    export_coco(Collection.open(tmp_path / "c"), tmp_path / "out")
    categories = _by_id(_read(tmp_path / "out", "instances")["categories"])
    assert categories == _by_id(coco_instances(3)["categories"])
    assert import_coco(source, tmp_path / "c").removed_earlier == 2
    assert Collection.open(tmp_path / "c").dataset_table("coco_categories").num_rows == 3


def test_boxes_of_an_answer_are_imported_with_and_without_a_phrase(tmp_path: Path) -> None:
    boxes = [(0, PixelBox(1, 2, 5, 8), "boat"), (0, PixelBox(3, 3, 9, 9), ""), (0, PixelBox(2, 2, 4, 4), "boat")]
    content = list_coco_boxes([("a.png", 32, 24)], boxes, unboxed=["a cat"], description="What is here?")
    assert content["info"] == {"description": "What is here?", "unboxed": ["a cat"]}
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(encoded(noise(0, width=32, height=24), "PNG"))
    write_json(folder / "annotations" / "instances.json", content)
    import_coco(folder, tmp_path / "c")
    regions = Collection.open(tmp_path / "c").read_regions(0)
    assert [region.phrase for region in regions] == ["boat", NO_PHRASE, "boat"]
    for region, (_, box, _) in zip(regions, boxes, strict=True):
        assert dataclasses.astuple(region.box.to_pixels(32, 24)) == pytest.approx(dataclasses.astuple(box), abs=1e-4)
