"""Keep the answers that people give on a review page, and store them as rows of the survey.

The journal only grows: an answer is a line of it, on disk before the page says that it is saved, and one that is taken
back is another line. Of several reviewers the latest answer decides about an event; those of the others stay, and an
event with answers that differ says so. What decides becomes the rows that the review table would have written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from foveate.core.errors import UserError, nearest
from foveate.core.files import FolderLock, fsync_path, name_in_errors
from foveate.core.progress import say
from foveate.records import tables
from foveate.records.images import decode, make_thumbnail
from foveate.records.rows import clean_text
from foveate.species.corrections import apply_corrections, find_taxon, is_confirmation, open_target
from foveate.species.decide_results import merge_decisions
from foveate.species.export import MIN_PERSON
from foveate.species.predictions import Predictions
from foveate.species.review import rank_events
from foveate.species.taxonomy import NON_ANIMALS
from foveate.survey.detections import get_kind
from foveate.survey.exporters.survey_rows import SurveyRows
from foveate.survey.importers.corrections import Correction
from foveate.survey.types import Observation

ANSWERS = "answers.jsonl"
MAX_NAME, MAX_NAMES, MAX_COUNT, MAX_EVENTS = 200, 20, 1_000_000, 5000
_NO_PERSON = "an earlier review"  # who answered, where the row does not say


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AnsweredName(_Content):
    """A species or kind of an answer.

    Attributes:
        count: of individuals. key: of the image that gets the label, beside the event.
    """

    name: str
    key: str
    count: int | None = None


class Answer(_Content):
    """What one reviewer says of one event.

    Attributes:
        number: of the line among the answers, from 1.
        key: of the event's first image, by which it is found again after another decision.
        names: none takes the reviewer's answer back.
        restores: number of the earlier answer that holds again; its rank among the reviewers' answers is that one's.
        is_partial: about some species of the event, as a line of the review table may be.
    """

    number: int
    key: str
    reviewer: str
    time: str
    names: list[AnsweredName] = []
    restores: int = 0
    is_partial: bool = False


class RequestedName(_Content):
    """A name as the page sends it. frame: index among the images of the event."""

    name: str
    count: int | None = Field(None, ge=1, le=MAX_COUNT)
    frame: int = Field(ge=0)


class AnswerRequest(_Content):
    """An answer as the page sends it.

    Attributes:
        event: index in the session. restores: see `Answer`; 0 takes the reviewer's answer back, None is a new answer.
        takes_new: whether names that no taxon has are taken as they are written.
    """

    event: int = Field(ge=0)
    names: list[RequestedName] = Field([], max_length=MAX_NAMES)
    restores: int | None = None
    takes_new: bool = False


class UnknownNameError(UserError):
    """A name is no known taxon and no class; the reviewer may insist."""


class AnswerJournal:
    """The journal of a results folder. Use it under the folder's lock.

    Attributes:
        answers: all of them. stored: number of the last one whose event was stored in the survey.

    Raises:
        UserError: a line is damaged. The last one is not, where a kill cut it off: nobody was told that it is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.answers, self.stored = folder / ANSWERS, list[Answer](), 0
        self._lock = threading.Lock()
        data = self.path.read_bytes() if self.path.is_file() else b""
        self._size = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: self._size].split(b"\n")[:-1], start=1):
            try:
                content = json.loads(line)
                self.stored = content.get("stored", self.stored)
                if "stored" not in content:
                    self.answers.append(Answer(**content))
                    if self.answers[-1].number != len(self.answers):
                        raise ValueError("an answer is missing")
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{self.path}, line {number}: damaged; restore the file from a backup") from error

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers; they are on disk when this returns."""
        self._write([answer.model_dump(exclude_defaults=True) for answer in answers])
        self.answers += answers

    def mark_stored(self, number: int) -> None:
        """Note that the survey has all answers up to this one."""
        self._write([{"stored": number}])
        self.stored = number

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        # Answers come while another thread notes what is stored.
        with self._lock, name_in_errors(self.path), self.path.open("ab") as file:
            # Cuts what a kill or a full disk left of a line that was never acknowledged.
            file.truncate(self._size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if not self._size:
                fsync_path(self.path.parent)
            self._size += len(data)


Answers = dict[str, Answer]
"""Answers about one event: the last one of each reviewer."""


def choose_answer(answers: Answers) -> Answer | None:
    """Return the answer that decides, the latest one; None where all were taken back."""
    return max((a for a in answers.values() if a.names), key=lambda a: a.restores or a.number, default=None)


def have_disagreement(answers: Answers) -> bool:
    """Whether two reviewers name different species, or different counts of one."""
    named = [{name.name: name.count for name in answer.names} for answer in answers.values() if answer.names]
    counts: dict[str, set[int]] = {}
    for of_reviewer in named:
        for name, count in of_reviewer.items():
            counts.setdefault(name, set()).update([] if count is None else [count])
    return any(of_reviewer.keys() != named[0].keys() for of_reviewer in named) or any(
        len(numbers) > 1 for numbers in counts.values()
    )


def _group_images(decisions: pa.Table) -> dict[str, str]:
    """Return the event of each image; its own key where images were not pooled."""
    columns = (decisions[name].to_pylist() for name in ("event", "keys"))
    return {key: event or key for event, keys in zip(*columns, strict=True) for key in keys}


def _group_answers(answers: Sequence[Answer], groups: Mapping[str, str]) -> dict[str, Answers]:
    grouped: dict[str, Answers] = {}
    for answer in answers:
        if answer.key in groups:
            grouped.setdefault(groups[answer.key], {})[answer.reviewer] = answer
    return grouped


def store_answers(folder: Path, journal: AnswerJournal) -> None:
    """Write what decides about each event that was answered since the last call as rows of the survey.

    Raises:
        UserError: another process writes the survey; the answers stay in the journal.
    """
    answers = [*journal.answers]
    if not answers or answers[-1].number == journal.stored:
        return
    target = open_target(folder)
    assert target.decisions is not None, "events were decided before they were answered"
    groups = _group_images(target.decisions)
    grouped, corrections = _group_answers(answers, groups), list[Correction]()
    changed = {groups[answer.key]: answer.key for answer in answers[journal.stored :] if answer.key in groups}
    for group, key in changed.items():
        about, event = f"{journal.path}: {group}", "" if group == key else group
        answer = choose_answer(grouped[group])
        if answer is None:
            corrections.append(Correction(about, "", key, event=event))
            continue
        # Without the name that was decided: an answer of the page is about all decisions of the event.
        who = {"person": answer.reviewer, "time": answer.time}
        corrections += [Correction(about, n.name, n.key, event=event, count=n.count, **who) for n in answer.names]
    if corrections:
        apply_corrections(target, corrections, journal.path)
    journal.mark_stored(answers[-1].number)


def store_pending(folder: Path) -> None:
    """Store the answers that a killed page left in the journal; say so where a page is open now."""
    if not (folder / ANSWERS).is_file():
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FolderLock(folder, purpose="storing answers"))
        except UserError as error:
            say(f"{error}; answers of the last seconds may be missing")
            return
        store_answers(folder, AnswerJournal(folder))


class NameList:
    """Names that a reviewer may mean: of the taxonomy, of classes that it lacks, and new ones that were answered.

    Attributes:
        names: name and common name, those that the model knows first.
    """

    def __init__(self, predictions: Predictions, answers: Sequence[Answer]) -> None:
        taxa, classes = predictions.taxa, predictions.classes
        labels = [label for label in classes.labels if label not in NON_ANIMALS]
        labels += [name.name for answer in answers for name in answer.names if get_kind(name.name) == "animal"]
        found = [find_taxon(taxa, label) for label in labels]
        own = {label.lower(): label for label, taxon in zip(labels, found, strict=True) if taxon < 0}
        order = dict.fromkeys([*(taxon for taxon in found if taxon >= 0), *range(len(taxa))])
        self._taxa, self._own = taxa, own
        self.names = [*((label, "") for label in own.values()), *((taxa.names[i], taxa.common[i]) for i in order)]

    def check(self, text: str, *, takes_new: bool) -> str:
        """Return the name that a text means: a taxon, a class, or "blank", "human", "vehicle" and "unknown".

        Raises:
            UnknownNameError: it is none, and `takes_new` is not set.
            UserError: it is empty, too long, or agrees instead of naming something.
        """
        name = " ".join(clean_text(text[: MAX_NAME + 1]).split())
        if not name or len(text) > MAX_NAME or is_confirmation(name):
            raise UserError(f"name {name[:40]!r}: expected a species of 1 to {MAX_NAME} letters, blank, human, ...")
        kind = get_kind(name)
        if kind != "animal" or name.lower() == "animal":
            return kind
        if (index := find_taxon(self._taxa, name)) >= 0:
            return self._taxa.names[index]
        if name.lower() in self._own or takes_new:
            return self._own.setdefault(name.lower(), name)
        known = [text for pair in self.names for text in pair if text]
        raise UnknownNameError(f"name {name!r}: no taxon or class of the run{nearest(name, known)}")


@dataclass(frozen=True)
class SessionEvent:
    """An event of the page. keys: of its images, in their order. description: what the page shows, as JSON."""

    keys: list[str]
    description: dict[str, Any]


class ReviewSession:
    """Events of a results folder, and the answers to them. Use it under the folder's lock; threads may share it.

    Args:
        blur_people: show boxes of people as coarse blocks, and images that were decided as human without one.

    Raises:
        UserError: nothing is decided, the collection is no survey, or another process writes it.
    """

    def __init__(self, folder: Path, *, blur_people: bool = False) -> None:
        self.folder, self.journal = folder, AnswerJournal(folder)
        store_answers(folder, self.journal)
        self.predictions = Predictions.open(folder)
        self.blur_people = blur_people
        self._groups = _group_images(self.predictions.decisions)
        self._answers = _group_answers(self.journal.answers, self._groups)
        self._lock, self._storing = threading.Lock(), threading.Lock()
        self.names = NameList(self.predictions, self.journal.answers)
        self._list_events()
        self._numbers = {self._groups[event.keys[0]]: number for number, event in enumerate(self.events)}
        self._take_over()

    def _list_events(self) -> None:
        rows = SurveyRows(self.predictions.survey.collection)
        times = {key: rows.times[row] for key, row in rows.keys.items()}
        decisions = self.predictions.decisions.to_pylist()
        boxes = self._list_boxes(decisions)
        files = dict(zip(*(self.predictions.images[name].to_pylist() for name in ("key", "file")), strict=True))
        ranked: dict[str, list[Any]] = {}
        # In the order of the review table: the first decision of an event places it.
        for entry in rank_events(self.predictions):
            row = decisions[entry.row]
            ranked.setdefault(row["event"] or row["key"], []).append((row, entry))
        self.events = list[SessionEvent]()
        for name, pairs in ranked.items():
            keys = sorted({key for row, _ in pairs for key in row["keys"]}, key=lambda key: (times.get(key, ""), key))
            frames = [{"file": files[key], "time": times.get(key, ""), "boxes": boxes.get(key, [])} for key in keys]
            answers = [
                {
                    **{column: row[column] for column in ("name", "kind", "rank", "count")},
                    "score": None if math.isnan(row["score"]) else round(row["score"], 4),
                    "frame": keys.index(row["key"]),
                    "alternatives": json.loads(row["alternatives"])[:3],
                    "steps": [f"{step['stage']}: {step['did']}" for step in json.loads(row["source"])],
                }
                for row, _ in pairs
            ]
            reasons = [*dict.fromkeys(reason for _, entry in pairs for reason in entry.reasons)]
            head = {"id": name, "camera": pairs[0][0]["camera"], "reasons": reasons}
            self.events.append(SessionEvent(keys, {**head, "answers": answers, "frames": frames}))

    def _list_boxes(self, decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Return the boxes of each image that a decision counted or that have a score: corners, label, score."""
        names = {box: row["name"] for row in decisions for box in row["boxes"]}
        boxes: dict[str, list[Any]] = {}
        columns = (self.predictions.boxes[name].to_pylist() for name in ("key", "label", "score"))
        for number, (key, label, score) in enumerate(zip(*columns, strict=True)):
            if number in names or score >= MIN_PERSON:
                corners = [round(side, 4) for side in self.predictions.box_corners[number]]
                boxes.setdefault(key, []).append([corners, names.get(number, label), round(score, 3)])
        return boxes

    def _take_over(self) -> None:
        """Add answers to the journal that the survey got in another way, such as from a review table."""
        merged = merge_decisions(self.predictions)
        assert merged is not None, "the survey was opened"
        found: dict[str, list[list[Observation]]] = {}
        for key, rows in zip(self.predictions.decisions["key"].to_pylist(), merged.answers, strict=True):
            found.setdefault(self._groups[key], []).append(rows)
        taken = list[Answer]()
        for group, of_decisions in found.items():
            rows = [row for of_decision in of_decisions for row in of_decision if row.kind != "unclassified"]
            shown = [row for row in rows if row.kind != "blank"] or rows
            if not rows or group not in self._numbers:
                continue
            known, key = choose_answer(self._answers.get(group, {})), self.events[self._numbers[group]].keys[0]
            stored = {row.taxon or row.kind: row for row in shown}
            if known is None or {n.name: n.count for n in known.names} != {n: r.count for n, r in stored.items()}:
                names = [AnsweredName(name=name, key=row.key or key, count=row.count) for name, row in stored.items()]
                number = len(self.journal.answers) + len(taken) + 1
                who = {"reviewer": rows[0].classifier or _NO_PERSON, "time": rows[0].classified_at}
                is_partial = not all(of_decisions)
                taken.append(Answer(number=number, key=key, names=names, is_partial=is_partial, **who))
        if taken:
            self._add(taken)
            # The survey has them already.
            self.journal.mark_stored(taken[-1].number)

    def _add(self, answers: Sequence[Answer]) -> None:
        self.journal.append(answers)
        for answer in answers:
            self._answers.setdefault(self._groups[answer.key], {})[answer.reviewer] = answer

    def answer(self, reviewer: str, requests: Sequence[AnswerRequest]) -> list[int]:
        """Save answers of a reviewer, all or none; return their numbers. They are on disk then.

        Raises:
            UserError: an event, image or name does not exist, or `restores` is no answer of this reviewer to the event.
        """
        reviewer = " ".join(clean_text(reviewer).split())
        if not 0 < len(reviewer) <= MAX_NAME:
            raise UserError(f"reviewer: expected a name of 1 to {MAX_NAME} letters")
        checked = [self._check(request, reviewer) for request in requests]
        with self._lock:
            first = len(self.journal.answers) + 1
            answers = [
                Answer(number=first + n, reviewer=reviewer, time=tables.now(), **fields)
                for n, fields in enumerate(checked)
            ]
            self._add(answers)
        return [answer.number for answer in answers]

    def _check(self, request: AnswerRequest, reviewer: str) -> dict[str, Any]:
        if request.event >= len(self.events):
            raise UserError(f"event: expected a number below {len(self.events)} (got {request.event})")
        keys = self.events[request.event].keys
        if request.restores == 0:
            return {"key": keys[0]}
        if request.restores is not None:
            earlier = next((a for a in self.journal.answers if a.number == request.restores), None)
            of_event = earlier is not None and self._groups.get(earlier.key) == self._groups[keys[0]]
            if earlier is None or not of_event or earlier.reviewer != reviewer:
                raise UserError(f"restores: {request.restores} is no answer of {reviewer!r} to event {request.event}")
            origin = earlier.restores or earlier.number
            return {"key": keys[0], "names": earlier.names, "restores": origin, "is_partial": earlier.is_partial}
        names = list[AnsweredName]()
        for entry in request.names:
            if entry.frame >= len(keys):
                raise UserError(f"frame: expected a number below {len(keys)} (got {entry.frame})")
            name = self.names.check(entry.name, takes_new=request.takes_new)
            count = None if name in ("blank", "unknown") else entry.count
            names.append(AnsweredName(name=name, key=keys[entry.frame], count=count))
        named = [name.name for name in names]
        if not named or len(set(named)) < len(named) or ("blank" in named and len(named) > 1):
            raise UserError(f"names: expected at least one, each once, and blank alone (got {', '.join(named)[:200]})")
        return {"key": keys[0], "names": names}

    def describe_answers(self, since: int = 0) -> dict[str, Any]:
        """Return the answers to the events that have one after number `since`: those of all reviewers, as JSON."""
        with self._lock:
            answers = [*self.journal.answers]
            groups = dict.fromkeys(self._groups.get(answer.key, "") for answer in answers[since:])
            numbers = {self._numbers[group]: self._answers[group] for group in groups if group in self._numbers}
            events = {number: _describe(of_event, self.events[number].keys) for number, of_event in numbers.items()}
        return {"number": len(answers), "events": events}

    def summarize(self) -> list[str]:
        """Return sentences about what is answered."""
        answered = [answers for answers in self._answers.values() if choose_answer(answers)]
        lines = [f"{len(answered):,} of {len(self.events):,} events have an answer; {self.journal.path} keeps all"]
        differ = sum(map(have_disagreement, answered))
        return lines + ([f"{differ:,} events have answers that differ; the latest decides"] if differ else [])

    def store(self) -> None:
        """Store what was answered since the last call, see `store_answers`."""
        with self._storing:
            store_answers(self.folder, self.journal)

    def read_image(self, event: int, frame: int, *, longest_side: int) -> bytes:
        """Return an image of an event as WebP.

        Raises:
            UserError: there is no such image, or it cannot be read (`BadImage`).
        """
        if not (0 <= event < len(self.events) and 0 <= frame < len(self.events[event].keys)):
            raise UserError(f"no image {frame} of event {event}")
        key, collection = self.events[event].keys[frame], self.predictions.collection
        data = collection.image_bytes(collection.find_row(key))
        if not (people := self._people.get(key)):
            return make_thumbnail(data, longest_side=longest_side)
        # Loaded here, for it loads torch.
        from foveate.species.triage import blur_boxes

        return make_thumbnail(blur_boxes(decode(data, longest_side=longest_side), people), longest_side=longest_side)

    @cached_property
    def _people(self) -> dict[str, list[Sequence[float]]]:
        """Boxes to blur by the key of the image."""
        people: dict[str, list[Sequence[float]]] = {}
        if not self.blur_people:
            return people
        columns = (self.predictions.boxes[name].to_pylist() for name in ("key", "label", "score"))
        for key, label, score, corners in zip(*columns, self.predictions.box_corners, strict=True):
            if score >= MIN_PERSON and get_kind(label) == "human":
                people.setdefault(key, []).append(corners)
        for kind, keys in zip(*(self.predictions.decisions[n].to_pylist() for n in ("kind", "keys")), strict=True):
            for key in keys if kind == "human" else ():
                people.setdefault(key, [(0.0, 0.0, 1.0, 1.0)])
        return people


def _describe(answers: Answers, keys: Sequence[str]) -> dict[str, Any]:
    chosen = choose_answer(answers)
    listed = [
        {
            **answer.model_dump(include={"number", "reviewer", "time"}),
            "is_chosen": answer is chosen,
            "names": [
                {"name": n.name, "count": n.count, "frame": keys.index(n.key) if n.key in keys else 0}
                for n in answer.names
            ],
        }
        for answer in sorted(answers.values(), key=lambda answer: answer.number)
    ]
    is_done = chosen is not None and not chosen.is_partial
    return {"answers": listed, "is_done": is_done, "differs": have_disagreement(answers)}
