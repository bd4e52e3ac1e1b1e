"""Adding annotation rows part by part: ids read once, whole parts only, one writer, collections of older releases."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records import appender, layout, tables
from foveate.records.appender import AnnotationAppender, NameSet, read_parts
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming

MADE = Provenance(source="foveate caption", model="m")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    with CollectionWriter(tmp_path / "c", images_per_shard=3) as writer:
        for number in range(8):
            writer.add(f"p{number}", jpeg(number), captions=[Caption(f"alt {number}")])
    return tmp_path / "c"


def _row(number: int, text: str = "words", **further: object) -> dict[str, object]:
    return {"key": f"p{number}", "kind": "ssc", "text": text, "request": f"r{number}", "status": "ok", **further}


def test_rows_are_read_back_with_the_columns_of_a_captioner(images: Path) -> None:
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert appender.append("captions", [_row(1, flags="too_long repeats", score=0.25), _row(2)], MADE) == 2
        error = {"key": "p3", "request": "r3", "kind": "ssc", "error": "timeout", "attempts": 5}
        assert appender.append("caption_errors", [error], MADE) == 1
    collection = Collection.open(images)
    captions = collection.table("captions")
    assert captions.num_rows == 10
    added = captions.filter(pa.compute.not_equal(captions["request"], "")).to_pylist()
    assert [(row["key"], row["flags"], row["score"], row["model"]) for row in added] == [
        ("p1", "too_long repeats", 0.25, "m"),
        ("p2", "", None, "m"),
    ]
    assert collection.read_captions(1)[1].kind == "ssc"
    errors = collection.table("caption_errors").to_pylist()
    assert [(row["key"], row["error"], row["final"], row["attempts"]) for row in errors] == [
        ("p3", "timeout", False, 5)
    ]


def test_equal_rows_are_added_once_now_and_later(images: Path) -> None:
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert appender.append("captions", [_row(1), _row(2)], MADE) == 2
        assert appender.append("captions", [_row(2), _row(4)], MADE) == 1
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert appender.append("captions", [_row(1), _row(2), _row(4)], MADE) == 0
        assert appender.append("captions", [_row(1, "others")], MADE) == 1
    names = sorted(path.name for path in (images / "annotations" / "captions").iterdir())
    assert names[3:] == ["added-00000.parquet", "added-00001.parquet", "added-00002.parquet"]
    assert Collection.open(images).table("captions").num_rows == 8 + 4


def test_the_appender_and_annotate_agree_on_ids(images: Path) -> None:
    with CollectionWriter(images) as writer:
        assert writer.annotate("captions", [_row(1)], MADE) == 1
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert appender.append("captions", [_row(1)], MADE) == 0


def test_parts_are_read_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnnotationAppender(images, purpose="captioning") as appender:
        appender.append("captions", [_row(1)], MADE)
        read = []
        monkeypatch.setattr(tables, "read_columns", lambda path, *rest: read.append(path))
        monkeypatch.setattr(tables, "read_table", lambda path: read.append(path))
        for number in range(50):
            appender.append("captions", [_row(2, f"text {number}")], MADE)
        assert not read
    assert len(list((images / "annotations" / "captions").glob("added-*"))) == 51


@pytest.mark.parametrize(
    ("kind", "row", "names"),
    [
        ("captions", _row(9), ("captions", "row 1", "'p9'")),
        ("captions", {"kind": "ssc"}, ("captions", "row 1", "None")),
        ("captions", _row(1, worth=3), ("captions", "'worth'", "text")),
        ("captions", _row(1, "half \ud800"), ("half", "surrogate")),
        ("poems", _row(1), ("poems", "captions")),
    ],
)
def test_what_cannot_be_stored_is_refused_whole(
    images: Path, kind: str, row: dict[str, object], names: tuple[str, ...]
) -> None:
    with AnnotationAppender(images, purpose="captioning") as appender:
        with raises_naming(UserError, *names):
            appender.append(kind, [_row(2), row], MADE)
        assert appender.append("captions", [_row(2)], MADE) == 1


def test_removed_images_get_no_rows(images: Path) -> None:
    with CollectionWriter(images) as writer:
        writer.remove(["p1"], reason="test")
    with AnnotationAppender(images, purpose="captioning") as appender:
        with raises_naming(UserError, "p1"):
            appender.append("captions", [_row(1)], MADE)


def test_one_writer_at_a_time(images: Path) -> None:
    with AnnotationAppender(images, purpose="captioning"):
        with pytest.raises(UserError, match=r"is being written by process \d+ on .* \(captioning\)"):
            CollectionWriter(images).__enter__()
        assert len(Collection.open(images)) == 8
    with CollectionWriter(images) as writer:
        assert writer.known_sha256("p1")


def test_what_a_killed_writer_left_is_cleared(images: Path) -> None:
    left = images / "annotations" / "captions" / ".added-00000.parquet.abc.tmp"
    left.write_bytes(b"half")
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert not left.exists()
        appender.append("captions", [_row(1)], MADE)
    assert Collection.open(images).table("captions").num_rows == 9


def test_captions_of_an_older_release_open_and_grow(images: Path) -> None:
    """Their parts lack the columns of a captioner; they are read as empty and not written anew."""
    lacking = ["request", "status", "flags", "score", "details"]
    before = {}
    for path in (images / "annotations" / "captions").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(lacking), path)
        before[path] = path.read_bytes()
    table = Collection.open(images).table("captions")
    assert table.schema.names == tables.SCHEMAS["captions"].names
    assert table["request"].unique().to_pylist() == [""]
    assert table["score"].null_count == 8
    with AnnotationAppender(images, purpose="captioning") as appender:
        assert appender.append("captions", [_row(1)], MADE) == 1
    assert Collection.open(images).table("captions").num_rows == 9
    assert {path: path.read_bytes() for path in before} == before


def test_columns_are_read_one_part_at_a_time(images: Path) -> None:
    parts = list(read_parts(images, "captions", ["request", "kind"]))
    assert [part.num_rows for part in parts] == [3, 3, 2]
    assert parts[0].column_names == ["request", "kind"]
    damaged = layout.annotation_path(images, "captions", 1)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with raises_naming(UserError, "00001.parquet"):
        list(read_parts(images, "captions", ["request"]))


names = st.one_of(st.text(max_size=20), st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"))


@given(st.lists(st.lists(names, max_size=30), max_size=6), st.lists(names, max_size=20))
def test_names_are_a_set(batches: list[list[str]], others: list[str]) -> None:
    max_recent, appender._MAX_RECENT = appender._MAX_RECENT, 7
    try:
        kept, plain = NameSet(), set[str]()
        for place, batch in enumerate(batches):
            if place % 2 and all(name.isascii() for name in batch):
                kept.update_column(pa.chunked_array([pa.array(batch, pa.string())]))
            else:
                kept.update(batch)
            plain |= set(batch)
            assert len(kept) == len(plain)
        assert all(name in kept for name in plain)
        assert all((name in kept) == (name in plain) for name in others)
    finally:
        appender._MAX_RECENT = max_recent
