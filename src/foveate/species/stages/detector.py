"""Decide images by detections: people, vehicles, no box; animals are left to the classifier.

It acts on images that a detector with categories, such as MegaDetector, looked at, by their box of highest confidence.
Boxes without categories, such as those of the shipped NanoDet, decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.species.rows import DETECTED, BestDetections, Integers, Rows, Stage, answer_codes
from foveate.species.stages import StageKind, warn_idle
from foveate.species.stages.rules import RulesSettings
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

LABELS = ("blank", "human", "vehicle")
"""Classes that the detector answers with."""
# Codes of `judge_images`: the kinds of `DETECTED`, and what has none of these boxes.
_ANIMAL, _HUMAN, _VEHICLE, _EMPTY, _NOT_JUDGED = 0, 1, 2, 3, 4


class DetectorSettings(Settings):
    """Options of the detector's decisions."""

    enabled: bool = Field(
        True,
        description="a person, a vehicle or no box of MegaDetector decides human, vehicle or blank",
        json_schema_extra={"off": "leave people, vehicles and empty images of MegaDetector to the classifier"},
    )
    threshold: float = Field(
        0.2, ge=0, le=1, description="confidence from which a box of MegaDetector counts; an image without one is blank"
    )


def judge_images(detections: BestDetections, threshold: float) -> Integers:
    """Return the kind [N] of the best box: 0 to 2 as in `DETECTED`, 3 for no box at the threshold, 4 for no judgment.

    An image that no detector with categories looked at has no judgment, nor one whose best box is of another kind.
    """
    kinds_N = np.where(detections.kinds_N < 0, _NOT_JUDGED, detections.kinds_N)
    kinds_N = np.where(detections.scores_N < threshold, _EMPTY, kinds_N)
    is_judged_N = detections.is_judged_N
    return np.full_like(kinds_N, _NOT_JUDGED) if is_judged_N is None else np.where(is_judged_N, kinds_N, _NOT_JUDGED)


def split_events(events_R: Integers, kinds_R: Integers, is_idle_R: NDArray[np.bool_]) -> Integers:
    """Return events [R] in which people, vehicles and what is classified are apart: each is an answer of its own.

    Args:
        kinds_R: of `judge_images`.
        is_idle_R: rows that show nothing, such as empty frames: they stay with what their event shows, with the animal
            first.
    """
    groups_R = np.where(np.isin(kinds_R, (_HUMAN, _VEHICLE)), kinds_R, _ANIMAL)
    _, event_R = np.unique(events_R, return_inverse=True)
    first_E = np.full(event_R.max(initial=-1) + 1, len(DETECTED))
    np.minimum.at(first_E, event_R[~is_idle_R], groups_R[~is_idle_R])
    # An event of nothing but empty frames is one.
    first_E[first_E == len(DETECTED)] = _ANIMAL
    return events_R * len(DETECTED) + np.where(is_idle_R, first_E[event_R], groups_R)


def prepare(settings: DetectorSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    rules = others.get("rules")
    is_ruled = isinstance(rules, RulesSettings) and rules.rules != "none"
    if is_ruled or not settings.enabled:
        # SpeciesNet's rules read the detector's boxes by thresholds of their own.
        needs = "--rules none" if is_ruled else "--detector"
        warn_idle(settings, "threshold", needs=needs)
        return None
    limit = f"{settings.threshold:g}"
    notes = (
        f"animal at {limit} or above: classified",
        f"human at {limit} or above",
        f"vehicle at {limit} or above",
        f"no box at {limit} or above",
        "no results of a detector with categories: classified",
    )

    def apply(rows: Rows) -> Rows:
        # Decide for the whole call, not per block, so that all blocks have the same stages in their traces.
        if rows.detections.is_judged_N is None:
            return rows
        kinds_R = judge_images(rows.detections, settings.threshold)
        has_failed_R = rows.answers_R < 0
        # An image that cannot be read stays one that failed.
        fixed_R = np.isin(kinds_R, (_HUMAN, _VEHICLE, _EMPTY)) & ~has_failed_R
        column_of = {_EMPTY: "blank", _HUMAN: "human", _VEHICLE: "vehicle"}
        columns = {kind: rows.classes.index(label) for kind, label in column_of.items()}
        column_R = np.array([columns.get(kind, 0) for kind in kinds_R.tolist()], dtype=np.int64)
        probabilities_RK = rows.probabilities_RK.copy()
        probabilities_RK[fixed_R] = 0.0
        probabilities_RK[fixed_R, column_R[fixed_R]] = 1.0
        confidences_R = rows.detections.scores_N
        # The surer the best box is, the less sure it is that nothing is there.
        confidences_R = np.where(kinds_R == _EMPTY, 1 - confidences_R, confidences_R)
        answers_R = np.where(fixed_R, answer_codes(rows.classes, rows.taxa)[column_R], rows.answers_R)
        judged = replace(
            rows,
            probabilities_RK=probabilities_RK,
            events_R=split_events(rows.events_R, kinds_R, (kinds_R == _EMPTY) | has_failed_R),
            answers_R=answers_R,
            scores_R=np.where(fixed_R, confidences_R, rows.scores_R),
            is_fixed_R=fixed_R,
        ).noted("detector", notes, kinds_R)
        # Rows of an event follow one another (`Rows.events_R`).
        return judged.take(np.argsort(judged.events_R, kind="stable"))

    return apply


STAGES = {"detector": StageKind(15, DetectorSettings, prepare)}
