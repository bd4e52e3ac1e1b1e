"""Writing a collection: images go into shards, and a shard is committed by the rename of its index part.

A writer that is killed loses at most the shard that it was filling. What it left of that shard has no index
part, is invisible to readers, and is cleared away by the next writer, which then fills the same shard from
the same images. So the same command after a kill ends with the collection of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, commit_atomically, read_json, write_json_atomically
from foveate.records import layout, tables
from foveate.records.collection import check_description, check_writable
from foveate.records.images import MAX_PIXELS, BadImage, Examined, examine
from foveate.records.import_summary import ImportSummary
from foveate.records.packing import abandon, append_member
from foveate.records.purge import PurgeSummary, purge_images
from foveate.records.quarantine import Quarantine
from foveate.records.record import Caption, Context, Region, Turn
from foveate.records.reference import Reference, make_reference
from foveate.records.rows import check_row, finish_rows, image_rows
from foveate.records.state import (
    add_tombstones,
    check_removable,
    clear_leftovers,
    move_references,
    pending_purge,
    read_committed,
)
from foveate.records.tables import Provenance


def refuse_foreign_folder(path: Path) -> None:
    """Raises UserError where `path` is a file, or a folder that holds something else."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: a collection is a folder")
    if not path.is_dir() or (path / layout.DESCRIPTION).is_file():
        return
    others = [entry.name for entry in path.iterdir()]
    others = sorted(name for name in others if name != layout.LOCK_FILE and not name.endswith(".tmp"))
    if others:
        found = f"holds other files ({others[0]!r}) and no {layout.DESCRIPTION}"
        raise UserError(f"{path} {found}: choose a new folder")


def opened(
    path: Path, *, name: str | None, license: str | None, images_per_shard: int, bytes_per_shard: int
) -> dict[str, Any]:
    """The description of the collection that is there, or that of a new one, which is written.

    Args:
        name: of a new collection, by default the folder's; else it must be the one that the collection has.
        license, images_per_shard, bytes_per_shard: of a new collection.

    Raises:
        UserError: for another name, and for a collection that this release cannot write.
    """
    place = path / layout.DESCRIPTION
    if not place.is_file():
        description: dict[str, Any] = {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "name": name or path.resolve().name,
            "license": license or "unknown",
            "sources": [],
            "images": 0,
            "shards": 0,
            "images_per_shard": images_per_shard,
            "bytes_per_shard": bytes_per_shard,
        }
        write_json_atomically(place, description)
        return description
    description = read_json(place)
    check_description(path, description)
    check_writable(path, description)
    if name is not None and name != description["name"]:
        raise UserError(f"{place}: field 'name' is {description['name']!r}, not {name!r}")
    return description


def counted(
    path: Path, description: dict[str, Any], *, counts: Mapping[str, int], entry: Mapping[str, str]
) -> dict[str, Any]:
    """The description with new counts, and with a source and its license where they are new; written if it differs."""
    sources = list(description["sources"])
    if entry["source"] and entry not in sources:
        sources.append(dict(entry))
    updated = {**description, **counts, "sources": sources}
    if updated != description:
        write_json_atomically(path / layout.DESCRIPTION, updated)
    return updated


def add_dataset_rows(
    collection: Path, kind: str, rows: Sequence[Mapping[str, object]], *, source: str, created: str
) -> int:
    """Add rows to the table `kind`; returns how many were new. The caller holds the writer's lock.

    All rows of a table have the same columns; `source` and `created` are added. A row that is there already is
    skipped. Raises UserError where a text cannot be stored.
    """
    path = layout.dataset_table_path(collection, tables.check_kind(kind))
    there = tables.read_table(path).to_pylist() if path.is_file() else []
    known = {_identity(row) for row in there}
    checked = [check_row(kind, {**row, "source": source}) for row in rows]
    new = {_identity(row): {**row, "created": created} for row in checked if _identity(row) not in known}
    if new:
        tables.write_table(path, tables.to_table(kind, [*there, *new.values()]))
    return len(new)


def _identity(row: Mapping[str, object]) -> str:
    return json.dumps({name: row[name] for name in sorted(row) if name != "created"})


IMAGES_PER_SHARD = 1000
BYTES_PER_SHARD = 512 * 2**20


class CollectionWriter:
    """The one writer of a collection, as a context manager.

    Leaving the `with` block commits the last, partly filled shard; leaving it by an exception does not, so
    that shards stay the same whether or not an import was disturbed. `summary` counts what happened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        license: str | None = None,
        source: str = "",
        images_per_shard: int = IMAGES_PER_SHARD,
        bytes_per_shard: int = BYTES_PER_SHARD,
        max_pixels: int = MAX_PIXELS,
        created: str | None = None,
    ) -> None:
        """Prepare to write to the folder `path`; nothing is touched before the `with` block.

        Args:
            path: the collection folder; made where it does not exist.
            name: name of a new collection, by default the folder's name.
            license: license of what this writer adds, by default "unknown".
            source: provenance of what this writer adds.
            images_per_shard: a shard is committed at this many images,
            bytes_per_shard: or as soon as it holds this many bytes.
            max_pixels: larger images are quarantined.
            created: time stamp of all rows (ISO 8601), by default the present.
        """
        if images_per_shard < 1 or bytes_per_shard < 1:
            raise UserError("images_per_shard and bytes_per_shard: allowed are whole numbers of at least 1")
        self.path = Path(path)
        self.source = source
        self.summary = ImportSummary(source=source)
        self._name = name
        self._license = license
        self._images_per_shard = images_per_shard
        self._bytes_per_shard = bytes_per_shard
        self._max_pixels = max_pixels
        self._created = created or tables.now()
        self._lock = FolderLock(self.path, purpose=f"adding {source}" if source else "adding images")
        self._known: dict[str, str] = {}
        self._removed: dict[str, str] = {}
        self._removed_sha256: set[str] = set()
        self._seen: set[str] = set()
        self._began_ns = 0
        self._referenced: dict[str, str] = {}
        self._moved: dict[str, Reference] = {}
        self._shard = 0
        self._parts = 0
        self._tar: tarfile.TarFile | None = None
        self._index: list[dict[str, object]] = []
        self._annotations: dict[str, list[dict[str, object]]] = {}

    def __enter__(self) -> Self:
        refuse_foreign_folder(self.path)
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        try:
            if kind is None:
                self.commit()
                self._write_description()
        except BaseException:
            self._give_up()
            raise
        else:
            if kind is not None:
                self._give_up()
        finally:
            self._lock.__exit__(None, None, None)

    def _give_up(self) -> None:
        """Clear away the shard that was being filled, so that a full disk has its space again."""
        if self._tar is not None:
            abandon(self._tar)
            self._tar = None
        with contextlib.suppress(OSError, UserError):
            clear_leftovers(self.path, read_committed(self.path))

    def _prepare(self) -> None:
        self.description = opened(
            self.path,
            name=self._name,
            license=self._license,
            images_per_shard=self._images_per_shard,
            bytes_per_shard=self._bytes_per_shard,
        )
        # The sizes of the first writer hold, so that a resumed import cuts its shards at the same images.
        self._images_per_shard = self.description["images_per_shard"]
        self._bytes_per_shard = self.description["bytes_per_shard"]
        committed = read_committed(self.path)
        clear_leftovers(self.path, committed)
        self._parts = len(committed.parts)
        self._shard = committed.next_number
        self._known, self._removed = committed.known, committed.removed
        self._referenced = committed.referenced
        self._removed_sha256 = set(self._removed.values())
        self._quarantine = Quarantine(self.path)
        self._began_ns = time.time_ns()

    def known_sha256(self, key: str) -> str | None:
        """The SHA-256 of the image that is there under `key` (committed or not yet), or None."""
        return self._known.get(key)

    def accepts(self, key: str, sha256: str) -> bool:
        """Whether `add` would take a readable image: its key is new, and it was not removed earlier."""
        return not self._was_removed(key, sha256) and key not in self._known and key not in self._seen

    def _was_removed(self, key: str, sha256: str) -> bool:
        # The one of several equal images that a removal left in place is there, not removed.
        there = key not in self._removed and self._known.get(key) == sha256
        return not there and (key in self._removed or sha256 in self._removed_sha256)

    def add(
        self,
        key: str,
        data: bytes,
        *,
        captions: Iterable[Caption] = (),
        regions: Iterable[Region] = (),
        labels: Mapping[str, str] | None = None,
        group: str = "",
        split: str | None = None,
        turns: Sequence[Turn] = (),
        context: Context | None = None,
        extra: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
        source: str | None = None,
        examined: Examined | None = None,
        location: Path | None = None,
    ) -> bool:
        """Take in one image with what is known of it; True if it was taken.

        False means that it is already there, was removed earlier, or was quarantined: because it cannot be
        read ("truncated", ...), or because the key was already used in this run or by a different image
        ("duplicate key"). `extra` holds rows of further annotation tables; `examined` spares a second
        decoding where the caller has already examined the same bytes. `source` says where the image came
        from, for the quarantine. With a `location` the image stays in that file, of which `data` are the
        bytes, and only the index points at it; for an image that is there already the index follows a file
        that moved. Raises UserError for a key, a text, a box or a path that cannot be stored.
        """
        layout.check_key(key)
        origin = self.source if source is None else source
        sha256 = examined.sha256 if examined else hashlib.sha256(data).hexdigest()
        if not self._is_new(key, sha256, origin):
            if location is not None and self._known.get(key) == sha256:
                self._follow(key, location, len(data))
            return False
        reference = Reference("", 0)
        try:
            examined = examined or examine(data, max_pixels=self._max_pixels)
            if location is not None:
                reference = make_reference(location, collection=self.path, length=len(data), began_ns=self._began_ns)
        except BadImage as error:
            self.quarantine(key, error.reason, str(error), origin)
            return False
        rows = image_rows(
            key,
            captions=captions,
            regions=regions,
            labels=labels or {},
            turns=turns,
            context=context,
            extra={tables.check_kind(kind): kind_rows for kind, kind_rows in (extra or {}).items()},
        )
        self._known[key] = sha256
        self._index.append(
            {
                "key": key,
                "shard": self._shard,
                "offset": -1 if reference.path else self._append(key, examined.info.format, data),
                "length": len(data),
                "width": examined.info.width,
                "height": examined.info.height,
                "format": examined.info.format,
                "sha256": sha256,
                "perceptual_hash": examined.perceptual_hash,
                "group": group,
                "split": split or "",
                "source": self.source,
                "path": reference.path,
                "mtime_ns": reference.mtime_ns,
            }
        )
        provenance = Provenance(source=self.source, created=self._created)
        for kind, kind_rows in rows.items():
            self._annotations.setdefault(kind, []).extend(finish_rows(kind, kind_rows, provenance))
        self.summary.taken += 1
        self.summary.captions_taken += len(rows.get("captions", ()))
        self.summary.regions_taken += len(rows.get("regions", ()))
        self.summary.animated += examined.info.frames > 1
        full = len(self._index) >= self._images_per_shard
        if full or (self._tar is not None and self._tar.offset >= self._bytes_per_shard):
            self.commit()
        return True

    def _is_new(self, key: str, sha256: str, origin: str) -> bool:
        if key in self._seen:
            detail = f"the key {key!r} comes twice in one import; the first stays"
            self.quarantine(key, "duplicate key", detail, origin)
            return False
        self._seen.add(key)
        if self._was_removed(key, sha256):
            self.summary.removed_earlier += 1
            return False
        if key not in self._known:
            return True
        if self._known[key] == sha256:
            self.summary.already_there += 1
        else:
            detail = f"the key {key!r} is taken by a different image, which stays"
            self.quarantine(key, "duplicate key", detail, origin)
        return False

    def _follow(self, key: str, location: Path, length: int) -> None:
        """Note where the file of a referenced image is now, if it is not where the index says."""
        if key not in self._referenced or key in self._removed:
            return
        with contextlib.suppress(BadImage):
            reference = make_reference(location, collection=self.path, length=length, began_ns=self._began_ns)
            if reference.path != self._referenced[key]:
                self._moved[key] = reference
                self.summary.further["referenced files found at another place"] += 1

    def _append(self, key: str, format: str, data: bytes) -> int:
        """Write one image to the tar; returns the offset of its bytes."""
        try:
            if self._tar is None:
                layout.tar_path(self.path, self._shard).parent.mkdir(parents=True, exist_ok=True)
                self._tar = tarfile.open(self._temporary_tar(), "w", format=tarfile.PAX_FORMAT)
            return append_member(self._tar, key, format, data)
        except OSError as error:
            error.filename = error.filename or str(self._temporary_tar())
            raise

    def _temporary_tar(self) -> Path:
        final = layout.tar_path(self.path, self._shard)
        return final.with_name(f".{final.name}.tmp")

    def commit(self) -> None:
        """Commit the shard that is being filled, if it has images; and the quarantine, if it grew.

        The order is: the tar file, the annotations, the quarantine, and last the index part.
        """
        if self._tar is not None:
            tar, self._tar = self._tar, None
            try:
                tar.close()
            except OSError as error:
                abandon(tar)
                error.filename = error.filename or str(self._temporary_tar())
                raise
            commit_atomically(self._temporary_tar(), layout.tar_path(self.path, self._shard))
        for kind, rows in self._annotations.items():
            path = layout.annotation_path(self.path, kind, self._shard)
            tables.write_table(path, tables.to_table(kind, rows))
        self._quarantine.save()
        if self._index:
            table = pa.Table.from_pylist(self._index, schema=tables.INDEX)
            tables.write_table(layout.index_path(self.path, self._shard), table)
            self._shard += 1
            self._parts += 1
        self._index = []
        self._annotations = {}
        if self._moved:
            move_references(self.path, self._moved)
            self._moved = {}

    def quarantine(
        self, key: str, reason: str, detail: str, source: str, *, subject: str = "image", position: int = -1
    ) -> None:
        """Note what could not be taken in; the same finding is kept once, however often it is met.

        `reason` is a short code that is counted, `detail` one sentence, `subject` what it is about
        ("image", "region", "caption", "sidecar", "member") and `position` its number within the image.
        """
        self.summary.quarantined[f"{subject}: {reason}"] += 1
        self._quarantine.add(
            key, reason, detail, source=source, subject=subject, position=position, created=self._created
        )

    def annotate(self, kind: str, rows: Sequence[Mapping[str, object]], provenance: Provenance) -> int:
        """Add annotation rows to images that are committed; returns how many were new.

        Each row has a `key` and the columns of the table `kind`. Rows that are already there are skipped.
        Raises UserError where a key is unknown or a column is not one of a known table.
        """
        tables.check_kind(kind)
        pending = {row["key"] for row in self._index}
        for number, row in enumerate(rows):
            key = row.get("key")
            if key not in self._known or key in pending or key in self._removed:
                raise UserError(f"annotations/{kind}: row {number} has the key {key!r}, which is not there")
        if not provenance.created:
            provenance = Provenance(provenance.source, provenance.model, provenance.recipe_hash, self._created)
        finished = finish_rows(kind, [check_row(kind, row) for row in rows], provenance)
        column = tables.id_column(kind)
        parts = layout.annotation_parts(self.path, kind, set(layout.committed_shards(self.path)))
        there = {value for part in parts for value in tables.read_annotations([part], kind)[column].to_pylist()}
        new = [row for row in finished if row[column] not in there]
        if new:
            tables.write_table(layout.next_added_path(self.path, kind), tables.to_table(kind, new))
        return len(new)

    def add_dataset_rows(self, kind: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Add rows to a table that belongs to no image, see `foveate.records.writer`; returns how many were new."""
        return add_dataset_rows(self.path, kind, rows, source=self.source, created=self._created)

    def remove(self, keys: Iterable[str], *, reason: str | Mapping[str, str], purge: bool = False) -> int:
        """Take images out for good: readers skip them, and they are not taken in again, under any key.

        `reason` is one for all, or one by key. Their bytes and rows stay until `purge` is called, and beyond that
        unless `purge` is true here. Returns how many were newly removed. Raises UserError for an unknown key; then
        none is removed.
        """
        self.commit()
        everything = {**self._removed, **self._known}
        wanted = {key: check_removable(key, everything, self.description["name"]) for key in keys}
        new = len(wanted.keys() - self._removed.keys())
        add_tombstones(self.path, wanted, reason=reason, created=self._created, purge=purge)
        self._removed |= wanted
        self._removed_sha256.update(wanted.values())
        return new

    def purge(self) -> PurgeSummary:
        """Take the bytes and rows of those removed images out that were removed with `purge`."""
        self.commit()
        keys = pending_purge(self.path) & self._known.keys()
        summary = purge_images(self.path, keys)
        for key in keys:
            del self._known[key]
        self._shard = read_committed(self.path).next_number
        return summary

    def _write_description(self) -> None:
        counts = {"images": len(self._known.keys() - self._removed.keys()), "shards": self._parts}
        entry = {"source": self.source, "license": self._license or "unknown"}
        self.description = counted(self.path, self.description, counts=counts, entry=entry)
