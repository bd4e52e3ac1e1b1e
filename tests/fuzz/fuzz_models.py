"""Model folders and index folders made hostile, opened and used."""

from __future__ import annotations

import atexit
import functools
import json
import math
import shutil
import struct
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
from fuzz_decoding import collection, with_odd_cells
from fuzz_images import good, random_image
from fuzz_run import Target, Trial
from fuzz_values import as_json, damaged, mutated, odd_number, odd_text

from foveate.records.boxes import Box, PixelBox


@functools.cache
def home() -> Path:
    """A folder with a collection `c`, a tiny model `m` and its index `i`."""
    import tiny
    from foveate.pretrain.train import build_model
    from foveate.search.index import build_index
    from foveate.vision.localizer.folder import save_model

    place = Path(tempfile.mkdtemp(prefix="fuzz-home-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    shutil.copytree(collection(), place / "c")
    save_model(build_model(tiny.recipe()).eval(), place / "m")
    build_index(place / "m", place / "c", place / "i", device="cpu")
    return place


def _hurt_weights(random: Random, data: bytes) -> bytes:
    """A safetensors file with a changed header, cut, or damaged."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    choice = random.randrange(6)
    if choice == 0:
        return data[: random.randrange(len(data))]
    if choice == 1:
        return struct.pack("<Q", random.choice((0, 1, 2**31, 2**63, 2**64 - 1, length + 1))) + data[8:]
    if choice == 2:
        text = as_json(random, mutated(random, json.loads(header), changes=1))
        return struct.pack("<Q", len(text)) + text + body
    if choice == 3:
        return struct.pack("<Q", length) + damaged(random, header)[:length].ljust(length) + body
    if choice == 4:
        return data + b"more"
    return damaged(random, data)


def models(trial: Trial) -> str:
    """A model folder: config.json and the rest changed by value, type and byte, weights cut and damaged."""
    from foveate.vision.localizer.folder import load_model

    random, place = trial.random, trial.folder / "m"
    shutil.copytree(home() / "m", place)
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    chosen = random.choice(
        (place / "config.json", place / "config.json", place / "model.safetensors", random.choice(files))
    )
    data, action = chosen.read_bytes(), random.randrange(8)
    trial.note((chosen.name, action))
    if action == 0:
        chosen.unlink()
    elif action == 1:
        chosen.unlink()
        chosen.mkdir()
    elif chosen.suffix == ".safetensors":
        chosen.write_bytes(_hurt_weights(random, data))
    elif chosen.suffix == ".json" and action < 7:
        changed = mutated(random, json.loads(data), changes=random.choice((1, 1, 2)))
        trial.note(changed)
        chosen.write_bytes(as_json(random, changed))
    else:
        chosen.write_bytes(damaged(random, data))
    model = load_model(place, device="cpu")
    vectors_1E = model.encode_text(["a boat"])
    assert len(vectors_1E) == 1
    return "used"


def _query(trial: Trial) -> Any:
    from foveate.search.query import Query

    random = trial.random
    text = odd_text(random) if random.random() < 0.7 else None
    shown = random_image(random) if random.random() < 0.4 else good(3) if random.random() < 0.4 else None
    box: Any = None
    if random.random() < 0.3:
        numbers = [odd_number(random) if random.random() < 0.3 else random.random() for _ in range(4)]
        trial.note(numbers)
        box = random.choice((Box, PixelBox))(*numbers)
    weights = {}
    if random.random() < 0.3:
        weights[random.choice(("text", "image", "box", "negative", "x"))] = random.choice(
            (0.0, -1.0, 1e-300, 1e308, math.nan, 2.0)
        )
    negative = odd_text(random) if random.random() < 0.2 else None
    trial.note((text, negative, weights, shown is not None))
    return Query(text=text, image=shown, box=box, negative=negative, weights=weights)


@functools.cache
def _encoder() -> Any:
    from foveate.vision.localizer.folder import load_model

    return load_model(home() / "m", device="cpu")


def queries(trial: Trial) -> str:
    """Words, images, boxes and weights of every kind, asked of a good index."""
    from foveate.search.search import Index, search

    random = trial.random
    hits, _ = search(
        Index.open(home() / "i", collection=home() / "c"),
        _query(trial),
        _encoder(),
        count=random.choice((1, 5, 1000)),
        kind=random.choice(("both", "images", "regions")),
        per_image=random.choice((1, 3, 50)),
        backend="exact",
    )
    for hit in hits:
        assert -1.001 <= hit.score <= 1.001, hit
    return "answered"


def indexes(trial: Trial) -> str:
    """A damaged index, searched; at times brought up to date."""
    from foveate.search.index import build_index
    from foveate.search.query import Query
    from foveate.search.search import Index, search

    random, place = trial.random, trial.folder / "i"
    shutil.copytree(home() / "i", place)
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "writer.lock"]
    chosen = random.choice((place / "index.json", *files))
    action = random.randrange(7)
    trial.note((chosen.name, action))
    if action == 0:
        chosen.unlink()
    elif action == 1:
        chosen.unlink()
        chosen.mkdir()
    elif chosen.suffix == ".json" and action < 6:
        changed = mutated(random, json.loads(chosen.read_bytes()), changes=1)
        trial.note(changed)
        chosen.write_bytes(as_json(random, changed))
    elif chosen.suffix == ".parquet" and action < 5:
        pq.write_table(with_odd_cells(random, pq.read_table(chosen, partitioning=None)), chosen)
    else:
        chosen.write_bytes(damaged(random, chosen.read_bytes()))
    if random.random() < 0.3:
        build_index(home() / "m", home() / "c", place, device="cpu")
    opened = Index.open(place, collection=home() / "c")
    kind = random.choice(("both", "images", "regions"))
    search(opened, Query(text="a thing"), _encoder(), count=5, kind=kind, per_image=2, backend="exact")
    return "answered"


MODELS = {one.name: one for one in (Target("models", models), Target("queries", queries), Target("indexes", indexes))}
