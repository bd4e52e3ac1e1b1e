"""Taking images out of a collection as a user asks for it: by key, by a list, or by what is said of them."""

from __future__ import annotations

from collections.abc import Collection as Keys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foveate.core.errors import UserError, choose, nearest
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.purge import PurgeSummary, purge_images
from foveate.records.state import check_removable, pending_purge, read_committed
from foveate.records.writer import CollectionWriter

INDEX_FIELDS = ("source", "split", "group")


@dataclass(slots=True)
class RemovalSummary:
    """What a removal did, or with `dry_run` would do.

    `removed` are the keys that were there; `removed_earlier` counts those asked for that were out already; `copies`
    are keys of images with the same bytes that stay; `purged` says what went with the keys whose bytes were to go,
    also those that an earlier, stopped removal left; it is None where bytes are kept.
    """

    removed: list[str] = field(default_factory=list)
    removed_earlier: int = 0
    copies: list[str] = field(default_factory=list)
    purged: PurgeSummary | None = None
    dry_run: bool = False

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON values."""
        purged = self.purged
        return {
            "removed": self.removed,
            "removed_earlier": self.removed_earlier,
            "copies": self.copies,
            "dry_run": self.dry_run,
            "purged": None
            if purged is None
            else {
                "images": purged.images,
                "packed": purged.packed,
                "referenced": purged.referenced,
                "bytes": purged.bytes,
                "shards": purged.shards,
                "rows": dict(purged.rows),
                "cache_cleared": purged.cache_cleared,
            },
        }

    def lines(self) -> list[str]:
        """What was done, and what it cannot reach, as lines to print."""
        would = "would be " if self.dry_run else ""
        lines = [f"{_counted(len(self.removed), 'image')} {would}removed, and kept out by key and by SHA-256"]
        if self.removed_earlier:
            lines.append(f"{_counted(self.removed_earlier, 'image')} had been removed earlier")
        if self.copies:
            shown = ", ".join(self.copies[:5]) + (", ..." if len(self.copies) > 5 else "")
            lines.append(f"left in, with the same bytes under another key (--copies takes these, too): {shown}")
        purged = self.purged
        if purged is None:
            lines.append("their bytes and rows stay in the folder, unseen by readers; without --keep-bytes they go")
            return lines
        if purged.packed:
            images, shards = _counted(purged.packed, "image"), _counted(purged.shards, "shard")
            lines.append(f"{would}gone: {purged.bytes:,} bytes of {images} from {shards}")
        if purged.rows:
            rows = ", ".join(f"{kind} {count}" for kind, count in sorted(purged.rows.items()))
            lines.append(f"{would}gone: rows of {rows}")
        if purged.cache_cleared:
            lines.append(f"{would}cleared: cached features; the next training computes them again")
        if purged.referenced:
            lines.append(f"left where they are: {_counted(purged.referenced, 'referenced file')}")
        lines.append("not reached: exports, trained models, search indexes and run folders made before; the quarantine")
        return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def read_keys(path: Path) -> list[str]:
    """Keys from a UTF-8 text file, one a line; empty lines are left out. Raises UserError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: no such file; a list of keys is wanted, one a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def keys_where(collection: Collection, conditions: Mapping[str, str]) -> list[str]:
    """Keys of the images of which all conditions field = value hold.

    A field is a label field or one of source, split and group; a label goes first. Raises UserError with the nearest
    field where there is none, and the nearest value where no image has it.
    """
    labels = set(collection.table("labels")["field"].to_pylist())
    wanted = np.ones(len(collection), dtype=bool)
    for name, value in conditions.items():
        choose(name, sorted({*labels, *INDEX_FIELDS}), f"field of the collection {collection.name!r}")
        if name in labels:
            values = collection.label_values(name)
        else:
            values = collection.splits if name == "split" else collection.index[name]
        if not (values == value).any():
            raise UserError(f"no image has {name}={value}{nearest(value, set(values.tolist()))}")
        wanted &= values == value
    return [collection.keys[row] for row in np.flatnonzero(wanted).tolist()]


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
    """Take images out of the collection at `path` for good.

    Readers skip them from then on, and no import takes them in again, by key or by SHA-256. With `purge` (the default)
    their bytes and rows go as well: shards that held them are written anew without them. Doing it again after a kill
    finishes it.

    Args:
        keys: which images; one that was removed earlier is counted.
        where: instead of keys, see `keys_where`.
        reason: kept in removed.parquet with key, SHA-256 and time.
        purge: False leaves bytes and rows in the folder.
        copies: also take out images with the same bytes under other keys.
        dry_run: change nothing, only count.

    Raises:
        UserError: an unknown key or field (then nothing is removed); no image is meant; another process writes the
            collection; a shard that must be rewritten is missing or damaged.
    """
    path = layout.check_collection(Path(path))
    if dry_run:
        summary, _ = _plan(path, keys, where, copies=copies, purge=purge)
        summary.dry_run = True
        if purge:
            summary.purged = purge_images(path, {*summary.removed, *_pending(path)}, dry_run=True)
        return summary
    with CollectionWriter(path) as writer:
        summary, wanted = _plan(path, keys, where, copies=copies, purge=purge)
        writer.remove(wanted, reason=reason, purge=purge)
        if purge:
            summary.purged = writer.purge()
    return summary


def _plan(
    path: Path, keys: Iterable[str], where: Mapping[str, str] | None, *, copies: bool, purge: bool
) -> tuple[RemovalSummary, list[str]]:
    """The summary before anything was done, and the keys that are to be removed."""
    keys = list(dict.fromkeys(keys))
    if where and keys:
        raise UserError("give keys or a condition field=value, not both")
    there = read_committed(path)
    with Collection.open(path) as collection:
        name = collection.name
        if where:
            try:
                keys = keys_where(collection, where)
            except UserError:
                if not (purge and _pending(path)):
                    raise
                keys = []  # the removal of these was stopped after their rows had gone, and is finished now
    if not keys and not where:
        raise UserError("no image is meant: give keys, a list of them, or a condition field=value")
    everything = {**there.removed, **there.known}
    sha256 = {check_removable(key, everything, name) for key in keys}
    same = [key for key in _equal_to(sha256, there.known) if key not in there.removed and key not in set(keys)]
    wanted = [*keys, *same] if copies else keys
    return (
        RemovalSummary(
            removed=[key for key in wanted if key not in there.removed],
            removed_earlier=sum(key in there.removed for key in keys),
            copies=[] if copies else same,
        ),
        wanted,
    )


def _equal_to(sha256: Keys[str], known: Mapping[str, str]) -> list[str]:
    return [key for key, value in known.items() if value in sha256]


def _pending(path: Path) -> set[str]:
    return pending_purge(path) & read_committed(path).known.keys()
