"""Summarize a results folder for its page: taxa, cameras, hours, samples with boxes, and accuracies where labeled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.results import Histogram
from foveate.records import tables
from foveate.records.images import BadImage, save_thumbnail
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
from foveate.species.results import (
    CameraRow,
    CheckDay,
    CheckFinding,
    SampleImage,
    SpeciesCheckResult,
    SpeciesResult,
    SurveyFinding,
    TaxonRow,
)
from foveate.survey.checks import CheckResult, check_survey
from foveate.survey.survey import Survey

_IMAGES = "images"
_NUM_SAMPLES = 24
_ALTERNATIVES = 3
_MAX_DAYS, _DAY_SIDE = 8, 256  # days of a finding with thumbnails, and pixels of their longer side
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
    decisions, images = predictions.decisions, predictions.images
    failed = images.filter(_is_in(images["status"], FAILED))
    # Drop the text behind the colon, which differs from file to file: with it every failure would be a kind of its own.
    failures = Counter(reason.split(":")[0] for reason in failed["failure"].to_pylist())
    truths = None if truth is None else decision_truths(predictions, truth)
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
    # Leave out undecided rows: their scores do not belong in a histogram of decisions.
    scores = decisions["score"].to_numpy()[~_is_in(decisions["kind"], "unknown", "unclassified")]
    counts, edges = np.histogram(scores, bins=20, range=(0, 1))
    ranks = _count_values(decisions["rank"].filter(_is_in(decisions["kind"], "animal")))
    return SpeciesResult(
        title="",
        command=list(command),
        model=predictions.config["model"]["path"],
        collection=predictions.collection.name,
        view=predictions.config["view"]["view"],
        split=predictions.config["split"],
        images=images.num_rows,
        failed=failed.num_rows,
        cropped=int(images["cropped"].to_numpy().sum()),
        cameras=len(_count_values(images["camera"]).keys() - {""}),
        events=predictions.decision_settings["events"],
        decisions=decisions.num_rows,
        counts=dict(_count_values(decisions["kind"]).most_common()),
        ranks={rank or "class of the model": count for rank, count in ranks.items()},
        taxa=_count_taxa(predictions, survey),
        score_histogram=Histogram(edges=edges.tolist(), counts=counts.tolist()) if len(scores) else None,
        per_camera=_list_cameras(predictions, survey, truth, digits),
        coordinate_digits=digits,
        samples=_draw_samples(predictions, truths, folder, samples),
        failures=dict(failures.most_common()),
        clocks=clocks[:_MAX_HINTS],
        places=places[:_MAX_HINTS],
        repeated=find_stones(predictions, survey),
        findings=[] if survey is None else list_findings(survey),
        settings=predictions.decision_settings,
        **labeled,
    )


def _is_in(column: pa.ChunkedArray, *values: str) -> NDArray[np.bool_]:
    options = pc.SetLookupOptions(value_set=pa.array(values, pa.string()))
    return pc.call_function("is_in", [column], options).to_numpy()


def _count_values(column: pa.ChunkedArray) -> Counter[str]:
    """Count values, in the order of their first appearance."""
    counts = pc.call_function("value_counts", [column])
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))


def _group(**columns: pa.ChunkedArray | pa.Array) -> Iterator[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Yield distinct values of columns in the order of their first appearance, with the rows that have them."""
    table = pa.table({**columns, "row": np.arange(len(next(iter(columns.values()))))})
    # One thread keeps the rows of a group in order. Groups are not: new keys of a batch are numbered by their hash.
    groups = table.group_by(list(columns), use_threads=False).aggregate([("row", "list"), ("row", "min")])
    groups = groups.sort_by("row_min")
    for *values, rows in zip(*(groups[name] for name in (*columns, "row_list")), strict=True):
        yield tuple(value.as_py() for value in values), rows.values.to_numpy()


def _count_taxa(predictions: Predictions, survey: Survey | None) -> list[TaxonRow]:
    decisions = predictions.decisions
    rows = tables.positions(decisions["key"], among=predictions.images["key"])
    hours = np.full(len(rows), np.nan) if survey is None else survey.hour_N[predictions.rows[rows]]
    scores = decisions["score"].to_numpy()
    is_unclassified = pa.array(_is_in(decisions["kind"], "unclassified"))
    names = pc.call_function("if_else", [is_unclassified, "unclassified", decisions["name"]])
    taxa = []
    for (name, rank, kind), members in _group(name=names, rank=decisions["rank"], kind=decisions["kind"]):
        known = hours[members][~np.isnan(hours[members])].astype(np.int64)
        taxa.append(
            TaxonRow(
                name=name,
                rank=rank,
                kind=kind,
                decisions=len(members),
                score=round(float(scores[members].mean()), 4),
                hours=np.bincount(known, minlength=24).tolist() if len(known) else [],
            )
        )
    return sorted(taxa, key=lambda row: (-row.decisions, row.name))


def _list_cameras(
    predictions: Predictions, survey: Survey | None, truth: Truth | None, digits: int | None
) -> list[CameraRow]:
    images, decisions = predictions.images, predictions.decisions
    # Counted by Arrow, because a survey may have hundreds of thousands of rows.
    totals, events = _count_values(images["camera"]), _count_values(decisions["camera"])
    failed = _count_values(images["camera"].filter(_is_in(images["status"], FAILED)))
    tops: dict[str, Counter[str]] = {}
    animals = decisions.filter(_is_in(decisions["kind"], "animal"))
    for (camera, name), members in _group(camera=animals["camera"], name=animals["name"]):
        tops.setdefault(camera, Counter())[name] = len(members)
    accuracies = {} if truth is None else camera_accuracies(predictions, truth)
    # Rounded here and not by the page: result.json lies beside it and is often sent along.
    places: dict[str, tuple[float, float]] = {}
    if survey is not None and digits is not None:
        places_N2 = survey.places_N2[predictions.rows]
        known_N = np.flatnonzero(~np.isnan(places_N2[:, 0]))
        for (camera,), members in _group(camera=images["camera"].take(pa.array(known_N))):
            latitude, longitude = places_N2[known_N[members[0]]].tolist()
            places[camera] = round(latitude, digits), round(longitude, digits)
    rows = []
    for camera, count in sorted(totals.items()):
        # The table also lists files that are not readable images; those have no camera.
        if not camera:
            continue
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


def list_findings(survey: Survey) -> list[SurveyFinding]:
    """Return what `species check` finds doubtful, as the page shows it."""
    return [
        SurveyFinding(subject=entry.subject, text=entry.detail or entry.meaning, count=entry.count)
        for entry in check_survey(survey).findings
    ]


def summarize_check(
    survey: Survey, result: CheckResult, folder: Path, *, command: Sequence[str] = ()
) -> SpeciesCheckResult:
    """Build the result of a check for its page; thumbnails of what shows each finding are written into `folder`."""
    findings, number = [], 0
    for entry in result.findings:
        days = []
        for index, day in enumerate(entry.days):
            images: dict[str, str] = {}
            for key in day.examples if index < _MAX_DAYS else ():
                path, number = f"{_IMAGES}/{number:06d}.webp", number + 1
                try:
                    data = survey.collection.image_bytes(survey.collection.find_row(key))
                    save_thumbnail(data, folder / path, longest_side=_DAY_SIDE)
                # An image that is at an address, or was deleted since, has its key alone.
                except UserError:
                    continue
                images[key] = path
            days.append(CheckDay(day=day.day, count=day.count, examples=list(day.examples), images=images))
        findings.append(
            CheckFinding(
                code=entry.code,
                subject=entry.subject,
                count=entry.count,
                detail=entry.detail,
                examples=list(entry.examples),
                days=days,
                meaning=entry.meaning,
                repair=entry.repair,
            )
        )
    return SpeciesCheckResult(
        command=list(command), collection=survey.collection.name, counts=result.counts, findings=findings
    )


def rank_links(predictions: Predictions, survey: Survey | None) -> tuple[list[ClockHint], list[PlaceHint]]:
    """Rank the recorded hours and places of each deployment by the graph; none where the model has no such links."""
    if survey is None:
        return [], []
    hours_NH, columns_N = map(predictions.links, ("hours", "place_columns"))
    is_readable_N = ~np.isnan(predictions.class_probabilities(0))
    # The table lists files that are not images after the images with scores; they have no row here.
    names = predictions.images["deployment"].to_pylist()[: len(is_readable_N)]
    clocks, places = [], []
    if hours_NH is not None:
        hours_N = np.where(is_readable_N, survey.hour_N[predictions.rows], np.nan)
        clocks = find_clock_hints(hours_NH, predictions.config["hours"], hours_N, names)
    if columns_N is not None:
        columns_N = np.where(is_readable_N, columns_N, -1)
        places = find_place_hints(predictions.stored_places(), columns_N, predictions.config["places"], names)
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
        # Days on the camera's own clock, because a time zone is never guessed.
        days_B=survey.clock_N[predictions.rows[rows]] // 86400,
    )


def _draw_samples(
    predictions: Predictions, truths: Sequence[str] | None, folder: Path, count: int
) -> list[SampleImage]:
    """Write thumbnails of decisions in turn over the decided names, surest first, so that rare ones are shown."""
    decisions = predictions.decisions
    order = np.argsort(-decisions["score"].to_numpy(), kind="stable")
    order = order[~_is_in(decisions["kind"], "unclassified")[order]]
    # No name ever needs more than `count` samples, however many decisions have it.
    groups = [order[members[:count]] for _, members in _group(name=decisions["name"].take(pa.array(order)))]
    picked = [int(row) for turn in zip_longest(*groups) for row in turn if row is not None][:count]
    rows = decisions.take(pa.array(picked, pa.int64())).to_pylist()
    samples = []
    for index, row in zip(picked, rows, strict=True):
        path = f"{_IMAGES}/{index:06d}.webp"
        label = truths[index] if truths else ""
        try:
            data = predictions.collection.image_bytes(predictions.collection.find_row(row["key"]))
            save_thumbnail(data, folder / path)
        # Images may be collected by reference and deleted since; the page does without them.
        except BadImage:
            continue
        right = judge(row["name"], label, predictions.taxa)[0] if label else None
        samples.append(
            SampleImage(
                image=path,
                file=row["file"],
                camera=row["camera"],
                box=predictions.used_boxes.get(row["key"]),
                answer=row["name"],
                rank=row["rank"],
                score=None if row["kind"] == "unknown" else row["score"],
                truth=name_label(predictions, label) if label else "",
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
