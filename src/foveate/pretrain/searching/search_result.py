"""What a search found as a run folder: result.json and the images that its page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.core.runs import RunFolder
from foveate.pretrain.searching.query import Query
from foveate.pretrain.searching.search import Hit, Index
from foveate.records.boxes import Box
from foveate.records.images import BadImage, save_thumbnail

_GRAY = (128, 128, 128)


def write_search(
    folder: RunFolder,
    index: Index,
    query: Query,
    hits: Sequence[Hit],
    *,
    box: Box | None,
    asked_with: Path | None,
    backend: str,
) -> dict[str, Any]:
    """Writes the images and result.json (`foveate.report.schema.SearchResult`) of one search; returns the result.

    An image that cannot be read by now is shown as a gray square, with the reason beside it.
    """
    images = folder.path / "images"
    asked: dict[str, Any] = {"kind": "words" if query.image is None else "box" if box else "image"}
    if query.words is not None:
        asked["text"] = query.words
    if query.negative is not None:
        asked["negative"] = query.negative
    if query.image is not None:
        save_thumbnail(query.image, images / "query.webp")
        asked["image"] = "images/query.webp"
    if box is not None:
        asked["box"] = _corners(box)
    weights = {name: float(query.weights.get(name, 1.0)) for name in query.parts}
    if len(weights) > 1:
        asked["weights"] = weights
    saved: dict[str, tuple[str, str]] = {}
    found = []
    for place, hit in enumerate(hits):
        if hit.key not in saved:
            saved[hit.key] = _save(index, hit, images / f"hit-{place:04d}.webp")
        name, problem = saved[hit.key]
        found.append(
            {
                "image": name,
                "key": hit.key,
                "kind": hit.kind,
                "score": round(hit.score, 6),
                "box": None if hit.box is None else _corners(hit.box),
                "phrase": hit.phrase,
                "caption": hit.caption,
                "problem": problem,
            }
        )
    counts = index.description.counts
    result = {
        "kind": "search",
        "model": str(index.description.model.path),
        "index": str(index.folder),
        "collection": index.description.collection_name,
        "searched": {"images": counts["images"], "regions": counts["regions"]},
        "backend": backend,
        "file": None if asked_with is None else str(asked_with),
        "query": asked,
        "results": {"found": found},
    }
    folder.write_result(result)
    return result


def _save(index: Index, hit: Hit, path: Path) -> tuple[str, str]:
    """Saves an answer's image: its path relative to the run folder, and what is wrong with it."""
    data = index.image_bytes(hit)
    problem = ""
    try:
        if isinstance(data, BadImage):
            raise data
        save_thumbnail(data, path)
    except BadImage as bad:
        problem = str(bad)
        save_thumbnail(Image.new("RGB", (64, 64), _GRAY), path)
    return f"images/{path.name}", problem


def _corners(box: Box) -> list[float]:
    return [round(float(value), 5) for value in box.to_array()]
