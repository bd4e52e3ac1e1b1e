"""Select the current caption when an image has several.

Captions are never overwritten, so an image may have several of one kind: by several models, or by one model with
several prompts. Loader, audit and mixture share this rule:

- Captions without a captioner (the column `request` is empty) are all current: titles and alt-texts of a data set are
  not versions of one another.
- Of generated captions one per image and kind is current: of the first preferred model that has one, else of any model;
  among these the newest by `created`; among equally new ones the last written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import choose
from foveate.records.collection import Collection


def select_current(captions: pa.Table, *, prefer: Sequence[str] = ()) -> np.ndarray:
    """Select the current rows of a caption table, as bool [rows].

    Args:
        captions: columns key, kind, model, created and request, in the order of writing. `created` is UTC, ISO 8601 to
            the second as `foveate.records.tables.now` writes it, since it is compared as text.
        prefer: models, best first; models that are not listed come last.
    """
    generated = captions["request"].to_numpy(zero_copy_only=False) != ""
    mask = ~generated
    rows = np.flatnonzero(generated)
    if not len(rows):
        return mask
    part = captions.take(pa.array(rows))
    keys, kinds = _codes(part["key"]), _codes(part["kind"])
    # One number for each pair of image and kind.
    groups = keys * (int(kinds.max()) + 1) + kinds
    ranks = _ranks(part["model"], prefer)
    created = pc.call_function("rank", [part["created"]], pc.RankOptions("ascending", tiebreaker="dense")).to_numpy()
    # Sorted from worst to best within each group (model, then age, then order of writing), the last row is the current
    # one.
    order = np.lexsort((np.arange(len(rows)), created, -ranks, groups))
    last = np.append(np.diff(groups[order]) != 0, True)
    mask[rows[order[last]]] = True
    return mask


def load_current_captions(collection: Collection, *, prefer: Sequence[str] = ()) -> pa.Table:
    """Load the current captions of a collection, in the order of writing; see `select_current`.

    Raises:
        UserError: a preferred model wrote no caption; the error names the nearest that did.
    """
    captions = collection.table("captions")
    models = sorted(set(captions["model"].unique().to_pylist()) - {""}) if prefer else []
    for model in prefer:
        choose(model, models, f"model of captions in the collection {collection.name!r}")
    return captions.filter(pa.array(select_current(captions, prefer=prefer)))


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _ranks(models: pa.ChunkedArray, prefer: Sequence[str]) -> np.ndarray:
    """Return the index of the model of each row in the list, and its length for other models."""
    ranks = pc.call_function("index_in", [models], pc.SetLookupOptions(value_set=pa.array(list(prefer), pa.string())))
    return ranks.fill_null(len(prefer)).to_numpy().astype(np.int64)
