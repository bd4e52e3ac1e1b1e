"""Write tables about a whole data set, such as COCO's categories or a survey's taxa; the caller holds the lock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.records import layout, tables
from foveate.records.rows import check_row

ROWS_PER_CHUNK = 10_000  # 200,000 rows take half a gigabyte as dictionaries, a twentieth of it as a table


def add_dataset_rows(
    collection: Path, kind: str, rows: Sequence[Mapping[str, object]], *, source: str, created: str
) -> int:
    """Add rows to a table about the whole data set, such as COCO's categories; return how many were new.

    No removal of images touches these tables. The caller holds the writer's lock. All rows of a table have the same
    columns; `source` and `created` are added. Rows that exist already are skipped.

    Raises:
        UserError: a text cannot be stored.
    """
    path = layout.dataset_table_path(collection, tables.check_kind(kind))
    existing = tables.read_table(path).to_pylist() if path.is_file() else []
    known = {_content_key(row) for row in existing}
    checked = [check_row(kind, {**row, "source": source}) for row in rows]
    new = {_content_key(row): {**row, "created": created} for row in checked if _content_key(row) not in known}
    if new:
        tables.write_table(path, tables.to_table(kind, [*existing, *new.values()]))
    return len(new)


def replace_dataset_rows(
    collection: Path, kind: str, rows: Iterable[Mapping[str, object]], *, by: str, source: str, created: str
) -> int:
    """Add rows to a table about the whole data set, each in place of the one with its value of the column `by`.

    Otherwise as `add_dataset_rows`. Of rows with one value of `by` the first holds. Returns how many rows are new or
    changed.

    Raises:
        UserError: a text cannot be stored.
    """
    path = layout.dataset_table_path(collection, tables.check_kind(kind))
    stream, chunks = iter(rows), []
    while chunk := list(itertools.islice(stream, ROWS_PER_CHUNK)):
        checked = [{**check_row(kind, {**row, "source": source}), "created": created} for row in chunk]
        chunks.append(tables.to_table(kind, checked))
    if not chunks:
        return 0
    new = pa.concat_tables(chunks, promote_options="permissive").combine_chunks()
    new = new.filter(pa.array(tables.positions(new[by], among=new[by]) == np.arange(len(new))))
    existing = tables.read_table(path) if path.is_file() else new.slice(0, 0)
    known = tables.positions(new[by], among=existing[by])
    equal = _equal_rows(new, existing, known)
    if equal.all():
        return 0
    order = np.arange(len(existing))
    # A changed row takes the position of the one that it replaces.
    changed = np.flatnonzero(~equal & (known >= 0))
    order[known[changed]] = len(existing) + changed
    order = np.concatenate([order, len(existing) + np.flatnonzero(known < 0)])
    tables.write_table(path, pa.concat_tables([existing, new], promote_options="permissive").take(pa.array(order)))
    return int((~equal).sum())


def _equal_rows(new: pa.Table, existing: pa.Table, known: np.ndarray) -> np.ndarray:
    """Return which rows of `new` are equal, but for `created`, to the row `known` of `existing` (-1: there is none)."""
    equal = known >= 0
    before = existing.take(pa.array(known, mask=~equal))
    for name in new.column_names:
        if name not in before.column_names:
            return np.zeros(len(new), dtype=bool)
        if name != "created":
            same = pc.call_function("equal", [new[name], before[name]]).fill_null(False)
            both_null = pc.call_function("and", [new[name].is_null(), before[name].is_null()])
            equal &= pc.call_function("or", [same, both_null]).to_numpy()
    return equal


def _content_key(row: Mapping[str, object]) -> str:
    return json.dumps({name: row[name] for name in sorted(row) if name != "created"})
