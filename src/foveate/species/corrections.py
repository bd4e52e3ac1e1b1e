"""Add people's answers to a survey: our review table, any table, Timelapse or Camtrap DP.

They become observations of the survey with the method "human", so that the next training learns from them. Imported
rows stay on disk; earlier answers of a review about the same images are removed, from whatever file they came. A
results folder says in addition what a confirmation ("ok") confirms and which images an event has; a survey alone is
enough for all other answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.records import layout, tables
from foveate.records.annotate import remove_rows
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate.species.predictions import DECISIONS, Predictions
from foveate.species.taxonomy import open_taxa
from foveate.survey.detections import get_kind
from foveate.survey.file_index import FileIndex, is_video
from foveate.survey.importers.corrections import CONFIRMATION, Correction
from foveate.survey.store import ANSWERED, FRAMES, REVIEW_SOURCE
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Observation, observation_row
from foveate.survey.videos import find_video

_CONFIRMED = (CONFIRMATION, "yes", "right", "correct")


@dataclass(slots=True)
class CorrectionsSummary:
    """Counts of `apply_corrections`.

    Attributes:
        images: with a new answer. blank: of them empty. events: with a new answer.
        replaced: earlier answers of a review about these images, of whatever file, which were removed.
        unmatched: corrections of files that are not in the survey.
        also_labeled: images that a person had labeled differently: the answer holds; an imported row stays on disk.
        new_names: names that are no known taxon -> images.
    """

    images: int = 0
    blank: int = 0
    events: int = 0
    replaced: int = 0
    unmatched: list[str] = field(default_factory=list)
    also_labeled: int = 0
    new_names: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Format the counts for people."""
        lines = [f"{self.images:,} images have an answer of a person now, {self.blank:,} of them: blank"]
        lines += [f"{self.events:,} events have an answer now"] if self.events else []
        if self.replaced:
            lines.append(f"{self.replaced:,} earlier answers about these images were replaced")
        if self.unmatched:
            lines.append(f"{len(self.unmatched):,} files are not in the survey, first {self.unmatched[0]!r}")
        if self.also_labeled:
            lines.append(f"{self.also_labeled:,} images had another label of a person, which the answer replaces")
        for name, count in self.new_names.items():
            lines.append(f"{name!r} is no known taxon ({count:,} images); the next training learns it as a class")
        return lines


@dataclass(frozen=True)
class ReviewTarget:
    """Target of a person's answers.

    Attributes:
        survey: gets the answers.
        taxa: names are looked up in it.
        decisions: table of a results folder; None where nothing was predicted.
    """

    survey: Survey
    taxa: Taxa
    decisions: pa.Table | None = None


def open_target(folder: Path) -> ReviewTarget:
    """Open a results folder, or a survey whose images were never predicted.

    Raises:
        UserError: the folder is neither.
    """
    # Only a collection has this file: a survey can be corrected before anything is predicted.
    if (folder / layout.DESCRIPTION).is_file():
        collection = Collection.open(folder)
        return ReviewTarget(Survey.open(collection), open_taxa(collection, None))
    predictions = Predictions.open(folder)
    is_decided = (folder / DECISIONS).is_file()
    return ReviewTarget(predictions.survey, predictions.taxa, predictions.decisions if is_decided else None)


@dataclass
class _Answer:
    """Answers of a person about one image, or about one decision of a results folder.

    Args:
        keys: of the images that the decision is about; those of an image alone.
        shown: key of the image that was shown.
        event: id of the event; "" for an image.
        answered: name that was decided; None for an answer that is about no decision.
        others: images of `keys` that other decisions of the event are about, too.
        has_shown: whether `shown` is known to show what is answered; not, of a video that was watched elsewhere.
        by_label: of one label the last, of a package their sum.
    """

    keys: Sequence[str]
    shown: str
    event: str = ""
    answered: str | None = None
    others: frozenset[str] = frozenset()
    has_shown: bool = True
    by_label: dict[str, Correction] = field(default_factory=dict)

    def images(self, kind: str) -> list[str]:
        """Return the keys of the images that get a row of their own.

        An animal leaves some frames of its burst, so it is on the image that was shown. "blank" is on all images but
        those of another species.
        """
        if kind != "blank" or not self.event:
            return [self.shown] if self.has_shown else []
        return [key for key in self.keys if key not in self.others]


def apply_corrections(target: ReviewTarget, corrections: Sequence[Correction], path: Path) -> CorrectionsSummary:
    """Add the answers to a survey as observations of a person.

    An answer about an event of our review table is a row about the event, with all its images, and beside it a row of
    the image that was shown first, since an animal leaves some frames of its burst; "blank" is a row of all its images.

    Args:
        corrections: one without a label takes an earlier answer of a review back.
        path: file of the answers; the source of the rows.

    Raises:
        UserError: no correction fits any image of the survey, or one confirms what nothing answered.
    """
    survey, taxa = target.survey, target.taxa
    collection = survey.collection
    summary = CorrectionsSummary()
    # Everything is resolved before the first write, so that a wrong row does not leave half of the answers behind.
    answers = _resolve(target, corrections, summary)
    if not answers:
        raise UserError(f"{path}: no correction fits an image of {collection.path}, or all are known")
    others = survey.labels()
    entries: list[Observation] = []
    for answer in answers:
        for number, correction in enumerate(answer.by_label.values()):
            kind = get_kind(correction.label)
            entries += [_observe(key, number, survey, correction, taxa, answer) for key in answer.images(kind)]
            if answer.event:
                entries.append(_observe(answer.shown, number, survey, correction, taxa, answer, is_event=True))
    of_images: dict[str, list[Observation]] = {}
    for entry in entries:
        if entry.level == "media":
            of_images.setdefault(entry.key, []).append(entry)
    unknown = Counter[str]()
    for key, observations in of_images.items():
        unknown.update(entry.taxon for entry in observations if entry.kind == "animal" and not entry.taxon_id)
        summary.blank += observations[0].kind == "blank"
        # A label of the survey is an id, a name or a kind, so the same answer in another form is no change.
        names = {name for entry in observations for name in (entry.taxon_id, entry.taxon, entry.kind) if name}
        label = others[collection.find_row(key)]
        summary.also_labeled += bool(label) and label not in names
    summary.images, summary.events = len(of_images), len({answer.event for answer in answers if answer.event})
    summary.new_names = {name: count for name, count in unknown.items() if name}
    rows = [observation_row(entry) for entry in entries]
    # Names this call, by which its rows are told from earlier ones, also from equal ones of the same second.
    digest = f"{time.time_ns():016x}"
    with AnnotationAppender(collection.path, purpose="adding corrections") as appender:
        appender.append("observations", rows, Provenance(f"{REVIEW_SOURCE}{path.name}", recipe_hash=digest))
    # Only now: a run that is killed in between has both answers, and the same command removes the earlier ones.
    summary.replaced = _remove_earlier(collection.path, answers, digest)
    return summary


def _resolve(target: ReviewTarget, corrections: Sequence[Correction], summary: CorrectionsSummary) -> list[_Answer]:
    """Return the answers about each image and each decision."""
    survey = target.survey
    keys = set(survey.keys)
    corrections = _drop_unchanged(corrections, survey)
    # Group by image: an event has an answer for its people, and another for its animals.
    about: dict[str, list[dict[str, Any]]] = {}
    members: dict[str, dict[str, None]] = {}  # images of each event
    # Rows are converted only if an answer needs them: a survey has far more decisions than answers.
    needs_decisions = any(entry.event or is_confirmation(entry.label) or is_video(entry.file) for entry in corrections)
    if target.decisions is not None and needs_decisions:
        for row in target.decisions.to_pylist():
            members.setdefault(row["event"], {}).update(dict.fromkeys(row["keys"]))
            for key in row["keys"]:
                about.setdefault(key, []).append(row)
    videos: dict[str, list[str]] = {}
    for key in survey.keys:
        if video := find_video(key):
            videos.setdefault(video, []).append(key)
    index = FileIndex(survey.media["file"].to_pylist(), survey.keys)
    # Each file once: an image with two kinds has two rows, and two paths of one image would be rivals.
    files = list(dict.fromkeys(correction.file for correction in corrections))
    row_of = dict(zip(files, index.find_all(files)[0], strict=True))
    answers: dict[tuple[str, str, str | None], _Answer] = {}
    for correction in corrections:
        row = row_of[correction.file]
        key = correction.key if correction.key in keys else survey.keys[row] if row >= 0 else ""
        if not key:
            summary.unmatched.append(correction.file or correction.key)
            continue
        decision = _find_decision(about.get(key, ()), correction)
        label, count = correction.label, correction.count
        if is_confirmation(label):
            confirmed = decision or next(iter(about.get(key, ())), {"kind": "", "name": "", "count": 0})
            label = confirmed["name"] if confirmed["kind"] == "animal" else confirmed["kind"]
            count = count or confirmed["count"] or None
            if label in ("", "unknown", "unclassified"):
                raise UserError(f"{correction.where}: {correction.label!r} confirms no answer; expected a name")
        if decision is None and correction.key not in keys and find_video(key):
            answer = _answer_video(videos[find_video(key)], about)
        else:
            answer = _start_answer(key, decision, correction, about, members)
        # Lines of one decision are one answer, however often its frame changed since they were written.
        answer = answers.setdefault((answer.event, answer.shown, answer.answered), answer)
        if not label:
            continue
        # Key by label: two species on one image are two answers, the same one twice is a correction of it.
        earlier = answer.by_label.get(label)
        if earlier is not None and earlier.id and correction.id not in ("", earlier.id):
            # Rows of a package are individuals or groups, each with an id of its own.
            count = (earlier.count or 1) + (count or 1)
        answer.by_label[label] = replace(correction, label=label, count=None if get_kind(label) == "blank" else count)
    return [*answers.values()]


def _find_decision(rows: Sequence[dict[str, Any]], correction: Correction) -> dict[str, Any] | None:
    """Return the decision that a line of our table answers, among those about its image; None for other tables."""
    rows = [row for row in rows if row["event"] == correction.event and (row["event"] or correction.answered)]
    named = [row for row in rows if row["name"] == correction.answered]
    return next(iter(named or rows), None)


def _start_answer(
    key: str,
    decision: dict[str, Any] | None,
    correction: Correction,
    about: Mapping[str, Sequence[dict[str, Any]]],
    members: Mapping[str, Mapping[str, None]],
) -> _Answer:
    if decision is None:
        return _Answer((key,), key)
    if not decision["event"]:
        return _Answer((key,), key, answered=decision["name"])
    # A table without the column "answer" answers all decisions of the event.
    if not correction.answered:
        return _Answer([*members[decision["event"]]], key, decision["event"], "")
    others = {
        member
        for member in decision["keys"]
        for row in about[member]
        if row["event"] == decision["event"] and row["name"] != decision["name"]
    }
    return _Answer(decision["keys"], key, decision["event"], decision["name"], frozenset(others))


def _answer_video(frames: Sequence[str], about: Mapping[str, Sequence[dict[str, Any]]]) -> _Answer:
    """Return the answer about a whole video, as of a table that has its path: which frame shows it, nobody said.

    That is the frame of the surest decision about an animal; without one, no frame gets a label.
    """
    rows = [row for key in frames for row in about.get(key, ()) if row["kind"] not in ("blank", "unclassified")]
    best = max(rows, key=lambda row: row["score"], default=None)
    event = next((row["event"] for key in frames for row in about.get(key, ())), "") or find_video(frames[0])
    shown = frames[0] if best is None else best["key"]
    return _Answer([*frames], shown, event, "", has_shown=best is not None)


def _drop_unchanged(corrections: Sequence[Correction], survey: Survey) -> list[Correction]:
    """Leave out images of a package whose rows all came back as the survey stores them: those are no new answers."""
    names = ["id", "kind", "taxon", "count", "method", "classified_at", "source"]
    table = survey.collection.table("observations").select(names)
    rows = [row for row in table.to_pylist() if row["method"] == "human"]
    stored = {
        (row["id"], (row["taxon"] or row["kind"]) if row["kind"] == "animal" else row["kind"], row["count"])
        for row in rows
    }
    # A package that was exported before an answer was corrected holds the earlier one under the same id.
    answered = {row["id"]: row["classified_at"] for row in rows if row["source"].startswith(REVIEW_SOURCE)}
    changed = set()
    for entry in corrections:
        is_stored = (entry.id, entry.label, -1 if entry.count is None else entry.count) in stored
        if not entry.id or not (is_stored or _is_earlier(entry.time, answered.get(entry.id, ""))):
            changed.add(entry.key)
    # Return all entries of a changed image: an answer is about a whole image, so it would hide the unchanged rows
    # beside an edited one.
    return [entry for entry in corrections if entry.key in changed]


def _is_earlier(time: str, than: str) -> bool:
    """Whether one time as written is before another; not, where one of them is none."""
    try:
        return datetime.fromisoformat(time) < datetime.fromisoformat(than)
    except (ValueError, TypeError):  # TypeError: only one has an offset
        return False


def is_confirmation(label: str) -> bool:
    """Whether a label agrees with what was decided, and names nothing."""
    return label.strip().lower() in _CONFIRMED


def find_taxon(taxa: Taxa, label: str) -> int:
    """Return the index of the taxon that a person means by its id, name or common name; -1 for none."""
    index = taxa.index(label) if label in taxa else taxa.find(label)
    if index >= 0:
        return index
    # A common name shared by two taxa is ambiguous, so the label stays as it was written.
    matches = [i for i, name in enumerate(taxa.common) if name and name.lower() == label.lower()]
    return matches[0] if len(matches) == 1 else -1


def _observe(
    key: str,
    number: int,
    survey: Survey,
    correction: Correction,
    taxa: Taxa,
    answer: _Answer,
    *,
    is_event: bool = False,
) -> Observation:
    label = correction.label
    kind = get_kind(label)
    taxon, taxon_id = "", ""
    if kind == "animal" and label.lower() != "animal":
        index = find_taxon(taxa, label)
        taxon, taxon_id = (taxa.names[index], taxa.ids[index]) if index >= 0 else (label, "")
    deployment = int(survey.deployment_N[survey.collection.find_row(key)])
    name, extra = f"{REVIEW_SOURCE}|{key}|{number}", dict[str, str]()
    if answer.answered is not None:
        name += f"|{answer.answered}|{is_event}"
        extra = {ANSWERED: answer.answered} | ({FRAMES: json.dumps(list(answer.keys))} if is_event else {})
    return Observation(
        # A pure function of the answer: a package that was exported is recognized when it comes back (`_resolve`).
        id=hashlib.blake2b(name.encode(), digest_size=8).hexdigest(),
        deployment=survey.deployments[deployment].id if deployment >= 0 else "",
        key=key,
        event=answer.event if is_event else "",
        level="event" if is_event else "media",
        kind=kind,
        taxon=taxon,
        taxon_id=taxon_id,
        count=correction.count,
        method="human",
        classifier=correction.person,
        classified_at=correction.time or tables.now(),
        extra=extra,
    )


def _remove_earlier(path: Path, answers: Sequence[_Answer], digest: str) -> int:
    """Remove earlier answers about the same images and decisions; return how many of images.

    Only rows of a review are ever removed. One about another decision of the event stays.

    Args:
        digest: of the rows of this call.
    """
    images, decided, removed = set[str](), dict[str, set[str]](), 0
    for answer in answers:
        if answer.answered is None:
            images.update(answer.keys)
        for key in answer.keys if answer.answered is not None else ():
            decided.setdefault(key, set()).add(answer.answered or "")
    rows_of_images = {key for answer in answers for label in answer.by_label for key in answer.images(get_kind(label))}

    def is_earlier(key: str, extra: Mapping[str, str]) -> bool:
        if key in images:
            return True
        if ANSWERED not in extra:
            # A row about the image alone; other frames of an event keep theirs.
            return key in rows_of_images
        keys = json.loads(extra[FRAMES]) if FRAMES in extra else (key,)
        names = {name for of_row in keys for name in decided.get(of_row, ())}
        # "" stands for all decisions of an event.
        return bool(names) and (extra[ANSWERED] in names or "" in {*names, extra[ANSWERED]})

    def select(part: pa.Table) -> NDArray[np.bool_]:
        nonlocal removed
        names = ("key", "source", "recipe_hash", "extra", "level")
        is_removed = []
        for key, source, recipe, extra, level in zip(*(part[name].to_pylist() for name in names), strict=True):
            is_review = source.startswith(REVIEW_SOURCE) and recipe != digest
            is_removed.append(is_review and is_earlier(key, json.loads(extra) if extra else {}))
            removed += is_removed[-1] and level != "event"
        return np.array(is_removed, dtype=bool)

    remove_rows(path, "observations", select, purpose="replacing corrections")
    return removed
