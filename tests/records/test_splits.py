"""Splits: no group and no near-duplicates over two of them, and little moves when images come."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, jpeg, noise
from PIL import Image, ImageEnhance

from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.records.collection import Collection
from foveate.records.perceptual_hash import hamming, near_pairs, perceptual_hash
from foveate.records.splits import _link_equal, assign_splits, draw_splits, find_components
from foveate.records.writer import CollectionWriter
from naming import raises_naming

_FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def _smooth(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def test_an_image_and_its_copies_are_near_and_others_are_not() -> None:
    image = _smooth(1)
    original = perceptual_hash(image)
    copies = [
        image.resize((60, 45)),
        image.resize((301, 224), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(image).enhance(0.8),
        ImageEnhance.Color(image).enhance(0.5),
        Image.open(io.BytesIO(encoded(image, "JPEG", quality=30))),
    ]
    assert max(bin(original ^ perceptual_hash(copy)).count("1") for copy in copies) <= 4
    others = [perceptual_hash(_smooth(seed)) for seed in range(2, 60)]
    assert min(bin(original ^ other).count("1") for other in others) > 10


def test_flat_images_have_equal_hashes() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (50, 50), (shade,) * 3)) for shade in (0, 90, 255)}
    assert len(hashes) <= 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    distance=st.integers(0, 8),
)
def test_near_pairs_have_the_components_of_all_pairs(seed: int, count: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    centers = rng.integers(0, 2**64, 6, dtype=np.uint64)
    bits = [rng.integers(0, 64, rng.integers(0, 6)) for _ in range(count)]
    flips = np.array([sum(1 << int(bit) for bit in row) % 2**64 for row in bits], dtype=np.uint64)
    hashes = centers[rng.integers(0, 6, count)] ^ flips
    pairs = near_pairs(hashes, distance=distance)
    assert (hamming(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= distance).all()
    every = np.argwhere(np.triu(hamming(hashes[:, None], hashes[None, :]) <= distance, 1))
    none = np.full(count, "", dtype=object)
    assert _same_partition(find_components(none, pairs), find_components(none, every.reshape(-1, 2)))


def _same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=40),
    links=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=12),
    seed=st.integers(0, 1000),
)
def test_no_group_and_no_pair_lies_over_two_splits(groups: list[str], links: list[tuple[int, int]], seed: int) -> None:
    count = len(groups)
    pairs = np.array([link for link in links if max(link) < count], dtype=np.int64).reshape(-1, 2)
    names = np.array([group or f"key{row}" for row, group in enumerate(groups)], dtype=object)
    group_column = np.array(groups, dtype=object)
    components = find_components(group_column, pairs)
    nothing = np.full(count, "", dtype=object)
    splits, divided = draw_splits(components, names, nothing, fractions=_FRACTIONS, seed=seed)
    assert divided == 0
    assert set(splits) <= set(_FRACTIONS)
    for group in set(groups) - {""}:
        assert len(set(splits[group_column == group])) == 1
    assert all(splits[a] == splits[b] for a, b in pairs)


def test_adding_images_moves_no_others() -> None:
    names = np.array([f"group{number}" for number in range(500)], dtype=object)
    nothing = np.full(500, "", dtype=object)
    everything = np.arange(500)
    splits, _ = draw_splits(everything, names, nothing, fractions=_FRACTIONS, seed=3)
    some, _ = draw_splits(everything[:200], names[:200], nothing[:200], fractions=_FRACTIONS, seed=3)
    assert (splits[:200] == some).all()
    counts = {split: int((splits == split).sum()) for split in _FRACTIONS}
    assert abs(counts["train"] - 300) < 40
    other, _ = draw_splits(everything, names, nothing, fractions=_FRACTIONS, seed=4)
    assert 0.3 < (splits == other).mean() < 0.6


def test_splits_of_a_collection(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        for number in range(60):
            image = _smooth(number)
            writer.add(f"p{number}", encoded(image, "PNG"), group=f"g{number // 3}" if number < 30 else "")
            if number % 10 == 0:
                writer.add(f"copy{number}", encoded(image.resize((60, 45)), "JPEG"))
    summary = assign_splits(tmp_path / "c", fractions=_FRACTIONS, seed=1)
    collection = Collection.open(tmp_path / "c")
    assert sum(summary.images.values()) == len(collection) == 66
    assert set(summary.images) == {"train", "validation", "test"}
    assert summary.near_duplicates == 12
    assert summary.components == 10 + 30
    by_key = dict(zip(collection.keys, collection.splits, strict=True))
    for number in range(60):
        if number % 10 == 0:
            assert by_key[f"p{number}"] == by_key[f"copy{number}"]
        if number < 30:
            assert by_key[f"p{number}"] == by_key[f"p{number // 3 * 3}"]
    assert collection.record(0).split == by_key["p0"]
    first = (tmp_path / "c" / "splits.parquet").read_bytes()
    assign_splits(tmp_path / "c", fractions=_FRACTIONS, seed=1)
    assert (tmp_path / "c" / "splits.parquet").read_bytes() == first


def test_given_splits_are_kept_and_followed(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        for number in range(8):
            writer.add(f"p{number}", jpeg(number), group="one", split="test" if number == 5 else None)
        for number in range(8, 10):
            writer.add(f"p{number}", jpeg(number), group="two", split=["train", "test"][number % 2])
    summary = assign_splits(tmp_path / "c", fractions={"train": 1.0}, distance=0)
    assert summary.images == {"test": 9, "train": 1}
    assert summary.divided == 1
    summary = assign_splits(tmp_path / "c", fractions={"train": 1.0}, keep_imported=False)
    assert summary.images == {"train": 10}


@pytest.mark.parametrize(
    ("fractions", "names"),
    [
        ({}, ("fractions", "train=0.8,test=0.2")),
        ({"train": 0.5}, ("fractions", "sum", "0.5")),
        ({"train": 1.5, "test": -0.5}, ("fractions", "train", "1.5")),
        ({"": 1.0}, ("fractions", "train=0.8,test=0.2")),
    ],
)
def test_bad_fractions_are_refused(tmp_path: Path, fractions: dict[str, float], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        assign_splits(tmp_path / "c", fractions=fractions)


def test_splits_wait_for_no_other_writer(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", encoded(noise(1)))
    with FolderLock(tmp_path / "c", purpose="a test"), raises_naming(UserError, "a test"):
        assign_splits(tmp_path / "c", fractions={"train": 1.0})


def test_an_empty_collection_gets_an_empty_table(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c"):
        pass
    assert assign_splits(tmp_path / "c", fractions={"train": 1.0}).images == {}


def test_images_of_equal_bytes_are_linked() -> None:
    pairs = _link_equal(np.array(["a", "b", "a", "c", "a", "b"], dtype=object))
    assert sorted(map(sorted, pairs.tolist())) == [[0, 2], [1, 5], [2, 4]]
