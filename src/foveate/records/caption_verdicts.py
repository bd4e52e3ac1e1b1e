"""Verdicts of `foveate audit` on captioners, stored in the collection whose captions were judged."""

from __future__ import annotations

from collections.abc import Collection as Collection_
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from foveate.core.files import FolderLock
from foveate.records import layout, tables
from foveate.records.collection import Collection

TABLE = "caption_verdicts"


@dataclass(frozen=True, slots=True)
class CaptionVerdict:
    """Share of assertions in a captioner's captions that hold, on one kind of data.

    Attributes:
        kind, model: of the captions.
        data: "scenes", judged by the ground truth, or "images".
        captions, assertions: numbers of them.
        holds, low, high: share of assertions that hold, with its 95 % interval over images.
        control, control_low, control_high: the same for captions of other images; None if there is one image.
        judge: meaning of the judge's verdicts.
        settings: of the audit, JSON.
    """

    kind: str
    model: str
    data: str
    captions: int
    assertions: int
    holds: float
    low: float
    high: float
    control: float | None = None
    control_low: float | None = None
    control_high: float | None = None
    judge: str = ""
    settings: str = ""
    created: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the share that holds is not above that of shuffled captions."""
        return self.control is not None and self.holds <= self.control

    def describe(self) -> str:
        """Describe the verdict in one line."""
        control = "" if self.control is None else f", {self.control:.3f} with shuffled captions"
        return (
            f"{self.kind} by {self.model}: {self.holds:.3f} ({self.low:.3f} to {self.high:.3f}) of "
            f"{self.assertions:,} assertions hold on {self.data}{control} (audit of {self.created[:10]})"
        )


def save_verdicts(path: Path, verdicts: Sequence[CaptionVerdict]) -> None:
    """Store verdicts in a collection, each in place of the earlier one on its kind, model and data.

    Raises:
        UserError: another process writes the collection.
        OSError: the folder cannot be written.
    """
    if not verdicts:
        return
    file = layout.dataset_table_path(path, TABLE)
    with FolderLock(path, purpose="storing verdicts on captions"):
        rows = tables.read_table(file).to_pylist() if file.is_file() else []
        latest = {(row["kind"], row["model"], row["data"]): row for row in [*rows, *map(asdict, verdicts)]}
        tables.write_table(file, tables.to_table(TABLE, list(latest.values())))


def load_verdicts(collection: Collection) -> list[CaptionVerdict]:
    """Load the verdicts on a collection's captioners, in the order of writing."""
    names = [field.name for field in fields(CaptionVerdict)]
    rows = collection.dataset_table(TABLE).to_pylist()
    # Files of earlier versions may lack fields, which then have their defaults.
    return [CaptionVerdict(**{name: row[name] for name in names if name in row}) for row in rows]


def find_wrong_captioners(collection: Collection, kinds: Collection_[str]) -> list[CaptionVerdict]:
    """Load the verdicts, sorted, by which captions of one of `kinds` are no better than shuffled ones."""
    # A verdict outlives its captions, which may have been removed since.
    captions = collection.table("captions").select(["kind", "model"]).group_by(["kind", "model"]).aggregate([])
    present = {(row["kind"], row["model"]) for row in captions.to_pylist()}
    wrong = [v for v in load_verdicts(collection) if v.is_wrong and v.kind in kinds and (v.kind, v.model) in present]
    return sorted(wrong, key=lambda verdict: (verdict.kind, verdict.model, verdict.data))
