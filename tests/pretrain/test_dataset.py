"""What an epoch to an image gives: drawn regions and texts, boxes that move with the view."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_of_tiny import RANDOM_VIEWS, make

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.dataset import draw_regions, text_id
from foveate.records.collection import Collection
from foveate.training.loader import BadSample
from naming import raises_naming


@pytest.fixture
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


def test_region_draw_is_a_pure_function() -> None:
    for count in (0, 1, 4):
        np.testing.assert_array_equal(draw_regions(count, 4, seed=0, epoch=3, key="a"), np.arange(count))
    once = draw_regions(9, 4, seed=0, epoch=3, key="a")
    np.testing.assert_array_equal(once, draw_regions(9, 4, seed=0, epoch=3, key="a"))
    assert len(once) == 4
    assert (np.diff(once) > 0).all()
    others = [
        draw_regions(9, 4, seed=1, epoch=3, key="a"),
        draw_regions(9, 4, seed=0, epoch=4, key="a"),
        draw_regions(9, 4, seed=0, epoch=3, key="b"),
    ]
    assert any(not np.array_equal(once, other) for other in others)


def test_each_region_is_drawn_equally_often() -> None:
    visits, count, most = 3000, 7, 4
    drawn = Counter(
        int(one) for epoch in range(visits) for one in draw_regions(count, most, seed=0, epoch=epoch, key="k")
    )
    share = np.array([drawn[index] for index in range(count)]) / visits
    sigma = np.sqrt(most / count * (1 - most / count) / visits)
    assert np.abs(share - most / count).max() < 4 * sigma


def test_rows_and_images_without_text(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    assert dataset.skipped == tiny.WITHOUT_TEXT
    assert len(dataset.rows) == tiny.SPLITS["train"] - tiny.WITHOUT_TEXT
    assert {collection.record(int(row)).split for row in dataset.rows} == {"train"}
    weights = {"alt": 0.0, "title": 0.0, "poem": 1.0}
    with raises_naming(UserError, "train", "data.captions"):
        make(collection, tmp_path, data={"captions": weights})


def test_a_sample_is_a_pure_function(collection: Collection, tmp_path: Path) -> None:
    first = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    second = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    for row in first.rows[:4].tolist():
        for epoch in (5, 0, 2):
            one, two = first.sample(row, epoch, 0), second.sample(row, epoch, 0)
            assert one["key"] == two["key"]
            assert torch.equal(one["image"], two["image"])
            assert (one["text"], one["phrases"]) == (two["text"], two["phrases"])
            np.testing.assert_array_equal(one["boxes"], two["boxes"])


def test_texts_follow_the_weights(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"captions": {"alt": 3.0, "title": 1.0}})
    row, drawn = int(dataset.rows[0]), Counter()
    by_text = {caption.text: caption.kind for caption in collection.read_captions(row)}
    for epoch in range(200):
        drawn[by_text[dataset.sample(row, epoch, 0)["text"]]] += 1
    assert abs(drawn["alt"] / 200 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200)


def test_an_image_without_the_drawn_kind_can_be_left_out(collection: Collection, tmp_path: Path) -> None:
    weights = {"alt": 1.0, "title": 0.0, "x": 1.0}
    dataset = make(collection, tmp_path, data={"captions": weights, "missing": "skip"})
    row, sources = int(dataset.rows[0]), ["alt"]
    drawn = [dataset.rule.mixture.draw(sources, seed=0, epoch=epoch, key="train-00") for epoch in range(100)]
    assert 30 < drawn.count(None) < 70
    assert dataset.sample(row, drawn.index("alt"), 0)["text"]
    with raises_naming(BadSample, "text"):
        dataset.sample(row, drawn.index(None), 0)


def color_at(image: torch.Tensor, box: np.ndarray) -> torch.Tensor:
    """The color of the middle of a box in uint8 model input [3, S, S]."""
    size = image.shape[-1]
    x, y = (box[0] + box[2]) / 2 * size, (box[1] + box[3]) / 2 * size
    return image[:, min(int(y), size - 1), min(int(x), size - 1)].float()


def test_boxes_move_with_the_pixels(collection: Collection, tmp_path: Path) -> None:
    """Under crops and mirroring the middle of each box has its phrase's color (shapes cover their middle)."""
    dataset = make(collection, tmp_path, data={"views": {"scale": (0.6, 1.0), "flip": 0.5}})
    looked = right = 0
    for row in dataset.rows.tolist():
        for epoch in range(4):
            sample = dataset.sample(row, epoch, 0)
            assert sample["boxes"].dtype == np.float32
            for box, phrase in zip(sample["boxes"], sample["phrases"], strict=True):
                assert (box >= 0).all()
                assert (box <= 1).all()
                near = torch.tensor(tiny.COLORS[phrase.split()[0]])
                looked += 1
                right += bool((color_at(sample["image"], box) - near).abs().max() < 70)
    assert looked > 80
    assert right > 0.93 * looked, f"{right} of {looked}"


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_images_become_bad_samples(cached: bool, tiny_collection: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    tiny.damage(path, "train-03")
    collection = Collection.open(path)
    dataset = make(collection, tmp_path / "cache", cached=cached)
    with raises_naming(BadSample, "train-03"):
        dataset.sample(collection.find_row("train-03"), 0, 0)
    assert dataset.sample(collection.find_row("train-04"), 0, 0)["key"] == "train-04"


def test_whole_image_region(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"whole_image_region": True, "regions_per_image": 1})
    row = int(dataset.rows[0])
    assert dataset.sample(row, 0, 0)["phrases"][0] != dataset.sample(row, 0, 0)["text"], "it has regions of its own"
    dataset._row = lambda row: type(dataset._read_row(row))(dataset._read_row(row).captions, np.zeros((0, 4)), ())
    sample = dataset.sample(row, 0, 0)
    assert sample["phrases"] == [sample["text"]]
    box = sample["boxes"][0]
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(1.0), "the whole image, without the padding"


def test_clip_sees_no_regions(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, regions={"method": "none"})
    batch = dataset.collate([dataset.sample(int(row), 0, 0) for row in dataset.rows[:3]])
    assert batch["boxes_R4"].shape == (0, 4)
    assert batch["counts_B"].tolist() == [0, 0, 0]


def test_collate_is_ragged(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    samples = [dataset.sample(int(row), 0, 0) for row in dataset.rows[:8]]
    batch = dataset.collate(samples)
    counts = [len(sample["phrases"]) for sample in samples]
    assert batch["counts_B"].tolist() == counts
    assert len(set(counts)) > 1
    assert batch["image_index_R"].tolist() == [place for place, count in enumerate(counts) for _ in range(count)]
    assert batch["image"].shape == (8, 3, 64, 64)
    assert batch["image"].dtype == torch.uint8
    phrases = [phrase for sample in samples for phrase in sample["phrases"]]
    assert batch["phrase_ids_R"].tolist() == [text_id(phrase) for phrase in phrases]
    assert torch.equal(batch["region_text"], dataset._texts[phrases])


def test_text_ids_are_stable() -> None:
    assert text_id("a red disc") == 3_465_325_781_351_782_946
    assert 0 <= text_id("") < 2**63


def test_lost_regions_are_counted(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"views": {"scale": (0.1, 0.3), "flip": 0.0}})
    lost = kept = 0
    for row in dataset.rows.tolist():
        sample = dataset.sample(row, 0, 0)
        assert sample["lost"] + len(sample["phrases"]) == len(collection.read_regions(row))
        lost, kept = lost + sample["lost"], kept + len(sample["phrases"])
    batch = dataset.collate([dataset.sample(row, 0, 0) for row in dataset.rows.tolist()])
    assert int(batch["lost_B"].sum()) == lost > 0
    assert kept > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection() -> None:
    """200,000 images with a caption and three phrases each: some 65 MB of texts alone, as Python strings."""
    script = Path(__file__).resolve().parent / "dataset_memory.py"
    said = subprocess.run([sys.executable, script, "200000"], capture_output=True, text=True, check=True).stdout
    opened, read_too = map(float, said.split())
    assert opened < 25
    assert read_too < 50
