"""Resumable parts: what is appended, in which order, and what a repeated run finds done."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.records.annotate import PartWriter, completed_requests, matching_parts, write_results, write_stream
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance


@pytest.fixture
def collection(tiny_collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def split_rows(results: Sequence[str]) -> dict[str, list[dict[str, object]]]:
    captions: list[dict[str, object]] = [
        {"key": key, "kind": "ssc", "text": f"about {key}", "request": f"request {key}"} for key in results
    ]
    errors: list[dict[str, object]] = [
        {"key": key, "kind": "dsc", "error": "refused", "request": f"error {key}", "final": key.endswith("0")}
        for key in results
    ]
    return {"captions": captions, "caption_errors": errors}


def keys_of(collection: Path) -> list[str]:
    with Collection.open(collection) as opened:
        return list(opened.keys[:7])


def parts_of(collection: Path, table: str) -> list[int]:
    return [len(part) for part in matching_parts(collection, table, ["key"], where={"model": "m"}) if len(part)]


def writer_of(appender: AnnotationAppender, **options: object) -> PartWriter[str]:
    return PartWriter(
        appender, Provenance("test", "m"), split_rows, **{"max_results": 3, "max_seconds": 60.0, **options}
    )


def test_parts_by_count_and_the_rest_at_the_end(collection: Path) -> None:
    keys, parts = keys_of(collection), list[list[str]]()
    with AnnotationAppender(collection, purpose="testing") as appender:
        write_results(iter(keys), writer_of(appender, on_part=lambda results, seconds: parts.append(list(results))))
    assert parts == [keys[:3], keys[3:6], keys[6:]]
    assert parts_of(collection, "captions") == parts_of(collection, "caption_errors") == [3, 3, 1]


def test_parts_by_time(collection: Path) -> None:
    with AnnotationAppender(collection, purpose="testing") as appender:
        writer = writer_of(appender, max_results=1000, max_seconds=1e-9)
        assert not writer.due, "nothing waits"
        write_results(iter(keys_of(collection)), writer)
    assert parts_of(collection, "captions") == [1] * 7


def test_a_repeated_run_finds_what_is_done(collection: Path) -> None:
    keys = keys_of(collection)
    with AnnotationAppender(collection, purpose="testing") as appender:
        write_results(iter(keys), writer_of(appender))
    assert len(completed_requests(collection, "captions")) == 7, "rows of importers have no request"
    assert f"request {keys[0]}" in completed_requests(collection, "captions")
    final = completed_requests(collection, "caption_errors", where={"final": True})
    assert [f"error {key}" in final for key in keys] == [key.endswith("0") for key in keys]
    assert len(completed_requests(collection, "captions", where={"model": "another"})) == 0


@pytest.mark.parametrize("error", [UserError("the server is away"), OSError("the disk is full")])
def test_a_stream_that_fails_keeps_what_came(collection: Path, error: Exception) -> None:
    keys, closed = keys_of(collection), list[bool]()

    async def stream() -> AsyncGenerator[list[str], None]:
        try:
            yield keys[:3]
            yield []
            yield keys[3:5]
            raise error
        finally:
            closed.append(True)

    with AnnotationAppender(collection, purpose="testing") as appender:
        run = write_stream(stream(), writer_of(appender))
        if isinstance(error, UserError):
            assert asyncio.run(run) is error
            assert parts_of(collection, "captions") == [3, 2]
        else:
            with pytest.raises(OSError):
                asyncio.run(run)
            assert parts_of(collection, "captions") == [3], "a full disk takes no further part"
    assert closed == [True]
