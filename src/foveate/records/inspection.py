"""Summarize a collection: counts, distributions, histograms, examples from the quarantine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations
from foveate.records.tables import positions

_BINS = 20


class InspectionSettings(Settings):
    """`foveate inspect COLLECTION`."""

    split: str | None = Field(None, description="only this split")
    recipe: str = Field("tour", description="recipe whose preprocessing the gallery shows")
    samples: int = Field(24, ge=0, le=500, description="images in the gallery, drawn by the seed")


def histogram(values_N: np.ndarray, *, unit: str) -> dict[str, Any]:
    """Compute edges and counts of at most 20 bins as JSON values."""
    low, high = float(values_N.min()), float(values_N.max())
    if np.issubdtype(values_N.dtype, np.integer):
        # Every bin has equally many whole numbers: a bin of 0.4 regions would be empty or hold two bins' worth.
        step = math.ceil((high + 1 - low) / _BINS)
        edges = low + step * np.arange(math.ceil((high + 1 - low) / step) + 1)
    else:
        # Equal values still need bins of some width.
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    counts, _ = np.histogram(values_N, bins=edges)
    return {
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "unit": unit,
    }


def histograms(collection: Collection, split: str | None = None) -> dict[str, dict[str, Any]]:
    """Compute histograms of image sides, words per text, region areas and regions per image, if not empty."""
    rows = collection.rows(split)
    by_name = {}
    if len(rows):
        longest = np.maximum(collection.index["width"][rows], collection.index["height"][rows])
        by_name["longest side"] = histogram(longest, unit="pixels")
    keys = pa.array([collection.keys[row] for row in rows], type=pa.string())
    texts = _table(collection, "captions", keys)["text"].to_pylist()
    if texts:
        by_name["text length"] = histogram(np.array([len(text.split()) for text in texts]), unit="words")
    regions = _table(collection, "regions", keys)
    if regions.num_rows:
        x1, y1, x2, y2 = (regions[name].to_numpy() for name in ("x1", "y1", "x2", "y2"))
        by_name["region area"] = histogram((x2 - x1) * (y2 - y1), unit="share of the image")
        per_image = np.bincount(positions(regions["key"], among=keys), minlength=len(rows))
        by_name["regions per image"] = histogram(per_image, unit="regions")
    return by_name


def quarantine_examples(collection: Collection) -> list[dict[str, Any]]:
    """Count the quarantine by reason with one example each, the most frequent first."""
    reasons: dict[str, dict[str, Any]] = {}
    for row in collection.quarantine().to_pylist():
        name = f"{row['subject']}: {row['reason']}"
        entry = reasons.setdefault(name, {"reason": name, "count": 0, "example": f"{row['key']}: {row['detail']}"})
        entry["count"] += 1
    return sorted(reasons.values(), key=lambda reason: -reason["count"])


_PERCENTILES = {"p05": 5, "median": 50, "p95": 95}
# Region sizes as fractions of the image area: small below 0.01, large from 0.1.
SMALL_AREA, LARGE_AREA = 0.01, 0.1
_MAX_VALUES = 50  # more do not fit on a page


def summarize(collection: Collection, split: str | None = None) -> dict[str, object]:
    """Summarize a collection, or one split of it, as JSON values.

    Fields: name, license, images, shards, bytes; `by_source`, `by_split`, `by_format`, `by_label` (counts,
    the 50 most frequent values of each label field); `width`, `height`, `aspect` (width by height);
    `captions` (by kind: count, words, characters); `regions` (count, per image, phrases, area, sizes);
    `conversations` (count, by group), where there are any; `quarantine` (counts by "subject: reason", of the
    whole collection). A distribution has count, min, p05, median, mean, p95 and max.
    """
    rows = collection.rows(split)
    index = {name: values[rows] for name, values in collection.index.items()}
    keys = pa.array(index["key"], type=pa.string())
    quarantine = collection.quarantine()
    reasons = zip(quarantine["subject"].to_pylist(), quarantine["reason"].to_pylist(), strict=True)
    talks = Conversations(collection, split=split)
    conversations = {"count": len(talks), "by_group": _counts(talks.groups.tolist())}
    return {
        "name": collection.name,
        "license": collection.license,
        "split": split,
        "images": len(rows),
        "shards": len(collection.shards),
        "bytes": int(index["length"].sum()),
        "by_source": _counts(index["source"]),
        "by_split": _counts(collection.splits[rows]),
        "by_format": _counts(index["format"]),
        "groups": len(set(index["group"].tolist()) - {""}),
        "width": summarize_values(index["width"]),
        "height": summarize_values(index["height"]),
        "aspect": summarize_values(index["width"] / np.maximum(1, index["height"])),
        "by_label": _labels(collection, keys),
        "captions": _captions(collection, keys),
        "regions": _regions(collection, keys),
        **({"conversations": conversations} if len(talks) else {}),
        "quarantine": _counts(f"{subject}: {reason}" for subject, reason in reasons),
    }


def summarize_values(values_N: np.ndarray) -> dict[str, float | int]:
    """Return count, min, 5th percentile, median, mean, 95th percentile and max; only the count of an empty array."""
    if not len(values_N):
        return {"count": 0}
    percentiles = {name: float(np.percentile(values_N, percent)) for name, percent in _PERCENTILES.items()}
    ends = {"min": float(values_N.min()), "max": float(values_N.max()), "mean": float(values_N.mean())}
    order = ("min", "p05", "median", "mean", "p95", "max")
    return {"count": len(values_N), **{name: {**percentiles, **ends}[name] for name in order}}


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Count texts, the most frequent first, equal counts in alphabetical order."""
    counts = Counter(values)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _table(collection: Collection, kind: str, keys: pa.Array) -> pa.Table:
    table = collection.table(kind)
    return table.filter(pa.array(positions(table["key"], among=keys) >= 0))


def _labels(collection: Collection, keys: pa.Array) -> dict[str, dict[str, int]]:
    table = _table(collection, "labels", keys)
    fields, values = table["field"].to_numpy(), table["value"].to_numpy()
    counted = {field: _counts(values[fields == field]) for field in sorted(set(fields.tolist()))}
    # `_counts` sorts by frequency, so the slice keeps the most frequent values.
    return {field: dict(list(counts.items())[:_MAX_VALUES]) for field, counts in counted.items()}


def _captions(collection: Collection, keys: pa.Array) -> dict[str, object]:
    table = _table(collection, "captions", keys)
    kinds = table["kind"].to_numpy()
    texts = table["text"].to_pylist()
    word_counts = np.array([len(text.split()) for text in texts], dtype=np.int64)
    characters = np.array([len(text) for text in texts], dtype=np.int64)
    by_kind = {
        kind: {
            "count": int((kinds == kind).sum()),
            "words": summarize_values(word_counts[kinds == kind]),
            "characters": summarize_values(characters[kinds == kind]),
        }
        for kind in sorted(set(kinds.tolist()))
    }
    images = len(table["key"].unique())
    return {"count": len(texts), "images_without": len(keys) - images, "by_kind": by_kind}


def _regions(collection: Collection, keys: pa.Array) -> dict[str, object]:
    table = _table(collection, "regions", keys)
    x1, y1, x2, y2 = (table[name].to_numpy().astype(np.float64) for name in ("x1", "y1", "x2", "y2"))
    area = (x2 - x1) * (y2 - y1)
    per_image = np.bincount(positions(table["key"], among=keys), minlength=len(keys))
    phrases = Counter(table["phrase"].to_pylist())
    return {
        "count": table.num_rows,
        "per_image": summarize_values(per_image),
        "area": summarize_values(area),
        "sizes": {
            "small": int((area < SMALL_AREA).sum()),
            "medium": int(((area >= SMALL_AREA) & (area < LARGE_AREA)).sum()),
            "large": int((area >= LARGE_AREA).sum()),
        },
        "distinct_phrases": len(phrases),
        "frequent_phrases": dict(phrases.most_common(_MAX_VALUES)),
        "by_slice": _counts(table["slice"].to_numpy()),
        "by_source": _counts(table["source"].to_numpy()),
    }
