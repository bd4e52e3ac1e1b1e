"""Run as a script: by how many MB a process grows when it opens and reads the texts of a large collection.

    python dataset_memory.py ROWS

The tables are made in memory, as an opened collection holds them; what is measured comes on top of them. Prints the
growth in MB after opening and after reading a few thousand samples.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny
from foveate.pretrain.train import build_dataset, build_model
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.records.geometry import View


def made_collection(rows: int) -> Collection:
    """`rows` images that are not there, each with a caption of its own and three regions."""
    keys = pa.array([f"image-{row:09d}" for row in range(rows)])
    empty, zero = pa.array([""] * rows), np.zeros(rows)
    index: dict[str, Any] = {
        field.name: empty if field.type == pa.string() else pa.array(zero.astype(field.type.to_pandas_dtype()))
        for field in tables.INDEX
    }
    sides = dict.fromkeys(("width", "height"), pa.array(np.full(rows, 64, np.int32)))
    index |= {"key": keys, "split": pa.array(["train"] * rows), **sides}
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(tiny.make_collection(Path(folder) / "shapes"))
    collection._table = pa.table(index, tables.INDEX)
    captions = [f"a long caption of image {row} with enough words that it costs something" for row in range(rows)]
    texts = {"key": keys, "kind": pa.array(["alt"] * rows), "text": pa.array(captions), "request": empty}
    regions: dict[str, Any] = {
        "key": pa.array(np.repeat(keys.to_numpy(zero_copy_only=False), 3)),
        "phrase": pa.array([f"thing {number} of its own" for number in range(3 * rows)]),
    }
    corner = np.random.default_rng(0).uniform(0.0, 0.4, (4, 3 * rows)).astype(np.float32)
    corner[2:] += 0.5
    regions |= dict(zip(("x1", "y1", "x2", "y2"), corner, strict=True))
    collection._tables = {"captions": pa.table(texts), "regions": pa.table(regions)}
    return collection


def resident_megabytes() -> float:
    """What the process holds; what it only keeps for later is given back first."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    rows = int(sys.argv[1])
    collection = made_collection(rows)
    for kind, columns in (("captions", ("kind", "text")), ("regions", ("phrase",))):
        grouped = collection.grouped(kind)
        for column in columns:
            grouped.texts(column, 0, 1)
    _ = collection.region_boxes, collection.keys, collection.index, collection.splits
    settings = tiny.recipe()
    model = build_model(settings)
    model.text_encoder.frozen_features(["the tokenizer is there"])
    before = resident_megabytes()
    dataset = build_dataset(settings, collection, model, device=torch.device("cpu"), cache=Path("never-used"))
    opened = resident_megabytes()
    placement = View().fit(64, 64, 64)
    dataset._image = lambda *arguments: (torch.zeros(3, 64, 64, dtype=torch.uint8), placement)
    random = np.random.default_rng(1)
    for _ in range(20):
        dataset.collate([dataset.sample(int(row), 0, 0) for row in random.choice(dataset.rows, 200)])
    assert len(dataset.rows) == rows
    print(f"{opened - before:.1f} {resident_megabytes() - before:.1f}")


if __name__ == "__main__":
    main()
