"""Write a search as a run folder: result.json and the images that its page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from foveate.core.results import Hit as HitResult
from foveate.core.results import Query as QueryResult
from foveate.core.runs import RunFolder
from foveate.records.boxes import Box
from foveate.records.images import BadImage, save_thumbnail
from foveate.search.query import Query
from foveate.search.results import SearchResult
from foveate.search.search import Hit, Index, Verdict

_GRAY = (128, 128, 128)


def write_search(
    folder: RunFolder,
    index: Index,
    query: Query,
    hits: Sequence[Hit],
    *,
    box: Box | None,
    query_file: Path | None,
    backend: str,
    verdict: Verdict,
    command: Sequence[str] = (),
) -> SearchResult:
    """Write the images and result.json of one search; return the result.

    An image that cannot be read any more is shown as a gray square with the reason.

    Args:
        box: of the query, in [0, 1] of its image. query_file: the query's image, as the user named it.
        command: the command line, for the foot of the page.
    """
    images = folder.path / "images"
    if query.image is not None:
        save_thumbnail(query.image, images / "query.webp")
    weights = {name: float(query.weights.get(name, 1.0)) for name in query.parts}
    saved: dict[str, tuple[str, str]] = {}
    hit_results = []
    for rank, hit in enumerate(hits):
        # Several hits of one image share its file.
        if hit.key not in saved:
            saved[hit.key] = _save_image(index, hit, images / f"hit-{rank:04d}.webp")
        hit_results.append(make_hit(hit, *saved[hit.key]))
    counts = index.description.counts
    result = SearchResult(
        command=list(command),
        model=str(index.description.model.path),
        index=str(index.folder),
        collection=index.description.collection_name,
        searched={"images": counts["images"], "regions": counts["regions"]},
        backend=backend,
        file=None if query_file is None else str(query_file),
        query=QueryResult.model_validate(
            {
                "kind": "text" if query.image is None else "box" if box else "image",
                "text": query.text,
                "negative": query.negative,
                "image": None if query.image is None else "images/query.webp",
                "box": None if box is None else _corners(box),
                # The weight of a single part has no effect: the vector is scaled to unit length.
                "weights": weights if len(weights) > 1 else {},
            }
        ),
        results={"hits": hit_results},
        note="" if verdict.has_match else f"Not found: {verdict.reason}. The nearest are shown.",
        has_match=verdict.has_match,
        reason=verdict.reason,
        floor=describe_floor(index, verdict),
        unknown_words=list(verdict.unknown_words),
    )
    folder.write_result(result.to_json())
    return result


def make_hit(hit: Hit, image: str = "", problem: str = "") -> HitResult:
    """Return a hit as results have it, numbers rounded; `image` is its file in the run folder."""
    return HitResult.model_validate(
        {
            "image": image,
            "key": hit.key,
            "kind": hit.kind,
            "score": round(hit.score, 6),
            "box": None if hit.box is None else _corners(hit.box),
            "phrase": hit.phrase,
            "caption": hit.caption,
            "problem": problem,
            "path": hit.path,
            "z": None if hit.z is None else round(hit.z, 3),
            "text": round(hit.text, 4),
        }
    )


def describe_floor(index: Index, verdict: Verdict) -> dict[str, float]:
    """Return the floor of a search with the shares of meaningless texts above it and of names below it."""
    floor = index.description.floor
    if floor is None or verdict.floor is None:
        return {}
    return {"score": verdict.floor, "letters_above": floor.letters_above, "names_below": floor.names_below}


def _save_image(index: Index, hit: Hit, path: Path) -> tuple[str, str]:
    """Save the image of a hit; return its path relative to the run folder and the problem with it, if any."""
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
