"""Answers of people become labels of the next training, in place of what was said before."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.corrections import Correction
from foveate.records.survey.store import survey_rows
from foveate.records.survey.survey import Survey
from foveate.records.survey.taxa import load_builtin_taxa
from foveate.records.survey.types import Medium, Observation
from foveate.records.writer import CollectionWriter
from foveate.species.corrections import CorrectionsSummary, apply_corrections
from naming import raises_naming

HARE = "Lepus europaeus"


@pytest.fixture
def predictions(tmp_path: Path) -> Any:
    """What `apply_corrections` needs of a results folder: a survey of two images that a person called hares."""
    with CollectionWriter(tmp_path / "c", source="cards", created="2024-01-01T00:00:00+00:00") as writer:
        for number, key in enumerate("ab"):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(buffer, "PNG")
            seen = Observation("1", "d", key, kind="animal", taxon=HARE, method="human")
            writer.add(key, buffer.getvalue(), extra=survey_rows(Medium(key, "d", file=f"{key}.png"), [seen]))
    collection = Collection.open(tmp_path / "c")
    survey = Survey.open(collection)
    return SimpleNamespace(collection=collection, survey=survey, taxa=load_builtin_taxa(), decisions=pa.table({}))


def test_an_answer_takes_the_place_of_an_older_label(predictions: Any, tmp_path: Path) -> None:
    answers = [Correction("answers.csv, line 2", "blank", file="a.png"), Correction("line 3", "blank", file="z.png")]
    summary = apply_corrections(predictions, answers, tmp_path / "answers.csv")
    assert summary == CorrectionsSummary(images=1, blank=1, unmatched=["z.png"], also_labeled=1)
    path = predictions.collection.path
    assert Survey.open(path).labels().tolist() == ["blank", HARE]
    assert len(Collection.open(path).table("observations")) == 3


def test_answers_about_other_images_are_refused(predictions: Any, tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path / "answers.csv"):
        apply_corrections(predictions, [Correction("line 2", "blank", file="z.png")], tmp_path / "answers.csv")


def test_an_image_has_an_answer_for_each_kind(predictions: Any, tmp_path: Path) -> None:
    answers = [
        Correction("line 2", "Vulpes vulpes", file="a.png", count=2),
        Correction("line 3", "human", file="a.png", count=1),
        Correction("line 4", "blank", file="b.png"),
    ]
    summary = apply_corrections(predictions, answers, tmp_path / "answers.csv")
    assert (summary.images, summary.blank, summary.unmatched) == (2, 1, [])
    rows = Collection.open(predictions.collection.path).table("observations").to_pylist()
    assert [(row["key"], row["taxon"] or row["kind"], row["count"]) for row in rows[2:]] == [
        ("a", "Vulpes vulpes", 2),
        ("a", "human", 1),
        ("b", "blank", -1),
    ]
