"""Summarize what runs wrote, for their results and pages: lengths, latencies, histograms, examples.

Read from the tables, so that a run that was stopped and repeated shows all that it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.caption.pending_requests import PendingRequests, select_rows
from foveate.caption.results import ExampleImage, ExampleText, WrittenCaptions
from foveate.caption.settings import RegionLabelSettings
from foveate.caption.vesl.run import CaptionSource
from foveate.core import seeds
from foveate.core.results import Distribution, Example, Histogram, Region
from foveate.records.appender import read_parts
from foveate.records.captions import select_current
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.inspection import histogram
from foveate.records.tables import GroupedTable, positions

# Enough for quantiles and a histogram; reading the JSON details of millions of rows would take minutes.
_MAX_SAMPLES = 20_000
_NUM_BINS = 20
_COLUMNS = ("key", "kind", "model", "created", "request", "text", "flags", "details")


def summarize_captions(
    collection: Path, model: str, kinds: Sequence[str], *, num_rows: int
) -> dict[str, WrittenCaptions]:
    """Count the captions of a model by format, with distributions of length and latency.

    Distributions are of at most about 20,000 rows of each format, sampled by a hash of their requests.

    Args:
        num_rows: rows that there may be, from which the share of the sample follows.
    """
    share = min(1.0, _MAX_SAMPLES * len(kinds) / max(num_rows, 1))
    counts = dict.fromkeys(kinds, 0)
    lengths: dict[str, list[int]] = {kind: [] for kind in kinds}
    latencies: dict[str, list[float]] = {kind: [] for kind in kinds}
    for part in read_parts(collection, "captions", ["kind", "model", "request", "details"]):
        columns = [part[name].to_pylist() for name in ("kind", "model", "request", "details")]
        for kind, name, request, details in zip(*columns, strict=True):
            if not request or name != model or kind not in counts:
                continue
            counts[kind] += 1
            # Draw by the request's hash, so that a resumed run samples the same rows.
            if share == 1.0 or seeds.uniform("sample", request) < share:
                content = json.loads(details)
                lengths[kind].append(content["n_clip"])
                latencies[kind].append(content["latency_ms"] / 1000)
    return {
        kind: WrittenCaptions(
            count=counts[kind],
            clip_tokens=_describe_distribution(lengths[kind]),
            seconds=_describe_distribution(latencies[kind]),
        )
        for kind in kinds
    }


def _describe_distribution(samples: Sequence[float]) -> Distribution | None:
    """Compute mean, quantiles (linear) and a histogram; None of nothing."""
    if not samples:
        return None
    values = np.asarray(samples, dtype=np.float64)
    # A range of zero width (all zero) is no histogram.
    counts, edges = np.histogram(values, bins=_NUM_BINS, range=(0.0, float(max(values.max(), 1e-6))))
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return Distribution(
        n=len(values),
        mean=float(values.mean()),
        p05=float(low),
        median=float(median),
        p95=float(high),
        histogram=Histogram(edges=edges.tolist(), counts=counts.tolist()),
    )


def save_example_images(
    collection: Collection, pending: PendingRequests, run: Path, *, count: int = 8
) -> dict[str, str]:
    """Save thumbnails of up to `count` images of a run, drawn by its seed, below `run`/images.

    Returns:
        key -> path relative to `run`; images that cannot be read are left out.
    """
    settings = pending.config.settings
    rows = select_rows(collection, settings)
    drawn = np.sort(seeds.generator("examples", settings.seed).choice(rows, size=min(count, len(rows)), replace=False))
    thumbnails: dict[str, str] = {}
    for row in drawn.tolist():
        image = Path("images") / f"{len(thumbnails):02d}.webp"
        try:
            save_thumbnail(collection.image_bytes(row), run / image)
        except BadImage:
            continue
        thumbnails[collection.keys[row]] = str(image)
    return thumbnails


def collect_examples(collection: Path, pending: PendingRequests, thumbnails: Mapping[str, str]) -> list[ExampleImage]:
    """Collect the current captions of images, this run's model first, and their alt-texts."""
    keys = pa.array(list(thumbnails), pa.string())
    # Filtered part by part, so that the texts of all other images are never in memory together.
    parts = [
        part.filter(pa.array(positions(part["key"], among=keys) >= 0))
        for part in read_parts(collection, "captions", _COLUMNS)
    ]
    table = pa.concat_tables(parts) if parts else None
    return [
        ExampleImage(key=key, image=image, texts=[] if table is None else _current_texts(table, key, pending))
        for key, image in thumbnails.items()
    ]


def _current_texts(table: pa.Table, key: str, pending: PendingRequests) -> list[ExampleText]:
    config = pending.config
    of_image = table.filter(pa.array([value == key for value in table["key"].to_pylist()], pa.bool_()))
    current = of_image.filter(pa.array(select_current(of_image, prefer=[config.model]))).to_pylist()
    alts = [row for kind in config.settings.alt_kinds for row in current if not row["request"] and row["kind"] == kind]
    kinds = ("alt", *config.settings.formats)
    captions = [row for kind in kinds for row in current if row["request"] and row["kind"] == kind]
    texts = []
    # Keep only the first alt-text: it is the one that the AFC request contained.
    for row in [*alts[:1], *captions]:
        details = json.loads(row["details"]) if row["details"] else {}
        texts.append(
            ExampleText(
                kind=row["kind"] if row["request"] else "alt",
                text=row["text"],
                flags=row["flags"].split(),
                clip_tokens=details.get("n_clip"),
                model=row["model"],
            )
        )
    return texts


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
                    image=thumbnail.relative_to(run).as_posix(),
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
