"""Roll up to the most specific taxon that is likely enough, Felidae where two cats share 0.9; abstain below it.

For each rank the probabilities of classes are summed by their ancestor at that rank. Scores of ancestors themselves
were never trained against images and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from pydantic import Field, field_validator

from foveate.core.errors import choose
from foveate.core.recipes import Settings
from foveate.species.rows import ABSTAINED, Floats, Integers, Rows, Stage, answer_codes, best_answers, merge_columns
from foveate.species.stages import StageKind
from foveate.species.stages.rules import RulesSettings
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import RANKS, Taxa

_CLASS = "class of the model"


class ThresholdSettings(Settings):
    """Options of the threshold."""

    threshold: float = Field(
        0.65, ge=0, le=1, description="probability that an answer needs; with roll-up, the most specific taxon above it"
    )


def prepare_threshold(
    settings: ThresholdSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa
) -> Stage | None:
    """See `foveate.species.stages`."""
    rules = others.get("rules")
    if not settings.threshold or (isinstance(rules, RulesSettings) and rules.rules != "none"):
        return None
    notes = (
        f"at least {settings.threshold:g}",
        f"below {settings.threshold:g}",
        "no answer",
        "decided by the detector",
    )

    def apply(rows: Rows) -> Rows:
        low_R = (rows.answers_R >= 0) & (rows.scores_R < settings.threshold) & ~rows.is_fixed_R
        codes_R = np.where(rows.answers_R < 0, 2, low_R.astype(np.int64))
        codes_R = np.where(rows.is_fixed_R, 3, codes_R)
        return replace(rows, answers_R=np.where(low_R, ABSTAINED, rows.answers_R)).noted("threshold", notes, codes_R)

    return apply


class RollupSettings(Settings):
    """Options of the roll-up."""

    enabled: bool = Field(
        True,
        description="answer with a higher taxon where no class is likely enough",
        json_schema_extra={"off": "answer with a class of the model, however unlikely, never with a higher taxon"},
    )
    ranks: tuple[str, ...] = Field(RANKS[::-1], description="ranks that an answer may have, from specific to general")

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: tuple[str, ...]) -> tuple[str, ...]:
        for rank in ranks:
            choose(rank, RANKS, "rank")
        # The first rank that passes is the answer, in whatever order they were given.
        return tuple(rank for rank in RANKS[::-1] if rank in ranks)


@dataclass(frozen=True, eq=False)
class RankGroups:
    """Taxa at one rank, in the order of the first class below each.

    Args:
        answers_M: answer code of each.
        groups_K: position in `answers_M` of each class, -1 for a class without a taxon at this rank.
    """

    rank: str
    answers_M: Integers
    groups_K: Integers

    def sum(self, probabilities_RK: Floats) -> Floats:
        """Return the summed probability [R, M] of each taxon; what is missing to 1 has no taxon at this rank."""
        return merge_columns(probabilities_RK, self.groups_K, len(self.answers_M))


# Cached, because `apply` asks for the same groups in every block of rows; classes and taxa hash by identity.
@lru_cache(maxsize=8)
def group_by_rank(classes: Classes, taxa: Taxa, ranks: tuple[str, ...]) -> tuple[RankGroups, ...]:
    """Group the classes by their ancestor at each rank.

    Classes that have no taxon, or one of a rank outside RANKS, come first, each by itself: nothing above them is as
    specific, and `ranks` cannot name them.
    """
    alone_K = np.array([taxon < 0 or taxa.ranks[taxon] not in RANKS for taxon in classes.taxa_K.tolist()])
    groups = [_group(_CLASS, np.where(alone_K & classes.animals_K, answer_codes(classes, taxa), -1))]
    for rank in ranks:
        groups.append(_group(rank, np.array([taxa.at_rank(int(taxon), rank) for taxon in classes.taxa_K])))
    return tuple(group for group in groups if len(group.answers_M))


def _group(rank: str, answers_K: Integers) -> RankGroups:
    # Groups are in the order of their first class, so that the earliest wins ties of equal sums.
    unique = np.array(list(dict.fromkeys(answer for answer in answers_K.tolist() if answer >= 0)), dtype=np.int64)
    position = {answer: m for m, answer in enumerate(unique.tolist())}
    return RankGroups(rank, unique, np.array([position.get(answer, -1) for answer in answers_K.tolist()]))


def roll_up(
    probabilities_RK: Floats, groups: Sequence[RankGroups], *, threshold: float
) -> tuple[Integers, Floats, Integers]:
    """Return the most specific answer [R] strictly above the threshold, its probability, and its position in `groups`.

    A row without such an answer is ABSTAINED with probability 0 and position -1. Of equals the first wins.
    """
    answers_R = np.full(len(probabilities_RK), ABSTAINED)
    scores_R = np.zeros(len(probabilities_RK))
    ranks_R = np.full(len(probabilities_RK), -1)
    # Most rows end at the first rank; only the rest is summed again.
    rest = np.arange(len(probabilities_RK))
    for n, group in enumerate(groups):
        sums_RM = group.sum(probabilities_RK if len(rest) == len(probabilities_RK) else probabilities_RK[rest])
        best_R = sums_RM.argmax(axis=1)
        best_scores_R = np.take_along_axis(sums_RM, best_R[:, None], axis=1)[:, 0]
        passes_R = best_scores_R > threshold
        answers_R[rest[passes_R]] = group.answers_M[best_R[passes_R]]
        scores_R[rest[passes_R]] = best_scores_R[passes_R]
        ranks_R[rest[passes_R]] = n
        rest = rest[~passes_R]
        if not len(rest):
            break
    return answers_R, scores_R, ranks_R


def prepare_rollup(
    settings: RollupSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa
) -> Stage | None:
    """See `foveate.species.stages`."""
    rules, limit = others.get("rules"), others.get("threshold", ThresholdSettings())
    if not settings.enabled or (isinstance(rules, RulesSettings) and rules.rules != "none"):
        return None
    assert isinstance(limit, ThresholdSettings)
    threshold = limit.threshold

    def apply(rows: Rows) -> Rows:
        groups = group_by_rank(rows.classes, rows.taxa, settings.ranks)
        # Blank, human and vehicle have no taxon: they answer where they are the best class and likely enough.
        best_K = rows.probabilities_RK.argmax(axis=1)
        top_answers_R, top_R = best_answers(rows.probabilities_RK, rows.classes, rows.taxa)
        other_R = ~rows.classes.animals_K[best_K] & (top_R > threshold)
        answers_R, scores_R, ranks_R = top_answers_R.copy(), top_R.copy(), np.full(len(top_R), len(groups))
        animal_R = np.flatnonzero(~other_R)
        answers_R[animal_R], scores_R[animal_R], ranks_R[animal_R] = roll_up(
            rows.probabilities_RK[animal_R], groups, threshold=threshold
        )
        # An abstention keeps the probability of its best class, by which reviews are ordered.
        scores_R = np.where(answers_R < 0, top_R, scores_R)
        scores_R = np.where(rows.is_fixed_R, rows.scores_R, scores_R)
        answers_R = np.where((rows.answers_R < 0) | rows.is_fixed_R, rows.answers_R, answers_R)
        notes = (
            f"no taxon above {threshold:g}",
            *(f"{group.rank} above {threshold:g}" for group in groups),
            f"no animal, above {threshold:g}",
            "decided by the detector",
        )
        codes_R = np.where(rows.is_fixed_R, len(notes) - 1, ranks_R + 1)
        return replace(rows, answers_R=answers_R, scores_R=scores_R).noted("rollup", notes, codes_R)

    return apply


_OPTIONS = {"enabled": "--roll-up", "ranks": "--ranks"}
STAGES = {
    "threshold": StageKind(
        60, ThresholdSettings, prepare_threshold, {"threshold": "--threshold"}, {"threshold": 0}, yields=True
    ),
    "rollup": StageKind(50, RollupSettings, prepare_rollup, _OPTIONS, {"enabled": False}, "Roll-up", yields=True),
}
