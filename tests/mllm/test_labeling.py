"""Labels by a model: what is stored of answers, and that no kill loses, doubles or repeats anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels_to_kill import QuickModel, label

import tiny
from foveate.core.errors import NothingSucceededError, UserError
from foveate.mllm.labeling import LabelSettings, label_collection
from foveate.records.annotate import matching_parts
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations, find_problem
from foveate.records.region_sources import select_region_rows
from killing import Server, kill_at_random
from naming import raises_naming


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "shapes"
    tiny.make_collection(path)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("labels_to_kill") as server:
        yield server


def rows_of(path: Path) -> list[tuple[str, ...]]:
    """All labels and statuses, without the time."""
    columns = {
        "regions": ["key", "region_id", "x1", "y2", "phrase", "source", "model", "recipe_hash"],
        "conversations": ["key", "row_id", "id", "turns", "source"],
        "region_status": ["key", "row_id", "status", "regions", "kind", "detail"],
    }
    return sorted(
        (table, *map(str, row.values()))
        for table, names in columns.items()
        for part in matching_parts(path, table, names, where={})
        for row in part.to_pylist()
    )


def test_named_boxes_become_regions_with_provenance(shapes: Path, tmp_path: Path) -> None:
    path = shutil.copytree(shapes, tmp_path / "shapes")
    counts = label(str(path), "regions")
    assert counts.images == sum(counts.status.values()) == 32
    assert set(counts.status) == {"done", "cut", "refused"}
    with Collection.open(path) as collection:
        regions = collection.table("regions")
        labeled = regions.filter(select_region_rows(regions, ["mllm:quick"]))
        own = select_region_rows(regions, ["own"])
    assert labeled.num_rows == counts.rows
    assert own.sum() == regions.num_rows - counts.rows, "labels of a model are not ground truth"
    assert set(labeled["phrase"].to_pylist()) >= {"a boat"}
    assert not {"", "far away"} & set(labeled["phrase"].to_pylist())
    assert counts.left_out["boxes without a name"] == counts.left_out["boxes outside their image"] > 0
    assert set(labeled["recipe_hash"].to_pylist()) == {counts.recipe_hash}
    assert labeled["model"].to_pylist()[0].startswith("quick@0000")
    # Labeled twice, an image with the same name and box twice has one row.
    assert len({tuple(row.values()) for row in labeled.select(["key", "x1", "phrase"]).to_pylist()}) == counts.rows


def test_conversations_are_usable_and_repetition_asks_nothing(shapes: Path, tmp_path: Path) -> None:
    path = shutil.copytree(shapes, tmp_path / "shapes")
    counts = label(str(path), "conversations")
    with Collection.open(path) as collection:
        conversations = list(Conversations(collection))
    assert len(conversations) == counts.rows > 0
    assert not [problem for conversation in conversations if (problem := find_problem(conversation))]
    kinds = {conversation.id.split("/")[0] for conversation in conversations}
    assert kinds == {"labeled detection", "labeled referring"}
    assert counts.left_out["referring not readable"] > 0
    model, settings = QuickModel(), LabelSettings(labels="conversations", batch_size=5)
    again = label_collection(path, model, settings, name="quick", sha256="0" * 64)
    assert (again.rows, again.done_before, model.num_questions) == (0, 32, 0)
    other = label_collection(path, model, settings, name="quick", sha256="1" * 64)
    assert other.done_before == 0
    assert model.num_questions > 0


def test_an_image_whose_status_is_missing_gets_the_status_of_its_answer(shapes: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    label(str(path), "regions")
    expected = rows_of(path)
    for part in (path / "annotations" / "region_status").glob("*.parquet"):
        part.unlink()
    assert rows_of(path) != expected
    label(str(path), "regions")
    assert rows_of(path) == expected


def test_images_that_are_gone_are_unreadable_and_the_others_labeled(shapes: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    (path / "images" / "00002.tar").unlink()
    counts = label(str(path), "regions")
    assert (counts.status["unreadable"], sum(counts.status.values())) == (8, 32)
    again = label(str(path), "regions")
    assert (again.done_before, again.status["unreadable"], again.rows) == (24, 8, 0)
    for run in (counts, again):
        assert run.unreachable == 8
        assert type(run.find_failure()) is UserError, "some were labeled: status 1"
        assert "8 of 32 images could not be reached" in str(run.find_failure())


def test_no_answer_at_all_is_no_success(shapes: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    (path / "images").rename(tmp_path / "away")
    away = label(str(path), "regions")
    assert isinstance(away.find_failure(), NothingSucceededError)
    assert "32 of 32 images could not be reached" in str(away.find_failure())
    (tmp_path / "away").rename(path / "images")
    assert label(str(path), "regions").find_failure() is None

    class Refusing(QuickModel):
        def _ask(self, data: bytes, text: str, regions: Sequence[Any]) -> Any:
            raise UserError("question: too long")

    for labels in ("regions", "conversations"):
        for before in (0, 32):
            settings = LabelSettings(labels=labels)  # type: ignore[arg-type]
            counts = label_collection(path, Refusing(), settings, name="mute", sha256="2" * 64)
            assert (counts.done_before, counts.succeeded) == (before, 0)
            assert isinstance(counts.find_failure(), NothingSucceededError)
            assert "too long" in str(counts.find_failure())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "labels"),
    [(4, "conversations"), (50, "regions"), (50, "conversations")],
)
def test_kills_lose_and_duplicate_nothing(
    kills: int, labels: str, server: Server, shapes: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(shapes, tmp_path / "whole"))
    took = server.seconds("label", whole, labels)
    expected = rows_of(whole)
    current = {"path": Path(shutil.copytree(shapes, tmp_path / "killed"))}

    def check(dead: bool) -> None:
        if not dead:
            assert rows_of(current["path"]) == expected
            shutil.rmtree(current["path"])
            current["path"] = Path(shutil.copytree(shapes, current["path"]))

    def start() -> Any:
        return server.start("label", current["path"], labels)

    kill_at_random(start, kills=kills, longest=took * 0.9, seed=4, after=check)
    start().finish()
    assert rows_of(current["path"]) == expected


def test_what_cannot_be_labeled_is_refused(shapes: Path, tmp_path: Path) -> None:
    path = shutil.copytree(shapes, tmp_path / "shapes")
    settings = LabelSettings(labels="conversations", sources=("vesl:nanodet",))
    with raises_naming(UserError, "--region-source", "vesl:nanodet"):
        label_collection(path, QuickModel(), settings, name="quick", sha256="0")
    with raises_naming(UserError, "tst", "test"):
        label_collection(path, QuickModel(), LabelSettings(split="tst"), name="quick", sha256="0")
    assert np.all([row[0] == "regions" for row in rows_of(path)])
