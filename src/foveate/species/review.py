"""Rank events for review by a person, as a contact sheet and a table to fill in.

The priority of an event is what a review can change: the probability that its answer is wrong or too general, one over
the number of events with that answer (the only ocelot of a survey decides whether there are ocelots), and the
detector's confidence in an animal where the answer is blank.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file, write_bytes_atomically, write_json_atomically
from foveate.core.results import BoxValues
from foveate.core.tables import SafeWriter
from foveate.records import tables
from foveate.records.images import BadImage, save_thumbnail
from foveate.species.decide_results import best_detections, merge_decisions, open_survey
from foveate.species.predictions import Predictions
from foveate.species.results import ReviewEntry, ReviewImage, SpeciesReviewResult
from foveate.species.rows import DETECTED
from foveate.survey.exporters.survey_rows import SurveyRows

SHEET, TABLE, _RESULT = "sheet.png", "review.csv", "result.json"
_MAX_FRAMES = 4  # frames of an event on the sheet
_SIDE = 420
_COLUMNS, _TILE, _LABEL = 6, 260, 40  # layout of the sheet; the last two in pixels
_BLANK_DETECTION = 0.5  # from this confidence on a detector contradicts "blank"
COLUMNS = (
    "event", "key", "file", "images", "deployment", "time", "answer", "counted", "rank", "score", "alternatives",
    "priority", "reason", "count", "correction", "remark",
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
    answered = [] if merged is None else merged.answered
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
    # An answer that is wrong is changed in its own table, which stays.
    ranked = [event for event in rank_events(predictions) if not event.is_answered]
    events = ranked[:max_events]
    folder.mkdir(parents=True, exist_ok=True)
    table = _free_path(folder)
    buffer = io.StringIO()
    writer = SafeWriter(buffer, COLUMNS)
    # Draws only the box that the model saw: the others had no part in the answer.
    boxes = predictions.box_corners
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
        line["counted"] = row["count"] or ""
        writer.writerow({**line, **dict.fromkeys(("correction", "count", "remark"), "")})
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
                count=row["count"],
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
    predictions: Predictions, row: Mapping[str, Any], boxes: Sequence[BoxValues], folder: Path
) -> list[ReviewImage]:
    """Write thumbnails of an event, the image that shows it best first, each with the surest box of the answer."""
    owners = predictions.boxes["key"]
    # Backwards, so that the surest of an image remains.
    best = {owners[index].as_py(): boxes[index] for index in reversed(row["boxes"])}
    keys = [row["key"], *(key for key in row["keys"] if key != row["key"])][:_MAX_FRAMES]
    frames = []
    for key in keys:
        image_row = predictions.collection.find_row(key)
        path = f"images/{image_row:06d}.webp"
        try:
            save_thumbnail(predictions.collection.image_bytes(image_row), folder / path, longest_side=_SIDE)
        except BadImage:
            continue
        frames.append(ReviewImage(image=path, box=best.get(key)))
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
