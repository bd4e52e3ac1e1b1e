"""BM25 over short texts: an inverted index as one Parquet table, in NumPy.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), equations 3.15 and 3.16;
the inverse document frequency is Lucene's, which is never negative.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.records.tables import read_table, write_table
from foveate.records.text import singular

# These are Lucene's defaults.
K1, B = 1.2, 0.75
TABLE = pa.schema([("term", pa.string()), ("rows", pa.list_(pa.int32())), ("counts", pa.list_(pa.int32()))])
# Letters of one case after a change of case, or digits: "IMG_0231" -> IMG, 0231; "redBoat2" -> red, Boat, 2.
# \u3040 to \u9fff and Hangul are written without spaces: each character is a term.
_TERMS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+|[A-Z]+(?![a-z])|[A-Z]?(?:(?![\u3040-\u9fff\uac00-\ud7af])[^\W\d_A-Z])+|[^\W\d_]"
)
# A hash in a file name must not match words that happen to be spelled with the letters a to f, such as "bed".
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b", re.IGNORECASE)
_NAMES = re.compile(r"[\w-]+")
STOP_WORDS = frozenset(
    "a an and are as at be by for from in into is it its of on or that the this to was were with".split()
)


def split_terms(text: str) -> list[str]:
    """Split a text or file name into lower-case terms: camelCase, digits and underscores are cut, plurals dropped.

    Example:
        >>> split_terms("IMG_0231 twoRedBoats")
        ['img', '0231', 'two', 'red', 'boat']
    """
    # NFKC makes full-width letters and ligatures equal to the plain letters of a query.
    cut = _HASH.sub(" ", unicodedata.normalize("NFKC", text))
    terms = [singular(term.casefold()) for term in _TERMS.findall(cut)]
    # A text of stop words alone keeps them: without any term it could not be found.
    return [term for term in terms if term not in STOP_WORDS] or terms


def split_document(text: str) -> list[str]:
    """Split a text of a document: its terms, and neighboring words of a name as one word, too.

    Example:
        >>> split_document("a red_screwDriver2")
        ['red', 'screw', 'driver', '2', 'redscrew', 'screwdriver']
    """
    # Names have words without a space between them that a query writes as one, such as "screwdriver".
    cut = _HASH.sub(" ", unicodedata.normalize("NFKC", text))
    joined = []
    for name in _NAMES.findall(cut):
        terms = [term.casefold() for term in _TERMS.findall(name) if len(term) > 1 and term.isalpha()]
        joined += [singular(first + second) for first, second in itertools.pairwise(terms)]
    return [*split_terms(text), *joined]


class TextIndex:
    """An inverted index of numbered documents.

    Attributes:
        table: one row per term, sorted: its documents, ascending, and how often each has it.
        num_documents: N, also of those without a term.
    """

    def __init__(self, table: pa.Table, num_documents: int) -> None:
        self.table, self.num_documents = table, num_documents

    @classmethod
    def build(cls, documents: Iterable[Sequence[str]]) -> TextIndex:
        """Build the index of documents, each a list of texts; see `split_document`."""
        postings: dict[str, tuple[list[int], list[int]]] = {}
        number = 0
        for row, texts in enumerate(documents):
            number += 1
            for term, count in Counter(term for text in texts for term in split_document(text)).items():
                rows, counts = postings.setdefault(term, ([], []))
                rows.append(row)
                counts.append(count)
        # Terms are sorted, so that equal documents give equal bytes.
        terms = sorted(postings)
        columns = [terms, [postings[term][0] for term in terms], [postings[term][1] for term in terms]]
        table = pa.table(
            [pa.array(column, type=field.type) for column, field in zip(columns, TABLE, strict=True)], TABLE
        )
        return cls(table, number)

    @classmethod
    def read(cls, path: Path, num_documents: int) -> TextIndex:
        """Read an index from disk.

        Raises:
            UserError: the file is missing, damaged, or names documents beyond `num_documents`.
        """
        table = read_table(path).combine_chunks()
        if not table.schema.equals(TABLE):
            raise UserError(f"{path}: columns differ from those of a text index; build the index again")
        index = cls(table, num_documents)
        rows, counts = index._postings
        # A negative number would score the last documents instead of failing.
        if len(rows) != len(counts) or (len(rows) and not (0 <= rows.min() and rows.max() < num_documents)):
            raise UserError(f"{path}: names images that the index does not have; build the index again")
        return index

    def write(self, path: Path) -> None:
        """Write the index atomically; equal documents give equal bytes."""
        write_table(path, self.table)

    @cached_property
    def _postings(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows, counts = (_values(self.table[name]) for name in ("rows", "counts"))
        return rows, counts

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        lengths = [] if not len(self.table) else self.table["rows"].combine_chunks().value_lengths().to_numpy()
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.table["term"].to_pylist())}

    @cached_property
    def _norms_N(self) -> NDArray[np.float64]:
        """K1 * (1 - B + B * length / mean length) of each document."""
        rows, counts = self._postings
        lengths = np.bincount(rows, weights=counts, minlength=self.num_documents).astype(np.float64)
        # The mean is 0 if no document has a term; the lower bound in the next line keeps the division finite.
        mean = float(lengths.mean()) if self.num_documents else 0.0
        return K1 * (1 - B + B * lengths / max(mean, 1e-12))

    def idf(self, term: str) -> float:
        """Return the inverse document frequency of a term, highest for one that no document has."""
        number = self._positions.get(term)
        documents = 0 if number is None else int(self._starts[number + 1] - self._starts[number])
        return float(np.log1p((self.num_documents - documents + 0.5) / (documents + 0.5)))

    def knows(self, text: str) -> bool:
        """Tell whether each term of a text is in a document."""
        return all(term in self._positions for term in split_terms(text))

    def score(self, text: str) -> NDArray[np.float64]:
        """Score documents [N] by a query: 0 without a common term, 1 with every term that the index knows.

        With c the share of the known terms' summed inverse document frequency that a document has, and b the same share
        with each term weighted by its BM25 saturation in [0, 1), the score is c^2 + (1 - c) * b. So a partial match is
        worth at most c: less in a long document, more with repeated terms. A complete match is 1 whatever the length,
        because a short file name and a long description may be equally right. Terms that no document has say nothing
        about the order and do not count; without any known term all scores are 0.
        """
        present_N, saturated_N = np.zeros(self.num_documents), np.zeros(self.num_documents)
        total = 0.0
        rows, counts = self._postings
        for term in dict.fromkeys(split_terms(text)):
            number = self._positions.get(term)
            if number is None:
                continue
            span = slice(self._starts[number], self._starts[number + 1])
            documents, count, idf = rows[span], counts[span].astype(np.float64), self.idf(term)
            # Each term lists a document once; with repeated indices `+=` would count only one of them.
            present_N[documents] += idf
            saturated_N[documents] += idf * count / (count + self._norms_N[documents])
            # Added in the same order as `present_N`, so that a complete match divides to exactly 1.
            total += idf
        if total <= 0:
            return present_N
        share_N = present_N / total
        return share_N**2 + (1 - share_N) * saturated_N / total


def _values(column: pa.ChunkedArray) -> NDArray[np.int32]:
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    # `concatenate` refuses an empty list, which a column without chunks gives.
    return np.concatenate([np.zeros(0, np.int32), *chunks])
