"""Search an index: the images and regions nearest to a text, an image, a box in an image, or their sum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.hub import find
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.records.bm25 import TextIndex
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.layout import DESCRIPTION as COLLECTION_FILE
from foveate.records.tables import positions
from foveate.search.calibration import (
    KINDS_OF,
    TextCache,
    combine_spreads,
    judge_words,
    list_compared,
    mean_direction,
    split_query,
)
from foveate.search.databases import Candidates, Vectors, open_database
from foveate.search.index import unit
from foveate.search.index_folder import (
    DESCRIPTION,
    IMAGE,
    RANDOM_LETTERS,
    REGION,
    Description,
    Segment,
    read_rows,
    read_vectors,
)
from foveate.search.nearest import nearest, nearest_among, open_faiss, rank_rows
from foveate.search.query import Query, embed_query
from foveate.search.settings import FAISS, TEXT_WEIGHT, HitSettings
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import find_model

UNKNOWN = "the text is like random letters to the text tower"
# Images with matching words that are scored besides the nearest ones; each of them has up to 38 boxes of the grid.
_MIN_MATCHES = 64
# Rows that are requested for one that is left after the limit of each image.
_MORE = 8


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Attributes:
        key: of the image in the collection. kind: "images" or "regions", as in `kind` of a search.
        score: cosine with the query, in [-1, 1]. box: of a region, in [0, 1] of the image.
        phrase: of the region; "" for an image and for a box of the grid. caption: the image's first text.
        path: of the image file; "" where the collection holds a copy, see `Record.open`.
        z: standard deviations by which the cosine is above that of random queries; None without a calibration.
        text: BM25 share in [0, 1] of the query's words in the image's captions and file name.

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
    path: str = ""
    z: float | None = None
    text: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a search found something.

    Attributes:
        has_match: False where the hits are no better than those of texts without a meaning.
        reason: why nothing was found; "" otherwise.
        floor: the score, z + text weight * text, that a hit must exceed; None where there is none: for images and
            sums, and in indexes of old releases.
        unknown_words: of the query, that the text tower cannot tell from random letters, and no caption has.
    """

    has_match: bool
    reason: str = ""
    floor: float | None = None
    unknown_words: tuple[str, ...] = ()


class Index:
    """An index opened for searching. Use `Index.open`."""

    def __init__(self, folder: Path, description: Description, collection: Collection) -> None:
        self.folder, self.description, self.collection = folder, description, collection
        self._by_kind: dict[str, KindRows] = {}
        self._owners: dict[str, NDArray[np.int64]] = {}
        self.text_cache = TextCache()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, collection: str | Path | None = None) -> Index:
        """Open an index folder, or an index on the hub.

        Args:
            folder: the folder, or OWNER/NAME.
            collection: folder of the collection, if it is no longer where it was when the index was made.

        Raises:
            UserError: not an index, an empty or unfinished one, a collection that is missing or another one.
        """
        folder = find("index", os.fspath(folder)).folder
        description = Description.read(folder)
        if not description.segments:
            why = "it is empty" if description.finished else "its first run has not finished: repeat `foveate index`"
            raise UserError(f"{folder}: the index has nothing to search: {why}")
        path = Path(collection) if collection else description.collection.resolve(folder, COLLECTION_FILE)
        if not (path / COLLECTION_FILE).is_file():
            raise UserError(f"{folder}: its collection is not at {path}; give its folder with --collection")
        opened = Collection.open(path)
        # Matching keys prove nothing: many collections have an image `0001.jpg`.
        if opened.name != description.collection_name:
            raise UserError(
                f"{path}: is the collection '{opened.name}'; expected '{description.collection_name}', which was "
                "indexed"
            )
        if not description.spreads:
            say(
                f"{folder}: an index of an earlier release: hits are ordered by their cosines, captions and file names "
                "are not searched; repeat `foveate index`, which embeds no image again"
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
        # Vectors of two models have no common space: their cosines would only look like results.
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
        terms: Mapping[str, float] | None = None,
        text: str = "",
        text_weight: float = TEXT_WEIGHT,
    ) -> list[Hit]:
        """Return the hits nearest to a vector, best first; equal scores in the order of the index, images first.

        Args:
            kind: "images", "regions" or "both". per_image: maximum of hits from one image.
            backend: "exact", "faiss" (approximate from `nearest.LISTS_FROM` rows on), "faiss:FACTORY", or a database;
                see `HitSettings`.
            terms: parts that the vector is the sum of, see `EmbeddedQuery`. With them scores are calibrated: hits are
                ordered by z, not by the cosine.
            text: words to look for in captions and file names. text_weight: z of a complete match.
        """
        content = {"count": count, "kind": kind, "per_image": per_image, "backend": backend, "text_weight": text_weight}
        validate(HitSettings, content, where="search")
        query = np.asarray(vector_E, dtype=np.float64)
        # A zero vector has no direction, and NaN has no order.
        if query.shape != (self.description.embed_dim,) or not np.isfinite(query).all() or not query.any():
            raise UserError(f"query vector: expected {self.description.embed_dim} finite numbers, not all of them 0")
        # Unit length makes inner products cosines; the stored vectors already are.
        query = query / np.linalg.norm(query)
        spreads = combine_spreads(self.description.spreads, terms) if terms else {}
        texts_N = self._match(text) if text and text_weight > 0 and spreads else np.zeros(0)
        # Images without a common word are ordered by their cosine alone, so the best of them are among the nearest.
        matches = _best(texts_N, max(2 * count, _MIN_MATCHES))
        candidates: dict[tuple[int, int], float] = {}
        # The nearest rows, and those of images with matching words, which may be far from the query: the sum of both
        # decides.
        for order, name in enumerate(KINDS_OF[kind]):
            kind_rows = self.rows_of(name)
            if kind_rows.available:
                rows = kind_rows.search(query, count=count, per_image=per_image, backend=backend)
                candidates |= {(order, row): score for score, row, _ in rows}
                if len(matches):
                    candidates |= {
                        (order, row): score for score, row in kind_rows.score(query, self._owned(name, matches))
                    }
        if not candidates:
            counts = self.description.counts
            raise UserError(
                f"{self.folder}: no {kind if kind != 'both' else 'rows'} of the index are still in the collection "
                f"({counts['images']} images, {counts['regions']} regions)"
            )
        # Up to 39 rows of each matching image: arrays, since a loop in Python would take longer than the search.
        order_C, row_C = np.array(list(candidates), dtype=np.int64).T
        cosine_C = np.array(list(candidates.values()))
        z_C, text_C = np.zeros(len(cosine_C)), np.zeros(len(cosine_C))
        # All kinds or none: a z of images and a cosine of regions have no common order.
        calibrated = all(KINDS_OF[kind][order] in spreads for order in np.unique(order_C))
        for order in np.unique(order_C) if calibrated else ():
            name, of_kind = KINDS_OF[kind][order], order_C == order
            z_C[of_kind] = spreads[name].standardize(cosine_C[of_kind])
            if len(texts_N):
                text_C[of_kind] = texts_N[self._owner(name)[row_C[of_kind]]]
        score_C = z_C + text_weight * text_C if calibrated else cosine_C
        per_key: Counter[str] = Counter()
        hits: list[Hit] = []
        # The last key is the first to sort by; ties fall to images before regions, and then to the order of the index.
        for index in np.lexsort((row_C, order_C, -score_C)):
            name, row = KINDS_OF[kind][order_C[index]], int(row_C[index])
            key = self.rows_of(name).rows["key"][row].as_py()
            if per_key[key] < per_image:
                per_key[key] += 1
                z = float(z_C[index]) if calibrated else None
                hits.append(self._hit(name, row, float(cosine_C[index]), z, float(text_C[index])))
            if len(hits) == count:
                break
        return hits

    def judge(
        self,
        query: Query,
        hits: Sequence[Hit],
        model: LocalizingModel,
        *,
        kind: str = "both",
        text_weight: float = TEXT_WEIGHT,
    ) -> Verdict:
        """Judge whether the hits of a text are better than those of texts without a meaning.

        Args:
            kind, text_weight: those of the search.
        """
        floor = self.description.floor
        if floor is None or query.text is None or query.parts != ["text"] or kind not in floor.z:
            return Verdict(True)
        strange = self._list_uncaptioned(query.text)
        is_unknown, unknown = False, ()
        if strange:
            is_unknown, unknown = judge_words(
                query.text, strange, model, self._letters_E, floor.letters_cosine, cache=self.text_cache
            )
        best = max(((hit.z or 0.0) + text_weight * hit.text for hit in hits), default=None)
        limit, cause = floor.z[kind], "which random letters reach, too"
        own = self._judge_by_encoder(query.text, model, kind) if hits else None
        if own is not None:
            (best, limit), cause = own, "which the text reaches by chance, too"
            best = max([best, *((hit.z or 0.0) + text_weight * hit.text for hit in hits if hit.text)])
        reason = ""
        # A caption with any word of the query can match by its text, even where the tower knows none of the others.
        if is_unknown and len(strange) == len(split_query(query.text)):
            reason = UNKNOWN
        elif best is None:
            reason = "there are no hits"
        elif best <= limit:
            reason = f"the best score is {best:.2f}, {cause} (floor {limit:.2f})"
        return Verdict(not reason, reason, limit, unknown)

    def _judge_by_encoder(self, text: str, model: LocalizingModel, kind: str) -> tuple[float, float] | None:
        """Return the best z of a text and the floor that its encoder sets it; None where it sets none.

        A region's floor is another than that of an image: its excess is counted from the image's.
        """
        spread = combine_spreads(self.description.spreads, {"text": 1.0}).get(IMAGE)
        texts_1E = self.text_cache.embed(model, [text])
        floors = {name: model.image_encoder.measure_floors(texts_1E, name) for name in (IMAGE, *KINDS_OF[kind])}
        known = {name: float(floor_1[0]) for name, floor_1 in floors.items() if floor_1 is not None}
        if not known or spread is None:
            return None
        excess = []
        for name in KINDS_OF[kind]:
            if self.rows_of(name).available:
                (hit,) = self.nearest(unit(texts_1E)[0], count=1, kind=f"{name}s")
                excess.append(hit.score - known[name])
        limit = (known[IMAGE] - spread.mean) / spread.std
        return limit + max(excess) / spread.std, limit

    def embed_text(self, query: Query, model: LocalizingModel) -> torch.Tensor | None:
        """Embed the text of a query with what `judge` compares it with, in one batch; None without a text."""
        if query.text is None:
            return None
        judged = self.description.floor is not None and query.parts == ["text"]
        strange = self._list_uncaptioned(query.text) if judged else []
        return self.text_cache.embed(model, list_compared([query.text, *strange]) if strange else [query.text])[0]

    def _list_uncaptioned(self, text: str) -> list[str]:
        """List the words that no caption has: what captions have can be found, whatever the text tower knows."""
        return [word for word in split_query(text) if self._texts is None or not self._texts.knows(word)]

    @cached_property
    def _letters_E(self) -> NDArray[np.float64]:
        return mean_direction(read_vectors(self.folder / RANDOM_LETTERS))

    @cached_property
    def _texts(self) -> TextIndex | None:
        """The inverted index; None for an index of a release that wrote none."""
        name = self.description.texts
        return TextIndex.read(self.folder / name, self.description.counts["images"]) if name else None

    def _match(self, text: str) -> NDArray[np.float64]:
        """Return the BM25 share [N] of each image of the index; 0 for those that the collection has removed."""
        if self._texts is None:
            return np.zeros(0)
        scores_N = self._texts.score(text)
        scores_N[self.rows_of(IMAGE).removed] = 0
        return scores_N

    def _owner(self, kind: str) -> NDArray[np.int64]:
        """Return the number of the image of each row of a kind, -1 where it has none."""
        if kind not in self._owners:
            keys = self.rows_of(IMAGE).rows["key"]
            row_keys = self.rows_of(kind).rows["key"]
            self._owners[kind] = np.arange(len(keys)) if kind == IMAGE else positions(row_keys, among=keys)
        return self._owners[kind]

    def _owned(self, kind: str, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a kind that belong to numbered images, ascending."""
        marks = np.zeros(self.description.counts["images"] + 1, dtype=bool)
        marks[images] = True  # the last one is for rows without an image, whose owner is -1
        return np.flatnonzero(marks[self._owner(kind)])

    def rows_of(self, kind: str) -> KindRows:
        if kind not in self._by_kind:
            segments = [segment for segment in self.description.segments if segment.kind == kind]
            self._by_kind[kind] = KindRows(self.folder, segments, self.collection)
        return self._by_kind[kind]

    def _hit(self, kind: str, row: int, score: float, z: float | None, text: float) -> Hit:
        rows = self.rows_of(kind).rows
        # Cell by cell: a row as a dictionary takes more than twice as long, twenty times a question.
        key, phrase, *corners = (rows[name][row].as_py() for name in ("key", "phrase", "x1", "y1", "x2", "y2"))
        position = self.collection.find_row(key)
        captions = self.collection.read_captions(position)
        return Hit(
            key=key,
            kind=f"{kind}s",
            score=score,
            box=None if kind == IMAGE else Box.from_array(corners, clipped=True),
            phrase=phrase or "",
            caption=captions[0].text if captions else "",
            path=self.collection.image_path(position),
            z=z,
            text=text,
        )

    def image_bytes(self, hit: Hit) -> bytes | BadImage:
        """Return the image of a hit, or the reason why it cannot be read any more."""
        try:
            return self.collection.image_bytes(self.collection.find_row(hit.key))
        except BadImage as problem:
            return problem


class KindRows:
    """All rows of one kind: their vectors, their table, and which of them the collection has since removed."""

    def __init__(self, folder: Path, segments: list[Segment], collection: Collection) -> None:
        self.folder, self.segments, self.collection = folder, segments, collection
        self.vectors = [segment.embeddings(folder) for segment in segments]
        self._opened: tuple[str, Candidates] | None = None  # a backend and what it opened

    @cached_property
    def rows(self) -> pa.Table:
        table = read_rows([segment.rows_path(self.folder) for segment in self.segments])
        expected = sum(segment.rows for segment in self.segments)
        # Rows and vectors are matched by position: one missing row would shift all that follow.
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

    def _open(self, backend: str) -> Candidates:
        # One at a time: the indexes of several factories would fill the memory.
        if self._opened is None or self._opened[0] != backend:
            name, _, argument = backend.partition(":")
            if name == FAISS:
                opened = open_faiss(self.vectors, self.segments, self.folder, factory=argument)
            else:
                vectors = Vectors(self.vectors, self.segments, self.rows)
                opened = open_database(name, argument, vectors, self.folder)
            self._opened = backend, opened
        return self._opened[1]

    def score(self, query_E: NDArray[np.float64], rows: NDArray[np.int64]) -> list[tuple[float, int]]:
        """Return (cosine, row) of rows that the collection has not removed."""
        present = np.setdiff1d(rows, self.removed, assume_unique=True)
        if not len(present):
            return []
        scores, order = rank_rows(self.vectors, query_E, present, count=len(present))
        return list(zip(scores.tolist(), order.tolist(), strict=True))

    def search(
        self, query_E: NDArray[np.float64], *, count: int, per_image: int, backend: str
    ) -> list[tuple[float, int, str]]:
        """Return (score, row, key) of the best `count` rows with at most `per_image` of one image."""
        # Rows beyond the limit of their image are dropped, so more are requested until enough are left. The boxes of an
        # image lie near one another: with more from the start, all vectors are seldom read twice.
        is_region = any(segment.kind == REGION for segment in self.segments)
        request = min(_MORE * count, self.available) if is_region else count
        while True:
            if backend != "exact":
                index = self._open(backend)
                scores, rows = nearest_among(self.vectors, query_E, count=request, excluded=self.removed, index=index)
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
            request = min(_MORE * request, self.available)


def _best(scores_N: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the positions of the highest scores above 0, equal ones by position."""
    rows = np.flatnonzero(scores_N > 0)
    return rows[np.argsort(-scores_N[rows], kind="stable")[:count]]


def search(
    index: Index,
    query: Query,
    model: LocalizingModel,
    *,
    count: int = 20,
    kind: str = "both",
    per_image: int = 1,
    backend: str = "exact",
    text_weight: float = TEXT_WEIGHT,
) -> tuple[list[Hit], Box | None]:
    """Return the hits of a query, and the query's box in [0, 1] of its image. See `Query` and `Index.nearest`."""
    vector_E, box, terms = embed_query(model, query, text_E=index.embed_text(query, model))
    hits = index.nearest(
        vector_E,
        count=count,
        kind=kind,
        per_image=per_image,
        backend=backend,
        terms=terms,
        text=query.text or "",
        text_weight=text_weight,
    )
    return hits, box
