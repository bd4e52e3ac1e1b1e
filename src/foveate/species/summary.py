"""Summarize a results folder for its page: taxa, cameras, hours, samples with boxes, and accuracies where labeled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foveate.core.results import Histogram
from foveate.records import tables
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.survey.checks import check_survey
from foveate.records.survey.survey import Survey
from foveate.species.decide_results import open_survey
from foveate.species.evaluate import (
    Truth,
    camera_accuracies,
    decision_truths,
    evaluate_classes,
    evaluate_coverage,
    evaluate_hours,
    evaluate_stages,
    find_confusions,
    judge,
)
from foveate.species.hints import (
    ClockHint,
    PlaceHint,
    RepeatedBox,
    find_clock_hints,
    find_place_hints,
    find_repeated_boxes,
)
from foveate.species.predictions import FAILED, Predictions
from foveate.species.results import CameraRow, Finding, SampleImage, SpeciesResult, TaxonRow

_IMAGES = "images"
_NUM_SAMPLES = 24
_ALTERNATIVES = 3
_MAX_HINTS = 12  # on the page: further deployments are the least doubtful
_STAGE_NAMES = {"classifier": "model", "rollup": "roll-up"}


def summarize(
    predictions: Predictions,
    folder: Path,
    *,
    truth: Truth | None = None,
    train_counts: Mapping[str, int] | None = None,
    digits: int | None = None,
    command: Sequence[str] = (),
    samples: int = _NUM_SAMPLES,
) -> SpeciesResult:
    """Build the result of a results folder; thumbnails of samples are written into `folder`.

    Args:
        truth: labels, for an evaluation. train_counts: label -> training images.
        digits: decimals of the coordinates on the map; None leaves places out.
        samples: number of images on the page.
    """
    survey = open_survey(predictions)
    decisions = predictions.decisions.to_pylist()
    images = predictions.images
    failures = Counter(
        reason.split(":")[0]
        for reason, status in zip(*_columns(images, "failure", "status"), strict=True)
        if status == FAILED
    )
    truths = [""] * len(decisions) if truth is None else decision_truths(predictions, truth)
    labeled: dict[str, Any] = {}
    if truth is not None:
        evaluation, classes, notes = evaluate_classes(predictions, truth, train_counts=train_counts)
        labeled = {
            "labels": int((truth.classes_N >= 0).sum()),
            "unknown_labels": truth.unknown,
            "left_out": truth.left_out,
            "evaluation": evaluation,
            "classes": classes,
            "per_hour": evaluate_hours(predictions, truth),
            "coverage": evaluate_coverage(predictions, truth),
            "confusions": find_confusions(predictions, truth),
            "stages": evaluate_stages(predictions, truth),
            "notes": notes,
        }
    clocks, places = rank_links(predictions, survey)
    scores = [row["score"] for row in decisions if row["kind"] not in ("unknown", "unclassified")]
    counts, edges = np.histogram(scores, bins=20, range=(0, 1))
    return SpeciesResult(
        title="",
        command=list(command),
        model=predictions.config["model"]["path"],
        collection=predictions.collection.name,
        view=predictions.config["view"]["view"],
        split=predictions.config["split"],
        images=images.num_rows,
        failed=sum(failures.values()),
        cropped=sum(images["cropped"].to_pylist()),
        cameras=len({camera for camera in images["camera"].to_pylist() if camera}),
        events=predictions.decision_settings["events"],
        decisions=len(decisions),
        counts=dict(Counter(row["kind"] for row in decisions).most_common()),
        ranks=dict(Counter(row["rank"] or "class of the model" for row in decisions if row["kind"] == "animal")),
        taxa=_count_taxa(predictions, decisions, survey),
        score_histogram=Histogram(edges=edges.tolist(), counts=counts.tolist()) if scores else None,
        per_camera=_list_cameras(predictions, decisions, survey, truth, digits),
        coordinate_digits=digits,
        samples=_draw_samples(predictions, decisions, truths, folder, samples, labeled=truth is not None),
        failures=dict(failures.most_common()),
        clocks=clocks[:_MAX_HINTS],
        places=places[:_MAX_HINTS],
        repeated=find_stones(predictions, survey),
        findings=[] if survey is None else list_findings(survey),
        settings=predictions.decision_settings,
        **labeled,
    )


def _columns(table: Any, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _count_taxa(
    predictions: Predictions, decisions: Sequence[Mapping[str, Any]], survey: Survey | None
) -> list[TaxonRow]:
    rows = tables.positions(predictions.decisions["key"], among=predictions.images["key"])
    hours = np.full(len(decisions), np.nan) if survey is None else survey.hour_N[predictions.rows[rows]]
    members: dict[tuple[str, str, str], list[int]] = {}
    for index, row in enumerate(decisions):
        name = row["name"] if row["kind"] != "unclassified" else "unclassified"
        members.setdefault((name, row["rank"], row["kind"]), []).append(index)
    taxa = []
    for (name, rank, kind), indices in members.items():
        known = hours[indices][~np.isnan(hours[indices])].astype(np.int64)
        taxa.append(
            TaxonRow(
                name=name,
                rank=rank,
                kind=kind,
                decisions=len(indices),
                score=round(float(np.mean([decisions[index]["score"] for index in indices])), 4),
                hours=np.bincount(known, minlength=24).tolist() if len(known) else [],
            )
        )
    return sorted(taxa, key=lambda row: (-row.decisions, row.name))


def _list_cameras(
    predictions: Predictions,
    decisions: Sequence[Mapping[str, Any]],
    survey: Survey | None,
    truth: Truth | None,
    digits: int | None,
) -> list[CameraRow]:
    images = predictions.images
    totals = Counter(camera for camera in images["camera"].to_pylist() if camera)
    failed = Counter(
        camera for camera, status in zip(*_columns(images, "camera", "status"), strict=True) if status == FAILED
    )
    events = Counter(row["camera"] for row in decisions)
    tops: dict[str, Counter[str]] = {}
    for row in decisions:
        if row["kind"] == "animal":
            tops.setdefault(row["camera"], Counter())[row["name"]] += 1
    accuracies = {} if truth is None else camera_accuracies(predictions, truth)
    places: dict[str, tuple[float, float]] = {}
    if survey is not None and digits is not None:
        for row, camera in zip(predictions.rows.tolist(), images["camera"].to_pylist(), strict=False):
            latitude, longitude = survey.places_N2[row].tolist()
            if camera not in places and not np.isnan(latitude):
                places[camera] = round(latitude, digits), round(longitude, digits)
    rows = []
    for camera, count in sorted(totals.items()):
        labels, accuracy = accuracies.get(camera, (0, None))
        latitude, longitude = places.get(camera, (None, None))
        top = tops.get(camera, Counter()).most_common(1)
        rows.append(
            CameraRow(
                camera=camera,
                images=count,
                events=events[camera],
                failed=failed[camera],
                labeled=labels,
                accuracy=accuracy,
                latitude=latitude,
                longitude=longitude,
                top=top[0][0] if top else "",
            )
        )
    return rows


def list_findings(survey: Survey) -> list[Finding]:
    """Return what `species check` finds doubtful, as the page shows it."""
    return [
        Finding(subject=entry.subject, text=entry.detail or entry.meaning, count=entry.count)
        for entry in check_survey(survey).findings
    ]


def rank_links(predictions: Predictions, survey: Survey | None) -> tuple[list[ClockHint], list[PlaceHint]]:
    """Rank the recorded hours and places of each deployment by the graph; none where the model has no such links."""
    if survey is None:
        return [], []
    hours_NH, places_NP, columns_N = map(predictions.links, ("hours", "places", "place_columns"))
    readable_N = np.flatnonzero(~np.isnan(predictions.class_probabilities(0)))
    names = predictions.images["deployment"].take(pa.array(readable_N)).to_pylist()
    clocks, places = [], []
    if hours_NH is not None:
        hours_N = survey.hour_N[predictions.rows[readable_N]]
        clocks = find_clock_hints(hours_NH[readable_N], predictions.config["hours"], hours_N, names)
    if places_NP is not None and columns_N is not None:
        places = find_place_hints(places_NP[readable_N], columns_N[readable_N], predictions.config["places"], names)
    return clocks, places


def find_stones(predictions: Predictions, survey: Survey | None) -> list[RepeatedBox]:
    """Find boxes of a results folder that return at one spot of a camera; none where no hour of an image is known."""
    boxes = predictions.boxes
    if survey is None or not boxes.num_rows:
        return []
    rows = tables.positions(boxes["key"], among=predictions.images["key"])
    cameras = predictions.images["camera"].to_pylist()
    corners = np.stack([boxes[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    return find_repeated_boxes(
        corners,
        scores_B=boxes["score"].to_numpy(),
        keys_B=boxes["key"].to_pylist(),
        cameras_B=[cameras[row] for row in rows.tolist()],
        days_B=survey.clock_N[predictions.rows[rows]] // 86400,
    )


def _draw_samples(
    predictions: Predictions,
    decisions: Sequence[Mapping[str, Any]],
    truths: Sequence[str],
    folder: Path,
    count: int,
    *,
    labeled: bool,
) -> list[SampleImage]:
    """Write thumbnails of decisions in turn over the decided names, surest first, so that rare ones are shown."""
    by_name: dict[str, list[int]] = {}
    order = sorted(range(len(decisions)), key=lambda index: -decisions[index]["score"])
    for index in order:
        if decisions[index]["kind"] != "unclassified":
            by_name.setdefault(decisions[index]["name"], []).append(index)
    picked: list[int] = []
    while len(picked) < count and any(by_name.values()):
        picked += [members.pop(0) for members in by_name.values() if members]
    boxes = {row["key"]: row for row in predictions.boxes.to_pylist() if row["used"]}
    samples = []
    for index in picked[:count]:
        row = decisions[index]
        path = f"{_IMAGES}/{index:06d}.webp"
        try:
            data = predictions.collection.image_bytes(predictions.collection.find_row(row["key"]))
            save_thumbnail(data, folder / path)
        except BadImage:
            continue
        right = judge(row["name"], truths[index], predictions.taxa)[0] if truths[index] else None
        box = boxes.get(row["key"])
        samples.append(
            SampleImage(
                image=path,
                file=row["file"],
                camera=row["camera"],
                box=None if box is None else (box["x1"], box["y1"], box["x2"], box["y2"]),
                answer=row["name"],
                rank=row["rank"],
                score=None if row["kind"] == "unknown" else row["score"],
                truth=name_label(predictions, truths[index]) if labeled else "",
                right=None if row["kind"] == "unknown" else right,
                alternatives=[(name, score) for name, score in json.loads(row["alternatives"])[:_ALTERNATIVES]],
                steps=[format_step(step) for step in json.loads(row["source"])],
            )
        )
    return samples


def format_step(step: Mapping[str, Any]) -> str:
    """Format what a stage did to a decision, for people."""
    answer = step["answer"] or "nothing"
    return f"{name_stage(step['stage'])}: {step['did']} → {answer} {step['score']:.2f}"


def name_stage(stage: str) -> str:
    """Return the name of a stage for people."""
    return _STAGE_NAMES.get(stage, stage.replace("_", " "))


def name_label(predictions: Predictions, label: str) -> str:
    """Return the scientific name of a label that is the id of a taxon; others as they are."""
    return predictions.taxa.names[predictions.taxa.index(label)] if label in predictions.taxa else label
