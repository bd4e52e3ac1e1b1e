"""Decide about a results folder: its probabilities, the survey's events, places and hours, and the stages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import write_json_atomically
from foveate.core.recipes import Settings
from foveate.records import tables
from foveate.records.boxes import Box
from foveate.records.region_sources import DETECTED as DETECTED_SOURCE
from foveate.species.crops import NANODET
from foveate.species.decisions import Decisions, decide, prepare_stages
from foveate.species.predictions import DECIDE, DECISIONS, Predictions
from foveate.species.rows import ABSTAINED, DETECTED, FAILED, BestDetections
from foveate.species.stages.detector import LABELS as DETECTOR_LABELS
from foveate.species.subjects import Boxes, Subjects, find_subjects
from foveate.species.taxonomy import NON_ANIMALS, add_labels
from foveate.survey.detections import Decision, get_kind
from foveate.survey.exporters.survey_rows import MergedObservations, SurveyRows
from foveate.survey.hours import GAP_SECONDS, Events
from foveate.survey.survey import Survey
from foveate.survey.types import ObservationKind
from foveate.survey.videos import find_video, select_shown


def decide_results(predictions: Predictions, stages: Settings, *, gap_seconds: float = GAP_SECONDS) -> pa.Table:
    """Decide about all images of a results folder; write and return the table of decisions.

    Args:
        stages: a `foveate.species.decisions.Stages`.
        gap_seconds: a longer gap between two images begins a new event.

    Raises:
        UserError: a file or name of the settings is wrong, or the collection of the folder has gone.
    """
    detections = best_detections(predictions)
    classes = predictions.classes
    if detections is not None and detections.is_judged_N is not None:
        # The detector answers with them, whether the model knows them or not.
        classes = add_labels(classes, DETECTOR_LABELS)
    prepared = prepare_stages(stages, classes, predictions.taxa)
    survey = open_survey(predictions)
    events = None if survey is None else survey.events(gap_seconds=gap_seconds)
    if detections is None:
        count = len(predictions.collection_keys)
        detections = BestDetections(np.zeros(count, dtype=np.int64), np.ones(count))
    subjects = find_subjects(_read_boxes(predictions), detections, _find_threshold(stages))
    images_S = subjects.images_S
    context: dict[str, Any] = {"events": images_S}
    if survey is not None and events is not None:
        # Days of the stages count from 0, those of a survey from 1.
        rows = predictions.rows[images_S]
        context = {"events": events.event_N[rows], "places": survey.places_N2[rows]}
        context |= {"hours": survey.hour_N[rows], "days": survey.day_N[rows] - 1}
    if len(subjects) > len(detections.kinds_N):
        context["frames"] = images_S
    decisions = decide(
        predictions.store_subjects(images_S, subjects.crops_S, len(classes)),
        classes,
        predictions.taxa,
        prepared,
        detections=subjects.detections,
        **context,
    )
    table = _to_table(predictions, decisions, subjects, survey, events)
    if not decisions.is_pooled:
        table = join_frames(predictions, table)
    tables.write_table(predictions.folder / DECISIONS, table)
    settings = {"stages": stages.model_dump(mode="json"), "gap_seconds": gap_seconds, "events": decisions.is_pooled}
    write_json_atomically(predictions.folder / DECIDE, {**settings, "created": tables.now()})
    return table


def open_survey(predictions: Predictions) -> Survey | None:
    """Return the survey of a results folder, None where its collection is none."""
    return predictions.survey if predictions.collection.has_survey else None


def best_detections(predictions: Predictions) -> BestDetections | None:
    """Return the best detection of each image; None where no detector looked at any image."""
    boxes = _read_boxes(predictions)
    is_judged_N = _find_judged(predictions)
    rows_B, kinds_B, scores_B = boxes.images_B, boxes.kinds_B, boxes.scores_B
    if not len(rows_B) and not is_judged_N.any():
        return None
    count = len(predictions.collection_keys)
    kinds_N, scores_N = np.full(count, -1, dtype=np.int64), np.zeros(count)
    # Write boxes in ascending order of score, so that the best one remains; the first of equal scores is written last.
    order = np.lexsort((-np.arange(len(rows_B)), scores_B))
    kinds_N[rows_B[order]], scores_N[rows_B[order]] = kinds_B[order], scores_B[order]
    return BestDetections(kinds_N, scores_N, is_judged_N if is_judged_N.any() else None)


def _read_boxes(predictions: Predictions) -> Boxes:
    boxes = predictions.boxes
    # An object of NanoDet and a species of a local detector are animals.
    kinds = [get_kind(label) for label in boxes["label"].to_pylist()]
    return Boxes(
        tables.positions(boxes["key"], among=pa.array(predictions.collection_keys, pa.string())),
        np.array([DETECTED.index(kind) if kind in DETECTED else -1 for kind in kinds], dtype=np.int64),
        boxes["score"].to_numpy(),
        boxes["crop"].to_numpy(),
        np.stack([boxes[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1),
    )


def _find_threshold(stages: Settings) -> float | None:
    """Return the score from which a box counts; None where the detector decides nothing."""
    detector, rules = (getattr(stages, name) for name in ("detector", "rules"))
    return detector.threshold if detector.enabled and rules.rules == "none" else None


def _find_judged(predictions: Predictions) -> NDArray[np.bool_]:
    """Return which images a detector with categories looked at."""
    images = predictions.images.filter(predictions.images["scored"])
    if "detector" in images.column_names:
        return np.array([bool(name) for name in images["detector"].to_pylist()], dtype=bool)
    # Older folders have no such column: images without a box may not have been looked at.
    sources = predictions.boxes.select(["key", "source"]).to_pylist()
    keys = {row["key"] for row in sources if row["source"].startswith(DETECTED_SOURCE) and row["source"] != NANODET}
    return np.array([key in keys for key in images["key"].to_pylist()], dtype=bool)


def name_events(survey: Survey, events: Events) -> list[str]:
    """Return an id of each event: the source's sequence, or deployment and number."""
    sequences = survey.media["sequence"].to_pylist()
    ids = [deployment.id for deployment in survey.deployments]
    first = events.order_N[events.starts[:-1]].tolist()
    owners = {(sequences[row], int(survey.deployment_N[row])) for row in first if sequences[row]}
    # A sequence id is unique only within its deployment: together they name an event.
    shared = {name for name, uses in Counter(name for name, _ in owners).items() if uses > 1}
    names, counts = [], Counter[str]()
    for row in first:
        sequence, index = sequences[row], int(survey.deployment_N[row])
        deployment = ids[index] if index >= 0 else ""
        counts[deployment] += 1
        if sequence:
            names.append(f"{deployment}:{sequence}" if sequence in shared else sequence)
        else:
            names.append(f"{deployment}:{counts[deployment]:05d}")
    return names


def _to_table(
    predictions: Predictions,
    decisions: Decisions,
    subjects: Subjects,
    survey: Survey | None,
    events: Events | None,
) -> pa.Table:
    keys = pa.array(predictions.collection_keys, pa.string())
    images = predictions.images
    event_N, order_N = np.arange(len(keys)), np.arange(len(keys))
    if events is not None:
        # First image of an event first.
        order_N = np.argsort(np.argsort(events.order_N)[predictions.rows], kind="stable")
        event_N = events.event_N[predictions.rows] if decisions.is_pooled else event_N
    owners_S, chosen_R = _join_equal(decisions, event_N[subjects.images_S])
    best_R = subjects.images_S[decisions.images_R[chosen_R]]
    answers_R = decisions.answers_R[chosen_R]
    rank_N = np.empty_like(order_N)
    rank_N[order_N] = np.arange(len(order_N))
    order_S = np.lexsort((rank_N[subjects.images_S], owners_S))
    # An image is a member once, however many of its boxes show the answer.
    pairs = np.stack([owners_S[order_S], subjects.images_S[order_S]])
    is_first = np.ones(len(order_S), dtype=bool)
    is_first[1:] = (np.diff(pairs) != 0).any(axis=0)
    owners_M, members_M = pairs[:, is_first]
    event_ids = pa.repeat(pa.scalar("", pa.string()), len(best_R))
    if decisions.is_pooled and survey is not None and events is not None:
        names = pa.array(name_events(survey, events), pa.string())
        event_ids = names.take(pa.array(events.event_N[predictions.rows[best_R]]))
    codes, code_R = np.unique(answers_R, return_inverse=True)
    kinds = pa.array([_kind(decisions, code) for code in codes.tolist()], pa.string()).take(pa.array(code_R))
    is_counted_R = np.isin(kinds.to_numpy(zero_copy_only=False), ("animal", "human", "vehicle", "unknown"))
    num_boxes_S = np.array([len(rows) for rows in subjects.boxes], dtype=np.int64)
    counts_M = np.add.reduceat(np.where(subjects.is_counted_S, num_boxes_S, 0)[order_S], np.flatnonzero(is_first))
    counts_R = np.zeros(len(best_R), dtype=np.int64)
    np.maximum.at(counts_R, owners_M, counts_M)
    boxes: list[list[int]] = [[] for _ in best_R]
    for owner, subject in zip(owners_S[order_S].tolist(), order_S.tolist(), strict=True):
        boxes[owner] += subjects.boxes[subject]
    offsets = np.concatenate([[0], np.bincount(owners_M, minlength=len(best_R)).cumsum()]).astype(np.int32)
    columns: dict[str, Any] = {
        "event": event_ids,
        "key": keys.take(pa.array(best_R)),
        "keys": pa.ListArray.from_arrays(pa.array(offsets), keys.take(pa.array(members_M))),
    }
    columns |= {name: images[name].take(pa.array(best_R)) for name in ("file", "deployment", "camera", "time")}
    answers = {name: column.take(pa.array(chosen_R)) for name, column in decisions.to_columns().items()}
    # Most boxes of the answer in one image; 0 where no detector with categories counted.
    counts = {"count": np.where(is_counted_R, counts_R, 0), "boxes": pa.array(boxes, pa.list_(pa.int64()))}
    return pa.table({**columns, "kind": kinds, **answers, **counts})


def join_frames(predictions: Predictions, table: pa.Table) -> pa.Table:
    """Join the decisions about frames of a video into those of the video, one for each answer, behind all photos.

    Frames that show nothing say nothing where another one shows something: they belong to the surest answer.

    Args:
        table: decisions of single images.
    """
    is_frame = np.array([bool(find_video(key)) for key in table["key"].to_pylist()], dtype=bool)
    if not is_frame.any():
        return table
    scores = predictions.boxes["score"].to_pylist()

    def rate(row: dict[str, Any]) -> tuple[float, float]:
        # A model of kinds is equally sure of all animals, so that the box decides.
        return row["score"], max((scores[box] for box in row["boxes"]), default=0.0)

    of_videos: dict[str, list[dict[str, Any]]] = {}
    for row in table.filter(pa.array(is_frame)).to_pylist():
        of_videos.setdefault(find_video(row["key"]), []).append(row)
    joined = []
    for video, rows in of_videos.items():
        shown = select_shown(dict.fromkeys((row["kind"], row["name"]) for row in rows))
        groups = {name: [row for row in rows if (row["kind"], row["name"]) == name] for name in shown}
        # A video is as blank as its least blank frame.
        best = {name: (min if name[0] == "blank" else max)(of_name, key=rate) for name, of_name in groups.items()}
        first = max(best, key=lambda name: rate(best[name]))
        members = {name: {key for row in of_name for key in row["keys"]} for name, of_name in groups.items()}
        silent = {key for row in rows for key in row["keys"]} - set().union(*members.values())
        for name, of_name in groups.items():
            keys = members[name] | (silent if name == first else set())
            boxes = [box for row in of_name for box in row["boxes"]]
            count = max(row["count"] for row in of_name)
            ordered = [row["key"] for row in rows if row["key"] in keys]
            joined.append({**best[name], "event": video, "keys": ordered, "boxes": boxes, "count": count})
    photos = table.filter(pa.array(~is_frame))
    return pa.concat_tables([photos, pa.Table.from_pylist(joined, schema=table.schema)])


def _join_equal(decisions: Decisions, event_S: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join decisions of one event, or image, with one answer: two boxes of a fox are foxes, not two findings.

    Returns:
        The joined decision of each row of the call, and for each joined one the decision that is surest.
    """
    event_R = np.empty(len(decisions), dtype=np.int64)
    event_R[decisions.decisions_N] = event_S
    pairs = np.stack([event_R, decisions.answers_R])
    _, first_J, joined_R = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    # Numbered in the order of the decisions.
    rank_J = np.empty_like(first_J)
    rank_J[np.argsort(first_J)] = np.arange(len(first_J))
    joined_R = rank_J[joined_R.reshape(-1)]
    surest = np.lexsort((-np.nan_to_num(decisions.scores_R), joined_R))
    chosen_R = surest[np.unique(joined_R[surest], return_index=True)[1]]
    return joined_R[decisions.decisions_N], chosen_R


def _kind(decisions: Decisions, answer: int) -> ObservationKind:
    if answer == FAILED:
        return "unclassified"
    if answer == ABSTAINED:
        return "unknown"
    if answer < len(decisions.taxa):
        return "animal"
    label = decisions.classes.labels[answer - len(decisions.taxa)]
    return get_kind(label) if label in NON_ANIMALS else "animal"


def read_decisions(predictions: Predictions) -> tuple[list[Decision], dict[str, list[str]]]:
    """Return the decisions as exporters take them, and the keys of the images of each event."""
    corners = predictions.box_corners
    decisions, members = [], dict[str, list[str]]()
    for row in predictions.decisions.to_pylist():
        is_taxon = row["kind"] == "animal" and bool(row["taxon"])
        is_label = row["kind"] == "animal" and not row["taxon"] and row["name"] != "animal"
        box = corners[row["boxes"][0]] if row["boxes"] and not row["event"] and row["kind"] != "blank" else None
        if row["event"]:
            # A frame with two species belongs to both decisions.
            members[row["event"]] = [*dict.fromkeys([*members.get(row["event"], ()), *row["keys"]])]
        decisions.append(
            Decision(
                key="" if row["event"] else row["key"],
                event=row["event"],
                keys=tuple(row["keys"]) if row["event"] else (),
                kind=row["kind"],
                taxon=row["name"] if is_taxon or is_label else "",
                taxon_id=row["taxon"],
                rank=row["rank"],
                probability=None if row["kind"] in ("unknown", "unclassified") else row["score"],
                alternatives=tuple((name, float(score)) for name, score in json.loads(row["alternatives"])),
                source=tuple(f"{step['stage']}: {step['did']}" for step in json.loads(row["source"])),
                box=None if box is None else Box(*box),
                count=row["count"] or None,
            )
        )
    return decisions, members


def merge_decisions(predictions: Predictions) -> MergedObservations | None:
    """Return the decisions with what people say of the survey, None where the collection is no survey."""
    if open_survey(predictions) is None:
        return None
    return MergedObservations(SurveyRows(predictions.collection), *read_decisions(predictions))


def list_decisions(predictions: Predictions, key: str) -> list[dict[str, Any]]:
    """Return all decisions about an image: one of each species, people and vehicles that it shows.

    Raises:
        UserError: the image has none.
    """
    first = int(image_decisions(predictions, [key])[0])
    members = predictions.decisions["keys"].slice(first)
    rows = [first + index for index, keys in enumerate(members.to_pylist()) if key in keys]
    return predictions.decisions.take(pa.array(rows)).to_pylist()


def image_decisions(predictions: Predictions, keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of the first decision about each image: an image of two species has two.

    Raises:
        UserError: an image has none.
    """
    members = predictions.decisions["keys"].combine_chunks()
    owners = np.repeat(np.arange(len(members)), np.diff(members.offsets.to_numpy()))
    positions = tables.positions(pa.chunked_array([members.values]), among=pa.array(keys, pa.string()))
    rows = np.full(len(keys), -1, dtype=np.int64)
    # Written backwards, so that the first of an image remains.
    rows[positions[positions >= 0][::-1]] = owners[positions >= 0][::-1]
    if (rows < 0).any():
        # As an index, -1 would be the last decision, which is about another image.
        key = keys[int(np.flatnonzero(rows < 0)[0])]
        raise UserError(
            f"{predictions.folder / DECISIONS}: no decision about image {key!r}; run foveate species predict again"
        )
    return rows
