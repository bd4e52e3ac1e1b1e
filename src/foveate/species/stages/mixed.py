"""Tell several species of one event apart, each as an answer of its own, by frames that show them together.

A single box that looks like another species is noise more often than a second species, which is what pooling is for.
So two species need a frame in which two boxes show them, each above the threshold, neither within the other. A species
of one box gives way beside four of another: MegaDetector's smoothing has the same rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.species.rows import Floats, Integers, Rows, Stage, answer_codes
from foveate.species.stages import StageKind
from foveate.species.stages.pooling import PoolingSettings, SmoothingSettings
from foveate.species.stages.rollup import RollupSettings, ThresholdSettings, group_by_rank, roll_up
from foveate.species.stages.rules import RulesSettings
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa


class MixedSettings(Settings):
    """Options for events of several species."""

    enabled: bool = Field(
        True,
        description="species that boxes of one frame show are answers of their own",
        json_schema_extra={"off": "one species an event, however many its boxes show"},
    )


def prepare(settings: MixedSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    pooling, rules = others.get("pooling", PoolingSettings()), others.get("rules")
    limit, ranks = others.get("threshold", ThresholdSettings()), others.get("rollup", RollupSettings())
    assert isinstance(pooling, PoolingSettings)
    assert isinstance(limit, ThresholdSettings)
    assert isinstance(ranks, RollupSettings)
    is_ruled = isinstance(rules, RulesSettings) and rules.rules != "none"
    # Boxes that are not pooled have an answer each.
    if not settings.enabled or is_ruled or pooling.method in ("none", "megadetector"):
        return None

    def apply(rows: Rows) -> Rows:
        frames_R = rows.frames_R
        if frames_R is None:
            return rows
        is_free_R = ~rows.is_fixed_R & ~np.isnan(rows.probabilities_RK[:, 0])
        groups_R, notes, codes_R = np.zeros(len(frames_R), np.int64), ["one species"], np.zeros(len(frames_R), np.int64)
        groups = group_by_rank(rows.classes, rows.taxa, ranks.ranks)
        codes_K = answer_codes(rows.classes, rows.taxa)
        for members in _find_crowded(rows.events_R, frames_R, is_free_R):
            probabilities_MK = rows.probabilities_RK[members]
            answers_M, _, _ = roll_up(probabilities_MK, groups, threshold=limit.threshold)
            species = find_species(answers_M, frames_R[members], rows.taxa)
            if len(species) < 2:
                continue
            below_SK = np.array([_is_below(answer, codes_K, rows.taxa) for answer in species])
            groups_R[members] = (probabilities_MK @ below_SK.T).argmax(axis=1)
            names = [_name(answer, rows) for answer in species]
            codes_R[rows.events_R == rows.events_R[members[0]]] = len(notes)
            notes.append(f"{len(species)} species in one frame: {', '.join(names)}")
        events_R = rows.events_R * (groups_R.max(initial=0) + 1) + groups_R
        split = replace(rows, events_R=events_R).noted("mixed", tuple(notes), codes_R)
        # Rows of an event follow one another (`Rows.events_R`).
        return split.take(np.argsort(events_R, kind="stable"))

    return apply


def find_species(answers_M: Integers, frames_M: Integers, taxa: Taxa) -> list[int]:
    """Return the answers of an event that frames show beside one another, the most frequent first.

    Args:
        answers_M: answer of each box, negative for none.
        frames_M: its frame.

    >>> names = ("Canidae", "Lynx", "Vulpes")
    >>> taxa = Taxa(names, names, ("family", "genus", "genus"), np.array([-1, -1, 0]))
    >>> find_species(np.array([1, 2, 0]), np.array([7, 7, 8]), taxa)
    [1, 2]
    >>> find_species(np.array([0, 2]), np.array([7, 7]), taxa)
    []
    """
    named = [
        (frame, answer) for frame, answer in zip(frames_M.tolist(), answers_M.tolist(), strict=True) if answer >= 0
    ]
    together: dict[int, set[int]] = {}
    for frame, answer in named:
        together.setdefault(frame, set()).add(answer)
    species = {
        answer
        for answers in together.values()
        for answer in answers
        if any(not _are_related(answer, other, taxa) for other in answers)
    }
    # A taxon above another one of them names it less exactly.
    species -= {answer for answer in species if any(answer in _lineage(other, taxa)[1:] for other in species)}
    counts = Counter(answer for _, answer in named)
    support = {answer: sum(counts[other] for other in counts if answer in _lineage(other, taxa)) for answer in species}
    ordered = sorted(species, key=lambda answer: (-support[answer], answer))
    smoothing = SmoothingSettings()
    if ordered and support[ordered[0]] >= smoothing.min_to_overwrite_rare:
        ordered = [answer for answer in ordered if support[answer] > smoothing.max_rare]
    return ordered


def _find_crowded(events_R: Integers, frames_R: Integers, is_free_R: np.ndarray) -> Sequence[Integers]:
    """Return the free rows of each event that has a frame with several of them."""
    free = np.flatnonzero(is_free_R)
    pairs, counts = np.unique(np.stack([events_R[free], frames_R[free]]), axis=1, return_counts=True)
    crowded = np.unique(pairs[0, counts > 1])
    members = free[np.isin(events_R[free], crowded)]
    # Rows of an event follow one another.
    return np.split(members, np.flatnonzero(np.diff(events_R[members])) + 1) if len(members) else []


def _lineage(answer: int, taxa: Taxa) -> list[int]:
    """Return a taxon and all above it; a class without a taxon alone."""
    return list(taxa.lineage(answer)) if answer < len(taxa) else [answer]


def _are_related(answer: int, other: int, taxa: Taxa) -> bool:
    return answer in _lineage(other, taxa) or other in _lineage(answer, taxa)


def _is_below(answer: int, codes_K: Integers, taxa: Taxa) -> Floats:
    """Return 1 for each class of an answer, else 0 [K]."""
    return np.array([answer in _lineage(code, taxa) for code in codes_K.tolist()], dtype=np.float64)


def _name(answer: int, rows: Rows) -> str:
    return rows.taxa.names[answer] if answer < len(rows.taxa) else rows.classes.labels[answer - len(rows.taxa)]


STAGES = {
    "mixed": StageKind(
        35, MixedSettings, prepare, {"enabled": "--mixed"}, {"enabled": False}, "Several species", yields=True
    )
}
