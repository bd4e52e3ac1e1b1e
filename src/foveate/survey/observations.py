"""Resolve a survey's observations: later rows replace earlier ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.records.tables import positions

REVIEW_SOURCE = "review:"
"""Beginning of the source of a row that a person wrote in a review; the file of the answers follows."""

EMPTY_AND_SPECIES = "images or events that are called empty and a species at once: see which is right"
"""What an import counts with `count_contradictions`."""

# A character that no id has: rows are cleaned of control characters.
SEPARATOR = "\x1f"


def join_names(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    """Join two columns of ids row by row, so that pairs can be looked up as one text."""
    return pc.call_function("binary_join_element_wise", [first, second, pa.scalar(SEPARATOR)])


def count_contradictions(rows: Iterable[tuple[Hashable, str, str]]) -> int:
    """Count images or events that one observer calls empty and a species at once.

    Args:
        rows: what an observation is about and who made it, its kind, its taxon.

    >>> count_contradictions([("a", "blank", ""), ("a", "animal", "Vulpes vulpes"), ("b", "blank", "")])
    1
    """
    empty, named = set(), set()
    for about, kind, taxon in rows:
        if kind == "blank":
            empty.add(about)
        if taxon:
            named.add(about)
    return len(empty & named)


def select_current(table: pa.Table) -> pa.Table:
    """Return the current observations of images.

    A row is replaced by a later import of the same id and image. An answer of a review is about a whole image and
    replaces all earlier answers of people about it, whatever their ids. Nothing is removed on disk.

    Args:
        table: rows of the annotation table `observations`.
    """
    table = table.filter(pa.array(_is_latest(table)))
    is_review = pc.call_function("starts_with", [table["source"]], pc.MatchSubstringOptions(REVIEW_SOURCE))
    is_review_O = is_review.fill_null(False).to_numpy()
    if not is_review_O.any():
        return table
    is_answered_O = positions(table["key"], among=table["key"].filter(pa.array(is_review_O)).unique()) >= 0
    is_machine_O = pc.call_function("equal", [table["method"], pa.scalar("machine")]).to_numpy()
    return table.filter(pa.array(is_review_O | is_machine_O | ~is_answered_O))


def name_detectors(table: pa.Table, keys: Sequence[str]) -> list[str]:
    """Return the detector with categories that looked at each image, "" for none or one that failed.

    Only a file of results (`foveate.survey.importers.results`) leaves a row about an image without a box; a classifier
    of whole images does so, too, and is no detector.

    Args:
        table: rows of the annotation table `observations`.
        keys: of the images.
    """
    table = table.filter(pc.call_function("not_equal", [table["model"], pa.scalar("")]))
    table = table.filter(pc.call_function("not_equal", [table["kind"], pa.scalar("unclassified")]))
    table = table.filter(pc.call_function("equal", [table["method"], pa.scalar("machine")]))
    boxed = table.filter(pc.call_function("is_valid", [table["x1"]]))
    has_boxes_O = pc.call_function("is_in", [table["model"]], pc.SetLookupOptions(value_set=boxed["model"].unique()))
    # A class of a whole image has a probability; that a detector found nothing has none.
    is_empty_O = pc.call_function("is_null", [table["probability"]], pc.NullOptions(nan_is_null=True))
    table = table.filter(pc.call_function("or", [has_boxes_O, is_empty_O]))
    models = dict(zip(table["key"].to_pylist(), table["model"].to_pylist(), strict=True))
    return [models.get(key, "") for key in keys]


def _is_latest(table: pa.Table) -> np.ndarray:
    names = join_names(table["key"], table["id"]).combine_chunks()
    backwards = np.arange(len(names))[::-1]
    reversed_names = names.take(pa.array(backwards))
    last = backwards[positions(names, among=reversed_names)]
    # Equal ids of one import are a fault of the source, not a correction: all of these rows hold.
    created = table["created"].combine_chunks()
    is_latest = pc.call_function("equal", [created, created.take(pa.array(last))])
    is_unnamed = pc.call_function("equal", [table["id"], pa.scalar("")])
    return pc.call_function("or", [is_latest, is_unnamed.combine_chunks()]).to_numpy(zero_copy_only=False)
