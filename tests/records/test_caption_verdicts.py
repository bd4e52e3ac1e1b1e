"""Verdicts on captioners in a collection: stored, replaced, and the rule by which captions count as wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.records.appender import AnnotationAppender
from foveate.records.captions import (
    TABLE,
    CaptionVerdict,
    find_wrong_captioners,
    load_verdicts,
    save_verdicts,
)
from foveate.records.collection import Collection
from foveate.records.layout import dataset_table_path
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming

VERDICT = CaptionVerdict("dsc", "m", "images", 9, 20, 0.1, 0.0, 0.2, control=0.1, created="2026-01-02T00:00:00+00:00")


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    path = tmp_path / "captioned"
    with CollectionWriter(path, source="test") as writer:
        writer.add("p", tiny.image_bytes(tiny.draw([], size=(32, 32), seed=0)))
    with AnnotationAppender(path, purpose="test") as appender:
        row = {"key": "p", "kind": "dsc", "text": "A boat.", "request": "r"}
        appender.append("captions", [row], Provenance("captioner", "m"))
    return path


@pytest.mark.parametrize(("holds", "control", "wrong"), [(0.1, 0.1, True), (0.0, 0.1, True), (0.11, 0.1, False)])
def test_captions_are_wrong_that_hold_no_more_often_than_shuffled_ones(
    holds: float, control: float, wrong: bool
) -> None:
    assert replace(VERDICT, holds=holds, control=control).is_wrong == wrong
    assert not replace(VERDICT, holds=holds, control=None).is_wrong


def test_a_later_verdict_takes_the_place_of_an_earlier_one(captioned: Path) -> None:
    other = replace(VERDICT, kind="ssc", control=None)
    save_verdicts(captioned, [VERDICT, other])
    assert load_verdicts(Collection.open(captioned)) == [VERDICT, other]
    assert find_wrong_captioners(Collection.open(captioned), ("dsc", "alt")) == [VERDICT]
    assert find_wrong_captioners(Collection.open(captioned), ("ssc",)) == []
    better = replace(VERDICT, holds=0.9)
    save_verdicts(captioned, [better])
    assert load_verdicts(Collection.open(captioned)) == [better, other]
    assert find_wrong_captioners(Collection.open(captioned), ("dsc",)) == []


def test_a_captioner_without_captions_is_not_named(captioned: Path) -> None:
    save_verdicts(captioned, [replace(VERDICT, model="removed")])
    assert find_wrong_captioners(Collection.open(captioned), ("dsc",)) == []


def test_no_verdict_and_another_writer_write_nothing(captioned: Path) -> None:
    save_verdicts(captioned, [])
    with FolderLock(captioned, purpose="test"), raises_naming(UserError, "captioned", "test"):
        save_verdicts(captioned, [VERDICT])
    assert not dataset_table_path(captioned, TABLE).exists()
    assert load_verdicts(Collection.open(captioned)) == []
