"""Pool the images of a burst into one decision, because most animals leave some frames empty.

`megadetector` is the smoothing that MegaDetector's users know: frames keep decisions of their own, and rare labels of a
burst give way to its common ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_array

from foveate.core.recipes import Settings
from foveate.species.rows import Floats, Integers, Rows, Stage
from foveate.species.stages import StageKind, warn_idle
from foveate.species.stages.species_list import renormalize
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

FLOOR = 1e-6
_NOTHING = 1e-12
Method = Literal["mean_logprob", "mean_prob", "max_prob", "vote"]
BlankMode = Literal["max_animal", "as_class"]
_BLANK = "blank"


# MegaDetector's smoothing of a burst: rare labels give way to the common ones, and general ones to specific ones.
#
# The label of each image is its best class. Four rules, in this order, each on the counts that the last one left:
# "other" labels become the most frequent one; single labels become it, if it is frequent; a taxon becomes the taxon
# below it that the burst holds; labels of its family become the most frequent one. Images keep their scores: the
# probabilities of the old and the new class are exchanged.
#
# Source: megadetector-utils 10.0.28 (MIT), classification_postprocessing.smooth_classification_results_sequence_level,
# restated on arrays. It compares names as texts, so that "leo" is above "leopardus"; here the tree decides.


# Levels of the library: what lies above a class is no taxon to it.
_LEVELS = {"class": 3, "order": 4, "family": 5, "genus": 6, "species": 7, "subspecies": 8}
_FAMILY = _LEVELS["family"]


class SmoothingSettings(Settings):
    """Options of MegaDetector's smoothing, with its defaults."""

    min_detection: float = Field(0.15, ge=0, le=1, description="images with weaker animal detections are left alone")
    min_score: float = Field(0.5, ge=0, le=1, description="labels with a lower score neither count nor change")
    other_labels: tuple[str, ...] = Field(
        ("other", "unknown", "no cv result", "animal", "blank", "mammal"), description="labels that give way first"
    )
    min_to_overwrite_other: int = Field(
        2, ge=1, description="images of the most frequent label that replace other labels"
    )
    min_to_overwrite_rare: int = Field(4, ge=1, description="images of the most frequent label that replace rare ones")
    max_rare: int = Field(1, ge=0, description="images up to which a label is rare")
    min_to_overwrite_family: int = Field(2, ge=0, description="the same for labels of one family; 0 turns the rule off")
    max_rare_family: int = Field(
        -1, ge=-1, description="images up to which a label of the family is rare; -1 means none, as in the library"
    )
    level_weight: float = Field(1.0, ge=0, description="what a rank counts when a taxon becomes one below it")
    count_weight: float = Field(0.01, ge=0, description="what an image counts when a taxon becomes one below it")


class _Counts:
    """Counts of the labels of each event: pairs (event, class) in the library's order, most frequent first.

    Args:
        event_T, class_T: of the images that count, in the order of the rows.
    """

    def __init__(self, event_T: Integers, class_T: Integers, num_classes: int) -> None:
        codes, first_P, self.pair_T, self.count_P = np.unique(
            event_T * num_classes + class_T, return_index=True, return_inverse=True, return_counts=True
        )
        # Ties are in the order of first appearance, as in the dictionaries of the library.
        order = np.lexsort((first_P, -self.count_P, codes // num_classes))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.pair_T = rank[self.pair_T]
        self.event_P, self.class_P = np.divmod(codes[order], num_classes)
        self.count_P = self.count_P[order]
        self.start_P = np.searchsorted(self.event_P, self.event_P, side="left")
        self.end_P = np.searchsorted(self.event_P, self.event_P, side="right")

    @property
    def size_P(self) -> Integers:
        """Number of labels of the pair's event."""
        return self.end_P - self.start_P

    @property
    def top_P(self) -> Integers:
        """Most frequent label of the pair's event."""
        return self.class_P[self.start_P]

    @property
    def top_count_P(self) -> Integers:
        """Images of the most frequent label of the pair's event."""
        return self.count_P[self.start_P]


def smooth_labels(
    labels_T: Integers, event_T: Integers, classes: Classes, taxa: Taxa, settings: SmoothingSettings
) -> Integers:
    """Return the smoothed class of each image.

    Args:
        labels_T: class of each image that counts: a detected animal with a score that is high enough.
        event_T: its event.
    """
    levels_K, family_K, genus_K, is_below_KK, is_other_K = _describe_classes(classes, taxa, settings.other_labels)
    labels_T = labels_T.copy()
    if not len(labels_T):
        return labels_T
    # An event whose images agree stays as it is, even if they agree on "other".
    counts = _Counts(event_T, labels_T, len(classes))
    mixed_T = (counts.size_P > 1)[counts.pair_T]
    labels_M, event_M = labels_T[mixed_T], event_T[mixed_T]
    if not len(labels_M):
        return labels_T

    counts = _Counts(event_M, labels_M, len(classes))
    top_P = counts.top_P
    # "Other" that is as frequent as the next label does not win.
    second_P = counts.start_P + 1
    tied_P = (
        is_other_K[top_P] & ~is_other_K[counts.class_P[second_P]] & (counts.count_P[second_P] == counts.top_count_P)
    )
    top_P = np.where(tied_P, counts.class_P[second_P], top_P)
    changes_P = (
        is_other_K[counts.class_P] & ~is_other_K[top_P] & (counts.top_count_P >= settings.min_to_overwrite_other)
    )
    labels_M = np.where(changes_P, top_P, counts.class_P)[counts.pair_T]

    counts = _Counts(event_M, labels_M, len(classes))
    top_P = counts.top_P
    changes_P = (
        ~is_other_K[top_P]
        & (counts.top_count_P >= settings.min_to_overwrite_rare)
        & (counts.class_P != top_P)
        & (counts.count_P < counts.top_count_P)
        & (counts.count_P <= settings.max_rare)
        # Nor does a taxon become the one above it; and what is no taxon neither gives way nor takes over.
        & (levels_K[counts.class_P] > 0)
        & (levels_K[top_P] > 0)
        & ~is_below_KK[counts.class_P, top_P]
    )
    labels_M = np.where(changes_P, top_P, counts.class_P)[counts.pair_T]

    counts = _Counts(event_M, labels_M, len(classes))
    tree_P = counts.size_P > 1
    labels_M = _specify(counts, levels_K, is_below_KK, settings)[counts.pair_T]
    # The library decides whether to look at families before taxa become specific.
    tree_M = tree_P[counts.pair_T]

    counts = _Counts(event_M, labels_M, len(classes))
    top_P = counts.top_P
    changes_P = (
        (settings.min_to_overwrite_family > 0)
        & ~is_other_K[top_P]
        & (levels_K[top_P] > _FAMILY)
        & (counts.top_count_P >= settings.min_to_overwrite_family)
        & (counts.class_P != top_P)
        & (counts.count_P <= settings.max_rare_family)
        & (counts.count_P != counts.top_count_P)
        & (family_K[top_P] >= 0)
        & (family_K[counts.class_P] == family_K[top_P])
        & ~((genus_K[counts.class_P] == genus_K[top_P]) & (levels_K[counts.class_P] > levels_K[top_P]))
    )
    labels_T[mixed_T] = np.where(changes_P[counts.pair_T] & tree_M, top_P[counts.pair_T], labels_M)
    return labels_T


def _specify(
    counts: _Counts, levels_K: Integers, is_below_KK: NDArray[np.bool_], settings: SmoothingSettings
) -> Integers:
    """Return the label [P] that each pair becomes: the best taxon of its event that lies below it, else itself."""
    # All pairs of labels of one event: bursts hold few labels.
    sizes_P = counts.size_P
    first_Q = np.repeat(np.arange(len(sizes_P)), sizes_P)
    second_Q = np.arange(len(first_Q)) - np.repeat(np.cumsum(sizes_P) - sizes_P - counts.start_P, sizes_P)
    below_Q = is_below_KK[counts.class_P[second_Q], counts.class_P[first_Q]]
    first_Q, second_Q = first_Q[below_Q], second_Q[below_Q]
    scores_Q = (
        levels_K[counts.class_P[second_Q]] * settings.level_weight + counts.count_P[second_Q] * settings.count_weight
    )
    order = np.lexsort((second_Q, -scores_Q, first_Q))
    specified_P = counts.class_P.copy()
    changed, best = np.unique(first_Q[order], return_index=True)
    specified_P[changed] = counts.class_P[second_Q[order][best]]
    return specified_P


# Cached, because images are decided in blocks that all have the same classes; classes and taxa hash by identity.
@lru_cache(maxsize=4)
def _describe_classes(
    classes: Classes, taxa: Taxa, other_labels: tuple[str, ...]
) -> tuple[Integers, Integers, Integers, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the level, family and genus [K] of classes, which lie below which [K, K], and which are "other" [K]."""
    lineages = [taxa.lineage(int(taxon)) for taxon in classes.taxa_K]
    ranks = [next((taxa.ranks[i] for i in lineage if taxa.ranks[i] in _LEVELS), "") for lineage in lineages]
    levels_K = np.array([_LEVELS.get(rank, 0) for rank in ranks], dtype=np.int64)
    # SpeciesNet writes a person as Homo sapiens: the library overwrites a rare one. A vehicle is no taxon to it.
    levels_K[[label == "human" for label in classes.labels]] = _LEVELS["species"]
    family_K, genus_K = (
        np.array([taxa.at_rank(int(taxon), rank) for taxon in classes.taxa_K], dtype=np.int64)
        for rank in ("family", "genus")
    )
    # Two classes of one taxon ("buck", "fawn") lie neither above nor below each other.
    is_below_KK = np.array([np.isin(classes.taxa_K, lineage[1:]) for lineage in lineages]) & (levels_K > 0)
    names = [
        {label.lower(), *((taxa.names[i].lower(), taxa.common[i].lower()) if (i := int(taxon)) >= 0 else ())}
        for label, taxon in zip(classes.labels, classes.taxa_K, strict=True)
    ]
    return levels_K, family_K, genus_K, is_below_KK, np.array([bool(n & set(other_labels)) for n in names], dtype=bool)


def smooth(rows: Rows, settings: SmoothingSettings) -> Rows:
    """Smooth the labels of each event; see `smooth_labels`."""
    labels_R = np.nan_to_num(rows.probabilities_RK).argmax(axis=1)
    scores_R = np.take_along_axis(rows.probabilities_RK, labels_R[:, None], axis=1)[:, 0]
    detected_R = (rows.detections.kinds_N == 0) & (rows.detections.scores_N >= settings.min_detection)
    counts_R = np.flatnonzero(detected_R & (scores_R >= settings.min_score) & ~rows.is_fixed_R)
    smoothed_R = labels_R.copy()
    smoothed_R[counts_R] = smooth_labels(labels_R[counts_R], rows.events_R[counts_R], rows.classes, rows.taxa, settings)
    changed_R = np.flatnonzero(smoothed_R != labels_R)
    probabilities_RK = rows.probabilities_RK.copy()
    old, new = labels_R[changed_R], smoothed_R[changed_R]
    probabilities_RK[changed_R, old], probabilities_RK[changed_R, new] = (
        rows.probabilities_RK[changed_R, new],
        rows.probabilities_RK[changed_R, old],
    )
    notes = ("megadetector: unchanged", "megadetector: follows the burst")
    return rows.passed("pooling", probabilities_RK, notes, (smoothed_R != labels_R).astype(np.int64))


class PoolingSettings(Settings):
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
    # Divided by infinity, a silent image gives every animal the probability 0.
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


def prepare(settings: PoolingSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
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
        unit = "images" if rows.frames_R is None else "animals and frames"
        notes, codes_E = _describe(settings, num_valid_E, lengths_E, unit)
        # The row of each event that is surest of the event's best class.
        best_R = pooled_EK.argmax(axis=1)[event_R]
        surest_R = np.take_along_axis(rows.probabilities_RK, best_R[:, None], axis=1)[:, 0]
        best_E = _select_first(np.where(np.isnan(surest_R), np.inf, -surest_R), event_R)
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
            frames_R=None,
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


def _describe(
    settings: PoolingSettings, valid_E: Integers, total_E: Integers, unit: str
) -> tuple[tuple[str, ...], Integers]:
    pairs, codes_E = np.unique(np.stack([valid_E, total_E], axis=1), axis=0, return_inverse=True)
    name = f"{settings.method}, {settings.blank_mode}"
    notes = tuple(f"{name}: {valid} of {total} {unit}" for valid, total in pairs.tolist())
    return notes, codes_E.reshape(-1)


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


_OPTIONS = {"method": "--pooling", "blank_mode": "--blank-mode", "weights": "--pooling-weights"}
STAGES = {"pooling": StageKind(40, PoolingSettings, prepare, _OPTIONS, {"method": "none"}, "Pooling over the event")}
