"""Scores of images and regions on one scale: standard deviations above what random queries score.

The best of an image's regions is the best of many draws, so by chance alone its cosine is higher than that of the
whole image. How high chance gets is measured on the index: with random words, its own images and its own boxes as
queries.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.records.bm25 import STOP_WORDS
from foveate.records.builtin.families import load_concepts
from foveate.records.tables import positions
from foveate.search.index_folder import (
    IMAGE,
    KINDS,
    RANDOM_LETTERS,
    RANDOM_TEXTS,
    REGION,
    Description,
    Floor,
    read_rows,
    read_vectors,
)
from foveate.search.nearest import nearest, take
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel

_TEXTS, _QUERIES = 256, 64
# Images of the index that are compared: the error of a standard deviation is then about 2 %.
_IMAGES = 2000
_BLOCK = 32  # queries at a time: 10 MB of cosines for 2,000 images with a grid
# Below this the vectors are all alike, and noise would be divided by nearly nothing.
_MIN_STD = 1e-6
# A negative is a text, so its cosines spread as those of random texts do.
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
    # In the alphabetical order of the list, from which `locate.draw_names` takes every n-th.
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
    # Unique, because evenly spaced numbers repeat in a small index once they are rounded.
    some = np.unique(np.linspace(0, len(sample) - 1, _QUERIES).astype(np.int64))
    # Cut to the number of regions: without any, `linspace` still gives a 0.
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
class _KindVectors:
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


def _load(folder: Path, description: Description, kind: str) -> _KindVectors:
    segments = [segment for segment in description.segments if segment.kind == kind]
    table = read_rows([segment.rows_path(folder) for segment in segments])
    return _KindVectors(table["key"], [segment.embeddings(folder) for segment in segments])


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


# When nothing is found: z that random letters reach, and words that the text tower cannot tell from random letters.
#
# Measured on the index with texts that mean nothing, since any name may be of something in its images.


KINDS_OF = {"images": (IMAGE,), "regions": (REGION,), "both": KINDS}
_STRINGS, _NAMES = 64, 64
# Chosen by benchmarks/search_quality.py: shares of random letters that the floor lets pass, and of names whose words
# are taken for unknown.
# A refused right answer is worse than a passed nonsense: with half of random letters, 5 of 38 right first hits would be
# refused instead of 3, and one nonsense more.
FALSE_ALARMS, NAMES_UNKNOWN = 0.75, 0.05
_GARBLED = 8  # texts that a word of another script is compared with
_CACHED = 4096
_WORD = re.compile(r"[^\W\d_]{2,}")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def draw_letters() -> list[str]:
    """Draw strings of 4 to 10 random letters; always the same."""
    rng = generator("search floor")
    return [
        "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, rng.integers(4, 11))) for _ in range(_STRINGS)
    ]


def measure_floor(folder: Path, description: Description) -> Floor | None:
    """Measure the floor of an index whose spreads are known; None without images."""
    letters_QE, names_NE = (read_vectors(folder / name).astype(np.float64) for name in (RANDOM_LETTERS, RANDOM_TEXTS))
    if not description.spreads:
        return None
    rows = np.unique(np.linspace(0, len(names_NE) - 1, _NAMES).astype(np.int64))
    letters, names = (score_texts(folder, description, vectors) for vectors in (letters_QE, names_NE[rows]))
    quantiles = {kind: round(float(np.quantile(z_Q, 1 - FALSE_ALARMS)), 3) for kind, z_Q in letters.items()}
    # Names of several words are no measure of a word.
    single_N = names_NE[[row for row, name in enumerate(draw_texts()) if name.isalpha()]]
    direction_E = mean_direction(letters_QE)
    cosines_N = single_N @ direction_E
    cosine = float(np.quantile(cosines_N, 1 - NAMES_UNKNOWN))
    return Floor(
        z=quantiles,
        letters_above=round(float((letters["both"] > quantiles["both"]).mean()), 3),
        names_below=round(float((names["both"] <= quantiles["both"]).mean()), 3),
        letters_cosine=round(cosine, 4),
        names_unknown=round(float((cosines_N > cosine).mean()), 3),
    )


def score_texts(
    folder: Path, description: Description, vectors_QE: NDArray[np.floating]
) -> dict[str, NDArray[np.float64]]:
    """Return the best z [Q] of texts by kind of search, of those kinds that the index has."""
    by_kind = {}
    for kind, spread in combine_spreads(description.spreads, {"text": 1.0}).items():
        vectors = [segment.embeddings(folder) for segment in description.segments if segment.kind == kind]
        scores_Q1, _ = nearest(vectors, vectors_QE, count=1)
        by_kind[kind] = spread.standardize(scores_Q1[:, 0])
    best = {name: [by_kind[kind] for kind in kinds if kind in by_kind] for name, kinds in KINDS_OF.items()}
    return {name: np.max(scores, axis=0) for name, scores in best.items() if scores}


def mean_direction(vectors_QE: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of unit vectors, scaled to unit length."""
    mean_E = np.asarray(vectors_QE, dtype=np.float64).mean(axis=0)
    # Vectors that cancel out have no direction; zeros match nothing, whereas NaN would spread.
    return mean_E / max(float(np.linalg.norm(mean_E)), 1e-12)


def split_query(text: str) -> list[str]:
    """Split a query into the words that mean something: of two letters or more, or of a script without spaces.

    Example:
        >>> split_query("the 3 Asdfgh of a boat")
        ['asdfgh', 'boat']
    """
    query_words = [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", text))]
    # One character of these is a word.
    query_words += _WIDE.findall(text) if len(text.strip()) == 1 else []
    return [word for word in dict.fromkeys(query_words) if word not in STOP_WORDS]


class TextCache:
    """Embeddings of the latest texts: a verdict embeds no text again that its search has embedded."""

    def __init__(self) -> None:
        self._vectors: dict[str, torch.Tensor] = {}

    def embed(self, model: LocalizingModel, texts: Sequence[str]) -> torch.Tensor:
        """Return unnormalized joint embeddings [T, E]; those that are not cached are computed in one batch."""
        # Starts over once it is full: the memory of a process that answers queries for days must not grow.
        vectors = self._vectors if len(self._vectors) < _CACHED else {}
        missing = [text for text in dict.fromkeys(texts) if text not in vectors]
        if missing:
            vectors.update(zip(missing, embed_phrases(model, missing), strict=True))
        self._vectors = vectors
        return torch.stack([vectors[text] for text in texts])


def judge_words(
    text: str,
    query_words: Sequence[str],
    model: LocalizingModel,
    letters_E: NDArray[np.floating],
    max_cosine: float,
    *,
    cache: TextCache | None = None,
) -> tuple[bool, tuple[str, ...]]:
    """Tell whether a text, or each word of it, is unknown to the text tower; return the unknown words, too.

    Args:
        query_words: of the text, see `split_query`. letters_E, max_cosine, cache: see `find_unknown_words`.
    """
    unknown = find_unknown_words([*query_words, text], model, letters_E, max_cosine, cache=cache)
    unknown_words = tuple(word for word in query_words if word in unknown)
    return text in unknown or (bool(query_words) and len(unknown_words) == len(query_words)), unknown_words


def find_unknown_words(
    query_words: Sequence[str],
    model: LocalizingModel,
    letters_E: NDArray[np.floating],
    max_cosine: float,
    *,
    cache: TextCache | None = None,
) -> list[str]:
    """List the words that the text tower embeds as it embeds random letters, or the same letters of another script.

    Args:
        letters_E: mean direction of the embeddings of `draw_letters`. max_cosine: see `Floor.letters_cosine`.
        cache: of texts that were embedded before.
    """
    if not query_words:
        return []
    texts = list_compared(query_words)
    # Random Latin letters say nothing about another script: its words are compared with their own letters, shuffled.
    foreign = {word: garbled for word in query_words if (garbled := _garble(word))}
    vectors = (cache or TextCache()).embed(model, texts).double().numpy()
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    by_text = dict(zip(texts, vectors, strict=True))
    return [
        word
        for word in query_words
        if float(
            by_text[word]
            @ (mean_direction(np.stack([by_text[text] for text in foreign[word]])) if word in foreign else letters_E)
        )
        > max_cosine
    ]


def list_compared(query_words: Sequence[str]) -> list[str]:
    """List the texts that `find_unknown_words` embeds: the words, and those of other scripts with letters shuffled."""
    return list(dict.fromkeys([*query_words, *(text for word in query_words for text in _garble(word))]))


def _garble(word: str) -> list[str]:
    """Return a word of another script with its letters in random order; [] for a word of Latin letters.

    To a text tower that never learned the script, order means little: the pieces of its tokenizer are letters. Words of
    one or two letters get random letters of their script instead.
    """
    if all(_script(letter) == "LATIN" for letter in word if letter.isalpha()):
        return []
    # Seeded by the word, so that its verdict is the same in every search.
    rng = generator("search floor", word)
    if len(word) > 2:
        return ["".join(rng.permutation(list(word)).tolist()) for _ in range(_GARBLED)]
    choices = [_list_letters(ord(letter) // 128, _script(letter)) or [letter] for letter in word]
    return ["".join(str(rng.choice(letters)) for letters in choices) for _ in range(_GARBLED)]


@cache
def _list_letters(block: int, script: str) -> list[str]:
    """List the letters of a script in a block of 128 code points."""
    return [letter for code in range(128 * block, 128 * block + 128) if _script(letter := chr(code)) == script]


def _script(letter: str) -> str:
    """Return the script of a letter as Unicode names it: "LATIN", "CYRILLIC", "CJK"; "" for other characters."""
    return unicodedata.name(letter, "").partition(" ")[0] if letter.isalpha() else ""
