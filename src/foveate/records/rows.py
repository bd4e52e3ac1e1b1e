"""Convert records to annotation rows, check them and give them ids; write tables about a whole data set."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import UserError
from foveate.records import layout, tables
from foveate.records.record import Caption, Context, Region
from foveate.records.tables import PROVENANCE_COLUMNS, Provenance, id_column

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
CORNERS = ("x1", "y1", "x2", "y2")
# Choices only affect scoring, so they do not enter the hash: a collection from before they were stored gets no second
# row for the same question.
_NOT_HASHED = {"conversations": ("choices",)}


def clean_text(text: str) -> str:
    """Strip white space at the ends and drop control characters except tabs and line ends.

    Nothing else changes: any script, any length, no Unicode normalization.

    Raises:
        UserError: the text has half a surrogate pair, which no UTF-8 file can store.
    """
    if _SURROGATE.search(text):
        raise UserError(f"text {text[:40]!r}: half a surrogate pair is not valid Unicode")
    return _CONTROL.sub("", text).strip()


def has_control_characters(text: str) -> bool:
    """Whether `clean_text` would drop control characters of the text."""
    return _CONTROL.search(text) is not None


def storable(text: str) -> str:
    """Escape surrogates, for messages about broken data that UTF-8 must store."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def caption_row(key: str, caption: Caption) -> dict[str, object]:
    """Return the row of a caption, without id, and with its source as the only provenance."""
    return {"key": key, "kind": caption.kind, "text": caption.text, "source": caption.source}


def region_row(key: str, region: Region) -> dict[str, object]:
    """Return the row of a region, with corners and score rounded to float32 as they are stored."""
    # Rounded before hashing: a region that is read and added again must get the same id.
    corners = {name: float(np.float32(getattr(region.box, name))) for name in CORNERS}
    return {
        "key": key,
        **corners,
        "phrase": region.phrase,
        "score": float(np.float32(region.score)),
        "label": region.label,
        "slice": region.slice,
        "source": region.source,
    }


def row_image_keys(kind: str, row: Mapping[str, object]) -> list[object]:
    """Return the keys of all images that a row is about: those of a conversation (maybe none), else its `key`."""
    images = row.get("images")
    return list(images) if kind == "conversations" and isinstance(images, list | tuple) else [row.get("key")]


def context_row(key: str, context: Context) -> dict[str, object]:
    degrees = {"latitude": context.latitude, "longitude": context.longitude}
    return {"key": key, **degrees, "time": context.time, "place": context.location}


def label_row(key: str, field: str, value: object) -> dict[str, object]:
    """Return a label as a row.

    Raises:
        UserError: the value is neither text nor number, such as a list, whose text would become a class.
    """
    if not isinstance(value, str | int | float | np.generic):
        raise UserError(
            f"labels of {key!r}: field {field!r} is of type {type(value).__name__} (got {value!r:.40}); expected one "
            "text or number"
        )
    return {"key": key, "field": field, "value": str(value)}


def image_rows(
    key: str,
    *,
    captions: Iterable[Caption],
    regions: Iterable[Region],
    labels: Mapping[str, str],
    context: Context | None,
    extra: Mapping[str, Iterable[Mapping[str, object]]],
) -> dict[str, list[dict[str, object]]]:
    """Return the checked rows of one image by kind of table, without ids and without empty captions."""
    raw: dict[str, list[dict[str, object]]] = {
        "captions": [caption_row(key, caption) for caption in captions],
        "regions": [region_row(key, region) for region in regions],
        "labels": [label_row(key, field, value) for field, value in labels.items()],
        "context": [] if context is None else [context_row(key, context)],
    }
    for kind, rows in extra.items():
        raw.setdefault(kind, []).extend({**row, "key": key} for row in rows)
    checked = {kind: [check_row(kind, row) for row in rows] for kind, rows in raw.items()}
    # Filter after cleaning, which may empty a text of control characters.
    checked["captions"] = [row for row in checked["captions"] if row["text"]]
    return {kind: rows for kind, rows in checked.items() if rows}


def check_row(kind: str, row: Mapping[str, object]) -> dict[str, object]:
    """Return the row with clean texts; raise UserError if a text, box or score cannot be stored."""
    checked: dict[str, object] = {}
    for name, value in row.items():
        # The key names the image and stays as it is.
        checked[name] = clean_text(value) if isinstance(value, str) and name != "key" else value
    if kind == "regions":
        # Corners are checked as float32, as they are stored: two close float64 values may round to one.
        corners = np.array([checked.get(name, np.nan) for name in CORNERS], dtype=np.float32)
        inside = np.isfinite(corners).all() and corners.min() >= 0 and corners.max() <= 1
        if not inside or not (corners[:2] < corners[2:]).all():
            box = ", ".join(f"{corner:g}" for corner in corners)
            raise UserError(f"region of {row['key']!r}: box ({box}) must have x1 < x2 and y1 < y2 in [0, 1]")
        score = float(str(checked.get("score", 1.0)))
        if not 0 <= score <= 1:
            raise UserError(f"region of {row['key']!r}: score {score} must be in [0, 1]")
    return checked


def finish_rows(kind: str, rows: Iterable[Mapping[str, object]], provenance: Provenance) -> list[dict[str, object]]:
    """Add provenance and ids to rows.

    The id is BLAKE2b (8 bytes, hex) of the content without `created` and of the number of equal rows before it: two
    equal regions of one image are two rows, but adding the same rows again adds none.
    """
    column, not_hashed = id_column(kind), _NOT_HASHED.get(kind, ())
    seen: Counter[str] = Counter()
    finished = []
    for row in rows:
        content = {name: value for name, value in row.items() if name not in (column, "created", *not_hashed)}
        # Leave out the last column, `created`: the same row added tomorrow must get the same id.
        for name in PROVENANCE_COLUMNS[:-1]:
            content[name] = content.get(name) or getattr(provenance, name)
        # Keys are sorted, because an id must not depend on the order in which a row was filled.
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=_plain)
        nth = seen[text]
        seen[text] += 1
        digest = hashlib.blake2b(f"{kind}|{nth}|{text}".encode(), digest_size=8).hexdigest()
        created = row.get("created") or provenance.created
        others = {name: row[name] for name in not_hashed if name in row}
        finished.append({"key": row["key"], column: digest, **content, **others, "created": created})
    return finished


def _plain(value: object) -> object:
    """Convert NumPy scalars and arrays to JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    kind = type(value).__name__
    raise UserError(f"annotation value of type {kind}; expected strings, numbers, lists or bytes")


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
    # `positions` finds first occurrences, so this keeps the first of the rows that share a value.
    new = new.filter(pa.array(tables.positions(new[by], among=new[by]) == np.arange(len(new))))
    existing = tables.read_table(path) if path.is_file() else new.slice(0, 0)
    known = tables.positions(new[by], among=existing[by])
    equal = _equal_rows(new, existing, known)
    # A repeated import must not change the file, nor its modification time.
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
    # The time is left out, so that a repeated import recognizes its own rows.
    return json.dumps({name: row[name] for name in sorted(row) if name != "created"})
