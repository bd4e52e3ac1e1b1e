"""Scenes: exact boxes and masks, splits kept apart, edges that say nothing, the same pixels for the same numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.records.boxes import Box
from foveate.records.builtin import families
from foveate.records.collection import Collection
from foveate.records.shapes import decode_mask, encode_mask, mask_bounds
from foveate.records.text import split_words
from foveate_labs.worlds.builtin import SEEN, UNSEEN, UNSEEN_KIND, concept_slice, mentions_unseen
from foveate_labs.worlds.scenes import build_scenes, build_tour_collection, draw_scene, grounds, pools
from foveate_labs.worlds.scenes import scene as alt_text
from foveate_labs.worlds.scenes.compose import SOLID, Layer, compose
from foveate_labs.worlds.scenes.grounds import list_ground_names
from foveate_labs.worlds.scenes.language import relate
from foveate_labs.worlds.scenes.scene import VISIBLE, Scene, plan_scene
from foveate_labs.worlds.scenes.scene_collection import draw_scene_row, make_scene_key
from naming import raises_naming

SIZE = 160


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {
        split: [draw_scene(seed=5, split=split, index=index, size=SIZE) for index in range(60)]
        for split in pools.SPLITS
    }


def test_boxes_are_the_bounds_of_visible_masks(scenes: dict[str, list[Scene]]) -> None:
    for scene in (scene for split in scenes.values() for scene in split):
        assert scene.image.size == (SIZE, SIZE)
        assert scene.image.mode == "RGB"
        assert 1 <= len(scene.regions) <= 5
        for placed in scene.objects:
            bounds = mask_bounds(placed.mask_HW)
            assert (bounds is None) == (placed.box is None)
            if placed.box is not None:
                np.testing.assert_allclose(placed.box.to_array() * SIZE, bounds, atol=1e-9)
        assert all(placed.visible >= VISIBLE for placed in scene.regions)
        overlap = np.sum([placed.mask_HW for placed in scene.objects], axis=0)
        assert overlap.max() <= 1  # a pixel belongs to the uppermost thing only


def test_recoloring_a_thing_changes_its_box_and_nothing_else() -> None:
    changed = 0
    for index in range(25):
        rng = generator("recolour", index)
        plan = plan_scene(rng, split="train", size=SIZE)
        finish = dataclasses.replace(plan.finish, blur=0.0)
        plain = [dataclasses.replace(layer, tone=0.0) for layer in plan.layers]
        before, owners_HW = compose(plan.ground.pixels_HW3, plain, finish)
        for number, layer in enumerate(plain):
            bounds = mask_bounds(owners_HW == number)
            if bounds is None:
                continue
            rgba = layer.rgba_hw4.copy()
            rgba[..., :3] = 255 * rgba[..., 3:] - rgba[..., :3]
            rgba[..., 0] = np.where(rgba[..., 0] > 128 * rgba[..., 3], 0, 255 * rgba[..., 3])
            layers = [*plain[:number], dataclasses.replace(layer, rgba_hw4=rgba), *plain[number + 1 :]]
            after, _ = compose(plan.ground.pixels_HW3, layers, finish)
            difference = np.abs(np.asarray(before, int) - np.asarray(after, int)).max(-1)
            # What changes lies in the box, but for the soft edge of three pixels and what is nearly transparent.
            left, top, right, bottom = bounds
            inside = difference[top:bottom, left:right]
            assert inside.max() > 40
            outside = difference.copy()
            outside[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = 0
            assert outside.max() <= 255 * SOLID + 3
            strong = mask_bounds(difference > 40)
            assert strong is not None
            assert np.abs(np.subtract(strong, bounds)).max() <= max(4, 0.25 * max(right - left, bottom - top))
            changed += 1
    assert changed > 80


def test_the_same_numbers_give_the_same_scene() -> None:
    first, again = (draw_scene_row(seed=3, split="test", index=17, size=SIZE) for _ in range(2))
    assert first == again
    assert first.data != draw_scene_row(seed=4, split="test", index=17, size=SIZE).data
    assert first.data != draw_scene_row(seed=3, split="train", index=17, size=SIZE).data


def test_training_sees_no_unseen_concept_and_no_held_out_ground(scenes: dict[str, list[Scene]]) -> None:
    assert list_ground_names(held_out=True).isdisjoint(list_ground_names(held_out=False))
    for split in ("train", "validation"):
        for scene in scenes[split]:
            assert scene.ground in list_ground_names(held_out=False)
            assert {placed.slice for placed in scene.objects if placed.kind == "thing"} <= {SEEN}
    assert all(scene.ground in list_ground_names(held_out=True) for scene in scenes["test"])
    slices = [placed.slice for scene in scenes["test"] for placed in scene.regions]
    assert set(slices) == {SEEN, UNSEEN, UNSEEN_KIND}
    for part in (UNSEEN, UNSEEN_KIND):
        assert 0.1 < slices.count(part) / len(slices) < 0.28
    used = {split: {p.cutout for s in scenes[split] for p in s.objects if p.kind == "distractor"} for split in scenes}
    assert (used["train"] & used["test"]) <= {""}


def test_no_text_of_a_training_scene_names_anything_unseen(scenes: dict[str, list[Scene]]) -> None:
    names = [f" {name} " for name in families.load_concepts() if concept_slice(name) in (UNSEEN, UNSEEN_KIND)]
    for scene in [*scenes["train"], *scenes["validation"]]:
        assert not [placed.phrase for placed in scene.objects if mentions_unseen(placed.phrase)]
        for caption in scene.captions:
            said = " ".join(["", *split_words(caption.text, style="letters"), ""])
            assert not [name for name in names if name in said], said
    said = [text for texts in (alt_text._WRONG, alt_text._BATCHES, alt_text._FOLDER_WORDS) for text in texts]
    said += [photograph.description for photograph in grounds.TRAINING_PHOTOGRAPHS]
    said += [text for _, text in grounds.TRAINING.values()]
    said += [word for photograph in grounds.TRAINING_PHOTOGRAPHS for word in photograph.shows]
    assert not [text for text in said if mentions_unseen(text)]
    assert any(mentions_unseen(placed.phrase) for scene in scenes["test"] for placed in scene.regions)


def test_pools_are_apart() -> None:
    def cutouts(slice_name: str) -> set[str]:
        return {c.id for family in pools.load_pool(slice_name).families for group in family for c in group}

    def heads(slice_name: str) -> set[str]:
        return {c.family for family in pools.load_pool(slice_name).families for group in family for c in group}

    assert cutouts(SEEN).isdisjoint(cutouts(UNSEEN) | cutouts(UNSEEN_KIND))
    assert heads(SEEN).isdisjoint(heads(UNSEEN_KIND))
    assert heads(SEEN) >= heads(UNSEEN), "an unseen thing has a trained relative"
    assert len(cutouts(SEEN)) > 2000
    assert min(len(cutouts(UNSEEN)), len(cutouts(UNSEEN_KIND))) > 150
    assert {c.id for c in pools.load_distractors("train")}.isdisjoint(c.id for c in pools.load_distractors("test"))


def test_labeled_phrases_are_unambiguous(scenes: dict[str, list[Scene]]) -> None:
    repeated = 0
    for scene in (scene for split in scenes.values() for scene in split):
        phrases = [placed.phrase for placed in scene.regions]
        assert len(set(phrases)) == len(phrases)
        assert all(scene.counts[phrase] == 1 for phrase in phrases)
        repeated += any(count > 1 for count in scene.counts.values())
    assert repeated > 0


def edge_contrast(plan_layers: list[Layer], ground: np.ndarray, number: int) -> float:
    """Mean step of gray across the outline of a layer, in the composed image."""
    finish = dataclasses.replace(edge_contrast.finish, blur=0.0, noise=0.0)  # type: ignore[attr-defined]
    image, owners_HW = compose(ground, plan_layers, finish)
    gray = np.asarray(image, float).mean(-1)
    mask_HW = owners_HW == number
    rim = mask_HW[:, 1:] != mask_HW[:, :-1]
    return float(np.abs(np.diff(gray, axis=1))[rim].mean()) if rim.any() else np.nan


def test_edges_of_things_and_of_distractors_are_alike() -> None:
    steps: dict[bool, list[float]] = {True: [], False: []}
    softness: dict[bool, list[float]] = {True: [], False: []}
    for index in range(120):
        plan = plan_scene(generator("edges", index), split="train", size=SIZE)
        edge_contrast.finish = plan.finish  # type: ignore[attr-defined]
        for number, cutout in enumerate(plan.cutouts):
            if plan.texts[number]:
                continue
            thing = cutout is not None and bool(cutout.name)
            step = edge_contrast(list(plan.layers), plan.ground.pixels_HW3, number)
            if np.isfinite(step):
                steps[thing].append(step)
            alpha = plan.layers[number].rgba_hw4[..., 3]
            outline = (np.diff(alpha > SOLID, axis=1) != 0).sum() + 1
            softness[thing].append(float(((alpha > 0.05) & (alpha < 0.95)).sum() / outline))
    assert min(len(steps[True]), len(steps[False])) > 60
    # Overlapping ranges: the threshold that tells things from distractors best gains little over guessing.
    for measured in (steps, softness):
        values = np.array([*measured[True], *measured[False]])
        thing = np.arange(len(values)) < len(measured[True])
        thresholds = np.quantile(values, np.linspace(0, 1, 50))
        balanced = [(np.mean(values[thing] > t) + np.mean(values[~thing] <= t)) / 2 for t in thresholds]
        assert max(max(balanced), 1 - min(balanced)) < 0.7


def test_run_lengths_round_trip_and_follow_coco() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < rng.choice([0.0, 0.1, 0.5, 1.0])
        np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)
    # Column by column, the run of zeros first, as in COCO's own description of the format.
    assert encode_mask([[1, 0, 0], [1, 1, 0]]) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    with raises_naming(UserError, "2", "4"):
        decode_mask({"size": [2, 2], "counts": [3]})


def test_relations_of_known_boxes() -> None:
    left, right = Box(0.0, 0.2, 0.3, 0.5), Box(0.5, 0.3, 0.9, 0.6)
    inner, below = Box(0.6, 0.4, 0.7, 0.5), Box(0.5, 0.7, 0.9, 1.0)
    crossing = Box(0.2, 0.3, 0.55, 0.6)

    def named(*boxes: Box) -> set[tuple[int, str, int]]:
        return {(relation.first, relation.name, relation.second) for relation in relate(boxes)}

    assert named(left, right) == {(0, "left of", 1)}
    assert named(right, inner) == {(1, "inside", 0)}
    assert named(right, below) == {(0, "above", 1)}
    assert named(left, crossing) == {(0, "overlapping", 1)}


def test_collection_of_scenes_keeps_boxes_masks_and_splits(tmp_path: Path) -> None:
    for _ in range(2):  # the second time adds nothing
        build_scenes(tmp_path / "scenes", train=6, validation=2, test=4, seed=1, size=SIZE)
    collection = Collection.open(tmp_path / "scenes")
    assert len(collection) == 12
    assert [int((collection.splits == split).sum()) for split in pools.SPLITS] == [6, 2, 4]
    number = collection.find_row(make_scene_key(seed=1, split="test", index=2))
    scene = draw_scene(seed=1, split="test", index=2, size=SIZE)
    stored = collection.read_regions(number)
    assert [(r.phrase, r.slice) for r in stored] == [(p.phrase, p.slice) for p in scene.regions]
    masks = [row for row in collection.table("masks").to_pylist() if row["key"] == collection.keys[number]]
    for row in masks:
        mask_HW = decode_mask({"size": [row["height"], row["width"]], "counts": json.loads(row["counts"])})
        np.testing.assert_allclose(stored[row["region"]].box.to_array() * SIZE, mask_bounds(mask_HW), atol=1e-4)
    kinds = {caption.kind for caption in collection.read_captions(number)}
    assert kinds == {"exact", "alt"}


def test_processes_change_nothing(tmp_path: Path) -> None:
    arguments = {"train": 70, "seed": 2, "size": 96}
    build_scenes(tmp_path / "one", workers=1, **arguments)
    build_scenes(tmp_path / "two", workers=2, **arguments)
    one, two = Collection.open(tmp_path / "one"), Collection.open(tmp_path / "two")
    assert one.keys == two.keys
    assert all(one.image_bytes(row) == two.image_bytes(row) for row in range(len(one)))


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "train"):
        draw_scene(seed=0, split="trian", index=0)
    with raises_naming(UserError, "96"):
        draw_scene(seed=0, split="train", index=0, size=32)
    with raises_naming(UserError, "0"):
        build_scenes(tmp_path, train=-1)


@pytest.mark.slow
def test_tour_collection_holds_everything_apart(tmp_path: Path) -> None:
    build_tour_collection(tmp_path / "tour", train_scenes=10, validation_scenes=4, test_scenes=6, seed=0)
    collection = Collection.open(tmp_path / "tour")
    assert len(collection) == 20 + 2840 + 2824
    assert collection.quarantine().num_rows == 0
    for row in collection.rows("train"):
        assert collection.read_labels(row).get("slice", SEEN) == SEEN
