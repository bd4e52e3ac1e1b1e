"""What the tests of hostile imports share: folders and tars of given files, and the reasons that were found."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from foveate.records.collection import Collection


def folder_of_files(tmp_path: Path, files: dict[str, bytes | str | dict]) -> Path:
    """The folder `tmp_path`/source with the given files; objects are written as JSON."""
    source = tmp_path / "source"
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_bytes(content))
    return source


def as_bytes(content: bytes | str | dict) -> bytes:
    """The bytes of a file."""
    if isinstance(content, dict):
        return json.dumps(content).encode()
    return content.encode() if isinstance(content, str) else content


def tar_of(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes | str | dict]]) -> Path:
    """A tar with the given members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            data = as_bytes(content)
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


def reasons(target: Path) -> dict[str, list[str]]:
    """What was quarantined, by key, each with a detail of one line and a source."""
    found: dict[str, list[str]] = {}
    for row in Collection.open(target).quarantine().to_pylist():
        assert row["detail"]
        assert "\n" not in row["detail"]
        assert row["source"]
        found.setdefault(row["key"], []).append(f"{row['subject']}: {row['reason']}")
    return found
