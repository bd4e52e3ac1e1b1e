"""Search an index: the images and regions nearest to a text, an image, a box in an image, or their sum."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.pretrain.searching.faiss_backend import nearest_by_faiss, open_faiss
from foveate.pretrain.searching.index_folder import (
    DESCRIPTION,
    IMAGE,
    KINDS,
    REGION,
    Description,
    Segment,
    read_rows,
)
from foveate.pretrain.searching.nearest import nearest
from foveate.pretrain.searching.query import Query, embed_query
from foveate.pretrain.searching.settings import HitSettings
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.layout import DESCRIPTION as COLLECTION_FILE
from foveate.records.tables import positions
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import find_model

KINDS_OF = {"images": (IMAGE,), "regions": (REGION,), "both": KINDS}


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Attributes:
        key: of the image in the collection. kind: "image" or "region".
        score: cosine with the query, in [-1, 1]. box: of a region, in [0, 1] of the image.
        phrase: of the region; "" for an image and for a box of the grid. caption: the image's first text.

    Example:
        >>> hit = open_index(index_folder).search("a red disc", count=1)[0]
        >>> -1 <= hit.score <= 1
        True
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
        self._by_kind: dict[str, _KindRows] = {}

    @classmethod
    def open(cls, folder: str | Path, *, collection: str | Path | None = None) -> Index:
        """Open an index folder.

        Args:
            collection: folder of the collection, if it is no longer where it was when the index was made.

        Raises:
            UserError: not an index, an empty or unfinished one, a collection that is missing or another one.
        """
        folder = Path(folder)
        description = Description.read(folder)
        if not description.segments:
            why = "it is empty" if description.finished else "its first run has not finished: repeat `foveate index`"
            raise UserError(f"{folder}: the index has nothing to search: {why}")
        path = Path(collection) if collection else description.collection.resolve(folder, COLLECTION_FILE)
        if not (path / COLLECTION_FILE).is_file():
            raise UserError(f"{folder}: its collection is not at {path}; give its folder with --collection")
        opened = Collection.open(path)
        if opened.name != description.collection_name:
            raise UserError(
                f"{path}: is the collection '{opened.name}'; expected '{description.collection_name}', which was "
                "indexed"
            )
        return cls(folder, description, opened)

    def __len__(self) -> int:
        return sum(segment.rows for segment in self.description.segments)

    def __repr__(self) -> str:
        counts = self.description.counts
        return f"Index({str(self.folder)!r}, {counts['images']} images, {counts['regions']} regions)"

    def open_model(self, folder: str | Path | None = None, *, device: str | None = None) -> LocalizingModel:
        """Load the model that the index was made with.

        Args:
            folder: of the model, if it is no longer where it was when the index was made.

        Raises:
            UserError: when it is missing, or is another model.
        """
        name = str(folder or self.description.model_name(self.folder))
        if not self.description.source and not Path(name).is_dir():
            raise UserError(f"{self.folder}: its model is not at {name}; give its folder with --model")
        source = find_model(name)
        if source.fingerprint() != self.description.fingerprint:
            raise UserError(f"{self.folder}: was made with another model than {name}; build the index again with it")
        return source.load(device=device)

    def nearest(
        self,
        vector_E: NDArray[np.floating],
        *,
        count: int = 20,
        kind: str = "both",
        per_image: int = 1,
        backend: str = "exact",
    ) -> list[Hit]:
        """Return the hits nearest to a vector, best first; equal scores in the order of the index, images first.

        Args:
            kind: "images", "regions" or "both". per_image: maximum of hits from one image.
            backend: "exact", or "faiss" (approximate from `faiss_backend.LISTS_FROM` rows on).
        """
        content = {"count": count, "kind": kind, "per_image": per_image, "backend": backend}
        validate(HitSettings, content, where="search")
        query = np.asarray(vector_E, dtype=np.float64)
        if query.shape != (self.description.embed_dim,) or not np.isfinite(query).all() or not query.any():
            raise UserError(f"query vector: expected {self.description.embed_dim} finite numbers, not all of them 0")
        # Unit length makes inner products cosines; the stored vectors already are.
        query = query / np.linalg.norm(query)
        candidates: list[tuple[float, int, int, str]] = []
        for order, name in enumerate(KINDS_OF[kind]):
            kind_rows = self._rows_of(name)
            if kind_rows.available:
                rows = kind_rows.search(query, count=count, per_image=per_image, backend=backend)
                # Negative scores: an ascending sort puts the best first and keeps the order of equal ones.
                candidates += [(-score, order, row, key) for score, row, key in rows]
        if not candidates:
            counts = self.description.counts
            raise UserError(
                f"{self.folder}: no {kind if kind != 'both' else 'rows'} of the index are still in the collection "
                f"({counts['images']} images, {counts['regions']} regions)"
            )
        per_key: Counter[str] = Counter()
        hits = []
        for score, order, row, key in sorted(candidates):
            if per_key[key] < per_image and len(hits) < count:
                per_key[key] += 1
                hits.append(self._hit(KINDS_OF[kind][order], row, -score))
        return hits

    def _rows_of(self, kind: str) -> _KindRows:
        if kind not in self._by_kind:
            segments = [segment for segment in self.description.segments if segment.kind == kind]
            self._by_kind[kind] = _KindRows(self.folder, segments, self.collection)
        return self._by_kind[kind]

    def _hit(self, kind: str, row: int, score: float) -> Hit:
        columns = self._rows_of(kind).rows.slice(row, 1).to_pylist()[0]
        captions = self.collection.read_captions(self.collection.find_row(columns["key"]))
        corners = [columns[name] for name in ("x1", "y1", "x2", "y2")]
        box = None if kind == IMAGE else Box.from_array(corners, clipped=True)
        return Hit(columns["key"], kind, score, box, columns["phrase"] or "", captions[0].text if captions else "")

    def image_bytes(self, hit: Hit) -> bytes | BadImage:
        """Return the image of a hit, or the reason why it cannot be read any more."""
        try:
            return self.collection.image_bytes(self.collection.find_row(hit.key))
        except BadImage as problem:
            return problem


class _KindRows:
    """All rows of one kind: their vectors, their table, and which of them the collection has since removed."""

    def __init__(self, folder: Path, segments: list[Segment], collection: Collection) -> None:
        self.folder, self.segments, self.collection = folder, segments, collection
        self.vectors = [segment.embeddings(folder) for segment in segments]

    @cached_property
    def rows(self) -> pa.Table:
        table = read_rows([segment.rows_path(self.folder) for segment in self.segments])
        expected = sum(segment.rows for segment in self.segments)
        if table.num_rows != expected:
            raise UserError(f"{self.folder / 'rows'}: has {table.num_rows} rows; expected {expected} ({DESCRIPTION})")
        return table

    @cached_property
    def removed(self) -> NDArray[np.int64]:
        index_N = positions(self.rows["key"], among=pa.array(self.collection.keys, pa.string()))
        return np.flatnonzero(index_N < 0).astype(np.int64)

    @property
    def available(self) -> int:
        return sum(segment.rows for segment in self.segments) - (len(self.removed) if self.segments else 0)

    @cached_property
    def _faiss(self) -> Any:
        return open_faiss(self.vectors, self.segments, self.folder)

    def search(
        self, query_E: NDArray[np.float64], *, count: int, per_image: int, backend: str
    ) -> list[tuple[float, int, str]]:
        """Return (score, row, key) of the best `count` rows with at most `per_image` of one image."""
        # Rows beyond the limit of their image are dropped, so more are requested until enough are left.
        request = count
        while True:
            if backend == "faiss":
                scores, rows = nearest_by_faiss(
                    self.vectors, query_E, count=request, excluded=self.removed, index=self._faiss
                )
            else:
                scores, rows = (
                    result[0] for result in nearest(self.vectors, query_E[None], count=request, excluded=self.removed)
                )
            keys = self.rows["key"].take(pa.array(rows)).to_pylist()
            per_key: Counter[str] = Counter()
            best = []
            for score, row, key in zip(scores.tolist(), rows.tolist(), keys, strict=True):
                if per_key[key] < per_image:
                    per_key[key] += 1
                    best.append((score, row, key))
            if len(best) >= count or len(rows) < request or request >= self.available:
                return best[:count]
            # Grows fast: a collection of near-identical regions needs few rounds.
            request = min(8 * request, self.available)


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
    """Return the hits of a query, and the query's box in [0, 1] of its image. See `Query` and `Index.nearest`."""
    vector_E, box = embed_query(model, query)
    return index.nearest(vector_E, count=count, kind=kind, per_image=per_image, backend=backend), box
