"""Which caption of an image holds when several were written for it.

Captions are never overwritten, so one image may have several of one kind: by several models, or by one model under
several prompts. The rule, which the loader, the audit and the mixture share:

- A caption that no captioner made (its column `request` is empty) always holds, and so do several of one kind: the
  titles and alt-texts of a data set are not versions of one another.
- Of the captions that a captioner made, one holds per image and kind: of the first model of the preferred list that
  has one, else of any model; among these the newest by `created`; among equally new ones the one written last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import choose
from foveate.records.collection import Collection


def select_current(captions: pa.Table, *, prefer: Sequence[str] = ()) -> np.ndarray:
    """Which rows of a table of captions hold, as bool [rows].

    Args:
        captions: with the columns key, kind, model, created, request, in the order of writing. `created` is UTC in ISO
            8601 with one number of digits, as `foveate.records.tables.now` writes it: it is compared as text.
        prefer: models, best first; those that are not named come after all that are.
    """
    made = captions["request"].to_numpy(zero_copy_only=False) != ""
    chosen = ~made
    rows = np.flatnonzero(made)
    if not len(rows):
        return chosen
    part = captions.take(pa.array(rows))
    keys, kinds = _codes(part["key"]), _codes(part["kind"])
    groups = keys * (int(kinds.max()) + 1) + kinds
    ranks = _ranks(part["model"], prefer)
    created = pc.call_function("rank", [part["created"]], pc.RankOptions("ascending", tiebreaker="dense")).to_numpy()
    # The last one of each group: worst model first, then oldest first, then in the order of writing.
    order = np.lexsort((np.arange(len(rows)), created, -ranks, groups))
    last = np.append(np.diff(groups[order]) != 0, True)
    chosen[rows[order[last]]] = True
    return chosen


def load_current_captions(collection: Collection, *, prefer: Sequence[str] = ()) -> pa.Table:
    """The captions of a collection that hold, in the order of writing; see `select_current`.

    Raises:
        UserError: for a preferred model that wrote no caption, with the nearest one that did.
    """
    captions = collection.table("captions")
    models = sorted(set(captions["model"].unique().to_pylist()) - {""}) if prefer else []
    for model in prefer:
        choose(model, models, f"model of captions in the collection {collection.name!r}")
    return captions.filter(pa.array(select_current(captions, prefer=prefer)))


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _ranks(models: pa.ChunkedArray, prefer: Sequence[str]) -> np.ndarray:
    """Place of each row's model in the list, its length for models that are not in it."""
    found = pc.call_function("index_in", [models], pc.SetLookupOptions(value_set=pa.array(list(prefer), pa.string())))
    return found.fill_null(len(prefer)).to_numpy().astype(np.int64)
