"""Tombstones: the table of images that were taken out, which keeps them out by key and by SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from foveate.core.errors import UserError, nearest
from foveate.records import layout, tables


def check_removable(key: str, sha256_by_key: Mapping[str, str], name: str) -> str:
    """The SHA-256 of a key. Raises UserError with the nearest key where the collection `name` does not have it."""
    if key not in sha256_by_key:
        raise UserError(f"no image {key!r} in the collection {name!r}{nearest(key, sha256_by_key)}")
    return sha256_by_key[key]


def add_tombstones(
    collection: Path, sha256_by_key: Mapping[str, str], *, reason: str | Mapping[str, str], created: str, purge: bool
) -> None:
    """Write a tombstone for each key that has none; one that is there is marked for purging where `purge` is true.

    `reason` is one for all keys, or one by key.
    """
    path = collection / layout.REMOVED_FILE
    rows = tables.read_removed(path).to_pylist()
    before = [dict(row) for row in rows]
    for row in rows:
        row["purge"] = row["purge"] or (purge and row["key"] in sha256_by_key)
    there = {row["key"] for row in rows}
    for key, sha256 in sha256_by_key.items():
        if key not in there:
            why = reason if isinstance(reason, str) else reason[key]
            rows.append({"key": key, "sha256": sha256, "reason": why, "created": created, "purge": purge})
    if rows != before:
        tables.write_table(path, pa.Table.from_pylist(rows, schema=tables.REMOVED))


def pending_purge(collection: Path) -> set[str]:
    """Keys whose bytes and rows were to be taken out; those of them that an index part has still wait for it."""
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    return set(removed.filter(removed["purge"])["key"].to_pylist())
