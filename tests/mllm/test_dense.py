"""Dense referring and detection: what is asked, in which order, from which regions."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

import tiny
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.mllm.dense import GROUP, DenseSettings, prepare_dense
from foveate.mllm.recipe import MllmRecipe
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Conversations, find_problem
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "shapes"
    tiny.make_collection(path)
    return path


def copy(shapes: Path, target: Path) -> Path:
    return shutil.copytree(shapes, target / "shapes")


def read(path: Path) -> list[Conversation]:
    with Collection.open(path) as collection:
        return list(Conversations(collection, groups=[GROUP]))


def test_every_region_is_asked_about_once_and_detections_are_in_raster_order(shapes: Path, tmp_path: Path) -> None:
    path = copy(shapes, tmp_path)
    counts = prepare_dense(path, DenseSettings(objects=2), seed=1)
    conversations = read(path)
    assert counts.added == len(conversations) == sum(counts.conversations.values())
    assert set(counts.conversations) == {"referring", "detection"}
    asked: Counter[tuple[str, str, PixelBox]] = Counter()
    for conversation in conversations:
        question, answer = conversation.turns
        if conversation.id.startswith("dense detection"):
            boxes = [box for box in answer.regions if isinstance(box, PixelBox)]
            names = answer.text.removesuffix(" <region>").split(" <region>, ")
            assert boxes == sorted(boxes, key=lambda box: (box.y1, box.x1))
            assert not question.regions
        else:
            boxes = [box for box in question.regions if isinstance(box, PixelBox)]
            assert len(boxes) <= 2
            assert not answer.regions
            numbered = [f"{number}. " for number in range(1, len(boxes) + 1)]
            pieces = answer.text
            names = []
            for mark, following in zip(numbered, [*numbered[1:], ""], strict=True):
                assert pieces.startswith(mark)
                pieces = pieces.removeprefix(mark)
                name, _, rest = pieces.partition(f" {following}") if following else (pieces, "", "")
                names.append(name)
                pieces = following + rest
        asked.update((conversation.images[0], name, box) for name, box in zip(names, boxes, strict=True))
        assert "regions of" in conversation.source
        assert find_problem(conversation) is None
    with Collection.open(path) as collection:
        expected = Counter(
            (collection.keys[row], region.phrase, region.box.to_pixels(record.width, record.height))
            for row in collection.rows("train")
            for record in [collection.record(row)]
            for region in record.regions
        )
    assert asked == expected


def test_the_share_of_boxes_and_repetition(shapes: Path, tmp_path: Path) -> None:
    path = copy(shapes, tmp_path)
    assert set(prepare_dense(path, DenseSettings(box_share=1)).conversations) == {"detection"}
    again = prepare_dense(path, DenseSettings(box_share=1))
    assert again.added == 0
    assert again.existing == len(read(path))
    assert set(prepare_dense(path, DenseSettings(box_share=0)).conversations) == {"referring"}


def test_pseudo_labels_are_taken_by_name_and_named(shapes: Path, tmp_path: Path) -> None:
    path = copy(shapes, tmp_path)
    with CollectionWriter(path) as writer, Collection.open(path) as collection:
        row = int(collection.rows("train")[0])
        region = {"key": collection.keys[row], "phrase": "a detected thing", "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}
        writer.annotate("regions", [region], Provenance("vesl:nanodet"))
    assert "vesl:nanodet" not in prepare_dense(path, DenseSettings()).sources
    counts = prepare_dense(path, DenseSettings(sources=("vesl:nanodet",)))
    assert counts.sources == {"vesl:nanodet": 1}
    assert counts.left_out["without regions"] > 0
    assert "vesl:nanodet" in read(path)[-1].source
    with raises_naming(UserError, "split 'test'", "regions"):
        prepare_dense(path, DenseSettings(sources=("vesl:nanodet",), split="test"))
    with raises_naming(UserError, "--region-source", "vesl:nanodett", "vesl:nanodet"):
        prepare_dense(path, DenseSettings(sources=("vesl:nanodett",)))


def test_the_second_stage_of_ferret_v2_trains_on_these() -> None:
    for name in ("ferret-v2-7b", "ferret-v2-13b"):
        first, second, third = load(MllmRecipe, name).stages
        assert (first.copy_projector, second.copy_projector, second.groups) == (False, True, (GROUP,))
        rates = [(stage.connector_rate, stage.tower_factor, stage.language_rate) for stage in (first, second, third)]
        assert rates == [(1, 0, 0), (1, 0, 0), (1, 1, 1)]
