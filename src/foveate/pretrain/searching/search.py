"""Answers from an index: the images and regions nearest to words, an image, a box in an image, or their sum."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.pretrain.searching.faiss_backend import faiss_nearest, open_faiss
from foveate.pretrain.searching.index_folder import (
    DESCRIPTION,
    IMAGE,
    KINDS,
    REGION,
    Description,
    Segment,
    fingerprint,
    read_rows,
)
from foveate.pretrain.searching.nearest import nearest
from foveate.pretrain.searching.query import Query, embed_query
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.layout import DESCRIPTION as COLLECTION_FILE
from foveate.records.tables import positions
from foveate.vision.localizer.folder import CONFIG, load_model
from foveate.vision.localizer.model import LocalizingModel

ASKED = {"images": (IMAGE,), "regions": (REGION,), "both": KINDS}
BACKENDS = ("exact", "faiss")


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer.

    Attributes:
        key: of the image in the collection. kind: "image" or "region".
        score: cosine with the query, in [-1, 1]. box: of a region, in [0, 1] of the image.
        phrase: the region's own words; "" for an image and for a box of the grid. caption: the image's first text.
    """

    key: str
    kind: str
    score: float
    box: Box | None
    phrase: str
    caption: str


class Index:
    """An index opened for searching. Use `Index.open`."""

    def __init__(self, folder: Path, description: Description, collection: Collection) -> None:
        self.folder, self.description, self.collection = folder, description, collection
        self._shelves: dict[str, _Shelf] = {}

    @classmethod
    def open(cls, folder: str | Path, *, collection: str | Path | None = None) -> Index:
        """Opens an index folder.

        Args:
            collection: where the collection is now; where it was when the index was made by default.

        Raises:
            UserError: no index, an empty or unfinished one, a collection that is not there or is another one.
        """
        folder = Path(folder)
        description = Description.read(folder)
        if not description.segments:
            why = "it is empty" if description.finished else "its first run has not finished: repeat `foveate index`"
            raise UserError(f"{folder}: nothing to search, {why}")
        place = Path(collection) if collection else description.collection.found(folder, COLLECTION_FILE)
        if not (place / COLLECTION_FILE).is_file():
            raise UserError(f"{folder}: its collection is not at {place}; say where it is with --collection")
        opened = Collection.open(place)
        if opened.name != description.collection_name:
            raise UserError(
                f"{place}: is the collection '{opened.name}', the index is of '{description.collection_name}'"
            )
        return cls(folder, description, opened)

    def __len__(self) -> int:
        return sum(segment.rows for segment in self.description.segments)

    def __repr__(self) -> str:
        counts = self.description.counts
        return f"Index({str(self.folder)!r}, {counts['images']} images, {counts['regions']} regions)"

    def open_model(self, folder: str | Path | None = None, *, device: str | None = None) -> LocalizingModel:
        """The model that the index was made with, from `folder` or from where it was then.

        Raises:
            UserError: when it is not there, or is another model.
        """
        place = Path(folder) if folder else self.description.model.found(self.folder, CONFIG)
        if not (place / CONFIG).is_file():
            raise UserError(f"{self.folder}: its model is not at {place}; say where it is with --model")
        if fingerprint(place) != self.description.fingerprint:
            raise UserError(f"{self.folder}: was made with another model than {place}; make it anew with that one")
        return load_model(place, device=device)

    def nearest(
        self,
        vector_E: NDArray[np.floating],
        *,
        count: int = 20,
        kind: str = "both",
        per_image: int = 1,
        backend: str = "exact",
    ) -> list[Hit]:
        """The answers nearest to a vector, best first; equal scores in the index's order, images before regions.

        Args:
            kind: "images", "regions" or "both". per_image: at most so many answers from one image.
            backend: "exact", or "faiss" (approximate from `faiss_backend.LISTS_FROM` rows on).
        """
        choose(kind, ASKED, "kind of answers")
        choose(backend, BACKENDS, "backend")
        if min(count, per_image) < 1:
            raise UserError(f"count and answers per image: allowed is 1 or more, got {count} and {per_image}")
        query = np.asarray(vector_E, dtype=np.float64)
        if query.shape != (self.description.embed_dim,) or not np.isfinite(query).all() or not query.any():
            raise UserError(f"a query is {self.description.embed_dim} finite numbers that are not all 0")
        query = query / np.linalg.norm(query)
        found: list[tuple[float, int, int, str]] = []
        for order, name in enumerate(ASKED[kind]):
            shelf = self._shelf(name)
            if shelf.available:
                rows = shelf.search(query, count=count, per_image=per_image, backend=backend)
                found += [(-score, order, row, key) for score, row, key in rows]
        if not found:
            counts = self.description.counts
            raise UserError(
                f"{self.folder}: holds no {kind if kind != 'both' else 'rows'} that are still in the collection "
                f"({counts['images']} images, {counts['regions']} regions)"
            )
        taken: Counter[str] = Counter()
        hits = []
        for score, order, row, key in sorted(found):
            if taken[key] < per_image and len(hits) < count:
                taken[key] += 1
                hits.append(self._hit(ASKED[kind][order], row, -score))
        return hits

    def _shelf(self, kind: str) -> _Shelf:
        if kind not in self._shelves:
            segments = [segment for segment in self.description.segments if segment.kind == kind]
            self._shelves[kind] = _Shelf(self.folder, segments, self.collection)
        return self._shelves[kind]

    def _hit(self, kind: str, row: int, score: float) -> Hit:
        told = self._shelf(kind).rows.slice(row, 1).to_pylist()[0]
        captions = self.collection.read_captions(self.collection.find_row(told["key"]))
        corners = [told[name] for name in ("x1", "y1", "x2", "y2")]
        box = None if kind == IMAGE else Box.from_array(corners, clipped=True)
        return Hit(told["key"], kind, score, box, told["phrase"] or "", captions[0].text if captions else "")

    def image_bytes(self, hit: Hit) -> bytes | BadImage:
        """The image of an answer, or why it cannot be read now."""
        try:
            return self.collection.image_bytes(self.collection.find_row(hit.key))
        except BadImage as problem:
            return problem


class _Shelf:
    """All rows of one kind: their vectors, their table, and which of them the collection has removed since."""

    def __init__(self, folder: Path, segments: list[Segment], collection: Collection) -> None:
        self.folder, self.segments, self.collection = folder, segments, collection
        self.vectors = [segment.embeddings(folder) for segment in segments]

    @cached_property
    def rows(self) -> pa.Table:
        table = read_rows([segment.rows_path(self.folder) for segment in self.segments])
        promised = sum(segment.rows for segment in self.segments)
        if table.num_rows != promised:
            raise UserError(f"{self.folder / 'rows'}: {table.num_rows} rows, {DESCRIPTION} promises {promised}")
        return table

    @cached_property
    def removed(self) -> NDArray[np.int64]:
        there = positions(self.rows["key"], among=pa.array(self.collection.keys, pa.string()))
        return np.flatnonzero(there < 0).astype(np.int64)

    @property
    def available(self) -> int:
        return sum(segment.rows for segment in self.segments) - (len(self.removed) if self.segments else 0)

    @cached_property
    def _faiss(self) -> Any:
        return open_faiss(self.vectors, self.segments, self.folder)

    def search(
        self, query_E: NDArray[np.float64], *, count: int, per_image: int, backend: str
    ) -> list[tuple[float, int, str]]:
        """(score, row, key) of the best `count` with at most `per_image` of one image: asks for more until so."""
        wanted = count
        while True:
            if backend == "faiss":
                scores, rows = faiss_nearest(
                    self.vectors, query_E, count=wanted, excluded=self.removed, index=self._faiss
                )
            else:
                scores, rows = (
                    one[0] for one in nearest(self.vectors, query_E[None], count=wanted, excluded=self.removed)
                )
            keys = self.rows["key"].take(pa.array(rows)).to_pylist()
            taken: Counter[str] = Counter()
            kept = []
            for score, row, key in zip(scores.tolist(), rows.tolist(), keys, strict=True):
                if taken[key] < per_image:
                    taken[key] += 1
                    kept.append((score, row, key))
            if len(kept) >= count or len(rows) < wanted or wanted >= self.available:
                return kept[:count]
            wanted = min(8 * wanted, self.available)


def search(
    index: Index,
    query: Query,
    model: LocalizingModel,
    *,
    count: int = 20,
    kind: str = "both",
    per_image: int = 1,
    backend: str = "exact",
) -> tuple[list[Hit], Box | None]:
    """The answers to a query, and the query's box in [0, 1] of its image. See `Query` and `Index.nearest`."""
    vector_E, box = embed_query(model, query)
    return index.nearest(vector_E, count=count, kind=kind, per_image=per_image, backend=backend), box
