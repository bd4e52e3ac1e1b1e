"""Triples of a species graph: the readable table, and the numbers that entities, targets and candidates get from it.

Columns are those of the released code of COSMO. Entities are numbered by first appearance, heads before tails. Labels
of images index the target list, labels of taxa index the entities: two spaces that must not be mixed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.arrow_tables import read_text_columns
from foveate.core.errors import UserError, nearest
from foveate.core.files import atomic_file
from foveate.core.text_tables import open_text

Rows = NDArray[np.int64]
COLUMNS = ("h", "datatype_h", "r", "t", "datatype_t", "split")
TIME, PARENT, LOCATION, SPECIES = range(4)
# Relation: datatypes of head and tail.
_DATATYPES = {
    TIME: ("image", "time"),
    PARENT: ("id", "id"),
    LOCATION: ("image", "location"),
    SPECIES: ("image", "id"),
}
# Coordinates that differ by less than a centimeter are one place, whatever digits they were written with.
PLACE_DIGITS = 7
_ROWS_PER_BATCH = 65_536
# Hours up to 23 in fixed positions, from which `parse_hours` cuts them out.
_TIME = r"^\d{4}-\d\d-\d\d[ T]([01]\d|2[0-3]):\d\d"


class Links(NamedTuple):
    """Triples of one relation and split.

    Attributes:
        heads: keys of images, or ids of taxa. labels: index of the tail among the candidates, -1 where it is none.
    """

    heads: list[str]
    labels: Rows


# Compared by identity: arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class Triples:
    """A table of triples with its numbering.

    Attributes:
        table: text columns COLUMNS.
        entities: ids in order of their numbers.
        targets_K: entity of each class, in order of the classes, over all splits.
        places_P2: candidate latitudes and longitudes. hours_H: candidate hours.
    """

    table: pa.Table
    entities: tuple[str, ...]
    targets_K: Rows
    places_P2: NDArray[np.float64]
    hours_H: NDArray[np.float64]
    _tails: NDArray[np.int64]

    @classmethod
    def index(cls, table: pa.Table, *, train: Sequence[str] = ("train",), official: bool = False) -> Triples:
        """Number the entities and candidates of a table.

        Args:
            table: text columns COLUMNS.
            train: splits whose places and hours are candidates.
            official: as the released code, places and hours of all splits are candidates, and places are compared as
                text: "[10. 20.]" and "[10.0 20.0]" are two.

        Raises:
            UserError: a row is no triple of the four relations.
        """
        # Check first: everything below separates columns by relation and would number nonsense.
        _check(table)
        heads, tails = _normalized(table, "h"), _normalized(table, "t")
        is_id = [_equals(table[f"datatype_{side}"], "id") for side in "ht"]
        # Scanned row by row, the head first: interleaved, and without what is no entity.
        scanned = np.stack([heads.to_numpy(zero_copy_only=False), tails.to_numpy(zero_copy_only=False)], axis=1)
        entities = pa.array(scanned[np.stack(is_id, axis=1)], pa.string()).unique()
        relation_N = table["r"].cast(pa.int64()).to_numpy()
        is_candidate_N = np.isin(table["split"].to_numpy(), train) | official
        labels_N = np.full(len(table), -1, dtype=np.int64)

        parents, species = relation_N == PARENT, relation_N == SPECIES
        labels_N[parents] = _positions(tails.filter(pa.array(parents)), entities)
        # Numbered separately from the entities, as in the released code: images index targets, taxa index entities.
        targets = tails.filter(pa.array(species)).unique()
        labels_N[species] = _positions(tails.filter(pa.array(species)), targets)

        located, timed = relation_N == LOCATION, relation_N == TIME
        texts = table["t"].filter(pa.array(located))
        places_L2 = parse_places(texts)
        # -0.0 and 0.0 are one place.
        keys = texts.to_pylist() if official else list(map(tuple, (np.round(places_L2, PLACE_DIGITS) + 0.0).tolist()))
        first, labels_N[located] = _number(keys, is_candidate_N[located])
        hours_T = parse_hours(table["t"].filter(pa.array(timed)))
        first_hours, labels_N[timed] = _number(hours_T.tolist(), is_candidate_N[timed])
        return cls(
            table=table,
            entities=tuple(entities.to_pylist()),
            targets_K=_positions(targets, entities),
            places_P2=places_L2[first],
            hours_H=hours_T[first_hours],
            _tails=labels_N,
        )

    def links(self, relation: int, split: str | None = None) -> Links:
        """Return the triples of a relation and split (None: of all), in the order of the table."""
        rows = self.rows_of(relation)
        if split is not None:
            rows = rows[_equals(self.table["split"].take(pa.array(rows)), split)]
        return Links(_normalized(self.table.take(pa.array(rows)), "h").to_pylist(), self._tails[rows])

    def rows_of(self, relation: int) -> Rows:
        """Return the rows of the table with a relation."""
        return np.flatnonzero(_equals(self.table["r"], str(relation)))


def make_table(rows: Iterable[Sequence[object]]) -> pa.Table:
    """Return the table of rows in the order of COLUMNS."""
    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]
    return pa.table(dict(zip(COLUMNS, (pa.array(column, pa.string()) for column in columns), strict=True)))


def write_triples(path: Path, table: pa.Table) -> None:
    """Write a table of triples as CSV, whole or not at all."""
    # pyarrow would quote every text; people read this table.
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for batch in table.select(COLUMNS).to_batches(max_chunksize=_ROWS_PER_BATCH):
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        # Flushes, and leaves the file open for its atomic end.
        text.detach()


def read_triples(path: Path) -> pa.Table:
    """Read a table of triples; cells are text, so that "NA" is a name.

    Raises:
        UserError: the file cannot be read, or has other columns.
    """
    names = open_text(path).names
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        hint = nearest(missing[0], names)
        raise UserError(f"{path}: no column {', '.join(missing)} (got {', '.join(names)}){hint}")
    return read_text_columns(path, COLUMNS).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))


def normalize_id(text: str) -> str:
    """Return a whole number without sign of a float ("9696.0" is "9696"), other ids as they are.

    Source: OSU-NLP-Group/COSMO, main.py, where ids are numbers; pandas writes those of a column with gaps as floats.
    """
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0*", text) else text


def format_place(latitude: float, longitude: float) -> str:
    """Return a place as the released code writes it."""
    return f"[{latitude!r} {longitude!r}]"


def parse_places(texts: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read latitudes and longitudes [N, 2] of places.

    Raises:
        UserError: a text is no place of degrees in range; it is not repeated, since errors end in logs.
    """
    # Parse each distinct text once, because the place of a camera repeats in thousands of rows.
    encoded = texts.combine_chunks().dictionary_encode()
    try:
        pairs = [
            tuple(map(float, text.strip("[] ").replace(",", " ").split())) for text in encoded.dictionary.to_pylist()
        ]
        places = np.array(pairs, dtype=np.float64).reshape(len(pairs), 2)
    except ValueError:
        # `from None`, because the ValueError quotes the text, and coordinates must not end up in a log.
        raise UserError("triples: a location is not of the form [latitude longitude]") from None
    # Written as "not all within", so that NaN, which compares as false, is refused as well.
    if not (np.abs(places) <= (90, 180)).all():
        raise UserError("triples: a location is out of range; expected latitude in [-90, 90], longitude in [-180, 180]")
    return places[encoded.indices.to_numpy()]


def parse_hours(texts: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read the clock hours [N] of times "YYYY-MM-DD HH:MM:SS".

    Raises:
        UserError: a text is no such time.
    """
    is_time = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_TIME)).to_numpy()
    if not is_time.all():
        text = texts[int(np.argmin(is_time))].as_py()
        raise UserError(f"triples: time {text!r} is not of the form YYYY-MM-DD HH:MM:SS")
    hours = pc.call_function("utf8_slice_codeunits", [texts], pc.SliceOptions(start=11, stop=13))
    return hours.cast(pa.float64()).to_numpy()


def _check(table: pa.Table) -> None:
    # Checks distinct combinations only: a table may have millions of rows, but there are four relations.
    for r, datatype_h, datatype_t in zip(*(_unique(table, ("r", "datatype_h", "datatype_t"))), strict=True):
        if not r.isdecimal() or _DATATYPES.get(int(r)) != (datatype_h, datatype_t):
            expected = "; ".join(f"{name}: {head} to {tail}" for name, (head, tail) in _DATATYPES.items())
            raise UserError(f"triples: r {r!r} links {datatype_h!r} to {datatype_t!r}; expected {expected}")


def _unique(table: pa.Table, names: Sequence[str]) -> list[list[str]]:
    distinct = table.select(names).group_by(list(names)).aggregate([])
    return [distinct[name].to_pylist() for name in names]


def _normalized(table: pa.Table, side: str) -> pa.Array:
    encoded = table[side].combine_chunks().dictionary_encode()
    is_id = pa.array(_equals(table[f"datatype_{side}"], "id"))
    ids = pa.array([normalize_id(text) for text in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
    # Normalize only ids: an image may be called "12.0".
    return pc.call_function("if_else", [is_id, ids, table[side].combine_chunks()])


def _equals(column: pa.ChunkedArray, value: str) -> NDArray[np.bool_]:
    return pc.call_function("equal", [column, pa.scalar(value)]).to_numpy()


def _positions(values: pa.Array, among: pa.Array) -> Rows:
    indices = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=among))
    return indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _number(values: Sequence[object], is_candidate_N: NDArray[np.bool_]) -> tuple[list[int], Rows]:
    """Number distinct values of candidate rows by first appearance; return these rows, and each row's number or -1."""
    index: dict[object, int] = {}
    first = []
    for row in np.flatnonzero(is_candidate_N).tolist():
        if index.setdefault(values[row], len(index)) == len(first):
            first.append(row)
    return first, np.array([index.get(value, -1) for value in values], dtype=np.int64)
