"""Pool the images of a burst into one decision, because most animals leave some frames empty.

`megadetector` is the smoothing that MegaDetector's users know: frames keep decisions of their own, and rare labels of a
burst give way to its common ones (`foveate.species.smoothing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_array

from foveate.core.recipes import Settings
from foveate.species.classes import Classes
from foveate.species.rows import Floats, Integers, Rows, Stage
from foveate.species.smoothing import SmoothingSettings, smooth
from foveate.species.stages import warn_idle
from foveate.species.stages.species_list import renormalize
from foveate.survey.taxa import Taxa

ORDER = 40
FLOOR = 1e-6
_NOTHING = 1e-12
Method = Literal["mean_logprob", "mean_prob", "max_prob", "vote"]
BlankMode = Literal["max_animal", "as_class"]
_BLANK = "blank"


class StageSettings(Settings):
    """Options of the pooling."""

    method: Literal["mean_logprob", "mean_prob", "max_prob", "vote", "megadetector", "none"] = Field(
        "mean_logprob", description="how the images of an event decide together; none: each image by itself"
    )
    blank_mode: BlankMode = Field(
        "max_animal", description="an event is as blank as its least blank image, or blank is a class like others"
    )
    weights: Literal["equal", "detection"] = Field(
        "equal", description="weigh images equally, or by the confidence of their best detection"
    )
    smoothing: SmoothingSettings = Field(SmoothingSettings(), description="options of method megadetector")


def pool_events(
    probabilities_TK: Floats,
    starts_E: Integers,
    weights_T: Floats,
    *,
    method: Method,
    blank: int | None = None,
    blank_mode: BlankMode = "as_class",
) -> Floats:
    """Pool the images of each event [E, K].

    Args:
        probabilities_TK: rows of an event follow one another.
        starts_E: first row of each event.
        weights_T: weight of each row; those of an event are divided by their sum. All 0 is like all equal.
        blank: column of the class blank, None where there is none.
        blank_mode: "max_animal": the event is as blank as its least blank image, and the rest is pooled from what the
            images say about the rest, weighed by how little blank they are.

    Source: definition of this project; see docs/methods/species-decisions.md.
    """
    if blank is None or blank_mode == "as_class":
        return _pool(probabilities_TK, starts_E, weights_T, np.ones(len(weights_T)), method, None)
    blanks_T = probabilities_TK[:, blank]
    rest_T = probabilities_TK.sum(axis=1) - blanks_T
    # An image that is certainly blank carries no information on animals: its rest is 0 / 0, or a rounding error.
    silent_T = rest_T <= _NOTHING
    # Normalized first: the fallback of weights that are all 0 must not give blank images a share.
    weights_T = np.where(silent_T, 0.0, _normalize_weights(weights_T, starts_E) * (1 - blanks_T))
    blanks_E = np.minimum.reduceat(blanks_T, starts_E)
    # Rounding may leave the least blank of them a little below 1.
    blanks_E[np.logical_and.reduceat(silent_T, starts_E)] = 1.0
    pooled_EK = _pool(probabilities_TK, starts_E, weights_T, np.where(silent_T, np.inf, rest_T), method, blank)
    pooled_EK *= (1 - blanks_E)[:, None]
    pooled_EK[:, blank] = blanks_E
    return pooled_EK


def _pool(
    probabilities_TK: Floats,
    starts_E: Integers,
    weights_T: Floats,
    sums_T: Floats,
    method: Method,
    left_out: int | None,
) -> Floats:
    """Pool `probabilities_TK / sums_T` without the column `left_out`, which becomes 0."""
    if method == "max_prob":
        pooled_EK = np.maximum.reduceat(probabilities_TK / sums_T[:, None], starts_E, axis=0)
        if left_out is not None:
            pooled_EK[:, left_out] = 0.0
        return np.nan_to_num(renormalize(pooled_EK))
    num_events, shares_T = len(starts_E), _normalize_weights(weights_T, starts_E)
    bounds = np.append(starts_E, len(weights_T))
    if method == "vote":
        votes_TK = probabilities_TK
        if left_out is not None:
            votes_TK = probabilities_TK.copy()
            # Below every probability: no frame can vote for it.
            votes_TK[:, left_out] = -1.0
        events_T = np.repeat(np.arange(num_events), np.diff(bounds))
        pooled_EK = np.zeros((num_events, probabilities_TK.shape[1]))
        np.add.at(pooled_EK, (events_T, votes_TK.argmax(axis=1)), shares_T)
        return pooled_EK
    if method == "mean_prob":
        pooled_EK = _sum_rows(probabilities_TK, shares_T / sums_T, bounds)
        if left_out is not None:
            pooled_EK[:, left_out] = 0.0
        return np.nan_to_num(renormalize(pooled_EK))
    # One image that is certain of a wrong class must not veto the event: the floor bounds what an image can say.
    # log(p / s) is log(p) - log(s), and the second is the same for all classes of a row: it cancels.
    logs_TK = np.maximum(probabilities_TK, FLOOR * np.where(np.isinf(sums_T), 1.0, sums_T)[:, None])
    np.log(logs_TK, out=logs_TK)
    logs_EK = _sum_rows(logs_TK, shares_T, bounds)
    if left_out is not None:
        logs_EK[:, left_out] = -np.inf
    # A long burst sums to logarithms whose exponentials are all 0.
    logs_EK -= logs_EK.max(axis=1, keepdims=True)
    return renormalize(np.exp(logs_EK, out=logs_EK))


def _sum_rows(values_TK: Floats, weights_T: Floats, bounds: Integers) -> Floats:
    """Return the weighted sum of the rows of each event [E, K]."""
    # A sparse product: NumPy's reduceat along rows takes ten times as long.
    shape = (len(bounds) - 1, len(weights_T))
    return csr_array((weights_T, np.arange(len(weights_T)), bounds), shape=shape) @ values_TK


def _normalize_weights(weights_T: Floats, starts_E: Integers) -> Floats:
    lengths_E = np.diff(starts_E, append=len(weights_T))
    sums_T = np.repeat(np.add.reduceat(weights_T, starts_E), lengths_E)
    equal_T = 1 / np.repeat(lengths_E, lengths_E)
    return np.divide(weights_T, sums_T, out=equal_T, where=sums_T > 0)


def prepare(settings: StageSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    if settings.method in ("none", "megadetector"):
        warn_idle(settings, "blank_mode", "weights", needs="a --pooling that joins the images of an event")
    if settings.method != "megadetector":
        warn_idle(settings, "smoothing", needs="--pooling megadetector")
    if settings.method == "none":
        return None
    if settings.method == "megadetector":
        return lambda rows: smooth(rows, settings.smoothing)
    method = settings.method

    def apply(rows: Rows) -> Rows:
        blank = rows.classes.labels.index(_BLANK) if _BLANK in rows.classes.labels else None
        # Rows of an event are adjacent (`Rows.events_R`), so first rows and lengths describe all events.
        events_E, starts_E, lengths_E = np.unique(rows.events_R, return_index=True, return_counts=True)
        event_R = np.repeat(np.arange(len(events_E)), lengths_E)
        valid_R = ~np.isnan(rows.probabilities_RK[:, 0])
        weights_R = rows.detections.scores_N if settings.weights == "detection" else np.ones(len(event_R))
        pooled_EK = np.full((len(events_E), len(rows.classes)), np.nan)
        if valid_R.any():
            valid_E, starts_V = np.unique(event_R[valid_R], return_index=True)
            probabilities = rows.probabilities_RK if valid_R.all() else rows.probabilities_RK[valid_R]
            pooled_EK[valid_E] = pool_events(
                probabilities,
                starts_V,
                weights_R[valid_R],
                method=method,
                blank=blank,
                blank_mode=settings.blank_mode,
            )
        num_valid_E = np.add.reduceat(valid_R.astype(np.int64), starts_E)
        notes, codes_E = _describe(settings, num_valid_E, lengths_E)
        best_E = _select_best(rows.probabilities_RK, pooled_EK, event_R)
        # The detector's answer is that of an event in which it left nothing to the classifier.
        is_fixed_E = (num_valid_E > 0) & ~np.logical_or.reduceat(valid_R & ~rows.is_fixed_R, starts_E)
        sources_E = _select_fixed(rows, blank, event_R)
        best_E = np.where(is_fixed_E, sources_E, best_E)
        pooled_EK[is_fixed_E] = rows.probabilities_RK[sources_E[is_fixed_E]]
        # The box with the highest score in the event, which need not be on its best image.
        strongest_E = _select_first(-rows.detections.scores_N, event_R)
        # An event fails only if all its images failed.
        answers_E = np.maximum.reduceat(np.minimum(rows.answers_R, 0), starts_E)
        answers_E = np.where(is_fixed_E, rows.answers_R[best_E], answers_E)
        events = replace(
            rows,
            events_R=events_E,
            places_R2=rows.places_R2[best_E],
            hours_R=rows.hours_R[best_E],
            days_R=rows.days_R[best_E],
            detections=rows.detections.take(strongest_E),
            images_R=rows.images_R[best_E],
            answers_R=answers_E,
            scores_R=rows.scores_R[best_E],
            is_fixed_R=is_fixed_E,
            is_pooled=True,
            traces=tuple(trace.take(best_E) for trace in rows.traces),
        )
        return events.passed("pooling", pooled_EK, notes, codes_E)

    return apply


def _describe(settings: StageSettings, valid_E: Integers, total_E: Integers) -> tuple[tuple[str, ...], Integers]:
    pairs, codes_E = np.unique(np.stack([valid_E, total_E], axis=1), axis=0, return_inverse=True)
    name = f"{settings.method}, {settings.blank_mode}"
    notes = tuple(f"{name}: {valid} of {total} images" for valid, total in pairs.tolist())
    return notes, codes_E.reshape(-1)


def _select_best(probabilities_RK: Floats, pooled_EK: Floats, event_R: Integers) -> Integers:
    """Return the row of each event that is surest of the event's best class."""
    best_R = pooled_EK.argmax(axis=1)[event_R]
    scores_R = np.take_along_axis(probabilities_RK, best_R[:, None], axis=1)[:, 0]
    return _select_first(np.where(np.isnan(scores_R), np.inf, -scores_R), event_R)


def _select_fixed(rows: Rows, blank: int | None, event_R: Integers) -> Integers:
    """Return the row of each event by which the detector decides it, one that it did not decide where there is none.

    The surest person or vehicle, else the least blank image.
    """
    is_blank_R = np.zeros(len(event_R), dtype=bool) if blank is None else rows.probabilities_RK[:, blank] == 1
    keys_R = np.where(is_blank_R, rows.scores_R, -rows.scores_R - 1)
    return _select_first(np.where(rows.is_fixed_R, keys_R, np.inf), event_R)


def _select_first(keys_R: NDArray[np.float64], event_R: Integers) -> Integers:
    """Return the row with the lowest key of each event, the first of equals."""
    order = np.lexsort((keys_R, event_R))
    return order[np.unique(event_R[order], return_index=True)[1]]
