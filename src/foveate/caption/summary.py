"""What a captioner's rows look like together: lengths, latencies, and images with all their captions side by side.

Read from the tables, so that a run that was stopped and repeated shows all that it made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foveate.caption.work import Worklist, chosen_rows
from foveate.core import seeds
from foveate.records.appender import read_parts
from foveate.records.collection import Collection
from foveate.records.current_captions import select_current
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.tables import positions

_MOST_ROWS = 20_000
_COLUMNS = ("key", "kind", "model", "created", "request", "text", "flags", "details")


def made_by(collection: Path, model: str, kinds: Sequence[str], *, total: int) -> dict[str, dict[str, Any]]:
    """By format: number of captions of the model, their lengths in CLIP tokens, and seconds per request.

    Histograms and quantiles are of at most about 20,000 rows, chosen by a hash of their requests.

    Args:
        total: rows that there may be, from which the share of the sample follows.
    """
    share = min(1.0, _MOST_ROWS * len(kinds) / max(total, 1))
    counts = dict.fromkeys(kinds, 0)
    lengths: dict[str, list[int]] = {kind: [] for kind in kinds}
    latencies: dict[str, list[float]] = {kind: [] for kind in kinds}
    for part in read_parts(collection, "captions", ["kind", "model", "request", "details"]):
        columns = [part[name].to_pylist() for name in ("kind", "model", "request", "details")]
        for kind, name, request, details in zip(*columns, strict=True):
            if not request or name != model or kind not in counts:
                continue
            counts[kind] += 1
            if share == 1.0 or seeds.uniform("sample", request) < share:
                content = json.loads(details)
                lengths[kind].append(content["n_clip"])
                latencies[kind].append(content["latency_ms"] / 1000)
    return {
        kind: {"captions": counts[kind], "clip_tokens": _spread(lengths[kind]), "seconds": _spread(latencies[kind])}
        for kind in kinds
    }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, quantiles (linear) and a histogram of 20 bins; None of nothing."""
    if not values:
        return None
    found = np.asarray(values, dtype=np.float64)
    counts, edges = np.histogram(found, bins=20, range=(0.0, float(max(found.max(), 1e-6))))
    low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
    return {
        "n": len(found),
        "mean": float(found.mean()),
        "p05": float(low),
        "median": float(median),
        "p95": float(high),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def example_images(collection: Collection, listed: Worklist, run: Path, *, count: int = 8) -> dict[str, str]:
    """Up to `count` images of the run, drawn by its seed: key -> thumbnail, below `run`/images."""
    settings = listed.asking.settings
    rows = chosen_rows(collection, settings)
    chosen = np.sort(seeds.generator("examples", settings.seed).choice(rows, size=min(count, len(rows)), replace=False))
    found: dict[str, str] = {}
    for row in chosen.tolist():
        image = Path("images") / f"{len(found):02d}.webp"
        try:
            save_thumbnail(collection.image_bytes(row), run / image)
        except BadImage:
            continue
        found[collection.keys[row]] = str(image)
    return found


def examples(collection: Path, listed: Worklist, images: Mapping[str, str]) -> list[dict[str, Any]]:
    """The images with their texts: those that hold, of this run's model where it wrote one, and the image's own."""
    wanted = pa.array(list(images), pa.string())
    parts = [
        part.filter(pa.array(positions(part["key"], among=wanted) >= 0))
        for part in read_parts(collection, "captions", _COLUMNS)
    ]
    table = pa.concat_tables(parts) if parts else None
    return [
        {"key": key, "image": image, "texts": [] if table is None else _texts(table, key, listed)}
        for key, image in images.items()
    ]


def _texts(table: pa.Table, key: str, listed: Worklist) -> list[dict[str, Any]]:
    own = table.filter(pa.array([one == key for one in table["key"].to_pylist()], pa.bool_()))
    kept = own.filter(pa.array(select_current(own, prefer=[listed.asking.model]))).to_pylist()
    kinds = ("alt", *listed.asking.settings.formats)
    alts = [
        row for kind in listed.asking.settings.alt_kinds for row in kept if not row["request"] and row["kind"] == kind
    ]
    made = [row for kind in kinds for row in kept if row["request"] and row["kind"] == kind]
    shown = []
    for row in [*alts[:1], *made]:
        details = json.loads(row["details"]) if row["details"] else {}
        shown.append(
            {
                "kind": row["kind"] if row["request"] else "alt",
                "text": row["text"],
                "flags": row["flags"].split(),
                "clip_tokens": details.get("n_clip"),
                "model": row["model"],
            }
        )
    return shown
