"""The quarantine table: what could not be imported into a collection and why, each finding once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from foveate.records import layout, tables
from foveate.records.rows import storable

# Without detail and time: repeating an import must not repeat its findings.
_IDENTITY = ("key", "subject", "position", "reason", "source")


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
        row: dict[str, object] = {
            "key": storable(key),
            "subject": subject,
            "position": position,
            "reason": reason,
            "detail": storable(detail),
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
