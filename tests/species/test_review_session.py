"""Answers of the review page: on disk at once, one line each, and in all exports as the review table's would be."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from review_run import FOX, HARE, LYNX, copy_run, export, list_files, read_csv, write_run

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.species import answers as module
from foveate.species.answers import ANSWERS, MAX_NAME, AnswerRequest, RequestedName, ReviewSession, UnknownNameError
from foveate.species.corrections import apply_corrections, open_target
from foveate.species.decide_results import decide_results, merge_decisions
from foveate.species.decisions import Stages
from foveate.species.predictions import Predictions
from foveate.survey.importers.corrections import read_corrections
from naming import raises_naming

EVENTS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), EVENTS)


@pytest.fixture
def results(run: Path, tmp_path: Path) -> Path:
    return copy_run(run, tmp_path / "run")


def request(event: int, *names: tuple[str, int | None], frame: int = 0, **fields: Any) -> AnswerRequest:
    listed = [RequestedName(name=name, count=count, frame=frame) for name, count in names]
    return AnswerRequest(event=event, names=listed, **fields)


def find_event(session: ReviewSession, num_answers: int) -> int:
    """Return an event about which the model decided so many things."""
    return next(n for n, event in enumerate(session.events) if len(event.description["answers"]) == num_answers)


def answers_to(session: ReviewSession, event: int) -> dict[str, Any]:
    return session.describe_answers()["events"][event]


def decided(session: ReviewSession, event: int) -> dict[str, int | None]:
    chosen = [answer for answer in answers_to(session, event)["answers"] if answer["is_chosen"]]
    return {name["name"]: name["count"] for answer in chosen for name in answer["names"]}


def test_exports_are_those_of_a_review_table(results: Path, run: Path, tmp_path: Path) -> None:
    session = ReviewSession(results)
    several, single = find_event(session, 3), find_event(session, 1)
    empty = next(n for n in range(EVENTS) if n not in (several, single))
    session.answer(
        "Ada", [request(several, (FOX, 2), (HARE, None), frame=1, takes_new=True), request(empty, ("blank", 3))]
    )
    session.answer("Ben", [request(single, ("human", 1), frame=2)])
    before = export(results, tmp_path / "before")
    assert before == export(copy_run(run, tmp_path / "untouched"), tmp_path / "untouched-exports")
    session.store()
    session.store()
    other, table = copy_run(run, tmp_path / "other"), tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("event", "key", "correction", "count", "reviewer", "reviewed at"))
        for answer in session.journal.answers:
            event = session._groups[answer.key]
            for name in answer.names:
                writer.writerow((event, name.key, name.name, name.count or "", answer.reviewer, answer.time))
    apply_corrections(open_target(other), read_corrections(table), table)
    page = export(results, tmp_path / "page")
    assert page == export(other, tmp_path / "table")
    assert page != before
    # A count of an event with several decisions is the event's, not one of each decision.
    rows = read_csv(tmp_path / "page/camtrap-dp/observations.csv")
    name = session.events[several].description["id"]
    of_event = {row["scientificName"]: row["count"] for row in rows if row["eventID"] == name and not row["mediaID"]}
    assert of_event == {FOX: "2", HARE: ""}
    assert {row["file"] for row in read_csv(tmp_path / "page/csv")} == set(list_files(EVENTS))


def test_undo_and_redo_leave_what_was_there(results: Path, tmp_path: Path) -> None:
    untouched = export(results, tmp_path / "untouched")
    session = ReviewSession(results)
    (first,) = session.answer("Ada", [request(0, (FOX, 1))])
    (second,) = session.answer("Ada", [request(0, (LYNX, 2))])
    session.store()
    with_lynx = export(results, tmp_path / "lynx")
    session.answer("Ada", [request(0, restores=first)])
    assert decided(session, 0) == {FOX: 1}
    session.answer("Ada", [request(0, restores=0)])
    assert not answers_to(session, 0)["is_done"]
    session.store()
    assert export(results, tmp_path / "undone") == untouched
    session.answer("Ada", [request(0, restores=second)])
    session.store()
    redone = export(results, tmp_path / "redone")
    assert redone.keys() == with_lynx.keys()
    assert redone["csv"] == with_lynx["csv"]
    assert redone["megadetector"] == with_lynx["megadetector"]
    with raises_naming(UserError, "restores", second + 9):
        session.answer("Ada", [request(0, restores=second + 9)])
    with raises_naming(UserError, "restores", second):
        session.answer("Ben", [request(0, restores=second)])


def test_answers_that_differ_are_kept_and_the_latest_decides(results: Path) -> None:
    session = ReviewSession(results)
    (first,) = session.answer("Ada", [request(0, (FOX, None))])
    session.answer("Ben", [request(0, (FOX, 2))])
    assert not answers_to(session, 0)["differs"]
    session.answer("Ben", [request(0, (LYNX, 2))])
    assert answers_to(session, 0)["differs"]
    assert decided(session, 0) == {LYNX: 2}
    session.answer("Ada", [request(0, (FOX, 4))])
    assert decided(session, 0) == {FOX: 4}
    # Undone, an answer has the rank that it had: Ben's came after it.
    session.answer("Ada", [request(0, restores=first)])
    assert decided(session, 0) == {LYNX: 2}
    session.store()
    again = ReviewSession(results)
    event = next(n for n in range(EVENTS) if again.events[n].description["id"] == session.events[0].description["id"])
    assert answers_to(again, event) == answers_to(session, 0)
    assert len(again.journal.answers) == len(session.journal.answers)
    assert any("differ" in line for line in again.summarize())


def test_answers_of_a_table_are_kept_beside_those_of_the_page(results: Path, tmp_path: Path) -> None:
    session = ReviewSession(results)
    event, key = session.events[0].description["id"], session.events[0].keys[0]
    table = tmp_path / "table.csv"

    def apply(name: str, person: str) -> ReviewSession:
        table.write_text(f"event,key,correction,count,reviewer\n{event},{key},{name},2,{person}\n", encoding="utf-8")
        apply_corrections(open_target(results), read_corrections(table), table)
        return ReviewSession(results)

    session = apply(FOX, "Cleo")
    number = next(n for n in range(EVENTS) if session.events[n].description["id"] == event)
    assert decided(session, number) == {FOX: 2}
    session.answer("Ada", [request(number, (LYNX, 1))])
    session.store()
    assert {answer["reviewer"] for answer in answers_to(session, number)["answers"]} == {"Ada", "Cleo"}
    session = apply(HARE, "Dan")
    assert decided(session, number) == {HARE: 2}
    assert answers_to(session, number)["differs"]
    assert {answer["reviewer"] for answer in answers_to(session, number)["answers"]} == {"Ada", "Cleo", "Dan"}
    # Taken over once.
    assert ReviewSession(results).describe_answers() == session.describe_answers()


def test_a_line_of_a_table_leaves_the_other_species_open(results: Path, tmp_path: Path) -> None:
    session = ReviewSession(results)
    event = session.events[find_event(session, 3)]
    row = event.description["answers"][0]
    table = tmp_path / "table.csv"
    line = f"{event.description['id']},{event.keys[row['frame']]},{row['name']},{HARE}"
    table.write_text(f"event,key,answer,correction\n{line}\n", encoding="utf-8")
    apply_corrections(open_target(results), read_corrections(table), table)
    session = ReviewSession(results)
    number = session._numbers[event.description["id"]]
    assert decided(session, number) == {HARE: None}
    assert not answers_to(session, number)["is_done"]


def test_other_events_find_their_answers(results: Path) -> None:
    session = ReviewSession(results)
    session.answer("Ada", [request(n, (FOX, n + 1)) for n in range(EVENTS)])
    # Not stored yet: a kill, and then other settings that make one event of each day.
    decide_results(Predictions.open(results), Stages(), gap_seconds=50_000)
    again = ReviewSession(results)
    assert len(again.events) < EVENTS
    assert all(answers_to(again, n)["is_done"] for n in range(len(again.events)))
    assert len(again.journal.answers) >= EVENTS


@pytest.mark.parametrize(
    "name", ["", "  ", "ok", "Yes", "x" * (MAX_NAME + 1), "x" * 10_000, "\ud800", "\x00\x07"], ids=range(8)
)
def test_what_is_no_name_is_refused(results: Path, name: str) -> None:
    session = ReviewSession(results)
    with pytest.raises(UserError) as caught:
        session.answer("Ada", [request(0, (FOX, 1)), request(1, (name, 1), takes_new=True)])
    assert len(str(caught.value)) < 300
    assert session.journal.answers == []


def test_names_are_those_of_the_taxonomy_or_insisted_on(results: Path, tmp_path: Path) -> None:
    session = ReviewSession(results)
    html, formula = "<img src=x onerror=alert(1)>", "=HYPERLINK(1)"
    with pytest.raises(UnknownNameError, match=FOX):
        session.answer("Ada", [request(0, ("Vulpes vulpe", 1))])
    session.answer("Ada", [request(0, ("vulpes  VULPES", 1), ("Person", 2))])
    assert decided(session, 0) == {FOX: 1, "human": 2}
    session.answer("Ada", [request(1, (html, 1), takes_new=True), request(2, (formula, 1), takes_new=True)])
    session.store()
    exports = export(results, tmp_path / "exports")
    rows = [row for row in read_csv(tmp_path / "exports/csv") if row["taxon"].endswith((html, formula))]
    assert rows
    # No cell begins as a formula does.
    assert not any(cell.startswith("=") for row in rows for cell in row.values())
    assert json.loads(exports["megadetector"])


def test_an_answer_is_whole_or_refused(results: Path) -> None:
    session = ReviewSession(results)
    for wrong in (
        request(EVENTS, (FOX, 1)),
        request(0),
        request(0, (FOX, 1), ("vulpes vulpes", 2)),
        request(0, ("blank", None), (FOX, 1)),
        request(0, (FOX, 1), frame=99),
    ):
        with pytest.raises(UserError):
            session.answer("Ada", [request(1, (FOX, 1)), wrong])
    for reviewer in ("", " ", "x" * 201):
        with raises_naming(UserError, "reviewer"):
            session.answer(reviewer, [request(0, (FOX, 1))])
    assert session.journal.answers == []


def test_a_line_that_was_cut_is_dropped_and_a_damaged_one_named(results: Path) -> None:
    session = ReviewSession(results)
    session.answer("Ada", [request(0, (FOX, 1)), request(1, (LYNX, 1))])
    path = results / ANSWERS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 3, "ke')
    again = ReviewSession(results)
    again.answer("Ada", [request(2, (FOX, 1))])
    numbers = [answer.number for answer in ReviewSession(results).journal.answers]
    assert numbers == [1, 2, 3]
    for damaged in (b"\x00\x00\n" + whole, b'{"number": "1"}\n' + whole, b"[]\n" + whole, whole.split(b"\n", 1)[1]):
        path.write_bytes(damaged)
        with raises_naming(UserError, path, "line 1"):
            ReviewSession(results)


def test_an_answer_that_the_disk_refused_is_none(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ReviewSession(results)
    session.answer("Ada", [request(0, (FOX, 1))])

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            session.answer("Ada", [request(1, (FOX, 1))])
    assert 1 not in session.describe_answers()["events"]
    session.answer("Ada", [request(2, (FOX, 1))])
    again = ReviewSession(results)
    assert [answer.number for answer in again.journal.answers] == [1, 2]


def test_export_has_answers_that_a_killed_page_left(results: Path, tmp_path: Path) -> None:
    session = ReviewSession(results)
    session.answer("Ada", [request(n, ("vehicle", None)) for n in range(EVENTS)])
    arguments = ["species", "export", str(results), "--to", "csv", "--out"]
    with FolderLock(results, purpose="reviewing on a page"):
        outcome = CliRunner().invoke(cli, [*arguments, str(tmp_path / "open.csv")])
        assert "answers of the last seconds may be missing" in outcome.output
    assert CliRunner().invoke(cli, [*arguments, str(tmp_path / "flat.csv")]).exit_code == 0
    assert {row["taxon"] for row in read_csv(tmp_path / "flat.csv")} == {"vehicle"}
    merged = merge_decisions(Predictions.open(results))
    assert merged is not None
    assert all(merged.answered)


def test_people_are_blurred(results: Path) -> None:
    plain, blurred = ReviewSession(results), ReviewSession(results, blur_people=True)
    for number, event in enumerate(plain.events):
        for frame, content in enumerate(event.description["frames"]):
            images = [session.read_image(number, frame, longest_side=360) for session in (plain, blurred)]
            has_people = any(label == "human" for _, label, _ in content["boxes"])
            assert (images[0] != images[1]) == has_people
    with raises_naming(UserError, "image"):
        plain.read_image(0, 3, longest_side=240)


def test_an_image_that_shows_a_person_without_a_box_is_blurred_whole(results: Path) -> None:
    session = ReviewSession(results, blur_people=True)
    key = session.events[0].keys[0]
    session.__dict__["_people"] = {key: [(0.0, 0.0, 1.0, 1.0)]}
    import io

    pixels = np.asarray(Image.open(io.BytesIO(session.read_image(0, 0, longest_side=240))).convert("RGB"), dtype=float)
    # Coarse blocks: neighbors differ by little.
    assert np.abs(np.diff(pixels, axis=1)).mean() < 2
