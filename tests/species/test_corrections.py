"""Answers of people become labels of the next training, in place of what was said before."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.species.corrections import CorrectionsSummary, ReviewTarget, apply_corrections, open_target
from foveate.survey.importers.corrections import Correction, read_corrections
from foveate.survey.store import survey_rows
from foveate.survey.survey import Survey
from foveate.survey.types import Medium, Observation
from naming import raises_naming

HARE = "Lepus europaeus"


@pytest.fixture
def target(tmp_path: Path) -> ReviewTarget:
    """A survey of two images that a person called hares; nothing was predicted."""
    with CollectionWriter(tmp_path / "c", source="cards", created="2024-01-01T00:00:00+00:00") as writer:
        for number, key in enumerate("ab"):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(buffer, "PNG")
            seen = Observation("1", "d", key, kind="animal", taxon=HARE, method="human")
            writer.add(key, buffer.getvalue(), extra=survey_rows(Medium(key, "d", file=f"{key}.png"), [seen]))
    return open_target(tmp_path / "c")


def test_an_answer_takes_the_place_of_an_older_label(target: ReviewTarget, tmp_path: Path) -> None:
    answers = [Correction("answers.csv, line 2", "blank", file="a.png"), Correction("line 3", "blank", file="z.png")]
    summary = apply_corrections(target, answers, tmp_path / "answers.csv")
    assert summary == CorrectionsSummary(images=1, blank=1, unmatched=["z.png"], also_labeled=1)
    path = target.survey.collection.path
    assert Survey.open(path).labels().tolist() == ["blank", HARE]
    assert len(Collection.open(path).table("observations")) == 3


def test_answers_about_other_images_are_refused(target: ReviewTarget, tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path / "answers.csv"):
        apply_corrections(target, [Correction("line 2", "blank", file="z.png")], tmp_path / "answers.csv")


def test_an_image_has_an_answer_for_each_kind(target: ReviewTarget, tmp_path: Path) -> None:
    answers = [
        Correction("line 2", "Vulpes vulpes", file="a.png", count=2),
        Correction("line 3", "human", file="a.png", count=1),
        Correction("line 4", "blank", file="b.png"),
    ]
    summary = apply_corrections(target, answers, tmp_path / "answers.csv")
    assert (summary.images, summary.blank, summary.unmatched) == (2, 1, [])
    rows = Collection.open(target.survey.collection.path).table("observations").to_pylist()
    assert [(row["key"], row["taxon"] or row["kind"], row["count"]) for row in rows[2:]] == [
        ("a", "Vulpes vulpes", 2),
        ("a", "human", 1),
        ("b", "blank", -1),
    ]


TABLES = {
    "TimelapseData.csv": "File;RelativePath;Species;Count\na.png;100TRAPS;red fox;2\nb.png;100TRAPS;;0\n",
    "own.csv": "filename,species\nb.png,Vulpes vulpes\na.png,blank\n",
}


@pytest.mark.parametrize(("name", "expected"), [("TimelapseData.csv", ["9627", ""]), ("own.csv", ["blank", "9627"])])
def test_a_first_survey_is_labeled_from_a_table(name: str, expected: list[str], tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c", source="cards", created="2024-01-01T00:00:00+00:00") as writer:
        for number, key in enumerate("ab"):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(buffer, "PNG")
            writer.add(key, buffer.getvalue(), extra=survey_rows(Medium(key, "d", file=f"{key}.png"), []))
    (tmp_path / name).write_text(TABLES[name])
    for _ in range(2):  # the same table again replaces its answers
        arguments = ["species", "review", str(tmp_path / "c"), "--corrections", str(tmp_path / name)]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert Survey.open(tmp_path / "c").labels().tolist() == expected


def test_edited_rows_of_a_package_that_came_back_are_answers(target: ReviewTarget, tmp_path: Path) -> None:
    def row(key: str, label: str, name: str = "1", count: int | None = None) -> Correction:
        return Correction(f"package: {key}, {label}", label, key=key, id=name, count=count)

    path = target.survey.collection.path
    with raises_naming(UserError, tmp_path / "package"):
        apply_corrections(target, [row("a", HARE), row("b", HARE)], tmp_path / "package")
    # The rows beside the edited one are of the same answer, and would be hidden by it.
    edited = [row("a", HARE), row("a", "Vulpes vulpes", name="2"), row("b", HARE)]
    summary = apply_corrections(target, edited, tmp_path / "package")
    assert (summary.images, summary.replaced) == (1, 0)
    labels = [(entry["key"], entry["taxon"]) for entry in Survey.open(path).observations.to_pylist()]
    assert sorted(labels) == [("a", HARE), ("a", "Vulpes vulpes"), ("b", HARE)]
    # An answer that was exported has an id as well: edited, it replaces itself.
    stored = Collection.open(path).table("observations").to_pylist()
    review = next(entry["id"] for entry in stored if entry["taxon"] == "Vulpes vulpes")
    for label, count in (("blank", None), (HARE, 1), (HARE, 2)):
        summary = apply_corrections(open_target(path), [row("a", label, review, count)], tmp_path / "package")
        assert (summary.images, summary.replaced) == (1, 2 if label == "blank" else 1)
    current = [entry for entry in Survey.open(path).observations.to_pylist() if entry["key"] == "a"]
    assert [(entry["taxon"], entry["count"]) for entry in current] == [(HARE, 2)]
    assert len({entry["id"] for entry in current}) == len(current)


def test_individuals_of_a_package_are_counted_together(target: ReviewTarget, tmp_path: Path) -> None:
    rows = [Correction(f"row {name}", "Vulpes vulpes", key="a", id=name, count=2) for name in ("7", "8")]
    apply_corrections(target, [*rows, Correction("row 9", HARE, key="a", id="9")], tmp_path / "package")
    current = Survey.open(target.survey.collection.path).observations.to_pylist()
    assert sorted((row["taxon"], row["count"]) for row in current if row["key"] == "a") == [
        (HARE, -1), ("Vulpes vulpes", 4),
    ]  # fmt: skip


def test_an_older_package_undoes_no_later_answer(target: ReviewTarget, tmp_path: Path) -> None:
    path = target.survey.collection.path
    may = "2024-05-0{}T10:00:00+00:00"
    apply_corrections(target, [Correction("line 2", "human", key="a", time=may.format(1))], tmp_path / "first.csv")
    answered = next(row for row in Collection.open(path).table("observations").to_pylist() if row["kind"] == "human")
    later = [Correction("line 2", "blank", key="a", time=may.format(2))]
    apply_corrections(open_target(path), later, tmp_path / "second.csv")
    package = [
        Correction("row 1", "human", key="a", id=answered["id"], time=may.format(1)),
        Correction("row 2", "blank", key="b", id="1"),
    ]
    assert apply_corrections(open_target(path), package, tmp_path / "package").images == 1
    assert Survey.open(path).labels().tolist() == ["blank", "blank"]


def test_a_survey_without_predictions_confirms_nothing(target: ReviewTarget, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("file,correction\na.png,ok\n")
    with raises_naming(UserError, "own.csv, line 2", "ok"):
        apply_corrections(target, read_corrections(tmp_path / "own.csv"), tmp_path / "own.csv")
    with raises_naming(UserError, "--corrections"):
        CliRunner().invoke(cli, ["species", "review", str(target.survey.collection.path)], catch_exceptions=False)
