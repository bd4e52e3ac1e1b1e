"""Read the captions of a collection: which are current, which are usable alt-texts, how an audit judged them.

Captions are never overwritten, so an image may have several of one kind: by several models, or by one model with
several prompts. Loader, audit and mixture share this rule:

- Captions without a captioner (the column `request` is empty) are all current: titles and alt-texts of a data set are
  not versions of one another.
- Of generated captions one per image and kind is current: of the first preferred model that has one, else of any model;
  among these the newest by `created`; among equally new ones the last written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection as Collection_
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import choose
from foveate.core.files import FolderLock
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.text import split_words

# Kinds of texts that came with an image, best first.
ALT_KINDS = ("alt", "title", "description", "caption", "keywords")
_FILE = re.compile(r"\S*\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|raw|pdf|html?|php|aspx?)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.|data:)\S*", re.IGNORECASE)
# Names that cameras and phones give their files describe nothing, even without the suffix.
_CAMERA = re.compile(
    r"(?:img|dsc[nf]?|p|pict|dscn|image|photo|screenshot|wp|vid|mvi|gopr)[\W_]*\d[\d\W_]*", re.IGNORECASE
)
# These words describe the file or its role on a page, not what the image shows.
_GENERIC = frozenset(
    "a an and by copy default download empty featured figure file for full gallery graphic header hero icon image "
    "images img large logo medium missing my n na no none null of photo photograph photos pic pics picture pictures "
    "placeholder preview product screen screenshot shot size small stock temp test text the this thumb thumbnail "
    "undefined unknown untitled upload view alt banner background jpg jpeg png gif webp title description "
    "caption".split()
)


def select_alt_text(captions: Sequence[Caption], kinds: Sequence[str] = ALT_KINDS) -> str:
    """Return the first text of the first of `kinds` that an image has, or ""."""
    for kind in kinds:
        for caption in captions:
            if caption.kind == kind and caption.text.strip():
                return caption.text
    return ""


def is_usable_alt_text(alt: str) -> bool:
    """Whether an alt-text is informative: not empty, no file name or address, not only generic words."""
    text = " ".join(alt.split())
    if not text or _FILE.fullmatch(text) or _ADDRESS.fullmatch(text) or _CAMERA.fullmatch(text):
        return False
    candidates = [word for word in split_words(text) if not word.isdigit()]
    # A single character is a word in Chinese or Japanese, but hardly ever in Latin script.
    return any(word not in _GENERIC and (len(word) > 1 or not word.isascii()) for word in candidates)


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
    keys, kinds = (
        part[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64) for name in ("key", "kind")
    )
    # One number for each pair of image and kind.
    groups = keys * (int(kinds.max()) + 1) + kinds
    # The index of each row's model in the list, and its length for other models.
    preferred = pc.SetLookupOptions(value_set=pa.array(list(prefer), pa.string()))
    ranks = pc.call_function("index_in", [part["model"]], preferred).fill_null(len(prefer)).to_numpy().astype(np.int64)
    # Ranks are dense, so that equal times tie and the order of writing decides between them.
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
    # The lock covers the read, too: of two writers that read the same rows, one would overwrite the other's verdicts.
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


# Requests that failed are noted by model, too: a note that stays would keep them from being sent again.
_CAPTIONER_TABLES = ("captions", "caption_errors")


@dataclass(frozen=True, slots=True)
class CaptionRemoval:
    """Counts of a removal of captions (planned ones with `dry_run`): rows by table, images that had any."""

    model: str
    rows: dict[str, int]
    images: int
    dry_run: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return asdict(self)

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
        return _remove_rows(path, model, dry_run=True)
    with FolderLock(path, purpose="removing captions"):
        return _remove_rows(path, model, dry_run=False)


def _remove_rows(path: Path, model: str, *, dry_run: bool) -> CaptionRemoval:
    shards = set(layout.committed_shards(path))
    parts = [(kind, part) for kind in _CAPTIONER_TABLES for part in layout.annotation_parts(path, kind, shards)]
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
