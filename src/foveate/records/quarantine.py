"""The quarantine table: files and rows that an import rejected, with reasons, each finding once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from foveate.records import layout, tables
from foveate.records.rows import storable

# Detail and time are left out: repeating an import must not repeat its findings.
_IDENTITY = ("key", "subject", "position", "reason", "source")
# Remedies, added to the detail of a finding: (subject, reason) -> one clause.
_COPY_AGAIN = "copy or download the file again"
REMEDIES = {
    ("image", "empty file"): _COPY_AGAIN,
    ("image", "truncated"): _COPY_AGAIN,
    ("image", "damaged"): f"{_COPY_AGAIN}, or save it again with a program that opens it",
    ("image", "not an image"): f"{_COPY_AGAIN}: it is often the error page of a server",
    ("image", "pixel type not allowed"): "save it with 8 or 16 bits a channel",
    ("image", "too many pixels"): "save it smaller, or as tiles; `foveate collect --max-pixels` takes more",
    ("image", "too many bytes"): "save it smaller, or as tiles",
    ("image", "unreadable"): "check its permissions and the disk",
    ("image", "no regular file"): "remove it, or give it another name",
    ("image", "link leaves the folder"): "copy the image to the folder",
    ("sidecar", "link leaves the folder"): "copy the text to the folder",
    ("image", "unusable key"): "rename the file",
    ("image", "duplicate key"): "rename one of the two, or use another collection",
    ("image", "no image"): "copy its image there, or delete the rest",
    ("sidecar", "malformed JSON"): "correct the file, then collect with --update",
    ("sidecar", "malformed boxes"): "correct the file, then collect with --update",
    ("sidecar", "unreadable"): "check its permissions and the disk",
    ("region", "box outside the image"): "check its unit and format, then collect with --update",
    ("region", "box inverted"): "corners are x1, y1, x2, y2: check the format",
}


class Quarantine:
    """The quarantine table of one collection, in memory while a writer is open."""

    def __init__(self, collection: Path) -> None:
        self._path = collection / layout.QUARANTINE_FILE
        self._rows = tables.read_known(self._path, tables.QUARANTINE).to_pylist() if self._path.is_file() else []
        self._findings = {_make_identity(row) for row in self._rows}
        self._changed = False

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, key: str, reason: str, detail: str, *, source: str, subject: str, position: int, created: str
    ) -> bool:
        """Add a finding; return False if an equal one (apart from detail and time) exists."""
        # The remedy is part of the detail, which does not identify a finding: a reworded remedy adds no duplicate.
        remedy = REMEDIES.get((subject, reason))
        row: dict[str, object] = {
            "key": storable(key),
            "subject": subject,
            "position": position,
            "reason": reason,
            "detail": storable(f"{detail}; {remedy}" if remedy else detail),
            "source": storable(source),
            "created": created,
        }
        finding = _make_identity(row)
        if finding in self._findings:
            return False
        self._findings.add(finding)
        self._rows.append(row)
        self._changed = True
        return True

    def save(self) -> None:
        """Write the table if it grew."""
        if self._changed:
            tables.write_table(self._path, pa.Table.from_pylist(self._rows, schema=tables.QUARANTINE))
            self._changed = False


def _make_identity(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _IDENTITY)
