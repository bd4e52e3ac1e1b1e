"""Frozen features of images and texts on disk: made once, shared, never stale, gone on with after a stop."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets_of_tiny import LITE0, RANDOM_VIEWS, make, parts_written
from safetensors.torch import load_file

import tiny
from foveate.core.errors import UserError
from foveate.pretrain import dataset as texts_module
from foveate.pretrain.dataset import LiveTexts, PretrainDataset, StoredTexts
from foveate.pretrain.train import build_dataset, build_model
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate.vision import feature_cache as features
from foveate.vision import feature_store as store
from foveate.vision.localizer.inference import encode_all
from foveate.vision.preprocess import read_image
from foveate.vision.registry import build_text_encoder
from naming import raises_naming


@pytest.fixture
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


def test_cached_and_uncached_boxes_agree(collection: Collection, tmp_path: Path) -> None:
    plain = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    cached = make(collection, tmp_path, cached=True, data={"views": RANDOM_VIEWS})
    encoder = cached.image_encoder
    np.testing.assert_array_equal(plain.rows, cached.rows)
    for row in plain.rows[:6].tolist():
        for epoch in range(3):
            one, two = plain.sample(row, epoch, 0), cached.sample(row, epoch, 0)
            np.testing.assert_array_equal(one["boxes"], two["boxes"])
            assert (one["text"], one["phrases"]) == (two["text"], two["phrases"])
            pixels, _ = read_image(collection, row, encoder.preprocess, cached._view(row, epoch, 0))
            expected = encoder.frozen_features(pixels[None])[0].to(torch.float16)
            torch.testing.assert_close(two["image"], expected, rtol=0.02, atol=0.02)
        later = cached.sample(row, 4, 0)
        torch.testing.assert_close(later["image"], cached.sample(row, 1, 0)["image"], rtol=0, atol=0)


def cache_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("images-*/part-*"))}


def test_a_cache_stopped_half_way_goes_on(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 10)
    changes: dict[str, Any] = {"cached": True, "data": {"views": RANDOM_VIEWS}}
    make(collection, tmp_path / "straight", **changes)
    whole = cache_files(tmp_path / "straight")
    assert len(whole) == 5, "5 parts of at most 10 of 48 entries"
    parts_written(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        make(collection, tmp_path / "stopped", **changes)
    assert len(cache_files(tmp_path / "stopped")) == 2
    made = parts_written(monkeypatch)
    make(collection, tmp_path / "stopped", **changes)
    assert cache_files(tmp_path / "stopped") == whole
    assert len(made) == 3, "finished parts are not made again"
    made.clear()
    make(collection, tmp_path / "stopped", **changes)
    assert not made


def entries(cache: Path) -> int:
    """Images times views in all parts of a cache."""
    with_keys = [load_file(path)["keys"] for path in cache.glob("images-*/part-*")]
    return sum(len(keys) for keys in with_keys)


def folders(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("images-*")}


def test_nothing_stale_is_ever_read(collection: Collection, tmp_path: Path) -> None:
    """Other views, another seed of random views or other images: entries of their own. Another encoder: a folder."""
    variants: list[tuple[bool, dict[str, Any]]] = [
        (True, {"data": {"views": RANDOM_VIEWS}}),
        (True, {"data": {"views": {**RANDOM_VIEWS, "scale": (0.5, 1.0)}}}),
        (False, {"data": {"views": {**RANDOM_VIEWS, "cached": 2}}}),
        (True, {"data": {"views": RANDOM_VIEWS}, "training": {"seed": 1}}),
        (True, {"data": {"views": RANDOM_VIEWS, "split": "validation"}}),
        (True, {}),
        (False, {"training": {"seed": 7}}),
    ]
    expected: set[tuple[int, str]] = set()
    for is_new, changes in variants:
        before, seed = len(expected), changes.get("training", {}).get("seed", 0)
        dataset = make(collection, tmp_path, cached=True, **changes)
        assert dataset._cache is not None
        for row in dataset.rows.tolist():
            expected |= {(row, repr(dataset._view(row, view, seed))) for view in range(dataset._cache.views)}
        assert (len(expected) > before) == is_new
        assert entries(tmp_path) == len(expected), changes
    assert len(folders(tmp_path)) == 1
    settings = tiny.recipe().model_copy(update={"image_encoder": {**LITE0, "image_size": 32}})
    build_dataset(settings, collection, build_model(settings), device=torch.device("cpu"), cache=tmp_path)
    assert len(folders(tmp_path)) == 2


def test_the_image_encoder_is_on_the_device_that_the_cache_computes_on(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny.recipe().model_copy(update={"image_encoder": LITE0}))
    devices: list[str] = []

    def fill(cache: features.FeatureCache) -> None:
        devices.extend(parameter.device.type for parameter in cache.encoder.parameters())

    monkeypatch.setattr(features.FeatureCache, "fill", fill)
    build_dataset(tiny.recipe(), collection, model, device=torch.device("meta"), cache=tmp_path)
    assert set(devices) == {"meta"}
    assert {parameter.device.type for parameter in model.text_encoder.parameters()} == {"cpu"}


def test_a_new_image_costs_only_itself(tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    before = make(Collection.open(path), tmp_path / "cache", cached=True)
    image = tiny.draw([("red disc", PixelBox(8, 8, 40, 40))], size=(64, 64), seed=99)
    with CollectionWriter(path, source="later") as writer:
        writer.add("aaa-new", tiny.image_bytes(image), captions=[Caption("a red disc", "alt")], split="train")
    made = parts_written(monkeypatch)
    after = make(Collection.open(path), tmp_path / "cache", cached=True)
    assert len(after.rows) == len(before.rows) + 1
    assert entries(tmp_path / "cache") == len(after.rows)
    assert len(made) == 1
    for old in before.rows.tolist():
        key = before.collection.keys[old]
        new = after.collection.find_row(key)
        assert torch.equal(before.sample(old, 0, 0)["image"], after.sample(new, 0, 0)["image"])
    pixels, _ = read_image(after.collection, after.collection.find_row("aaa-new"), after.image_encoder.preprocess)
    expected = after.image_encoder.frozen_features(pixels[None])[0].to(torch.float16)
    found = after.sample(after.collection.find_row("aaa-new"), 0, 0)["image"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_processes_share_the_work(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at once: each part is made once; a process that is alone takes over what nobody brings."""
    monkeypatch.setattr(features, "PART", 4)
    monkeypatch.setattr(store, "_POLL_SECONDS", 0.01)
    made = parts_written(monkeypatch)
    settings = tiny.recipe().model_copy(update={"image_encoder": LITE0})

    def one(rank: int) -> PretrainDataset:
        return build_dataset(
            settings, collection, models[rank], device=torch.device("cpu"), cache=tmp_path / "two", share=(rank, 2)
        )

    models = [build_model(settings) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        datasets = list(pool.map(one, range(2)))
    assert len(made) == len(set(made)) == 4
    for row in datasets[0].rows.tolist():
        assert torch.equal(datasets[0].sample(row, 0, 0)["image"], datasets[1].sample(row, 0, 0)["image"])
    made.clear()
    monkeypatch.setattr(features.FeatureStore.fill, "__kwdefaults__", {"share": (0, 1), "patience": 0.05, "only": None})
    build_dataset(settings, collection, models[1], device=torch.device("cpu"), cache=tmp_path / "one", share=(1, 2))
    assert len(made) == 4


def test_what_could_not_be_read_for_a_while_is_tried_again(
    tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    tiny.damage(path, "train-03")
    collection, cache = Collection.open(path), tmp_path / "cache"
    away, damaged = (collection.find_row(key) for key in ("train-04", "train-03"))
    read = Collection.image_bytes

    def fail(collection: Collection, row: int) -> bytes:
        if row == away:
            raise BadImage("unreadable", "the disk is away")
        return read(collection, row)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "image_bytes", fail)
        for _ in range(2):
            dataset = make(collection, cache, cached=True)
            assert dataset._cache is not None
            assert dataset._cache.bad[away] == "the disk is away"
            assert set(dataset._cache.bad) == {away, damaged}
            assert not dataset._cache.features(away, 0).any()
    made = parts_written(monkeypatch)
    for parts in (1, 1):
        dataset = make(collection, cache, cached=True)
        assert dataset._cache is not None
        assert set(dataset._cache.bad) == {damaged}
        assert dataset._cache.features(away, 0).any()
        assert len(made) == parts, "it alone is computed, and only once"


def test_another_process_tries_what_one_could_not_read(tmp_path: Path) -> None:
    tried: list[tuple[int, list[int]]] = []

    def fill(rank: int, share: tuple[int, int]) -> store.FeatureStore:
        def compute(entries: Sequence[int]) -> tuple[torch.Tensor, np.ndarray, dict[int, store.Failure]]:
            tried.append((rank, list(entries)))
            failures = {entry: store.Failure("away", is_passing=True) for entry in entries if entry == 2 and not rank}
            return torch.ones(len(entries), 3), np.ones((len(entries), 2), np.int32), failures

        filled = store.FeatureStore(tmp_path, kind="images", depends=("a",), shape=(3,), dtype=torch.float32)
        keys = store.keys_of(map(str, range(6)))
        filled.fill(keys, compute, block=3, description="made", share=share, patience=30)
        return filled

    with ThreadPoolExecutor(2) as pool:
        alone, other = pool.map(fill, range(2), [(0, 2), (1, 2)])
    assert sorted(tried) == [(0, [0, 1, 2]), (1, [2]), (1, [3, 4, 5])]
    assert not other.bad
    assert (other.sizes == 1).all()
    assert alone.bad in ({}, {2: "away"})
    assert not fill(0, (0, 1)).bad


def test_a_damaged_part_is_named(collection: Collection, tmp_path: Path) -> None:
    make(collection, tmp_path, cached=True)
    part = next(tmp_path.glob("images-*/part-*"))
    part.write_bytes(part.read_bytes()[:-5])
    with raises_naming(UserError, part.name):
        make(collection, tmp_path, cached=True)


def test_a_text_that_forbids_mirroring_gets_its_own_entry(tmp_path: Path) -> None:
    """With the texts the views change, and with them what a cache must hold."""
    path = tiny.make_collection(tmp_path / "shapes")
    settings = {"data": {"views": {"scale": (1.0, 1.0), "flip": 1.0, "cached": 1}}}
    before = make(Collection.open(path), tmp_path / "cache", cached=True, **settings)
    key = before.collection.keys[int(before.rows[0])]
    with CollectionWriter(path, source="later") as writer:
        provenance = Provenance(source="later")
        writer.annotate("captions", [{"key": key, "kind": "alt", "text": "the left one"}], provenance)
    after = make(Collection.open(path), tmp_path / "cache", cached=True, **settings)
    row = int(after.rows[0])
    assert not np.array_equal(before.sample(row, 0, 0)["boxes"], after.sample(row, 0, 0)["boxes"])
    assert not torch.equal(before.sample(row, 0, 0)["image"], after.sample(row, 0, 0)["image"])
    assert entries(tmp_path / "cache") == len(before.rows) + 1


def test_text_features_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_text_encoder({"kind": "minilm", "embed_dim": 8})
    texts = ["one", "two", "a longer text about three", "two"]
    made = parts_written(monkeypatch)
    first = StoredTexts(encoder, pa.array(texts), cache=tmp_path)
    assert len(made) == 1
    again = StoredTexts(encoder, pa.array(texts[::-1]), cache=tmp_path)
    assert len(made) == 1
    assert torch.equal(first[texts], again[texts])
    torch.testing.assert_close(first[["two"]], encode_all(encoder, ["two"]), rtol=1e-4, atol=1e-5)
    assert first[[]].shape == (0, *encoder.feature_shape)
    monkeypatch.setattr(texts_module, "_SMALL_BYTES", 0)
    more = StoredTexts(encoder, pa.array([*texts, "four"]), cache=tmp_path)
    assert len(made) == 2
    assert torch.equal(more[texts], first[texts]), "read from the disk, not from memory"
    parts = [load_file(path)["keys"] for path in tmp_path.glob("texts-*/part-*")]
    assert sorted(map(len, parts)) == [1, 3], "one new text is made alone"
    with pytest.raises(AssertionError, match="constructor"):
        first[["four"]]


def test_a_trained_tower_keeps_no_texts(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    assert isinstance(dataset._texts, LiveTexts)
    assert not list(tmp_path.iterdir())
    texts = ["a red disc", "a blue square", "a red disc"]
    expected = dataset._texts.encoder.frozen_features(texts)
    assert torch.equal(dataset._texts[texts], expected)
    assert torch.equal(dataset._texts[texts], expected), "from memory"
    assert dataset._texts[[]].shape == (0, *expected.shape[1:])
