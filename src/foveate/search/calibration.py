"""Scores of images and regions on one scale: standard deviations above what random queries score.

The best of an image's regions is the best of many draws, so by chance alone its cosine is higher than that of the
whole image. How high chance gets is measured on the index: with random words, its own images and its own boxes as
queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.records.builtin.families import load_concepts
from foveate.records.tables import positions
from foveate.search.index_folder import IMAGE, KINDS, RANDOM_TEXTS, REGION, Description, read_rows, read_vectors
from foveate.search.nearest import take

_TEXTS, _QUERIES = 256, 64
# Images of the index that are compared: the error of a standard deviation is then about 2 %.
_IMAGES = 2000
_BLOCK = 32  # queries at a time: 10 MB of cosines for 2,000 images with a grid
# Below this the vectors are all alike, and noise would be divided by nearly nothing.
_MIN_STD = 1e-6
_PART_OF = {"negative": "text"}
# A part of a query (text, image, box) -> a kind of rows (image, region) -> mean and standard deviation
Spreads = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of an image's cosine, or of its best region's, with random queries."""

    mean: float
    std: float

    def standardize(self, cosine_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard deviations by which cosines are above chance."""
        return (cosine_N - self.mean) / self.std


def draw_texts() -> list[str]:
    """Draw names of things that have nothing to do with a collection; always the same."""
    names = load_concepts()
    rows = generator("search calibration").permutation(len(names))[:_TEXTS]
    return [names[row] for row in sorted(rows.tolist())]


def combine_spreads(spreads: Spreads, terms: Mapping[str, float]) -> dict[str, Spread]:
    """Return the spread of each kind's cosines with a weighted sum of random parts, of the kinds that were measured.

    Parts are taken as independent: means add, and so do variances.

    Args:
        terms: part ("text", "negative", "image", "box") -> its factor in the query vector.
    """
    by_kind = {}
    for kind in KINDS:
        parts = [(factor, spreads.get(_PART_OF.get(part, part), {}).get(kind)) for part, factor in terms.items()]
        known = [(factor, *spread) for factor, spread in parts if spread is not None]
        # If one part has no measured spread, the sum has none either: that part's share of the variance is unknown.
        if len(known) == len(parts):
            mean = sum(factor * mean for factor, mean, _ in known)
            variance = sum((factor * std) ** 2 for factor, _, std in known)
            by_kind[kind] = Spread(mean, max(variance**0.5, _MIN_STD))
    return by_kind


def measure_spreads(folder: Path, description: Description) -> dict[str, dict[str, tuple[float, float]]]:
    """Measure the spreads of an index with random texts and with its own images and boxes; {} without images.

    Raises:
        UserError: the random texts' embeddings are missing or of another width.
    """
    images, regions = (_load(folder, description, kind) for kind in KINDS)
    if not images.num_rows:
        return {}
    # Evenly spaced, so that the result does not depend on how the run was interrupted.
    sample = np.unique(np.linspace(0, images.num_rows - 1, min(_IMAGES, images.num_rows)).astype(np.int64))
    image_NE = images.take(sample)
    owner = positions(regions.keys, among=images.keys.take(pa.array(sample)))
    rows = np.flatnonzero(owner >= 0)
    # Regions of one image side by side, for the best of each.
    rows = rows[np.argsort(owner[rows], kind="stable")]
    owner_R, region_RE = owner[rows], regions.take(rows)
    texts = read_vectors(folder / RANDOM_TEXTS).astype(np.float32)
    if texts.shape[1] != description.embed_dim:
        raise UserError(f"{folder / RANDOM_TEXTS}: has width {texts.shape[1]}; expected {description.embed_dim}")
    some = np.unique(np.linspace(0, len(sample) - 1, _QUERIES).astype(np.int64))
    boxes = np.unique(np.linspace(0, max(0, len(rows) - 1), _QUERIES).astype(np.int64))[: len(rows)]
    queries = {"text": (texts, None), "image": (image_NE[some], some), "box": (region_RE[boxes], owner_R[boxes])}
    return {
        part: {
            kind: spread
            for kind, spread in (
                (IMAGE, _spread(vectors, image_Q, image_NE, None)),
                (REGION, _spread(vectors, image_Q, region_RE, owner_R)),
            )
            if spread is not None
        }
        for part, (vectors, image_Q) in queries.items()
    }


@dataclass(frozen=True, slots=True)
class _Rows:
    """All rows of one kind."""

    keys: pa.ChunkedArray
    vectors: list[NDArray[np.floating]]

    @property
    def num_rows(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors [n, E] of row numbers in any order."""
        # `take` needs ascending row numbers; repeated ones are read once.
        ascending, inverse = np.unique(rows, return_inverse=True)
        if not len(rows):
            return np.zeros((0, 0), np.float32)
        return take(self.vectors, ascending).astype(np.float32)[inverse]


def _load(folder: Path, description: Description, kind: str) -> _Rows:
    segments = [segment for segment in description.segments if segment.kind == kind]
    table = read_rows([segment.rows_path(folder) for segment in segments])
    return _Rows(table["key"], [segment.embeddings(folder) for segment in segments])


def _spread(
    queries_QE: NDArray[np.float32],
    image_Q: NDArray[np.int64] | None,
    vectors_RE: NDArray[np.float32],
    owner_R: NDArray[np.int64] | None,
) -> tuple[float, float] | None:
    """Return mean and standard deviation of each image's best cosine, without a query's own image.

    Args:
        owner_R: number of the image of each vector, ascending; one vector for each image if None.
    """
    if not len(queries_QE) or not len(vectors_RE):
        return None
    owner_R = np.arange(len(vectors_RE)) if owner_R is None else owner_R
    starts = np.flatnonzero(np.diff(owner_R, prepend=-1))
    images = owner_R[starts]
    cosines = []
    for start in range(0, len(queries_QE), _BLOCK):
        # Only the best box of each image counts, as in a search.
        best_QN = np.maximum.reduceat(queries_QE[start : start + _BLOCK] @ vectors_RE.T, starts, axis=1)
        others = np.ones(best_QN.shape, bool) if image_Q is None else images != image_Q[start : start + _BLOCK, None]
        cosines.append(best_QN[others].astype(np.float64))
    joined = np.concatenate(cosines)
    if not len(joined):
        return None
    # Rounded: the last bits of a matrix product differ between machines.
    return round(float(joined.mean()), 6), round(float(max(joined.std(), _MIN_STD)), 6)
