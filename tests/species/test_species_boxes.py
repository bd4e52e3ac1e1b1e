"""Offline boxes of NanoDet: rows of the collection, resumable, apart from imported boxes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveate.core.errors import NothingSucceededError, UserError
from foveate.records.annotate import matching_parts
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box, intersection_over_union
from foveate.records.collection import Collection
from foveate.records.record import Region
from foveate.records.region_sources import SelectedRegions
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate.species import boxes as module
from foveate.species.boxes import add_boxes
from foveate.species.settings import BoxSettings


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    with CollectionWriter(tmp_path / "cards", license="CC0-1.0", source="cards") as writer:
        writer.add("cat", encode(data.chelsea()))
        writer.add("empty", encode(np.full((120, 160, 3), 90, np.uint8)))
        writer.add("known", encode(data.coffee()), regions=[Region(Box(0, 0, 0.5, 0.5), "animal", 0.9)])
    return tmp_path / "cards"


def test_boxes_are_added_where_none_were_imported(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IMAGES_PER_PART", 1)
    result = add_boxes(collection, BoxSettings(), device="cpu", workers=1)
    assert (result.images, result.skipped, result.status) == (3, 1, {"ok": 1, "no_boxes": 1})
    with Collection.open(collection) as opened:
        cat = opened.read_regions(opened.find_row("cat"))
        best = max(cat, key=lambda region: region.score)
        expected = np.array([[2 / 451, 2 / 300, 442 / 451, 1.0]])
        assert intersection_over_union(best.box.to_array()[None], expected)[0] > 0.9
        assert {(region.source, region.label) for region in cat} == {("detector:nanodet", "object")}
        assert len(cat) == result.boxes
        assert [region.source for region in opened.read_regions(opened.find_row("known"))] == ["cards"]
        # Pseudo-labels: trainings on regions leave them out.
        assert not SelectedRegions(opened).read(opened.find_row("cat"))
    again = add_boxes(collection, BoxSettings(), device="cpu", workers=1)
    assert (again.status, again.boxes) == (result.status, result.boxes)
    more = add_boxes(collection, BoxSettings(every_image=True), device="cpu", workers=1)
    assert sum(more.status.values()) == 3


def test_another_threshold_replaces_boxes(collection: Path) -> None:
    def read_scores() -> list[float]:
        with Collection.open(collection) as opened:
            assert [region.source for region in opened.read_regions(opened.find_row("known"))] == ["cards"]
            return sorted(region.score for region in opened.read_regions(opened.find_row("cat")))

    add_boxes(collection, BoxSettings(threshold=0.05), device="cpu", workers=1)
    many = read_scores()
    result = add_boxes(collection, BoxSettings(threshold=0.5), device="cpu", workers=1)
    few = read_scores()
    assert few == [score for score in many if score > 0.5]
    assert 0 < len(few) == result.boxes < len(many)
    assert add_boxes(collection, BoxSettings(threshold=0.05), device="cpu", workers=1).boxes == len(many)
    assert read_scores() == many


def test_an_image_whose_card_is_away_is_tried_again(collection: Path, tmp_path: Path) -> None:
    """Nothing is stored of it, and the command ends with an error until the card is back."""
    images = collection / "images"
    images.rename(tmp_path / "away")
    for _ in range(2):
        result = add_boxes(collection, BoxSettings(), device="cpu", workers=1)
        assert (result.status, result.unreachable) == ({}, 2)
        failure = result.find_failure()
        assert isinstance(failure, NothingSucceededError)
        for text in ("2 of 2 images could not be reached", "is missing", "is the card still there? Run the same"):
            assert text in str(failure)
    assert not list(matching_parts(collection, "region_status", ["key"], where={}))
    (tmp_path / "away").rename(images)
    result = add_boxes(collection, BoxSettings(), device="cpu", workers=1)
    assert (result.status, result.unreachable, result.find_failure()) == ({"ok": 1, "no_boxes": 1}, 0, None)


def test_one_image_that_is_away_ends_with_an_error_and_a_damaged_one_is_done(tmp_path: Path) -> None:
    cards = tmp_path / "files"
    cards.mkdir()
    with CollectionWriter(tmp_path / "survey", license="CC0-1.0", source="cards") as writer:
        for name in ("a", "b", "c"):
            (cards / f"{name}.jpg").write_bytes(encode(np.full((120, 160, 3), ord(name), np.uint8)))
            writer.add(name, (cards / f"{name}.jpg").read_bytes(), location=cards / f"{name}.jpg")
    (cards / "a.jpg").rename(tmp_path / "a.jpg")
    first = add_boxes(tmp_path / "survey", BoxSettings(), device="cpu", workers=1)
    assert (first.status, first.unreachable) == ({"no_boxes": 2}, 1)
    assert type(first.find_failure()) is UserError
    assert "1 of 3 images" in str(first.find_failure())
    # Rows of earlier versions called an image damaged whose file was away.
    (part,) = matching_parts(tmp_path / "survey", "region_status", ["recipe_hash", "model"], where={})
    provenance = Provenance("detector:nanodet", part["model"][0].as_py(), part["recipe_hash"][0].as_py())
    with AnnotationAppender(tmp_path / "survey", purpose="a test") as appender:
        row = {"key": "a", "status": "decode_error", "regions": 0, "source": "detector:nanodet"}
        detail = f"{cards}/a.jpg is missing: it was moved or deleted"
        appender.append("region_status", [row | {"detail": detail}], provenance)
    (tmp_path / "a.jpg").rename(cards / "a.jpg")
    last = add_boxes(tmp_path / "survey", BoxSettings(), device="cpu", workers=1)
    assert (last.status, last.unreachable, last.find_failure()) == ({"no_boxes": 3}, 0, None)


def test_a_damaged_image_is_done_and_damaged_ones_alone_are_no_success(collection: Path) -> None:
    tar = collection / "images" / "00000.tar"
    data = bytearray(tar.read_bytes())
    with Collection.open(collection) as opened:
        starts = {key: int(opened.index["offset"][opened.find_row(key)]) for key in ("cat", "empty")}
    for start in starts.values():
        data[start : start + 300] = bytes(300)
    tar.write_bytes(data)
    for _ in range(2):
        result = add_boxes(collection, BoxSettings(), device="cpu", workers=1)
        assert (result.status, result.unreachable) == ({"decode_error": 2}, 0)
        assert isinstance(result.find_failure(), NothingSucceededError)
        assert result.first_error in str(result.find_failure())
    assert sum(len(part) for part in matching_parts(collection, "region_status", ["key"], where={})) == 2
