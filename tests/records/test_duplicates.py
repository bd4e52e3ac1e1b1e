"""Near-duplicates: what is found, which one stays, and that nothing goes for the sake of an image unlike it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from made_images import encoded, jpeg, noise
from PIL import Image

from foveate.core.errors import UserError
from foveate.records import tables
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.duplicates import (
    GRID,
    DuplicateGroup,
    compute_grid,
    find_duplicates,
    find_leaders,
    is_same_grid,
    remove_duplicates,
)
from foveate.records.perceptual_hash import near_pairs
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from naming import raises_naming


def _big(seed: int) -> Image.Image:
    """A smooth random image of 240 x 160, as a photograph is."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((240, 160), Image.Resampling.BICUBIC)


def _shrunk(seed: int, width: int) -> Image.Image:
    return _big(seed).resize((width, width * 2 // 3), Image.Resampling.BICUBIC)


def _collection(path: Path) -> Path:
    with CollectionWriter(path, source="tests") as writer:
        writer.add("small", encoded(_shrunk(1, 90), quality=60), captions=[Caption("one"), Caption("shared")])
        writer.add("other", encoded(_big(2)))
        writer.add("large", encoded(_big(1)), captions=[Caption("shared")])
        writer.add("png", encoded(_big(1), "PNG"), captions=[Caption("shared"), Caption("a title", "title", "Ann")])
        writer.add("twin", encoded(_big(2)), regions=[Region(Box(0, 0, 1, 1), "all")])
        writer.add("alone", jpeg(5))
    return path


def test_the_largest_stays_then_the_one_with_most_texts(tmp_path: Path) -> None:
    with Collection.open(_collection(tmp_path / "c")) as collection:
        assert find_duplicates(collection) == (
            DuplicateGroup("png", ("small", "large")),
            DuplicateGroup("twin", ("other",)),
        )
        with raises_naming(UserError, "0", "16"):
            find_duplicates(collection, distance=17)


def test_the_others_get_a_tombstone_and_nothing_is_merged(tmp_path: Path) -> None:
    path = _collection(tmp_path / "c")
    summary = remove_duplicates(path)
    assert (summary.removed, summary.captions_carried, summary.purged) == (3, 0, None)
    collection = Collection.open(path)
    assert collection.keys == ["png", "twin", "alone"]
    assert [caption.text for caption in collection.read_captions(0)] == ["shared", "a title"]
    reasons = tables.read_removed(path / "removed.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in reasons} == {
        "small": "duplicate of png",
        "large": "duplicate of png",
        "other": "duplicate of twin",
    }
    assert remove_duplicates(path).groups == ()
    # "twin" has the bytes of the removed "other", and is there all the same.
    with CollectionWriter(path) as writer:
        assert not writer.add("twin", encoded(_big(2)))
        assert not writer.add("other", encoded(_big(2)))
        assert not writer.add("third", encoded(_big(2)))
        assert (writer.summary.existing, writer.summary.removed_earlier) == (1, 2)


def test_captions_are_carried_over_with_their_origin(tmp_path: Path) -> None:
    path = _collection(tmp_path / "c")
    summary = remove_duplicates(path, carry_captions=True, purge=True)
    assert summary.captions_carried == 1
    assert summary.purged is not None
    assert summary.purged.packed == 3
    collection = Collection.open(path)
    assert collection.read_captions(0)[-1] == Caption("one", "alt", "tests, from small")
    assert collection.image_bytes(0, verify=True) == encoded(_big(1), "PNG")


def test_equal_hashes_of_unlike_images_are_no_duplicates(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        for name, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200)), ("red-too", (202, 31, 30))):
            writer.add(name, encoded(Image.new("RGB", (60, 40), color), "PNG"))
        writer.add("tall", encoded(Image.new("RGB", (40, 60), (200, 30, 30)), "PNG"))
    collection = Collection.open(tmp_path / "c")
    assert len(near_pairs(collection.index["perceptual_hash"].astype(np.uint64), distance=6)) == 3
    assert find_duplicates(collection) == (DuplicateGroup("red", ("red-too",)),)


def test_groups_are_stars_not_chains() -> None:
    grids = np.stack([np.full((GRID, GRID, 3), value, np.uint8) for value in (100, 103, 106)])
    result = find_leaders(grids, np.ones(3), np.zeros(3, np.uint64), distance=6)
    assert result.tolist() == [0, 0, 2]  # 100 and 106 are too far apart, though 103 is near both


def test_a_changed_part_is_seen_and_a_new_encoding_is_not() -> None:
    image = _big(3)
    grid = compute_grid(image)
    assert is_same_grid(grid, compute_grid(_shrunk(3, 90)))
    changed = image.copy()
    changed.paste((255, 0, 255), (200, 130, 240, 160))
    assert not is_same_grid(grid, compute_grid(changed))
    assert not is_same_grid(grid, compute_grid(noise(3)))


def test_images_that_cannot_be_read_are_left_alone(tmp_path: Path) -> None:
    path = _collection(tmp_path / "c")
    tar = path / "images" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    assert find_duplicates(Collection.open(path)) == ()


def test_fifty_thousand_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 50_000, dtype=np.uint64)
    sources, copies = rng.permutation(50_000)[:4000].reshape(2, 2000)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (6, 2000)).astype(np.uint64), axis=0)
    hashes[copies] = hashes[sources] ^ flips
    began = time.process_time()
    found = {tuple(pair) for pair in near_pairs(hashes, distance=6).tolist()}
    assert time.process_time() - began < 20
    assert found >= {(min(pair), max(pair)) for pair in zip(sources.tolist(), copies.tolist(), strict=True)}
