"""A small collection to caption, and what the tests ask of the rows in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.run import CaptionRun, caption
from foveate.chat.client import ChatSettings
from foveate.core.runs import RunFolder
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter

ALL = ("ssc", "dsc", "dsc_plus", "afc")


def image_bytes(seed: int, *, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def make(path: Path, count: int = 12, *, alts: dict[int, str] | None = None) -> Path:
    """Images p0 ..., every third with a file name as its alt-text; `alts` are others."""
    with CollectionWriter(path, name="boats", images_per_shard=50) as writer:
        for number in range(count):
            alt = f"Boat {number} in Kiel" if number % 3 else f"IMG_{number}.jpg"
            alt = (alts or {}).get(number, alt)
            split = "test" if number % 4 == 0 else "train"
            writer.add(f"p{number}", image_bytes(number), captions=[Caption(alt)] if alt else [], split=split)
    return path


def ask(collection: Path, endpoint: str, **options: Any) -> CaptionRun:
    """Run the pipeline against a server; further arguments are settings of the run or, with `http_`, of the backend."""
    backend = {name.removeprefix("http_"): value for name, value in options.items() if name.startswith("http_")}
    settings = {name: value for name, value in options.items() if not name.startswith("http_")}
    quick = {"backoff_seconds": 0.02, "timeout_seconds": 5.0, "model": "m", "concurrency": 8}
    return caption(
        collection,
        CaptionSettings(**{"formats": ALL, **settings}),
        backend="http",
        backend_settings=ChatSettings(**{"endpoint": endpoint, **quick, **backend}),
        run=RunFolder.create(collection.parent / "run"),
    )


def rows(collection: Path, kind: str = "captions") -> list[dict[str, Any]]:
    """Rows that a captioner wrote, with their details read."""
    table = Collection.open(collection).table(kind).to_pylist()
    return [{**row, "details": json.loads(row["details"])} for row in table if row["request"]]


def texts(collection: Path) -> dict[str, tuple[str, str, str]]:
    """Request -> text, status and flags: what must not depend on how a run went."""
    stored = rows(collection)
    assert len({row["request"] for row in stored}) == len(stored), "a row is doubled"
    return {row["request"]: (row["text"], row["status"], row["flags"]) for row in stored}
