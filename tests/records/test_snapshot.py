"""A collection is read as it is at one moment, also when a writer commits between two of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.record import Caption
from foveate.records.state import take_snapshot
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming


def _write(path: Path, number: int) -> None:
    with CollectionWriter(path) as writer:
        writer.add(f"p{number}", jpeg(number), captions=[Caption("words")])
        writer.commit()
        writer.annotate("captions", [{"key": f"p{number}", "text": "later"}], Provenance())
        if number:
            writer.remove([f"p{number - 1}"], reason="test", purge=True)
            writer.purge()


def test_a_commit_while_the_files_are_listed_is_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "c", 0)
    annotation_parts, calls = layout.annotation_parts, 0

    def disturbed(*arguments: object) -> list[Path]:
        """A writer commits after the index was read, and before the annotations are listed: twice."""
        nonlocal calls
        calls += 1
        if calls in (1, 2):
            with monkeypatch.context() as quiet:
                quiet.setattr(layout, "annotation_parts", annotation_parts)
                _write(tmp_path / "c", calls)
        return annotation_parts(*arguments)

    monkeypatch.setattr(layout, "annotation_parts", disturbed)
    taken = take_snapshot(tmp_path / "c")
    assert calls == 3
    assert taken.parts == [0, 1, 2]
    assert taken.index["key"].to_pylist() == ["p2"]
    assert taken.removed["key"].to_pylist() == ["p0", "p1"]
    assert [path.name for path in taken.annotations["captions"]] == [
        *(f"{part:05d}.parquet" for part in taken.parts),
        *(f"added-{number:05d}.parquet" for number in range(3)),
    ]


def test_a_file_that_stays_damaged_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path / "c", 0)
    (tmp_path / "c" / "index" / "00000.parquet").write_bytes(b"nothing")
    with raises_naming(UserError, "index/00000.parquet"):
        take_snapshot(tmp_path / "c")
