"""A shard, or a referenced file, that vanishes while a training reads it: counted by key, or named in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.train import build_dataset, build_model
from foveate.records.collection import Collection
from foveate.training.loader import Loader

COUNT, SHARD = 60, 3


def _collection(folder: Path) -> Path:
    """Twenty shards of three images; the first shard's are referenced."""
    path = folder / "c"
    with tiny.CollectionWriter(path, images_per_shard=SHARD) as writer:
        for number in range(COUNT):
            data = tiny.image_bytes(tiny.draw([], size=(64, 64), seed=number))
            location = folder / f"p{number}.png" if number < SHARD else None
            if location is not None:
                location.write_bytes(data)
                os.utime(location, (1e9, 1e9))
            captions = [tiny.Caption(f"image {number}")]
            writer.add(f"p{number:02d}", data, captions=captions, split="train", location=location)
    return path


def _loader(path: Path, cache: Path) -> Loader:
    settings = tiny.recipe(regions={"method": "none"})
    collection = Collection.open(path)
    dataset = build_dataset(settings, collection, build_model(settings), device=torch.device("cpu"), cache=cache)
    return Loader(dataset, rows=dataset.rows, batch_size=6, seed=0, workers=1)


@pytest.mark.parametrize("vanished", ["shard", "files"])
def test_what_vanishes_in_mid_run_is_counted_and_replaced(tmp_path: Path, vanished: str) -> None:
    path = _collection(tmp_path)
    loader = _loader(path, tmp_path / "cache")
    batches = loader.batches(0, 40)
    next(batches)
    if vanished == "shard":
        tar = path / "images" / "00007.tar"
        tar.write_bytes(b"")  # cut, so that a descriptor which is open already meets it, too
        gone = {f"p{number}" for number in range(21, 24)}
        reason = "00007.tar ends within the image"
    else:
        for number in range(SHARD):
            (tmp_path / f"p{number}.png").unlink()
        gone = {f"p{number:02d}" for number in range(SHARD)}
        reason = ".png is missing"
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    assert len(sizes) == 39
    assert np.unique(sizes).tolist() == [6]
    assert set(loader.bad_samples) == gone
    assert all(reason in said for said in loader.bad_samples.values())
    assert loader.bad_draws >= len(gone)


def test_when_nearly_all_is_gone_one_sentence_names_a_shard(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    loader = _loader(path, tmp_path / "cache")
    for tar in (path / "images").iterdir():
        tar.unlink()
    with pytest.raises(UserError, match=r"images/000\d\d\.tar is missing"):
        list(loader.batches(0, 40))
