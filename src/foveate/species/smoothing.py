"""MegaDetector's smoothing of a burst: rare labels give way to the common ones, and general ones to specific ones.

The label of each image is its best class. Four rules, in this order, each on the counts that the last one left:
"other" labels become the most frequent one; single labels become it, if it is frequent; a taxon becomes the taxon
below it that the burst holds; labels of its family become the most frequent one. Images keep their scores: the
probabilities of the old and the new class are exchanged.

Source: megadetector-utils 10.0.28 (MIT), classification_postprocessing.smooth_classification_results_sequence_level,
restated on arrays. It compares names as texts, so that "leo" is above "leopardus"; here the tree decides.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.species.classes import Classes
from foveate.species.rows import Integers, Rows
from foveate.survey.taxa import Taxa

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
