"""Samples and histograms of a labeling run for its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.caption.vesl.work import CaptionSource, RegionLabelSettings
from foveate.core import seeds
from foveate.core.results import Example, Histogram, Region
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.inspection import histogram
from foveate.records.tables import GroupedTable

_UNITS = {
    "regions per image": "regions",
    "phrase length": "words",
    "score": "score",
    "region area": "share of the image",
}


def build_gallery(
    path: Path,
    settings: RegionLabelSettings,
    recipe_hash: str,
    rows: Sequence[int],
    run: Path,
    *,
    count: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Collect `samples`, `histograms` and `unreadable` of a `RegionsResult`; write images below `run`/images.

    Args:
        path: of the collection, which is opened anew to see the rows that the run added.
        rows: the run's images.
        count: number of samples, drawn by the seed.
    """
    with Collection.open(path) as collection:
        regions = collection.table("regions")
        # Keep only regions of this recipe: other runs may have labeled the same images.
        regions = regions.filter(pc.call_function("equal", [regions["recipe_hash"], pa.scalar(recipe_hash)]))
        grouped = GroupedTable(regions, pa.chunked_array([pa.array(collection.keys, pa.string())]))
        row_N = np.asarray(rows, dtype=np.int64)
        # Images without regions would show nothing on the page.
        labeled = row_N[grouped.counts[row_N] > 0]
        drawn = labeled
        if len(labeled) > count:
            drawn = np.sort(seeds.generator("regions gallery", seed).choice(labeled, size=count, replace=False))
        source, samples, unreadable = CaptionSource(collection, settings), [], {}
        for row in drawn.tolist():
            thumbnail = run / "images" / f"regions-{row:08d}.webp"
            try:
                save_thumbnail(collection.image_bytes(row), thumbnail)
            except BadImage as problem:
                unreadable[collection.keys[row]] = str(problem)
                continue
            captions = source.get(row)
            samples.append(
                Example(
                    image=str(thumbnail.relative_to(run)),
                    caption=" ".join(captions.texts),
                    kind=captions.kind,
                    regions=_sample_regions(grouped, row),
                )
            )
        return {"samples": samples, "histograms": _build_histograms(grouped, row_N), "unreadable": unreadable}


def _sample_regions(grouped: GroupedTable, row: int) -> list[Region]:
    start, end = grouped.bounds(row)
    phrases = grouped.texts("phrase", start, end)
    corners = np.stack([grouped.array(name)[start:end] for name in ("x1", "y1", "x2", "y2")], axis=1)
    scores = grouped.array("score")[start:end]
    return [
        Region(box=tuple(map(float, box)), phrase=f"{phrase} {score:.2f}")
        for box, phrase, score in zip(corners, phrases, scores, strict=True)
    ]


def _build_histograms(grouped: GroupedTable, rows: np.ndarray) -> dict[str, Histogram]:
    values: dict[str, np.ndarray] = {}
    if len(rows):
        values["regions per image"] = grouped.counts[rows]
    of_run = np.isin(grouped.row_numbers, rows)
    if of_run.any():
        phrases = grouped.table["phrase"].filter(pa.array(of_run)).to_pylist()
        x1, y1, x2, y2, score = (grouped.array(name)[of_run] for name in ("x1", "y1", "x2", "y2", "score"))
        values["phrase length"] = np.array([len(phrase.split()) for phrase in phrases])
        values["score"] = score
        values["region area"] = (x2 - x1) * (y2 - y1)
    return {name: Histogram(**histogram(array, unit=_UNITS[name])) for name, array in values.items()}
