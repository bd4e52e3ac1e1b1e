"""Offline boxes of NanoDet: rows of the collection, resumable, apart from imported boxes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveate.records.boxes import Box, intersection_over_union
from foveate.records.collection import Collection
from foveate.records.record import Region
from foveate.records.region_sources import SelectedRegions
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
