"""Tables about a whole collection, such as the categories of an imported file: no removal of an image takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.records import layout, tables
from foveate.records.rows import check_row


def add_about(collection: Path, kind: str, rows: Sequence[Mapping[str, object]], *, source: str, created: str) -> int:
    """Add rows to the table `kind`; returns how many were new. The caller holds the writer's lock.

    All rows of a table have the same columns; `source` and `created` are added. A row that is there already is
    skipped. Raises UserError where a text cannot be stored.
    """
    path = layout.about_path(collection, tables.check_kind(kind))
    there = tables.read_table(path).to_pylist() if path.is_file() else []
    known = {_identity(row) for row in there}
    checked = [check_row(kind, {**row, "source": source}) for row in rows]
    new = {_identity(row): {**row, "created": created} for row in checked if _identity(row) not in known}
    if new:
        tables.write_table(path, tables.to_table(kind, [*there, *new.values()]))
    return len(new)


def _identity(row: Mapping[str, object]) -> str:
    return json.dumps({name: row[name] for name in sorted(row) if name != "created"})
