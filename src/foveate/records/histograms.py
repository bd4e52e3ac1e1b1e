"""How a collection is spread, as histograms, and what was quarantined, with an example of each reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from foveate.records.collection import Collection
from foveate.records.tables import positions

_BINS = 20


def histogram(values_N: np.ndarray, *, unit: str, logarithmic: bool = False) -> dict[str, Any]:
    """Edges and counts of at most 20 bins, JSON-ready; logarithmic bins need values above 0."""
    low, high = float(values_N.min()), float(values_N.max())
    if high <= low:
        high = low + 1.0
    edges = np.geomspace(low, high, _BINS + 1) if logarithmic and low > 0 else np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(values_N, bins=edges)
    return {
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "unit": unit,
    }


def histograms(collection: Collection, split: str | None = None) -> dict[str, dict[str, Any]]:
    """Histograms of image sides, words per text, regions per image and region areas; empty ones left out."""
    rows = collection.rows(split)
    found = {}
    if len(rows):
        longest = np.maximum(collection.index["width"][rows], collection.index["height"][rows])
        found["longest side"] = histogram(longest, unit="pixels")
    keys = pa.array([collection.keys[row] for row in rows], type=pa.string())
    captions = collection.table("captions")
    texts = captions.filter(pa.array(positions(captions["key"], among=keys) >= 0))["text"].to_pylist()
    if texts:
        found["text length"] = histogram(np.array([len(text.split()) for text in texts]), unit="words")
    regions = collection.table("regions")
    regions = regions.filter(pa.array(positions(regions["key"], among=keys) >= 0))
    if regions.num_rows:
        x1, y1, x2, y2 = (regions[name].to_numpy() for name in ("x1", "y1", "x2", "y2"))
        found["region area"] = histogram((x2 - x1) * (y2 - y1), unit="share of the image")
        per_image = np.bincount(positions(regions["key"], among=keys), minlength=len(rows))
        found["regions per image"] = histogram(per_image, unit="regions")
    return found


def quarantine_examples(collection: Collection) -> list[dict[str, Any]]:
    """Each reason of the quarantine with its count and one example, the most frequent first."""
    reasons: dict[str, dict[str, Any]] = {}
    for row in collection.quarantine().to_pylist():
        name = f"{row['subject']}: {row['reason']}"
        kept = reasons.setdefault(name, {"reason": name, "count": 0, "example": f"{row['key']}: {row['detail']}"})
        kept["count"] += 1
    return sorted(reasons.values(), key=lambda one: -one["count"])
