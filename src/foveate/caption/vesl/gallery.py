"""What a labeling run shows: some labeled images with their regions, and how all of its regions are spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.caption.vesl.work import Captions, RegionLabelSettings
from foveate.core import seeds
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.inspection import histogram
from foveate.records.tables import GroupedTable


def shown(
    path: Path,
    settings: RegionLabelSettings,
    recipe_hash: str,
    rows: Sequence[int],
    run: Path,
    *,
    count: int,
    seed: int = 0,
) -> dict[str, Any]:
    """`samples`, `histograms` and `unreadable` for result.json; images are written below `run`/images.

    Args:
        path: of the collection, opened anew. rows: the run's images. count: of samples, drawn by the seed.
    """
    with Collection.open(path) as collection:
        regions = collection.table("regions")
        regions = regions.filter(pc.call_function("equal", [regions["recipe_hash"], pa.scalar(recipe_hash)]))
        grouped = GroupedTable(regions, pa.chunked_array([pa.array(collection.keys, pa.string())]))
        mine = np.asarray(rows, dtype=np.int64)
        labeled = mine[grouped.counts[mine] > 0]
        drawn = labeled
        if len(labeled) > count:
            drawn = np.sort(seeds.generator("regions gallery", seed).choice(labeled, size=count, replace=False))
        captions, samples, unreadable = Captions(collection, settings), [], {}
        for row in drawn.tolist():
            place = run / "images" / f"regions-{row:08d}.webp"
            try:
                save_thumbnail(collection.image_bytes(row), place)
            except BadImage as problem:
                unreadable[collection.keys[row]] = str(problem)
                continue
            said = captions.of(row)
            samples.append(
                {
                    "image": str(place.relative_to(run)),
                    "caption": " ".join(said.texts),
                    "kind": said.kind,
                    "regions": _regions(grouped, row),
                }
            )
        return {"samples": samples, "histograms": _spread(grouped, mine), "unreadable": unreadable}


def _regions(grouped: GroupedTable, row: int) -> list[dict[str, Any]]:
    start, end = grouped.bounds(row)
    phrases = grouped.texts("phrase", start, end)
    corners = np.stack([grouped.numbers(name)[start:end] for name in ("x1", "y1", "x2", "y2")], axis=1)
    scores = grouped.numbers("score")[start:end]
    return [
        {"box": [float(value) for value in box], "phrase": f"{phrase} {score:.2f}"}
        for box, phrase, score in zip(corners, phrases, scores, strict=True)
    ]


def _spread(grouped: GroupedTable, rows: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if len(rows):
        found["regions per image"] = histogram(grouped.counts[rows], unit="regions")
    mine = np.isin(grouped.row_numbers, rows)
    if mine.any():
        phrases = grouped.table["phrase"].filter(pa.array(mine)).to_pylist()
        x1, y1, x2, y2, score = (grouped.numbers(name)[mine] for name in ("x1", "y1", "x2", "y2", "score"))
        found["phrase length"] = histogram(np.array([len(one.split()) for one in phrases]), unit="words")
        found["score"] = histogram(score, unit="score")
        found["region area"] = histogram((x2 - x1) * (y2 - y1), unit="share of the image")
    return found
