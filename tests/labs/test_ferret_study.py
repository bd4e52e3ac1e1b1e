"""The study `ferret`: claims name what is measured, controls fail for what sees nothing, and a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import tiny_mllm
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations
from foveate.records.shapes import Mask, Point, Stroke, decode_mask
from foveate.report import render
from foveate_labs.studies import ferret, mllm_trainings
from foveate_labs.studies.ferret_worlds import (
    POINT_AS_BOX,
    SHAPES,
    WORLDS,
    build_questions,
    draw_pointed_scene,
    find_neighbors,
    load_set,
    score_decoding,
    select_regions,
    write_set,
)
from foveate_labs.studies.published import write_published
from foveate_labs.studies.runner import run_study

TINY = ferret.FerretScale(
    train_regions=3, test_regions=2, train_sizes=2, test_sizes=2, classifier_steps=2, probe_steps=2, boxes=3,
    train=12, test=6, processor_seconds=1, timed_steps=1, questions=9, tower_steps=2, seeds=1,
)  # fmt: skip


def test_layout_and_sizes_must_hold() -> None:
    assert {claim.condition for claim in ferret.CLAIMS if claim.asserted} == {"layout", "sizes-448", "sizes-672"}


@pytest.mark.parametrize("condition", sorted(WORLDS))
def test_shapes_of_a_thing_lie_in_its_mask(condition: str) -> None:
    scene = draw_pointed_scene(condition, ("test", 0))
    assert len(scene.names) == len(scene.shapes) > 1
    assert all(name < WORLDS[condition].names for name in scene.names)
    for shapes in scene.shapes:
        mask, point, stroke = shapes["mask"], shapes["point"], shapes["stroke"]
        assert isinstance(mask, Mask)
        assert isinstance(point, Point)
        assert isinstance(stroke, Stroke)
        mask_HW = decode_mask({"size": list(mask.size), "counts": list(mask.counts)})
        assert all(mask_HW[int(at.y), int(at.x)] for at in (point, *stroke.points))
        around = shapes[POINT_AS_BOX]
        assert around.x1 <= point.x <= around.x2
        assert around.y1 <= point.y <= around.y2
    again = draw_pointed_scene(condition, ("test", 0))
    assert np.array_equal(np.asarray(scene.image), np.asarray(again.image))


def test_sets_are_written_once_and_hold_all_shapes(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    write_set(path, "layout", "test", 2)
    written = path.stat().st_mtime_ns
    write_set(path, "layout", "test", 2)
    assert path.stat().st_mtime_ns == written
    data = load_set(path)
    assert set(data.regions) == {*SHAPES, POINT_AS_BOX}
    assert len(data.features_BF) == 2
    assert len(data.name_R) == len(data.regions["box"].map_R) == len(data.image_R)
    assert torch.equal(data.image_R[data.neighbor_R], data.image_R), "neighbors lie in the same image"
    assert not (data.neighbor_R == torch.arange(len(data.image_R))).any()


def test_regions_of_selected_images_point_at_their_position() -> None:
    image_R = torch.tensor([0, 0, 1, 3, 3])
    rows, maps = select_regions(image_R, torch.tensor([3, 1]))
    assert (rows.tolist(), maps.tolist()) == ([2, 3, 4], [1, 0, 0])
    assert find_neighbors(image_R).tolist() == [1, 0, 2, 4, 3]


def test_centers_of_bins_lose_less_than_lower_edges() -> None:
    center, edge = (
        score_decoding(decoding, size=(640, 480), sides=(8, 64), count=40, seed=0)
        for decoding in ("bin-center", "integer")
    )
    assert center["iou_8"] > edge["iou_8"] + 0.1
    assert edge["iou_8"] < edge["iou_64"] < center["iou_64"] < 1


def test_questions_of_the_test_ask_again_with_another_region(tmp_path: Path) -> None:
    build_questions(tmp_path / "all", train=3, test=2)
    build_questions(tmp_path / "named", train=3, test=2, without=("where",))
    kinds: dict[tuple[str, str], set[str]] = {}
    for name in ("all", "named"):
        with Collection.open(tmp_path / name) as collection:
            for split in ("train", "test"):
                talks = list(Conversations(collection, split=split))
                kinds[name, split] = {talk.id.partition("/")[0] for talk in talks}
                for talk in talks:
                    if talk.id.startswith("shuffled/"):
                        first = next(t for t in talks if t.id == talk.id.replace("shuffled/", "name/", 1))
                        assert first.turns[0].regions != talk.turns[0].regions
                        assert first.turns[1].text == talk.turns[1].text
    dense = {"dense detection", "dense referring"}
    assert kinds["all", "train"] - dense == {"name", "where"}
    assert kinds["named", "train"] - dense == {"name"}
    assert kinds["all", "test"] == kinds["named", "test"] == {"name", "where", "shuffled"}


def run_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *variants: str) -> dict[str, object]:
    recipe = tmp_path / "tiny.yaml"
    content = tiny_mllm.make_recipe().model_dump(mode="json")
    content["model"]["language"]["max_position_embeddings"] = 1024
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(mllm_trainings, "RECIPE", str(recipe))
    monkeypatch.setattr(mllm_trainings, "choose_steps", lambda variant, seconds, total: dict.fromkeys(seconds, 2))
    command = ["foveate", "study", "ferret"]
    return run_study("ferret", tmp_path / "study", scale=TINY, variants=variants, command=command)


def test_a_tiny_study_of_frozen_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = ("transposed", "replay", "view", "integer", "bin-center")
    result = run_tiny(tmp_path, monkeypatch, *variants)
    rows = {(entry["condition"], entry["row"]) for entry in result["table"]}  # type: ignore[attr-defined]
    assert {("layout", "transposed"), ("shapes", "replay"), ("sizes-672", "view"), ("digits-640", "integer")} <= rows
    assert "Digits, 640 x 480" in render(tmp_path / "study").read_text(encoding="utf-8")
    write_published(result, tmp_path / "data")


@pytest.mark.slow
def test_every_variant_can_be_trained_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ferret.FerretStudy, "_time_steps", lambda study, key: dict.fromkeys(ferret.VARIANTS[key].stages, 1.0)
    )
    result = run_tiny(tmp_path, monkeypatch)
    entries = {entry["row"]: entry["values"] for entry in result["table"]}  # type: ignore[attr-defined]
    assert set(entries) == {row.key for row in ferret.ROWS}
    assert {"name", "where", "shuffled", "no_image", "another_image"} <= set(entries["both"])
