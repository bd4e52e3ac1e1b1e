"""Export decisions: Camtrap DP, MegaDetector's results, Wildlife Insights or one flat table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.core.version import __version__
from foveate.records.boxes import Box
from foveate.species.decide_results import image_decisions, merge_decisions, read_decisions
from foveate.species.predictions import DECIDE, FAILED, Predictions
from foveate.species.settings import ExportSettings
from foveate.survey.deployments import describe_digits
from foveate.survey.detections import ClassLabel, Decision, DetectedImage, Detection, Prediction, get_kind
from foveate.survey.exporters.megadetector import MegaDetectorExport, ResultsInfo, export_megadetector
from foveate.survey.exporters.survey_rows import leave_out
from foveate.survey.store import list_deployments
from foveate.survey.taxa import Taxa
from foveate.survey.types import Observation
from foveate.survey.videos import FRAME_RATE, find_video, join_videos

_RANKS = ("class", "order", "family", "genus", "species")
_OPTIONS_OF = {
    "camtrap-dp": ("coordinate_digits", "title", "contributor", "sampling_design", "utc_offset"),
    "wildlife-insights": ("project",),
}
_CATEGORIES = {"animal": "animal", "human": "person", "vehicle": "vehicle"}  # kind -> category of MegaDetector
MIN_PERSON = 0.2
"""Score from which a box shows a person: MegaDetector's typical threshold of a detection."""
_MIN_BLANK = 0.5  # without boxes: from this probability on an image of an animal's event is one of its empty frames


def name_classifier(predictions: Predictions) -> str:
    """Return the name and version of the model, as exports state it."""
    model = predictions.config["model"]
    return f"Foveate {__version__}, {Path(model['path']).parent.name or 'model'} {model['sha256'][:12]}"


def export_predictions(
    predictions: Predictions, path: Path, settings: ExportSettings
) -> tuple[dict[str, Any], list[str]]:
    """Write the decisions of a results folder; return counts and sentences about what was written.

    Raises:
        UserError: nothing is decided yet, or the format needs what the survey does not state.
    """
    for format, names in _OPTIONS_OF.items():
        for name in names if format != settings.format else ():
            if getattr(settings, name) not in (None, ()):
                say(f"--{name.replace('_', '-')} has no effect with --to {settings.format}, only with {format}")
    decisions, events = read_decisions(predictions)
    people, left_out = None, list[str]()
    if settings.exclude_humans:
        people = find_people(predictions)
        decisions, events = leave_out(decisions, events, people)
        left_out = [f"{len(people):,} images with people left out (--exclude-humans)"]
    counts, lines = _export(predictions, path, settings, decisions, events, people)
    return {**counts, **({} if people is None else {"excluded": len(people)})}, [*lines, *left_out]


def find_people(predictions: Predictions) -> frozenset[str]:
    """Return the keys of images that show a person: by an answer, a decision, or a detection of at least 0.2.

    Where a person has said what an image shows, only that counts. One frame with a person is enough for a whole video.
    """
    merged = merge_decisions(predictions)
    answers = {} if merged is None else merged.image_answers()
    decided = predictions.decisions
    people = {
        key
        for kind, keys in zip(decided["kind"].to_pylist(), decided["keys"].to_pylist(), strict=True)
        for key in keys
        if kind == "human"
    }
    columns = zip(*(predictions.boxes[name].to_pylist() for name in ("key", "label", "score")), strict=True)
    people |= {key for key, label, score in columns if score >= MIN_PERSON and get_kind(label) == "human"}
    answered = {key for key, rows in answers.items() if any(row.kind == "human" for row in rows)}
    people = people - answers.keys() | answered
    videos = set(map(find_video, people)) - {""}
    return frozenset(people.union(key for key in predictions.collection_keys if find_video(key) in videos))


def _export(
    predictions: Predictions,
    path: Path,
    settings: ExportSettings,
    decisions: Sequence[Decision],
    events: Mapping[str, Sequence[str]],
    without: frozenset[str] | None,
) -> tuple[dict[str, Any], list[str]]:
    classifier = name_classifier(predictions)
    if settings.format == "megadetector":
        export = write_megadetector(predictions, path, without=without or frozenset())
        counts = {name: getattr(export, name) for name in ("images", "detections", "failures", "made_up")}
        lines = [f"{export.images:,} images with {export.detections:,} boxes, {export.failures:,} failures"]
        if export.made_up:
            lines.append(f"{export.made_up:,} images have a class and no box: the whole frame stands for one")
        return counts, lines
    if settings.format == "camtrap-dp":
        from foveate.survey.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp

        # Passes only what was given, because the exporter has its own defaults.
        values = {
            name: value for name in _OPTIONS_OF["camtrap-dp"] if (value := getattr(settings, name)) not in (None, ())
        }
        options = validate(CamtrapSettings, {**values, "classifier": classifier}, where="foveate species export")
        package = export_camtrap_dp(
            predictions.collection,
            path,
            settings=options,
            decisions=decisions,
            events=events,
            taxa=predictions.taxa,
            without=without,
        )
        recorded = describe_digits(list_deployments(predictions.collection))
        rows = ", ".join(f"{count:,} {table}" for table, count in package.rows.items())
        counted = [f"{count:,} {what}" for what, count in package.counts.items()]
        return {"rows": package.rows, **package.counts}, [rows, recorded, *counted, *package.notes]
    if settings.format == "wildlife-insights":
        from foveate.survey.exporters.image_tables import export_wildlife_insights

        if settings.project is None:
            raise UserError("--project is missing: Wildlife Insights needs the id of a project")
        written = export_wildlife_insights(
            predictions.collection,
            path,
            project=settings.project,
            classifier=classifier,
            decisions=decisions,
            events=events,
            taxa=predictions.taxa,
            without=without,
        )
        lines = [f"{count:,} labels left out: {reason}" for reason, count in written.left_out.items()]
        return {"lines": written.lines, "left_out": dict(written.left_out)}, [f"{written.lines:,} lines", *lines]
    from foveate.survey.exporters.image_tables import export_observations_csv

    count = export_observations_csv(
        predictions.collection, path, decisions=decisions, events=events, taxa=predictions.taxa, without=without
    )
    return {"lines": count}, [f"{count:,} lines"]


def write_megadetector(
    predictions: Predictions, path: Path, *, without: frozenset[str] = frozenset()
) -> MegaDetectorExport:
    """Write boxes with the decided taxa in MegaDetector's format 1.6, which Timelapse opens.

    Args:
        without: keys of images that are left out.
    """
    sources = sorted({row.removeprefix("detector:") for row in predictions.boxes["source"].unique().to_pylist()})
    # MegaDetector writes times without an offset and with a space between date and time.
    decided = read_json(predictions.folder / DECIDE)["created"][:19].replace("T", " ")
    info = ResultsInfo(
        detector=", ".join(sources) or "no detector",
        classifier=name_classifier(predictions),
        detected_at=predictions.config["created"][:19].replace("T", " "),
        classified_at=decided,
    )
    return export_megadetector(path, join_videos(_list_images(predictions, without), _find_frames(predictions)), info)


def _find_frames(predictions: Predictions) -> dict[str, tuple[int, float]]:
    """Return number and frame rate of each frame of a video, by its key."""
    if not any(map(find_video, predictions.collection_keys)):
        return {}
    survey = predictions.survey
    columns = (survey.media[name].to_pylist() for name in ("frame_number", "extra"))
    rows = zip(survey.keys, *columns, strict=True)
    return {key: (number, float(json.loads(extra)[FRAME_RATE])) for key, number, extra in rows if find_video(key)}


def _list_images(predictions: Predictions, without: frozenset[str]) -> Iterator[tuple[str, DetectedImage]]:
    """Yield what is known of each image, with its key."""
    decisions = predictions.decisions.to_pylist()
    merged = merge_decisions(predictions)
    answers = merged.image_answers() if merged is not None else {}
    reviewed = merged.reviewed if merged is not None else {}
    owners: dict[str, list[int]] = {}
    owner_of_box: dict[int, int] = {}
    for index, decision in enumerate(decisions):
        owner_of_box |= dict.fromkeys(decision["boxes"], index)
        for key in decision["keys"]:
            owners.setdefault(key, []).append(index)
    boxes: dict[str, list[dict[str, Any]]] = {}
    for index, box in enumerate(predictions.boxes.to_pylist()):
        # Only a box that the model saw has a class of its own.
        owner = owner_of_box.get(index) if box["crop"] >= 0 else None
        boxes.setdefault(box["key"], []).append({**box, "owner": owner})
    # A model of whole images has seen no box more than another.
    is_whole = predictions.config["view"]["view"] == "whole"
    scored = [_label(decision, predictions.taxa) for decision in decisions]
    labels = predictions.classes.labels
    # The probability of "blank" is read only if there are no boxes, which otherwise show the empty frames.
    blank_N = predictions.class_probabilities(labels.index("blank")) if "blank" in labels and not boxes else None
    for number, row in enumerate(predictions.images.to_pylist()):
        if row["key"] in without:
            continue
        of_image = boxes.get(row["key"], [])
        for owner in owners.get(row["key"], ()) if is_whole else ():
            of_image = _mark_best(of_image, owner, decisions[owner]["kind"])
        shown = [None if box["owner"] is None else scored[box["owner"]] for box in of_image]
        if answer := answers.get(row["key"]):
            # A second species that nobody has answered stays on its boxes.
            stays = set() if merged is None else set(merged.open_decisions(row["key"]))
            shown = [of_box if box["owner"] in stays else None for box, of_box in zip(of_image, shown, strict=True)]
            # A person saw more of an image that cannot be read any more, or has no box, than the detector.
            names = ["" if box["owner"] is None else decisions[box["owner"]]["name"] for box in of_image]
            detections = _answer_boxes(of_image, shown, names, answer, predictions.taxa, row["key"] in reviewed)
            yield row["key"], DetectedImage(row["file"], tuple(detections), time=row["time"])
            continue
        if row["status"] == FAILED:
            yield row["key"], DetectedImage(row["file"], failure=row["failure"])
            continue
        if row["key"] not in owners:
            image_decisions(predictions, [row["key"]])  # raises its error
        detections = [_detect(box, of_box) for box, of_box in zip(of_image, shown, strict=True)]
        prediction = None
        first = scored[owners[row["key"]][0]]
        # A frame without a box, of a survey with boxes, is one that the animal had left.
        if not boxes and first is not None:
            is_blank = blank_N is not None and blank_N[number] > _MIN_BLANK
            prediction = None if is_blank else Prediction(*first)
        yield row["key"], DetectedImage(row["file"], tuple(detections), prediction=prediction, time=row["time"])


def _mark_best(boxes: Sequence[Mapping[str, Any]], owner: int, kind: str) -> list[dict[str, Any]]:
    """Return the boxes of an image; the most confident one of the kind of a decision shows that decision."""
    rivals = [index for index, box in enumerate(boxes) if get_kind(box["label"]) == kind]
    best = max(rivals, key=lambda index: boxes[index]["score"], default=-1)
    return [{**box, "owner": owner} if index == best else dict(box) for index, box in enumerate(boxes)]


def _detect(box: Mapping[str, Any], scored: tuple[ClassLabel, float] | None) -> Detection:
    kind = get_kind(box["label"])
    category = _CATEGORIES.get(kind, "animal")
    # A class of an event never goes to a person or vehicle next to the animal, whose category says it all.
    is_named = scored is not None and bool(scored[0].taxon) and scored[0].kind == kind
    classes = (scored,) if scored is not None and is_named else ()
    corners = Box(box["x1"], box["y1"], box["x2"], box["y2"])
    return Detection(category, box["score"], corners, classifications=classes)


def _answer_boxes(
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[ClassLabel, float] | None],
    names: Sequence[str],
    answers: Sequence[Observation],
    taxa: Taxa,
    is_own: bool,
) -> list[Detection]:
    """Return the boxes of an image with what people say of it, in place of the classes of the model.

    A person's answer goes to the boxes of its kind that the model saw, else to the best one of its kind, else to the
    best of another kind, which becomes one of it. Of several species each goes to the boxes that the model called so,
    else to the best box that is left. An image without any finding of a person has no box, as the format writes an
    empty image.

    Args:
        shown: class of each box that stays, because nobody has answered its decision.
        names: name that was decided for each box.
        is_own: whether the answers are about this image, which is certain then, and gets a box of the whole frame where
            it has none; in other frames of an event the animal may be missing.
    """
    if all(answer.kind == "blank" for answer in answers):
        return []
    detections = [_detect(box, of_box) for box, of_box in zip(rows, shown, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: (-rows[index]["used"], -rows[index]["score"]))
    order = [index for index in order if shown[index] is None]
    categories = {_CATEGORIES[answer.kind]: answer.kind for answer in answers if answer.kind in _CATEGORIES}
    for category, kind in categories.items():
        # Only animals get a class: for people and vehicles the category of the box is enough.
        named = [answer for answer in answers if answer.kind == kind == "animal" and answer.taxon]
        boxes = [index for index in order if detections[index].category == category]
        if not boxes:
            boxes = [index for index in order if detections[index].category not in categories][:1]
            detections += [Detection(category, 1.0, Box(0.0, 0.0, 1.0, 1.0))] if is_own and not boxes else []
            boxes = boxes or ([len(detections) - 1] if is_own else [])
            for index in boxes:
                detections[index] = replace(detections[index], category=category, confidence=1.0)
        # Boxes that the model did not see are too weak to be the animals of the answer, but for the best.
        seen = [index for index in boxes if index < len(rows) and rows[index]["owner"] is not None] or boxes[:1]
        chosen = _deal_answers(named, seen, names) if named else {index: [] for index in boxes[:1]}
        for index, of_box in chosen.items():
            classes = tuple((_name_class(answer.taxon, answer.taxon_id, taxa), 1.0) for answer in of_box)
            box = replace(detections[index], classifications=classes)
            # Timelapse hides boxes of low confidence.
            detections[index] = replace(box, confidence=1.0) if is_own and index in boxes[:1] else box
    return detections


def _deal_answers(
    named: Sequence[Observation], boxes: Sequence[int], names: Sequence[str]
) -> dict[int, list[Observation]]:
    """Return the answers of each box; one species goes to all, of several each to its own."""
    if len(named) == 1:
        return {index: [named[0]] for index in boxes}
    dealt: dict[int, list[Observation]] = {}
    for answer in named:
        for index in boxes:
            if index < len(names) and names[index] == answer.taxon:
                dealt[index] = [answer]
    for answer in named:
        if all(answer not in of_box for of_box in dealt.values()):
            # More species than boxes share the best one.
            index = next((index for index in boxes if index not in dealt), boxes[0] if boxes else -1)
            if index >= 0:
                dealt.setdefault(index, []).append(answer)
    return dealt


def _label(decision: Mapping[str, Any], taxa: Taxa) -> tuple[ClassLabel, float] | None:
    """Return the class of a decision; None for one that names nothing, or nothing beyond the box."""
    if decision["kind"] in ("unknown", "unclassified", "blank"):
        return None
    return _name_class(decision["name"], decision["taxon"], taxa), decision["score"]


def _name_class(name: str, taxon_id: str, taxa: Taxa) -> ClassLabel:
    """Return the class of a taxon, with its lineage where the taxonomy knows it."""
    # For "human" or a label that matched no taxon, the name is all that is known.
    if taxon_id not in taxa:
        return ClassLabel(name)
    taxon = taxa.index(taxon_id)
    lineage = {rank: taxa.names[index] for rank in _RANKS if (index := taxa.at_rank(taxon, rank)) >= 0}
    name = taxa.common[taxon] or taxa.names[taxon]
    return ClassLabel.from_lineage(name.lower(), taxa.ids[taxon], lineage)
