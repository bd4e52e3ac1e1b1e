"""Decisions from probabilities: stages in a fixed order, each with a switch, each leaving its trace.

    stages = prepare_stages(Stages(), classes, taxa)
    decisions = decide(probabilities_NK, classes, taxa, stages, events=events_N)

Nothing here looks at an image, so that another list or threshold costs seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from pydantic import create_model

from foveate.core.errors import UserError
from foveate.core.plugins import load_table
from foveate.core.recipes import Settings
from foveate.species.rows import (
    FAILED,
    BestDetections,
    Floats,
    Integers,
    Rows,
    Stage,
    StoredRows,
    Trace,
    concatenate_traces,
)
from foveate.species.stages import StageKind
from foveate.species.stages.species_list import renormalize
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

NUM_ALTERNATIVES = 5
# 1,024 rows of 500 classes are 4 MB: a block and its copies stay in the cache of a laptop.
_ROWS_PER_BLOCK = 1024
UNKNOWN = "unknown"
"""Name of a row that abstained."""


_KINDS: dict[str, StageKind] = load_table("foveate.species.stages", "STAGES")
_STAGES = dict(sorted(_KINDS.items(), key=lambda item: item[1].order))
_FIELDS: dict[str, Any] = {name: (kind.settings, kind.settings()) for name, kind in _STAGES.items()}
OPTIONS = tuple((f"{name}.{field}", flag) for name, kind in _STAGES.items() for field, flag in kind.options.items())
"""Paths of the fields of `Stages` that are options of commands, with these."""
_DOC = """Options of all stages, by the name of the stage.

    Example:
        >>> Stages(threshold={"threshold": 0.8}).threshold.threshold
        0.8
    """
Stages = create_model("Stages", __base__=Settings, __doc__=_DOC, **_FIELDS)


def prepare_stages(settings: Settings, classes: Classes, taxa: Taxa) -> tuple[Stage, ...]:
    """Read the files that the settings name and return the stages that are on, in their order.

    Args:
        settings: a `Stages`.

    Raises:
        UserError: a file or name of the settings is wrong.

    Example:
        >>> taxa = Taxa(ids=("Lynx lynx",), names=("Lynx lynx",), ranks=("species",), parents=np.array([-1]))
        >>> classes = Classes(("lynx", "blank"), np.array([0, -1]))
        >>> len(prepare_stages(Stages(threshold={"threshold": 0.8}), classes, taxa)) > 0
        True
    """
    # Each stage gets the settings of all: a species list may turn off the prior, and rules turn off the roll-up.
    others = {name: getattr(settings, name) for name in _STAGES}
    stages = [kind.prepare(others[name], others, classes, taxa) for name, kind in _STAGES.items()]
    return tuple(stage for stage in stages if stage is not None)


@dataclass(frozen=True)
class Decisions:
    """One decision per image, or per event if images were pooled.

    Args:
        classes: those of the call, and after them those that a stage added.
        is_pooled: whether a decision is about an event.
        decisions_N: decision of each image, or of each row of the call.
        images_R: image of each decision; of an event the one that shows it best.
        answers_R: index of a taxon; or `len(taxa)` + index of a class without one; or -1 abstained, -2 failed.
        scores_R: probability of the answer; of the best class where it abstained.
        alternatives_RA, alternative_scores_RA: best classes after pooling, best first.
        traces: what each stage did.
    """

    classes: Classes
    taxa: Taxa
    is_pooled: bool
    decisions_N: Integers
    images_R: Integers
    answers_R: Integers
    scores_R: Floats
    alternatives_RA: Integers
    alternative_scores_RA: Floats
    traces: tuple[Trace, ...]

    def __len__(self) -> int:
        return len(self.answers_R)

    def names(self) -> pa.Array:
        """Return the scientific name or label of each answer, "unknown" for none and "" for a failed image."""
        return self._look_up((*self.taxa.names, *self.classes.labels, "", UNKNOWN))

    def to_columns(self) -> dict[str, pa.Array]:
        """Return the columns taxon, name, rank, score, alternatives (JSON) and source (JSON)."""
        rest = ("",) * (len(self.classes) + 2)
        return {
            "taxon": self._look_up((*self.taxa.ids, *rest)),
            "name": self.names(),
            "rank": self._look_up((*self.taxa.ranks, *rest)),
            "score": pa.array(self.scores_R),
            "alternatives": self._format_alternatives(),
            "source": self._format_source(),
        }

    def _look_up(self, texts: Sequence[str], codes: Integers | None = None) -> pa.Array:
        # -1 and -2 count from the end, where the names of abstained and failed rows are.
        codes = self.answers_R if codes is None else codes
        return pa.array(texts, type=pa.string()).take(pa.array(codes % len(texts)))

    def _format_alternatives(self) -> pa.Array:
        names = [
            self.taxa.names[taxon] if taxon >= 0 else label
            for label, taxon in zip(self.classes.labels, self.classes.taxa_K.tolist(), strict=True)
        ]
        labels = pa.array([json.dumps(name, ensure_ascii=False) for name in names], type=pa.string())
        columns = []
        for column, scores in zip(self.alternatives_RA.T, self.alternative_scores_RA.T, strict=True):
            columns.append(_join_texts("[", labels.take(pa.array(column)), ",", _format(scores), "]"))
        return self._join_lists(columns, np.isnan(self.alternative_scores_RA[:, :1]).any(axis=1))

    def _format_source(self) -> pa.Array:
        answers = [json.dumps(name, ensure_ascii=False) for name in (*self.taxa.names, *self.classes.labels)]
        answers += ['""', f'"{UNKNOWN}"']
        entries = []
        for trace in self.traces:
            notes = pa.array([json.dumps(note, ensure_ascii=False) for note in trace.notes], type=pa.string())
            parts = [f'{{"stage":"{trace.stage}","did":', notes.take(pa.array(trace.codes_R)), ',"answer":']
            parts += [self._look_up(answers, trace.answers_R), ',"score":', _format(trace.scores_R), "}"]
            entries.append(_join_texts(*parts))
        return self._join_lists(entries, np.zeros(len(self), dtype=bool))

    def _join_lists(self, columns: Sequence[pa.Array], empty_R: Any) -> pa.Array:
        """Write a JSON list of the columns in each row, without elements where `empty_R`."""
        if not columns:
            return pa.array(["[]"] * len(self), type=pa.string())
        lists = _join_texts("[", _join_texts(*columns, separator=","), "]")
        # A row without probabilities has no alternatives, whatever its columns contain.
        return pc.call_function("if_else", [pa.array(empty_R), pa.scalar("[]"), lists])


def _join_texts(*parts: pa.Array | str, separator: str = "") -> pa.Array:
    values = [pa.scalar(part) if isinstance(part, str) else part for part in (*parts, separator)]
    # By name, because the module's functions are made at run time and unknown to type checkers.
    return pc.call_function("binary_join_element_wise", values)


def _format(scores_R: Floats) -> pa.Array:
    """Write probabilities as JSON numbers of four decimals."""
    # JSON has no NaN, so the score of a failed row is written as 0.
    return pc.cast(pa.array(np.round(np.nan_to_num(scores_R), 4)), pa.string())


def decide(
    probabilities_NK: ArrayLike | StoredRows,
    classes: Classes,
    taxa: Taxa,
    stages: Sequence[Stage],
    *,
    events: ArrayLike | None = None,
    frames: ArrayLike | None = None,
    places: ArrayLike | None = None,
    hours: ArrayLike | None = None,
    days: ArrayLike | None = None,
    detections: BestDetections | None = None,
    num_alternatives: int = NUM_ALTERNATIVES,
) -> Decisions:
    """Decide the class of each image, or of each event.

    Args:
        probabilities_NK: of each class, in memory or on disk; a row with NaN is an image that failed. Rows are divided
            by their sums.
        stages: of `prepare_stages`.
        events: number [N] of the event of each image, -1 for an event of its own; each image by default.
        frames: number [N] of the image of each row, where rows are animals of images; each row by default.
        places: degrees [N, 2] (latitude, longitude), NaN where unknown.
        hours: local hour [N] in [0, 24), NaN where unknown.
        days: day of the year [N] from 0, NaN where unknown.
        detections: best detection of each image; an animal of score 1 on each by default.
        num_alternatives: classes to keep besides the answer.

    Returns:
        Decisions in the order of the first image of each event.

    Raises:
        UserError: shapes disagree, or a probability is negative or infinite.

    >>> names = ("Felidae", "Leopardus pardalis", "Leopardus wiedii")
    >>> taxa = Taxa(ids=names, names=names, ranks=("family", "species", "species"), parents=np.array([-1, 0, 0]))
    >>> classes = Classes(("ocelot", "margay", "blank"), np.array([1, 2, -1]))
    >>> stages = prepare_stages(Stages(threshold={"threshold": 0.8}), classes, taxa)
    >>> decisions = decide([[0.5, 0.4, 0.1], [0.3, 0.1, 0.6]], classes, taxa, stages, events=[0, 0])
    >>> decisions.names().to_pylist()
    ['Felidae']
    """
    matrix = probabilities_NK if isinstance(probabilities_NK, StoredRows) else np.asarray(probabilities_NK)
    if len(matrix.shape) != 2 or matrix.shape[1] != len(classes):
        raise UserError(f"probabilities: expected a column for each of {len(classes)} classes (got {matrix.shape})")
    count = matrix.shape[0]
    events_N = number_events(_column(events, count, "events", fill=-1).astype(np.int64))
    frames_N = None if frames is None else _column(frames, count, "frames").astype(np.int64)
    places_N2 = _column(places, count, "places", width=2)
    hours_N, days_N = _column(hours, count, "hours"), _column(days, count, "days")
    if detections is None:
        detections = BestDetections(np.zeros(count, dtype=np.int64), np.ones(count))
    # Rows of an event side by side, events in the order of their first image: blocks end where an event ends.
    order_N = np.argsort(events_N, kind="stable")
    parts = []
    for rows in _split_blocks(events_N[order_N]):
        images = order_N[rows]
        # Only these rows are read: the probabilities on disk may be far larger than memory.
        probabilities_RK = _check_block(matrix[images])
        block = Rows(
            classes=classes,
            taxa=taxa,
            probabilities_RK=probabilities_RK,
            events_R=events_N[images],
            frames_R=None if frames_N is None else frames_N[images],
            places_R2=places_N2[images],
            hours_R=hours_N[images],
            days_R=days_N[images],
            detections=detections.take(images),
            images_R=images,
            answers_R=np.where(np.isnan(probabilities_RK[:, 0]), FAILED, 0),
            scores_R=np.zeros(len(images)),
            is_fixed_R=np.zeros(len(images), dtype=bool),
        ).passed("classifier", probabilities_RK, ("probabilities of the model",))
        unpooled = block
        for stage in stages:
            # A stage may have split events, so the last rows before they become events say which images these have.
            unpooled = unpooled if block.is_pooled else block
            block = stage(block)
        parts.append(_Part(block, unpooled if block.is_pooled else block, num_alternatives))
    return _join(parts, taxa)


class _Part:
    """Results of a block, without its probabilities.

    Args:
        images: the rows when each was an image.
    """

    def __init__(self, rows: Rows, images: Rows, num_alternatives: int) -> None:
        self.classes, self.is_pooled = rows.classes, rows.is_pooled
        self.members_I = images.images_R
        self.rows_I = (
            np.searchsorted(rows.events_R, images.events_R) if rows.is_pooled else np.arange(len(rows.images_R))
        )
        self.images_R, self.answers_R, self.scores_R, self.traces = (
            rows.images_R,
            rows.answers_R,
            rows.scores_R,
            rows.traces,
        )
        width = min(num_alternatives, len(rows.classes))
        self.alternatives_RA = np.zeros((len(rows.answers_R), width), dtype=np.int64)
        self.alternative_scores_RA = np.zeros((len(rows.answers_R), width))
        rest_RK = rows.probabilities_RK.copy()
        # A few maxima cost less than sorting hundreds of classes, and ties go to the first class.
        for n in range(width):
            best_R1 = rest_RK.argmax(axis=1)[:, None]
            self.alternatives_RA[:, n] = best_R1[:, 0]
            self.alternative_scores_RA[:, n] = np.take_along_axis(rest_RK, best_R1, axis=1)[:, 0]
            np.put_along_axis(rest_RK, best_R1, -1.0, axis=1)


def _join(parts: list[_Part], taxa: Taxa) -> Decisions:
    images_R = np.concatenate([part.images_R for part in parts])
    members_N = np.concatenate([part.members_I for part in parts])
    offsets = np.cumsum([0, *(len(part.images_R) for part in parts[:-1])])
    row_N = np.empty(len(members_N), dtype=np.int64)
    row_N[members_N] = np.concatenate([part.rows_I + offset for part, offset in zip(parts, offsets, strict=True)])
    # Events are in the order of their first image, and images that were not pooled in that of the call.
    first_R = np.full(len(images_R), len(row_N))
    np.minimum.at(first_R, row_N, np.arange(len(row_N)))
    order_R = np.argsort(first_R, kind="stable")
    position_R = np.empty_like(order_R)
    position_R[order_R] = np.arange(len(order_R))
    return Decisions(
        classes=parts[0].classes,
        taxa=taxa,
        is_pooled=parts[0].is_pooled,
        decisions_N=position_R[row_N],
        images_R=images_R[order_R],
        answers_R=np.concatenate([part.answers_R for part in parts])[order_R],
        scores_R=np.concatenate([part.scores_R for part in parts])[order_R],
        alternatives_RA=np.concatenate([part.alternatives_RA for part in parts])[order_R],
        alternative_scores_RA=np.concatenate([part.alternative_scores_RA for part in parts])[order_R],
        traces=tuple(
            concatenate_traces(traces).take(order_R) for traces in zip(*(part.traces for part in parts), strict=True)
        ),
    )


def _column(
    values: ArrayLike | None, count: int, name: str, *, width: int | None = None, fill: float = np.nan
) -> Floats:
    shape = (count,) if width is None else (count, width)
    if values is None:
        return np.full(shape, fill)
    column = np.asarray(values, dtype=np.float64)
    if column.shape != shape:
        raise UserError(f"{name}: expected shape {shape}, a row for each image (got {column.shape})")
    return column


def number_events(events_N: Integers) -> Integers:
    """Number events from 0 in the order of their first image; each -1 is an event of its own."""
    # Numbered above all given events, so that no image joins one by accident.
    alone_N = np.arange(len(events_N)) + events_N.max(initial=0) + 1
    _, first_E, event_N = np.unique(np.where(events_N < 0, alone_N, events_N), return_index=True, return_inverse=True)
    rank_E = np.empty_like(first_E)
    rank_E[np.argsort(first_E)] = np.arange(len(first_E))
    return rank_E[event_N]


def _split_blocks(events_N: Integers) -> list[slice]:
    """Split sorted events into blocks of about `_ROWS_PER_BLOCK` rows, each event in one of them."""
    starts = np.flatnonzero(np.diff(events_N, prepend=-1))
    cuts = [0]
    while cuts[-1] < len(events_N):
        after = starts[np.searchsorted(starts, cuts[-1] + _ROWS_PER_BLOCK) :]
        cuts.append(int(after[0]) if len(after) else len(events_N))
    # No image at all is a block, too: the decisions have their traces and no row.
    return [slice(low, high) for low, high in zip(cuts, cuts[1:], strict=False)] or [slice(0, 0)]


def _check_block(values_RK: NDArray[Any]) -> Floats:
    block = values_RK.astype(np.float64)
    # NaN and infinity reach the sums: two passes instead of one for each check.
    sums_R = block.sum(axis=1)
    if np.isinf(sums_R).any() or np.nanmin(block, initial=0.0) < 0:
        raise UserError("probabilities: a value is negative or infinite; expected probabilities, not logits")
    block[np.isnan(sums_R)] = np.nan
    # Half precision leaves sums that are 1 up to a thousandth.
    return renormalize(block)
