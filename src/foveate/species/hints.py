"""Find likely errors in a survey: implausible hours and places, boxes that never move.

A hint has ranks and changes nothing: the graph is a model, and only a person knows the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.results import ResultModel
from foveate.records.boxes import as_boxes, pairwise_iou
from foveate.species.rows import StoredRows
from foveate.species.triples import PLACE_DIGITS

# Fewer images of a deployment say nothing about its clock.
MIN_IMAGES = 10
# A random hour ranks in the middle: a clock that images agree with ranks above it.
CHANCE = 0.5
_MIN_IOU = 0.85
_HOURS = 24


class ClockHint(ResultModel):
    """Plausibility of the recorded hours of one deployment.

    Attributes:
        rank: mean rank of the recorded hour among all, 0 = always the most plausible, 0.5 = chance, 1 = the least.
        shift_hours: hours to add to the clock for the best mean rank, -11 to 12.
        shifted_rank: that rank. implausible: the recorded hours rank below chance.
    """

    deployment: str
    images: int
    rank: float
    shift_hours: int
    shifted_rank: float
    implausible: bool


class PlaceHint(ResultModel):
    """Plausibility of the recorded place of one deployment.

    Attributes:
        rank: mean rank of the recorded place among those of the survey, 0 to 1 as in `ClockHint`.
        likelier: camera whose place ranks best on these images. share: of images on which it beats the recorded one.
    """

    deployment: str
    images: int
    rank: float
    likelier: str
    share: float
    implausible: bool


class RepeatedBox(ResultModel):
    """A box that returns at one spot of a camera: a stone or a branch, or an animal's resting place.

    Attributes:
        box: mean of the boxes. images, days: on which it occurs. score: the highest. keys: some of the images.
    """

    camera: str
    box: tuple[float, float, float, float]
    images: int
    days: int
    score: float
    keys: list[str]


def normalized_ranks(scores_NC: ArrayLike, columns_N: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of one column of each row, 0 for the highest score to 1 for the lowest; ties share their mean.

    Args:
        columns_N: column of each row, -1 for none: its rank is NaN.
    """
    scores = np.asarray(scores_NC, dtype=np.float64)
    columns_N = np.asarray(columns_N, dtype=np.int64)
    # A single candidate would be the most and the least plausible at once.
    if scores.shape[1] < 2:
        return np.full(len(scores), np.nan)
    # An index of -1 would read the last column; its rank becomes NaN below.
    own_N1 = np.take_along_axis(scores, np.maximum(columns_N, 0)[:, None], axis=1)
    above_N = (scores > own_N1).sum(axis=1)
    # Do not count the link itself: a row of equal scores then has the rank of chance.
    equal_N = (scores == own_N1).sum(axis=1) - 1
    ranks_N = (above_N + equal_N / 2) / (scores.shape[1] - 1)
    return np.where(columns_N < 0, np.nan, ranks_N)


def find_clock_hints(
    scores_NH: ArrayLike, hours_H: ArrayLike, hours_N: ArrayLike, deployments_N: Sequence[str]
) -> list[ClockHint]:
    """Rank the recorded hours of each deployment, those first whose rank a moved clock would improve most.

    The rank of the recorded hours does not reveal a clock that is one to three hours off, because neighboring hours are
    nearly as plausible as the true one.

    Args:
        scores_NH: of the candidate hours by the graph.
        hours_H: candidate hours, whole, 0 to 23.
        hours_N: recorded hours, NaN where unknown.

    Returns:
        A hint for each deployment of at least 10 images with an hour.
    """
    scores, hours_N = np.asarray(scores_NH, dtype=np.float64), np.asarray(hours_N, dtype=np.float64)
    column_of_hour = np.full(_HOURS, -1, dtype=np.int64)
    column_of_hour[np.asarray(hours_H, dtype=np.int64)] = np.arange(scores.shape[1])
    hints = []
    for deployment, rows in _group(deployments_N, ~np.isnan(hours_N)):
        if len(rows) < MIN_IMAGES:
            continue
        hours_R = np.floor(hours_N[rows]).astype(np.int64)
        shifts = np.arange(-11, 13)
        means_S = np.full(len(shifts), np.inf)
        for index, shift in enumerate(shifts):
            columns_R = column_of_hour[(hours_R + shift) % _HOURS]
            # An hour that no training image has cannot be ranked; a shift mostly into such hours is no candidate.
            if (columns_R >= 0).mean() >= 0.5:
                # The mean over images: one animal at a strange hour is no fault of the clock.
                means_S[index] = np.nanmean(normalized_ranks(scores[rows], columns_R))
        unshifted = float(means_S[11])
        if not np.isfinite(unshifted):
            continue
        # Prefer the smallest of equally good shifts.
        best = min(range(len(shifts)), key=lambda index: (means_S[index], abs(int(shifts[index]))))
        hints.append(
            ClockHint(
                deployment=deployment,
                images=len(rows),
                rank=round(unshifted, 4),
                shift_hours=int(shifts[best]),
                shifted_rank=round(float(means_S[best]), 4),
                implausible=unshifted > CHANCE,
            )
        )
    return sorted(hints, key=lambda hint: (hint.shifted_rank - hint.rank, hint.deployment))


def match_places(
    candidates_P2: NDArray[np.float64], places_N2: NDArray[np.float64], cameras_N: NDArray[np.object_]
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the candidate of each image's place, -1 for none, and the name of the camera at each candidate.

    Args:
        candidates_P2, places_N2: degrees, NaN where unknown.
    """
    index = {tuple(degrees): column for column, degrees in enumerate(np.round(candidates_P2, PLACE_DIGITS).tolist())}
    columns_N = np.array(
        [index.get(tuple(degrees), -1) for degrees in np.round(places_N2, PLACE_DIGITS).tolist()], dtype=np.int64
    )
    cameras = [""] * len(index)
    for row in np.flatnonzero(columns_N >= 0).tolist():
        cameras[columns_N[row]] = cameras_N[row]
    return columns_N, cameras


def find_place_hints(
    scores_NP: NDArray[Any] | StoredRows, places_N: ArrayLike, cameras_P: Sequence[str], deployments_N: Sequence[str]
) -> list[PlaceHint]:
    """Rank the recorded places of each deployment, the least plausible first.

    Args:
        scores_NP: of the candidate places by the graph, read a deployment at a time.
        places_N: candidate that each image was recorded at, -1 where unknown.
        cameras_P: name of the camera at each candidate; names, for coordinates stay out of reports.
    """
    places_N = np.asarray(places_N, dtype=np.int64)
    hints = []
    for deployment, rows in _group(deployments_N, places_N >= 0):
        if len(rows) < MIN_IMAGES or scores_NP.shape[1] < 2:
            continue
        scores_RP = np.asarray(scores_NP[rows], dtype=np.float64)
        # Compared within an image: scores of two images have different scales.
        own_R1 = np.take_along_axis(scores_RP, places_N[rows][:, None], axis=1)
        shares_P = (scores_RP > own_R1).mean(axis=0)
        best = int(shares_P.argmax())
        rank = float(normalized_ranks(scores_RP, places_N[rows]).mean())
        hints.append(
            PlaceHint(
                deployment=deployment,
                images=len(rows),
                rank=round(rank, 4),
                likelier=cameras_P[best] if shares_P[best] > CHANCE else "",
                share=round(float(shares_P[best]), 4),
                implausible=rank > CHANCE,
            )
        )
    return sorted(hints, key=lambda hint: (-hint.rank, hint.deployment))


@dataclass(frozen=True, slots=True)
class RepeatSettings:
    """When boxes at one spot are reported."""

    min_iou: float = _MIN_IOU
    min_days: int = 3
    min_images: int = 6


def group_repeated_boxes(
    boxes_B4: ArrayLike,
    *,
    scores_B: ArrayLike,
    keys_B: Sequence[str],
    cameras_B: Sequence[str],
    days_B: ArrayLike,
    settings: RepeatSettings | None = None,
) -> list[NDArray[np.int64]]:
    """Return the rows of the boxes that lie at one spot of a camera on several days, for each such spot.

    Args:
        days_B: number of the day of each box, NaN where unknown; those are left out.
    """
    settings = settings or RepeatSettings()
    boxes, scores = as_boxes(boxes_B4), np.asarray(scores_B, dtype=np.float64)
    days = np.asarray(days_B, dtype=np.float64)
    spots = []
    for _, rows in _group(cameras_B, ~np.isnan(days)):
        # The surest box opens a spot; at a root or a stone they hardly move from day to day.
        left = rows[np.argsort(-scores[rows], kind="stable")]
        while len(left) >= settings.min_images:
            near = pairwise_iou(boxes[left[:1]], boxes[left])[0] >= settings.min_iou
            members, left = left[near], left[~near] if near.any() else left[1:]
            # Images, not boxes: a detector may draw one stone twice.
            num_images = len({keys_B[row] for row in members.tolist()})
            num_days = len(np.unique(np.floor(days[members])))
            if num_images >= settings.min_images and num_days >= settings.min_days:
                spots.append(members)
    return spots


def find_repeated_boxes(
    boxes_B4: ArrayLike,
    *,
    scores_B: ArrayLike,
    keys_B: Sequence[str],
    cameras_B: Sequence[str],
    days_B: ArrayLike,
    settings: RepeatSettings | None = None,
) -> list[RepeatedBox]:
    """Describe boxes that lie at one spot of a camera on several days, most images first.

    Args:
        days_B: see `group_repeated_boxes`.
    """
    boxes, scores = as_boxes(boxes_B4), np.asarray(scores_B, dtype=np.float64)
    repeated = []
    for members in group_repeated_boxes(
        boxes, scores_B=scores, keys_B=keys_B, cameras_B=cameras_B, days_B=days_B, settings=settings
    ):
        images = list(dict.fromkeys(keys_B[row] for row in members.tolist()))
        x1, y1, x2, y2 = boxes[members].mean(axis=0).tolist()
        repeated.append(
            RepeatedBox(
                camera=cameras_B[int(members[0])],
                box=(x1, y1, x2, y2),
                images=len(images),
                days=len(np.unique(np.floor(np.asarray(days_B, dtype=np.float64)[members]))),
                score=round(float(scores[members].max()), 4),
                keys=images[:12],
            )
        )
    return sorted(repeated, key=lambda box: (-box.images, box.camera))


def _group(names_N: Sequence[str], known_N: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each name, where `known_N` holds, in the order of first appearance; rows without a name are left out."""
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(known_N).tolist():
        if names_N[row]:
            rows_of.setdefault(names_N[row], []).append(row)
    return [(name, np.array(rows, dtype=np.int64)) for name, rows in rows_of.items()]
