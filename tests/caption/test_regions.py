"""Labeling a collection: rows and statuses, going on after kills, one writer, the control, failing detectors."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from foveate.caption.settings import RegionLabelSettings
from foveate.caption.summary import build_gallery
from foveate.caption.vesl import run as module
from foveate.caption.vesl.detection import AnnotationDetector, AnnotationSettings, Detections, DetectorInput
from foveate.caption.vesl.run import LabelingRun, estimate_labeling, label_regions, shuffle_partners
from foveate.core.errors import NothingSucceededError, UserError
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.layout import annotation_parts
from foveate.records.region_sources import is_pseudo_label
from foveate.records.tables import Provenance
from killing import Server, kill_at_random
from naming import raises_naming
from small_disk import Disk, disk

__all__ = ["disk"]  # the fixture

ALT = RegionLabelSettings(captions=("alt",))


@pytest.fixture
def shapes(tiny_collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def label(path: Path, settings: RegionLabelSettings = ALT, **options: Any) -> LabelingRun:
    return label_regions(
        path, settings, detector="annotations", detector_settings=AnnotationSettings(), batch=5, **options
    )


def rows_of(path: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of pseudo-labels without their time, sorted."""
    with Collection.open(path) as collection:
        rows = [row for row in collection.table(kind).to_pylist() if is_pseudo_label(row["source"])]
    for row in rows:
        del row["created"]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.parametrize(("name", "value"), [("limit", -2), ("limit", 0), ("batch", 0)])
def test_python_users_meet_the_bounds_of_the_command_line(shapes: Path, name: str, value: int) -> None:
    with raises_naming(UserError, name, value):
        label_regions(
            shapes, ALT, detector="annotations", detector_settings=AnnotationSettings(), **{"batch": 5, name: value}
        )
    assert not (shapes / "annotations" / "region_status").exists()


def test_rows_have_provenance_and_annotations_stay(shapes: Path) -> None:
    before = Collection.open(shapes).table("regions")
    outcome = label(shapes)
    result = outcome.result.to_json()
    assert result["oracle"]
    assert result["status"] | {"ok": 30, "no_caption": 2} == result["status"]
    assert sum(result["status"].values()) == result["images"] == 32
    rows = rows_of(shapes, "regions")
    assert result["regions"] == len(rows) == 54
    with Collection.open(shapes) as collection:
        assert collection.table("regions").slice(0, before.num_rows).equals(before)
        for row in rows:
            regions = collection.read_regions(collection.find_row(row["key"]))
            truth = [region for region in regions if region.source == "test"]
            boxes = {tuple(region.box.to_array().astype(np.float32).tolist()): region.phrase for region in truth}
            name = boxes[(row["x1"], row["y1"], row["x2"], row["y2"])]
            assert row["phrase"] == f"a {name}"
            assert (row["source"], row["recipe_hash"]) == ("vesl:annotations", result["recipe_hash"])
            details = json.loads(row["details"])
            assert details["oracle"]
            assert (details["caption"], details["tagger"], details["input_px"]) == ("alt", "rules", 0)
    statuses = rows_of(shapes, "region_status")
    assert Counter(row["status"] for row in statuses) == {"ok": 30, "no_caption": 2}
    assert sum(row["regions"] for row in statuses) == len(rows)


def test_a_second_run_does_nothing_and_another_recipe_adds_rows(shapes: Path) -> None:
    first = label(shapes).result.to_json()
    parts = sorted(path.name for path in (shapes / "annotations").rglob("*.parquet"))
    again = label(shapes).result.to_json()
    assert again["done_before"] == 32
    assert (again["regions_new"], again["regions"], again["status"]) == (0, first["regions"], first["status"])
    assert parts == sorted(path.name for path in (shapes / "annotations").rglob("*.parquet"))
    other = label(shapes, RegionLabelSettings(captions=("title", "alt"))).result.to_json()
    assert other["recipe_hash"] != first["recipe_hash"]
    assert other["done_before"] == 0
    assert len(rows_of(shapes, "regions")) == first["regions"] + other["regions"]


def test_an_image_whose_caption_came_later_is_labeled(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = label(shapes).result
    bare = [row["key"] for row in rows_of(shapes, "region_status") if row["status"] == "no_caption"]
    names = [f"a {color} {shape}" for color in tiny.COLORS for shape in tiny.SHAPES]
    caption = {"key": bare[0], "text": " and ".join(names), "kind": "alt", "request": "1", "created": "1"}
    with AnnotationAppender(shapes, purpose="captioning") as appender:
        appender.append("captions", [caption], Provenance("captioner", "new", "x"))
    later = label(shapes).result
    assert (later.done_before, later.status["no_caption"], sum(later.status.values())) == (31, 1, 32)
    assert later.status["no_phrases"] + later.status["no_boxes"] + later.status["ok"] == 31
    # The row of before stays in the table, and the last one holds.
    again = label(shapes).result
    assert (again.done_before, again.status, again.regions_new) == (32, later.status, 0)
    assert again.regions == later.regions >= first.regions
    # A run that died before it wrote the status of this image has its regions already.
    annotation_parts(shapes, "region_status", set())[-1].unlink()
    assert bare[0] in {row["key"] for row in rows_of(shapes, "regions")}
    monkeypatch.delattr(AnnotationDetector, "detect")
    resumed = label(shapes).result
    assert (resumed.status, resumed.regions) == (later.status, later.regions)


def test_parts_of_a_collection_can_be_labeled(shapes: Path) -> None:
    assert label(shapes, split="test").result.to_json()["images"] == 10
    assert label(shapes, limit=7).result.to_json()["images"] == 7
    rest = label(shapes).result.to_json()
    assert rest["done_before"] == 17
    assert sum(rest["status"].values()) == 32
    whole = rows_of(shapes, "regions")
    assert len({(row["key"], row["x1"], row["phrase"]) for row in whole}) == len(whole) == rest["regions"]


def test_regions_without_their_status_are_not_detected_again(shapes: Path) -> None:
    """As after a kill between the two tables: what is there stays, and only the status is added."""
    label(shapes)
    expected = rows_of(shapes, "regions"), rows_of(shapes, "region_status")
    for part in (shapes / "annotations" / "region_status").iterdir():
        part.unlink()
    label(shapes)
    assert (rows_of(shapes, "regions"), rows_of(shapes, "region_status")) == expected


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("regions_to_kill") as server:
        yield server


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_lose_and_duplicate_nothing(kills: int, server: Server, shapes: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(shapes, tmp_path / "whole"))
    took = server.seconds("label", whole)
    expected = rows_of(whole, "regions"), rows_of(whole, "region_status")
    current = {"path": Path(shutil.copytree(shapes, tmp_path / "killed-0"))}

    def check(dead: bool) -> None:
        if not dead:
            assert (rows_of(current["path"], "regions"), rows_of(current["path"], "region_status")) == expected
            shutil.rmtree(current["path"])
            current["path"] = Path(shutil.copytree(shapes, current["path"]))

    kill_at_random(lambda: server.start("label", current["path"]), kills=kills, longest=took * 0.9, seed=4, after=check)
    server.start("label", current["path"]).finish()
    assert (rows_of(current["path"], "regions"), rows_of(current["path"], "region_status")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_file_loses_and_duplicates_nothing(
    moment: str, server: Server, shapes: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(shapes, tmp_path / "whole"))
    steps = server.start("label", whole).finish()
    expected = rows_of(whole, "regions"), rows_of(whole, "region_status")
    for die_at in range(1, steps + 1, 3):
        copy = Path(shutil.copytree(shapes, tmp_path / f"at-{die_at}"))
        assert server.start("label", copy, die_at=die_at, moment=moment).end() == 9
        server.start("label", copy).finish()
        assert (rows_of(copy, "regions"), rows_of(copy, "region_status")) == expected


def test_a_full_disk_loses_and_duplicates_nothing(
    disk: Disk, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IMAGES_PER_PART", 3)
    plain = Path(shutil.copytree(tiny_collection, tmp_path / "plain"))
    label(plain)
    expected = rows_of(plain, "regions"), rows_of(plain, "region_status")
    disk.resize("8m")
    copy = Path(shutil.copytree(tiny_collection, disk.folder / "shapes"))
    used = sum(4096 * -(-file.stat().st_size // 4096) for file in disk.folder.rglob("*") if file.is_file())
    written = 0
    for more in (24, 48):
        disk.resize(f"{used // 1024 + more}k")
        with pytest.raises(OSError, match="No space left"):
            label(copy)
        assert not list(copy.rglob("*.tmp"))
        assert len(rows_of(copy, "region_status")) >= written
        written = len(rows_of(copy, "region_status"))
    assert 0 < written < 32
    disk.resize("8m")
    label(copy)
    assert (rows_of(copy, "regions"), rows_of(copy, "region_status")) == expected


def test_one_writer_at_a_time(shapes: Path) -> None:
    with AnnotationAppender(shapes, purpose="something else"), raises_naming(UserError, str(shapes), "something else"):
        label(shapes)


def test_the_control_uses_phrases_of_other_images(shapes: Path) -> None:
    with Collection.open(shapes) as collection:
        rows = [int(row) for row in collection.rows("train")]
    partners = shuffle_partners(rows, 3)
    assert sorted(partners) == sorted(partners.values()) == sorted(rows)
    assert all(row != partner for row, partner in partners.items())
    true = label(shapes).result.to_json()
    shuffled = label(shapes, RegionLabelSettings(captions=("alt",), shuffle_phrases=True)).result.to_json()
    assert shuffled["recipe_hash"] != true["recipe_hash"]
    assert shuffled["regions"] < true["regions"]
    details = [json.loads(row["details"]) for row in rows_of(shapes, "regions")]
    assert sum("shuffled" in entry for entry in details) == shuffled["regions"]


def test_captions_of_the_preferred_kind_and_captioner_are_used(shapes: Path) -> None:
    captions = [
        {"key": "train-00", "kind": "dsc", "text": "A blue zebra.", "request": "1", "status": "ok", "created": "2"},
        {"key": "train-01", "kind": "dsc", "text": "A photo.", "request": "2", "status": "ok", "created": "2"},
    ]
    with AnnotationAppender(shapes, purpose="captioning") as appender:
        for model in ("old", "new"):
            appender.append("captions", captions, Provenance("captioner", model, "x"))
            captions[0] |= {"text": "A red disc and a zebra.", "request": "3", "created": "1"}
    settings = RegionLabelSettings(captions=("dsc", "alt"))
    planned = estimate_labeling(
        shapes, settings, detector="annotations", detector_settings=AnnotationSettings(), limit=3
    )
    assert planned["captions"] == {"dsc": 2, "alt": 1}
    assert planned["examples"][0]["phrases"] == ["a blue zebra"]
    assert planned["with_phrases"] == 2
    preferring = RegionLabelSettings(captions=("dsc", "alt"), prefer=("new",))
    planned = estimate_labeling(
        shapes, preferring, detector="annotations", detector_settings=AnnotationSettings(), limit=3
    )
    assert planned["examples"][0]["phrases"] == ["a red disc", "a zebra"]
    assert not (shapes / "annotations" / "region_status").exists()
    statuses = label(shapes, settings).result.to_json()["status"]
    assert statuses["no_phrases"] == 1
    assert statuses["no_boxes"] == 1
    with raises_naming(UserError, "ssc", "alt, dsc, title"):
        label(shapes, RegionLabelSettings(captions=("ssc",)))


def test_damaged_images_and_failing_detectors_are_counted(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(AnnotationDetector):
        def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
            assert all(image.image is not None for image in images)
            if any(image.key == "train-04" for image in images):
                raise RuntimeError("out of\nmemory")
            return super().detect(images, phrases)

    tiny.damage(shapes, "train-02")
    kind = module.find_detector("annotations")
    changed = type(kind)(settings=kind.settings, open=lambda s, c, d: Failing(s, c), reads_pixels=True, oracle=True)
    monkeypatch.setattr(module, "find_detector", lambda name: changed)
    result = label(shapes).result.to_json()
    assert result["status"] | {"ok": 28, "decode_error": 1, "detector_error": 1, "no_caption": 2} == result["status"]
    by_key = {row["key"]: row for row in rows_of(shapes, "region_status")}
    assert by_key["train-04"]["detail"] == "RuntimeError: out of memory"
    assert by_key["train-02"]["status"] == "decode_error"
    assert by_key["train-02"]["detail"]


def test_failed_images_are_tried_again_and_failures_alone_are_no_success(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the disk with the images is not mounted, then the GPU is full."""
    is_full = True

    class Big(AnnotationDetector):
        def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
            if is_full:
                raise MemoryError("the GPU is full")
            return super().detect(images, phrases)

    kind = module.find_detector("annotations")
    changed = type(kind)(settings=kind.settings, open=lambda s, c, d: Big(s, c), reads_pixels=True, oracle=True)
    monkeypatch.setattr(module, "find_detector", lambda name: changed)
    (shapes / "images").rename(tmp_path / "unmounted")
    for _ in range(2):
        failed = label(shapes)
        assert isinstance(failed.failure, NothingSucceededError)
        assert "30 of 32 images could not be reached (the first: " in str(failed.failure)
        assert failed.result.status | {"decode_error": 30, "no_caption": 2} == failed.result.status
    (tmp_path / "unmounted").rename(shapes / "images")
    failed = label(shapes)
    assert isinstance(failed.failure, NothingSucceededError)
    assert "all 30 examined images failed (detector_error 30; the first: MemoryError: the GPU is full)" in str(
        failed.failure
    )
    is_full = False
    done = label(shapes)
    assert (done.failure, done.result.done_before, done.result.regions) == (None, 2, 54)
    assert done.result.status | {"ok": 30, "no_caption": 2} == done.result.status
    assert sum(done.result.status.values()) == 32
    assert label(shapes).result.done_before == 32
    by_status = Counter(row["status"] for row in rows_of(shapes, "region_status"))
    assert by_status == {"ok": 30, "no_caption": 2, "decode_error": 30, "detector_error": 30}


def test_a_damaged_image_beside_labeled_ones_is_no_total_failure(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.damage(shapes, "train-02")
    kind = module.find_detector("annotations")
    monkeypatch.setattr(module, "find_detector", lambda name: replace(kind, reads_pixels=True))
    for before in (0, 31):
        done = label(shapes)
        assert (done.failure, done.result.done_before) == (None, before)
        assert done.result.status["decode_error"] == 1


def test_images_that_are_away_beside_labeled_ones_end_with_an_error(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = module.find_detector("annotations")
    monkeypatch.setattr(module, "find_detector", lambda name: replace(kind, reads_pixels=True))
    shard = shapes / "images" / "00002.tar"
    shard.rename(tmp_path / "away.tar")
    done = label(shapes)
    count = done.result.status["decode_error"]
    assert type(done.failure) is UserError
    assert f"{count} of 32 images could not be reached" in str(done.failure)
    (tmp_path / "away.tar").rename(shard)
    done = label(shapes)
    assert (done.failure, done.result.status["decode_error"]) == (None, 0)


def test_the_control_of_other_images_is_another_recipe(shapes: Path) -> None:
    """Its partners are drawn among its images: resumed with others, phrases of an image would be used twice."""
    shuffled = RegionLabelSettings(captions=("alt",), shuffle_phrases=True)
    runs = [label(shapes, shuffled, **options).result for options in ({"limit": 7}, {"split": "train"}, {})]
    assert [run.done_before for run in runs] == [0, 0, 0]
    assert len({run.recipe_hash for run in runs}) == 3
    assert label(shapes, shuffled).result.done_before == 32


def test_the_gallery_shows_the_regions_of_the_recipe(shapes: Path, tmp_path: Path) -> None:
    outcome = label(shapes)
    gallery = build_gallery(shapes, ALT, outcome.result.recipe_hash, outcome.rows, tmp_path / "run", count=4)
    assert len(gallery["samples"]) == 4
    for sample in gallery["samples"]:
        assert (tmp_path / "run" / sample.image).is_file()
        assert sample.regions
        assert sample.regions[0].phrase.endswith(" 1.00")
    assert sum(gallery["histograms"]["regions per image"].counts) == 32
    assert sum(gallery["histograms"]["score"].counts) == outcome.result.regions
