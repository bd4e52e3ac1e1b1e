"""Rank events for review by a person, as a contact sheet and a table to fill in.

The priority of an event is what a review can change: the probability that its answer is wrong or too general, one over
the number of events with that answer (the only ocelot of a survey decides whether there are ocelots), and the
detector's confidence in an animal where the answer is blank.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file, write_bytes_atomically, write_json_atomically
from foveate.core.results import BoxValues
from foveate.records import layout, tables
from foveate.records.annotate import remove_rows
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.tables import Provenance
from foveate.species.decide_results import best_detections, merge_decisions, open_survey
from foveate.species.predictions import DECISIONS, Predictions
from foveate.species.results import ReviewEntry, ReviewImage, SpeciesReviewResult
from foveate.species.rows import DETECTED
from foveate.species.taxonomy import open_taxa
from foveate.survey.detections import get_kind
from foveate.survey.exporters.survey_rows import SurveyRows
from foveate.survey.file_index import FileIndex
from foveate.survey.importers.corrections import Correction
from foveate.survey.store import REVIEW_SOURCE
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Observation, observation_row

SHEET, TABLE, _RESULT = "sheet.png", "review.csv", "result.json"
_MAX_FRAMES = 4  # frames of an event on the sheet
_SIDE = 420
_COLUMNS, _TILE, _LABEL = 6, 260, 40  # layout of the sheet; the last two in pixels
_BLANK_DETECTION = 0.5  # from this confidence on a detector contradicts "blank"
COLUMNS = (
    "event", "key", "file", "images", "deployment", "time", "answer", "rank", "score", "alternatives", "priority",
    "reason", "correction", "remark",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReviewEvent:
    """A decision to review.

    Attributes:
        row: in the table of decisions.
        priority: the larger, the more a review can change.
        reasons: why, in words.
        is_answered: whether a person has answered it.
    """

    row: int
    priority: float
    reasons: tuple[str, ...]
    is_answered: bool = False


def rank_events(predictions: Predictions) -> list[ReviewEvent]:
    """Order decisions by priority, highest first; those without a readable image are left out.

    Decisions that a person has answered come last: another review would change nothing.
    """
    decisions = predictions.decisions.to_pylist()
    merged = merge_decisions(predictions)
    answered = [] if merged is None else [merged.is_answered(decision) for decision in merged.decisions or ()]
    detections = best_detections(predictions)
    rows = tables.positions(predictions.decisions["key"], among=predictions.images["key"])
    uses = Counter(row["name"] for row in decisions if row["kind"] == "animal")
    events = []
    for index, row in enumerate(decisions):
        # An unclassified event has no readable image, so there is nothing to review.
        if row["kind"] == "unclassified":
            continue
        if answered and answered[index]:
            events.append(ReviewEvent(index, 0.0, ("answered by a person",), is_answered=True))
            continue
        alternatives = json.loads(row["alternatives"])
        # Compute the share that the answer leaves open: "Felidae 0.9" leaves the species open, and the best of them has
        # a lower score.
        best = alternatives[0][1] if alternatives else 0.0
        open_share = 1 - min(row["score"], best) if alternatives else 1.0
        reasons = []
        if row["kind"] == "unknown":
            reasons.append("no answer")
        elif row["rank"] not in ("species", "subspecies", "") and row["kind"] == "animal":
            reasons.append(f"only to {row['rank']}")
        elif open_share > 0.2:
            reasons.append(f"unsure: {row['score']:.2f}")
        priority = open_share
        if row["kind"] == "animal" and uses[row["name"]] <= 3:
            priority += 1 / uses[row["name"]]
            reasons.append(f"one of {uses[row['name']]} with this answer" if uses[row["name"]] > 1 else "the only one")
        if detections is not None and row["kind"] == "blank":
            image = int(rows[index])
            kind, score = int(detections.kinds_N[image]), float(detections.scores_N[image])
            if kind >= 0 and score >= _BLANK_DETECTION:
                priority += score
                reasons.append(f"blank, but the detector has an {DETECTED[kind]} of {score:.2f}")
        events.append(ReviewEvent(index, round(priority, 4), tuple(reasons)))
    return sorted(events, key=lambda event: (event.is_answered, -event.priority, event.row))


def write_review(
    predictions: Predictions, folder: Path, *, max_events: int, command: Sequence[str] = ()
) -> SpeciesReviewResult:
    """Write result.json with thumbnails for the page, the contact sheet as PNG, and the table to fill in.

    Args:
        folder: created if it does not exist. A table that was changed after it was written stays; the new one gets a
            number then.
    """
    decisions = predictions.decisions.to_pylist()
    ranked = rank_events(predictions)
    events = ranked[:max_events]
    folder.mkdir(parents=True, exist_ok=True)
    table = _free_path(folder)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    # Draws only the box that the model saw: the others had no part in the answer.
    boxes = predictions.used_boxes
    times: dict[str, str] = {}
    if open_survey(predictions) is not None:
        # As exports write it: ISO 8601, after the shift of the clock.
        rows = SurveyRows(predictions.collection)
        times = {key: rows.times[row] for key, row in rows.keys.items()}
    entries, frames = [], []
    for event in events:
        row = decisions[event.row]
        row = {**row, "time": times.get(row["key"], "")}
        best = json.loads(row["alternatives"])[:3]
        line = {name: row[name] for name in ("event", "key", "file", "deployment", "time", "rank")}
        line |= {"images": len(row["keys"]), "answer": row["name"], "score": f"{row['score']:.4f}"}
        line |= {"alternatives": "; ".join(f"{name} {score:.2f}" for name, score in best)}
        line |= {"priority": f"{event.priority:.4f}", "reason": "; ".join(event.reasons)}
        writer.writerow({**line, "correction": "", "remark": ""})
        images = _save_frames(predictions, row, boxes, folder)
        frames.append([(folder / image.image, image.box) for image in images])
        entries.append(
            ReviewEntry(
                event=row["event"] or row["key"],
                file=row["file"],
                deployment=row["deployment"],
                time=row["time"],
                answer=row["name"],
                rank=row["rank"],
                score=row["score"],
                alternatives=[(name, score) for name, score in best],
                reasons=list(event.reasons),
                num_images=len(row["keys"]),
                images=images,
            )
        )
    content = buffer.getvalue().encode("utf-8")
    write_bytes_atomically(table, content)
    if any(frames):
        write_bytes_atomically(folder / SHEET, _draw_sheet(entries, frames))
    result = SpeciesReviewResult(
        command=list(command),
        decisions=len(ranked),
        events=entries,
        table=table.name,
        table_sha256=hashlib.sha256(content).hexdigest(),
        sheet=SHEET if any(frames) else "",
    )
    # Write the result last: a table whose hash no result names counts as a person's work and is never overwritten.
    write_json_atomically(folder / _RESULT, result.to_json())
    return result


def _free_path(folder: Path) -> Path:
    """Return the path of the table, numbered past all but the untouched one of the last call.

    Tables are compared by their bytes: spreadsheets change delimiter and encoding, and people write into any column.
    """
    last: Any = None
    with suppress(UserError):
        last = read_json(folder / _RESULT)
    written = (last.get("table"), last.get("table_sha256")) if isinstance(last, dict) else None
    number, target = 1, folder / TABLE
    while target.exists() and (target.name, sha256_file(target)) != written:
        number += 1
        target = (folder / TABLE).with_stem(f"{Path(TABLE).stem}-{number}")
    return target


def _save_frames(
    predictions: Predictions, row: Mapping[str, Any], boxes: Mapping[str, BoxValues], folder: Path
) -> list[ReviewImage]:
    """Write thumbnails of an event, the image that shows it best first."""
    keys = [row["key"], *(key for key in row["keys"] if key != row["key"])][:_MAX_FRAMES]
    frames = []
    for key in keys:
        image_row = predictions.collection.find_row(key)
        path = f"images/{image_row:06d}.webp"
        try:
            save_thumbnail(predictions.collection.image_bytes(image_row), folder / path, longest_side=_SIDE)
        except BadImage:
            continue
        frames.append(ReviewImage(image=path, box=boxes.get(key)))
    return frames


def _open_tile(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        # Pillow decodes lazily, so the pixels must be read before the file is closed.
        image = opened.convert("RGB")
    image.thumbnail((_TILE - 8, _TILE - 8))
    return image


def _draw_sheet(entries: Sequence[ReviewEntry], frames: Sequence[Sequence[tuple[Path, Any]]]) -> bytes:
    """Draw the first image of each event with its box and answer, as PNG."""
    columns = min(_COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    tiles = [[_open_tile(path) for path, _ in images[:1]] for images in frames]
    # Images of cameras are wide: square tiles would leave a third of the sheet empty.
    height = max((tile.height for images in tiles for tile in images), default=0) + 8
    sheet = Image.new("RGB", (columns * _TILE, rows * (height + _LABEL)), (250, 249, 246))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for number, (entry, images) in enumerate(zip(entries, frames, strict=True)):
        left, top = number % columns * _TILE, number // columns * (height + _LABEL)
        for (_, box), image in zip(images, tiles[number], strict=False):
            x, y = left + (_TILE - image.width) // 2, top + (height - image.height) // 2
            sheet.paste(image, (x, y))
            if box is not None:
                corners = [x + box[0] * image.width, y + box[1] * image.height]
                corners += [x + box[2] * image.width, y + box[3] * image.height]
                # Dark around the line and not inside: boxes of a few pixels must stay visible.
                pen.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=(0, 0, 0))
                pen.rectangle(corners, outline=(255, 140, 30), width=2)
        for line, text in enumerate((f"{number + 1}. {entry.answer} {entry.score:.2f}", "; ".join(entry.reasons))):
            shortened = text
            while shortened and font.getlength(shortened) > _TILE - 12:
                shortened = shortened[:-2]
            pen.text((left + 6, top + height + 18 * line), shortened, font=font, fill=(40, 36, 30))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# Add people's answers to a survey: our review table, any table, Timelapse or Camtrap DP.
#
# They become observations of the survey with the method "human", so that the next training learns from them. Imported
# rows stay on disk; earlier answers of a review about the same images are removed, from whatever file they came. A
# results folder says in addition what a confirmation ("ok") confirms and which images an event has; a survey alone is
# enough for all other answers.


_CONFIRMED = ("ok", "yes", "right", "correct")


@dataclass(slots=True)
class CorrectionsSummary:
    """Counts of `apply_corrections`.

    Attributes:
        images: with a new answer. blank: of them empty.
        replaced: earlier answers of a review about these images, of whatever file, which were removed.
        unmatched: corrections of files that are not in the survey.
        also_labeled: images that a person had labeled differently: the answer holds; an imported row stays on disk.
        new_names: names that are no known taxon -> images.
    """

    images: int = 0
    blank: int = 0
    replaced: int = 0
    unmatched: list[str] = field(default_factory=list)
    also_labeled: int = 0
    new_names: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Format the counts for people."""
        lines = [f"{self.images:,} images have an answer of a person now, {self.blank:,} of them: blank"]
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


def apply_corrections(target: ReviewTarget, corrections: Sequence[Correction], path: Path) -> CorrectionsSummary:
    """Add the answers to a survey as observations of a person.

    An answer about an event of our review table belongs to the image that was shown first, since an animal leaves some
    frames of its burst; "blank" belongs to all of its images.

    Args:
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
    rows = []
    unknown = Counter[str]()
    for key, entries in answers.items():
        row = collection.find_row(key)
        observations = [
            _observe(key, number, survey, row, entry, taxa) for number, entry in enumerate(entries.values())
        ]
        unknown.update(entry.taxon for entry in observations if entry.kind == "animal" and not entry.taxon_id)
        summary.images += 1
        summary.blank += observations[0].kind == "blank"
        # A label of the survey is an id, a name or a kind, so the same answer in another form is no change.
        names = {name for entry in observations for name in (entry.taxon_id, entry.taxon, entry.kind) if name}
        summary.also_labeled += bool(others[row]) and others[row] not in names
        rows += [observation_row(entry) for entry in observations]
    summary.new_names = {name: count for name, count in unknown.items() if name}
    # Called before the new rows are written: it goes by key and review source, and would remove them as well.
    summary.replaced = _remove_earlier(collection.path, set(answers))
    with AnnotationAppender(collection.path, purpose="adding corrections") as appender:
        appender.append("observations", rows, Provenance(source=f"{REVIEW_SOURCE}{path.name}"))
    return summary


def _resolve(
    target: ReviewTarget, corrections: Sequence[Correction], summary: CorrectionsSummary
) -> dict[str, dict[str, Correction]]:
    """Return the answers about each image by their label; of one label the last, of a package their sum."""
    survey = target.survey
    keys = set(survey.keys)
    corrections = _drop_unchanged(corrections, survey)
    # Group by image: an event has an answer for its people, and another for its animals.
    owners: dict[str, dict[str, Any]] = {}
    decided: dict[str, str] = {}
    # Rows are converted only if an answer needs them: a survey has far more decisions than answers.
    if target.decisions is not None and any(entry.event or _confirms(entry.label) for entry in corrections):
        for row in target.decisions.to_pylist():
            owners |= dict.fromkeys(row["keys"], row)
            decided |= dict.fromkeys(row["keys"], row["name"] if row["kind"] == "animal" else row["kind"])
    index = FileIndex(survey.media["file"].to_pylist(), survey.keys)
    # Each file once: an image with two kinds has two rows, and two paths of one image would be rivals.
    files = list(dict.fromkeys(correction.file for correction in corrections))
    row_of = dict(zip(files, index.find_all(files)[0], strict=True))
    answers: dict[str, dict[str, Correction]] = {}
    for correction in corrections:
        row = row_of[correction.file]
        key = correction.key if correction.key in keys else survey.keys[row] if row >= 0 else ""
        if not key:
            summary.unmatched.append(correction.file or correction.key)
            continue
        label = correction.label
        if _confirms(label):
            label = decided.get(key, "")
            if label in ("", "unknown", "unclassified"):
                raise UserError(f"{correction.where}: {correction.label!r} confirms no answer; expected a name")
        owner = owners.get(key, {"event": "", "keys": (key,)})
        is_blank_event = bool(correction.event) and owner["event"] == correction.event and get_kind(label) == "blank"
        for member in owner["keys"] if is_blank_event else (key,):
            # Key by label: two species on one image are two answers, the same one twice is a correction of it.
            of_image, count = answers.setdefault(member, {}), correction.count
            earlier = of_image.get(label)
            if earlier is not None and earlier.id and correction.id not in ("", earlier.id):
                # Rows of a package are individuals or groups, each with an id of its own.
                count = (earlier.count or 1) + (count or 1)
            of_image[label] = replace(correction, label=label, count=count)
    return answers


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


def _confirms(label: str) -> bool:
    return label.strip().lower() in _CONFIRMED


def _observe(key: str, number: int, survey: Survey, row: int, correction: Correction, taxa: Taxa) -> Observation:
    label = correction.label
    kind = get_kind(label)
    taxon, taxon_id = "", ""
    if kind == "animal" and label.lower() != "animal":
        index = taxa.index(label) if label in taxa else taxa.find(label)
        if index < 0:
            # A common name shared by two taxa is ambiguous, so the label stays as it was written.
            matches = [i for i, name in enumerate(taxa.common) if name and name.lower() == label.lower()]
            index = matches[0] if len(matches) == 1 else -1
        taxon, taxon_id = (taxa.names[index], taxa.ids[index]) if index >= 0 else (label, "")
    deployment = int(survey.deployment_N[row])
    return Observation(
        # A pure function of the answer: a package that was exported is recognized when it comes back (`_resolve`).
        id=hashlib.blake2b(f"{REVIEW_SOURCE}|{key}|{number}".encode(), digest_size=8).hexdigest(),
        deployment=survey.deployments[deployment].id if deployment >= 0 else "",
        key=key,
        kind=kind,
        taxon=taxon,
        taxon_id=taxon_id,
        count=correction.count,
        method="human",
        classifier=correction.person,
        classified_at=correction.time or tables.now(),
    )


def _remove_earlier(path: Path, keys: set[str]) -> int:
    """Remove earlier answers about these images; only rows of a review are ever removed."""

    def select(part: pa.Table) -> NDArray[np.bool_]:
        columns: Mapping[str, list[str]] = {name: part[name].to_pylist() for name in ("key", "source")}
        return np.array(
            [
                source.startswith(REVIEW_SOURCE) and key in keys
                for key, source in zip(columns["key"], columns["source"], strict=True)
            ],
            dtype=bool,
        )

    return remove_rows(path, "observations", select, purpose="replacing corrections")
