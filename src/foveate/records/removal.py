"""Remove images from a collection by key, key list, or field values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from foveate.core.errors import UserError, choose, nearest
from foveate.core.recipes import Settings, parse_pairs
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.purge import PurgeSummary, purge_images
from foveate.records.state import check_removable, pending_purge, read_committed
from foveate.records.writer import CollectionWriter

INDEX_FIELDS = ("source", "split", "group")


def _parse_conditions(value: Any) -> Any:
    return value if isinstance(value, Mapping) else parse_pairs(value, hint="write it as field=value, as in color=red")


class RemovalSettings(Settings):
    """`foveate remove COLLECTION [KEY]...`: which images are removed besides the keys, and what goes with them."""

    keys_file: Path | None = Field(None, description="UTF-8 text file with one key per line")
    where: Annotated[dict[str, str], BeforeValidator(_parse_conditions)] = Field(
        {},
        description="instead of keys: all images with this label, source, split or group; if repeated, all must match",
    )
    reason: str = Field("", description="reason of the removal, stored in removed.parquet")
    keep_bytes: bool = Field(False, description="only hide the images: bytes and rows stay in the folder")
    purge: bool = Field(False, description="delete bytes and rows from the folder, too; this is the default")
    copies: bool = Field(False, description="also remove images with the same bytes under other keys")
    captions_of: str | None = Field(
        None, description="instead of images: the captions of this model, so that they can be written again"
    )

    @model_validator(mode="after")
    def _consistent(self) -> RemovalSettings:
        if self.keep_bytes and self.purge:
            raise ValueError("--keep-bytes and --purge exclude each other; choose one")
        others = sorted(self.model_fields_set - {"captions_of"})
        if self.captions_of is not None and others:
            # The field with the keys has another name on the command line: --from.
            option = {"keys_file": "from"}.get(others[0], others[0]).replace("_", "-")
            raise ValueError(f"--{option} has no effect with --captions-of, which removes no images")
        return self


@dataclass(slots=True)
class RemovalSummary:
    """Result of a removal, planned only with `dry_run`.

    Args:
        removed: keys of the removed images.
        removed_earlier: number of requested images that were removed before.
        copies: keys of images with the same bytes that stay.
        purged: deleted bytes and rows, including those that an earlier, stopped removal left; None if bytes are kept.
    """

    removed: list[str] = field(default_factory=list)
    removed_earlier: int = 0
    copies: list[str] = field(default_factory=list)
    purged: PurgeSummary | None = None
    dry_run: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        purged = self.purged
        return {
            "removed": self.removed,
            "removed_earlier": self.removed_earlier,
            "copies": self.copies,
            "dry_run": self.dry_run,
            "purged": None if purged is None else purged.as_dict(),
        }

    def lines(self) -> list[str]:
        """Describe what was done, and what a removal does not reach, as lines of text."""
        would = "would be " if self.dry_run else ""
        lines = [f"{_format_count(len(self.removed), 'image')} {would}removed, and kept out by key and by SHA-256"]
        if self.removed_earlier:
            lines.append(f"{_format_count(self.removed_earlier, 'image')} had been removed earlier")
        if self.copies:
            listed = ", ".join(self.copies[:5]) + (", ..." if len(self.copies) > 5 else "")
            lines.append(f"kept, with the same bytes under another key (--copies removes these, too): {listed}")
        purged = self.purged
        if purged is None:
            lines.append(
                "bytes and rows stay in the folder, invisible to readers; without --keep-bytes they are deleted"
            )
            return lines
        if purged.packed:
            images, shards = _format_count(purged.packed, "image"), _format_count(purged.shards, "shard")
            lines.append(f"{would}deleted: {purged.bytes:,} bytes of {images} from {shards}")
        if purged.rows:
            rows = ", ".join(f"{kind} {count}" for kind, count in sorted(purged.rows.items()))
            lines.append(f"{would}deleted: rows of {rows}")
        if purged.cache_cleared:
            lines.append(f"{would}cleared: cached features; the next training computes them again")
        if purged.referenced:
            lines.append(f"left where they are: {_format_count(purged.referenced, 'referenced file')}")
        lines.append("not reached: exports, trained models, search indexes and run folders made before; the quarantine")
        return lines


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def read_keys(path: Path) -> list[str]:
    """Read keys from a UTF-8 text file, one per line; raise UserError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: no such file; expected a list of keys, one per line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    # splitlines would break keys at U+2028 and similar characters. Blanks are part of a key.
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def select_keys(collection: Collection, conditions: Mapping[str, str]) -> list[str]:
    """Select the keys of images that meet all conditions field = value.

    Args:
        conditions: label fields, or source, split and group; a label field takes precedence over an equal name.

    Raises:
        UserError: a field does not exist, or no image has the value; the error names the nearest.
    """
    labels = set(collection.table("labels")["field"].to_pylist())
    mask = np.ones(len(collection), dtype=bool)
    for name, value in conditions.items():
        choose(name, sorted({*labels, *INDEX_FIELDS}), f"field of the collection {collection.name!r}")
        if name in labels:
            values = collection.label_values(name)
        else:
            values = collection.splits if name == "split" else collection.index[name]
        # Check each condition by itself: a value that no image has is a mistake, an empty combination is a valid
        # answer.
        if not (values == value).any():
            raise UserError(f"no image has {name}={value}{nearest(value, set(values.tolist()))}")
        mask &= values == value
    return [collection.keys[row] for row in np.flatnonzero(mask).tolist()]


def remove_images(
    path: str | Path,
    keys: Iterable[str] = (),
    *,
    where: Mapping[str, str] | None = None,
    reason: str = "",
    purge: bool = True,
    copies: bool = False,
    dry_run: bool = False,
) -> RemovalSummary:
    """Remove images from a collection for good.

    Readers skip them, and imports refuse them by key and by SHA-256. With `purge` (the default) their bytes and rows
    are deleted, too: shards that have them are rewritten. After a kill the same call finishes the removal.

    Args:
        keys: images to remove; those removed earlier are counted.
        where: conditions instead of keys; see `select_keys`.
        reason: stored in removed.parquet with key, SHA-256 and time.
        purge: delete bytes and rows, too.
        copies: also remove images with the same bytes under other keys.
        dry_run: only count.

    Raises:
        UserError: a key or field is unknown (then nothing is removed), no image is selected, another process writes the
            collection, or a shard that must be rewritten is missing or damaged.
    """
    path = layout.check_collection(Path(path))
    if dry_run:
        summary, _ = _plan(path, keys, where, copies=copies, purge=purge)
        summary.dry_run = True
        if purge:
            # Include the rest of a killed removal, which a purge finishes.
            summary.purged = purge_images(path, {*summary.removed, *_find_pending(path)}, dry_run=True)
        return summary
    with CollectionWriter(path) as writer:
        # Under the lock: no other import can add a copy between the plan and the removal.
        summary, to_remove = _plan(path, keys, where, copies=copies, purge=purge)
        # Hidden first: a kill before the purge leaves nothing visible that had to go.
        writer.remove(to_remove, reason=reason, purge=purge)
        if purge:
            summary.purged = writer.purge()
    return summary


def _plan(
    path: Path, keys: Iterable[str], where: Mapping[str, str] | None, *, copies: bool, purge: bool
) -> tuple[RemovalSummary, list[str]]:
    """Return the summary of a removal before it is done, and the keys to remove."""
    keys = list(dict.fromkeys(keys))
    if where and keys:
        raise UserError("keys and --where exclude each other; pass one of them")
    committed = read_committed(path)
    with Collection.open(path) as collection:
        name = collection.name
        if where:
            try:
                keys = select_keys(collection, where)
            except UserError:
                if not (purge and _find_pending(path)):
                    raise
                keys = []  # an earlier removal of these was stopped after it had deleted their labels; finish it
    if not keys and not where:
        raise UserError("no images selected: pass keys, --from FILE or --where FIELD=VALUE")
    # With images that were removed earlier: the same call again finishes what a kill interrupted.
    all_sha256 = {**committed.removed, **committed.known}
    sha256 = {check_removable(key, all_sha256, name) for key in keys}
    left_out = {*committed.removed, *keys}
    equal = [key for key, value in committed.known.items() if value in sha256 and key not in left_out]
    to_remove = [*keys, *equal] if copies else keys
    return (
        RemovalSummary(
            removed=[key for key in to_remove if key not in committed.removed],
            removed_earlier=sum(key in committed.removed for key in keys),
            copies=[] if copies else equal,
        ),
        to_remove,
    )


def _find_pending(path: Path) -> set[str]:
    return pending_purge(path) & read_committed(path).known.keys()
