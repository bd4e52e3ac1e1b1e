"""Remove the captions of one captioner from a collection, so that it or another one can write them again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveate.core.errors import choose
from foveate.core.files import FolderLock
from foveate.records import layout, tables

# Requests that failed are noted by model, too: a note that stays would keep them from being sent again.
_KINDS = ("captions", "caption_errors")


@dataclass(frozen=True, slots=True)
class CaptionRemoval:
    """Counts of a removal of captions (planned ones with `dry_run`): rows by table, images that had any."""

    model: str
    rows: dict[str, int]
    images: int
    dry_run: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return {"model": self.model, "rows": self.rows, "images": self.images, "dry_run": self.dry_run}

    def lines(self) -> list[str]:
        """Describe the removal, and the copies that it does not reach, as lines of text."""
        would = "would be " if self.dry_run else ""
        rows = ", ".join(f"{kind} {count:,}" for kind, count in self.rows.items())
        return [
            f"{would}deleted: rows of {rows}, by {self.model}, of {self.images:,} images",
            "not reached: regions that were found with phrases of these captions, exports, models and indexes",
        ]


def remove_captions(path: str | Path, model: str, *, dry_run: bool = False) -> CaptionRemoval:
    """Delete the rows of a captioner from the tables of captions and of failed requests.

    Each file is replaced as a whole, so after a kill the same call finishes.

    Args:
        model: as in the column `model`.
        dry_run: only count.

    Raises:
        UserError: no caption is by the model (the error names the nearest), or another process writes the collection.
    """
    path = layout.check_collection(Path(path))
    if dry_run:
        return _remove(path, model, dry_run=True)
    with FolderLock(path, purpose="removing captions"):
        return _remove(path, model, dry_run=False)


def _remove(path: Path, model: str, *, dry_run: bool) -> CaptionRemoval:
    shards = set(layout.committed_shards(path))
    parts = [(kind, part) for kind in _KINDS for part in layout.annotation_parts(path, kind, shards)]
    # All are read before one is written: an unknown model or a damaged part changes nothing.
    contents = [tables.read_known(part, tables.SCHEMAS[kind]) for kind, part in parts]
    models = sorted({name for table in contents for name in table["model"].unique().to_pylist()} - {""})
    choose(model, models, f"model of captions in the collection {path.name!r}")
    rows: Counter[str] = Counter()
    keys: set[str] = set()
    for (kind, part), table in zip(parts, contents, strict=True):
        mask = table["model"].to_numpy(zero_copy_only=False) == model
        if not mask.any():
            continue
        rows[kind] += int(np.count_nonzero(mask))
        keys.update(table["key"].filter(pa.array(mask)).to_pylist() if kind == "captions" else ())
        if not dry_run:
            tables.write_table(part, table.filter(pa.array(~mask)).combine_chunks())
    return CaptionRemoval(model, dict(rows), len(keys), dry_run)
