"""Write a collection: images go into shards, and the rename of its index part commits a shard.

A killed writer loses at most the shard that it was filling. Its leftovers have no index part, so readers do not see
them, and the next writer deletes them and fills the same shard from the same images: the same command after a kill
gives the same collection as an undisturbed run.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from foveate.core.errors import UserError
from foveate.core.files import (
    LOCK_FILES,
    FolderLock,
    commit_atomically,
    name_in_errors,
    read_json,
    write_json_atomically,
)
from foveate.records import layout, tables
from foveate.records.collection import check_description, check_writable
from foveate.records.images import MAX_PIXELS, BadImage, Examined, examine
from foveate.records.import_summary import ImportSummary
from foveate.records.purge import PurgeSummary, abandon, append_member, purge_images
from foveate.records.quarantine import Quarantine
from foveate.records.record import Caption, Context, Region
from foveate.records.rows import (
    ROWS_PER_CHUNK,
    add_dataset_rows,
    check_row,
    finish_rows,
    image_rows,
    replace_dataset_rows,
    row_image_keys,
)
from foveate.records.source_files import KIND as FILES
from foveate.records.source_files import FileStamp, Reference, list_ids, make_reference
from foveate.records.state import (
    add_tombstones,
    check_removable,
    clear_leftovers,
    move_references,
    pending_purge,
    read_committed,
)
from foveate.records.tables import Provenance

# Shards of at most 512 MiB: large enough for sequential reading, small enough to copy and to rewrite in a purge.
IMAGES_PER_SHARD = 1000
BYTES_PER_SHARD = 512 * 2**20


def refuse_foreign_folder(path: Path) -> None:
    """Raise UserError if `path` is a file, or a folder that holds something else."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; a collection is a folder")
    if not path.is_dir() or (path / layout.DESCRIPTION).is_file():
        return
    others = [entry.name for entry in path.iterdir()]
    # A lock and temporary files are what a killed first run leaves, and the next one goes on there.
    others = sorted(name for name in others if name not in LOCK_FILES and not name.endswith(".tmp"))
    if others:
        raise UserError(
            f"{path} holds other files ({others[0]!r}) and no {layout.DESCRIPTION}; choose a new folder for the "
            "collection"
        )


def open_description(
    path: Path, *, name: str | None, license: str | None, images_per_shard: int, bytes_per_shard: int
) -> dict[str, Any]:
    """Read collection.json, or write that of a new collection; return its content.

    Args:
        name: name of a new collection, by default the folder's; that of an existing one must be equal.
        license, images_per_shard, bytes_per_shard: of a new collection; ignored for an existing one.

    Raises:
        UserError: the collection has another name, or this version cannot write it.
    """
    file = path / layout.DESCRIPTION
    if not file.is_file():
        description: dict[str, Any] = {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "name": name or path.resolve().name,  # "." itself has no name
            "license": license or "unknown",
            "sources": [],
            "images": 0,
            "shards": 0,
            "images_per_shard": images_per_shard,
            "bytes_per_shard": bytes_per_shard,
        }
        # Written before any image, so that the next run recognizes the folder if this first run is killed.
        write_json_atomically(file, description)
        return description
    description = read_json(file)
    check_description(path, description)
    check_writable(path, description)
    if name is not None and name != description["name"]:
        raise UserError(f"{file}: field 'name' is {description['name']!r} (got --name {name!r})")
    return description


def update_description(
    path: Path, description: dict[str, Any], *, counts: Mapping[str, int], entry: Mapping[str, str]
) -> dict[str, Any]:
    """Update the counts and the list of sources in collection.json; return its content.

    Args:
        entry: source and license of this writer, added if the pair is new.
    """
    sources = list(description["sources"])
    if entry["source"] and entry not in sources:
        sources.append(dict(entry))
    updated = {**description, **counts, "sources": sources}
    if updated != description:  # a run that adds nothing leaves the file, and its time, as they are
        write_json_atomically(path / layout.DESCRIPTION, updated)
    return updated


class CollectionWriter:
    """The single writer of a collection, as a context manager; `summary` counts its work.

    Leaving the `with` block commits the last, partly filled shard. An exception does not commit it, so that shards are
    cut at the same images whether or not an import was disturbed.

    Example:
        >>> with CollectionWriter(new_folder, license="CC0-1.0") as writer:
        ...     _ = writer.add("boat", image_file.read_bytes(), captions=[Caption("A red boat.")], split="train")
        >>> Collection.open(new_folder).record(0).captions[0].text
        'A red boat.'
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
        """Prepare to write to the folder `path`; nothing changes before the `with` block.

        Args:
            path: the collection folder; created if it does not exist.
            name: name of a new collection, by default the folder's name.
            license: license of the images that this writer adds, by default "unknown".
            source: provenance of the images that this writer adds.
            images_per_shard: a shard is committed at this number of images,
            bytes_per_shard: or as soon as it has this number of bytes.
            max_pixels: larger images are quarantined.
            created: time stamp of all rows (ISO 8601), by default now.
        """
        if images_per_shard < 1 or bytes_per_shard < 1:
            raise UserError(
                "images_per_shard and bytes_per_shard must be at least 1 "
                f"(got {images_per_shard} and {bytes_per_shard})"
            )
        self.path = Path(path)
        self.source = source
        self.summary = ImportSummary(source=source)
        self._name = name
        self._license = license
        self._images_per_shard = images_per_shard
        self._bytes_per_shard = bytes_per_shard
        self._max_pixels = max_pixels
        self._created = created or tables.now()  # before any file is read: only stamps of older files are trusted
        self._lock = FolderLock(self.path, purpose=f"adding {source}" if source else "adding images")
        self._known: dict[str, str] = {}
        self._removed: dict[str, str] = {}
        self._removed_sha256: set[str] = set()  # a removed image must not come back under another key
        self._seen: set[str] = set()
        self._refused: set[str] = set()
        self._start_ns = 0
        self._referenced: dict[str, str] = {}
        self._moved: dict[str, Reference] = {}
        # The number of the next tar, and the count of parts: after a purge they differ.
        self._shard = 0
        self._parts = 0
        self._tar: tarfile.TarFile | None = None
        self._index: list[dict[str, object]] = []
        self._annotations: dict[str, list[dict[str, object]]] = {}
        self._revisions: dict[str, list[dict[str, object]]] = {}

    def __enter__(self) -> Self:
        refuse_foreign_folder(self.path)
        # Enter without `with`: the lock is held until the collection's own block ends, and is released if it never
        # begins.
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException:  # Ctrl-C must release the lock, too
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        try:
            if kind is None:
                self.commit()
                # Removed images stay known until a purge, so that they are not imported again.
                counts = {"images": len(self._known.keys() - self._removed.keys()), "shards": self._parts}
                entry = {"source": self.source, "license": self._license or "unknown"}
                self.description = update_description(self.path, self.description, counts=counts, entry=entry)
        except BaseException:
            self._discard_open_shard()
            raise
        else:
            if kind is not None:
                self._discard_open_shard()
        finally:
            # Released last: until then leftovers belong to this writer, which may delete them.
            self._lock.__exit__(None, None, None)

    def _discard_open_shard(self) -> None:
        """Delete the shard that was being filled, which frees its space on a full disk."""
        if self._tar is not None:
            abandon(self._tar)
            self._tar = None
        # A failed cleanup must not hide the error that ended the run; the next writer deletes what remains.
        with contextlib.suppress(OSError, UserError):
            clear_leftovers(self.path, read_committed(self.path))

    def _prepare(self) -> None:
        self.description = open_description(
            self.path,
            name=self._name,
            license=self._license,
            images_per_shard=self._images_per_shard,
            bytes_per_shard=self._bytes_per_shard,
        )
        # The sizes of the first writer apply, so that a resumed import cuts shards at the same images.
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
        # Files that change after this moment may keep their time stamp, so references to them are compared by SHA-256.
        self._start_ns = time.time_ns()

    def known_sha256(self, key: str) -> str | None:
        """Return the SHA-256 of the image with this key (committed or pending), or None."""
        return self._known.get(key)

    def is_removed(self, key: str) -> bool:
        """Whether an image of this key was removed earlier."""
        return key in self._removed

    def accepts(self, key: str, sha256: str) -> bool:
        """Whether `add` would take this image if it is readable: its key is new and it was not removed earlier."""
        return not self._was_removed(key, sha256) and key not in self._known and key not in self._seen

    def is_about(self, key: str, source: str) -> bool:
        """Whether this import's rows for a key are about the stored image, not about a different one.

        Args:
            source: of the image's rows; it decides where this run has read no image of this key.
        """
        # Another image of the same source is most likely the same one, changed: it is refused, corrections are not.
        return source == self.source or (key in self._seen and key not in self._refused)

    def is_refused(self, key: str) -> bool:
        """Whether this run has read an image of this key, and the collection has a different one."""
        return key in self._refused

    def _was_removed(self, key: str, sha256: str) -> bool:
        # Removing one of several equal images leaves the others: importing those again is not a removed image.
        present = key not in self._removed and self._known.get(key) == sha256
        return not present and (key in self._removed or sha256 in self._removed_sha256)

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
        context: Context | None = None,
        extra: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
        source: str | None = None,
        examined: Examined | None = None,
        location: Path | None = None,
        stamp: FileStamp | None = None,
    ) -> bool:
        """Add one image with its annotations; return whether it was added.

        It is not if it exists already, was removed earlier, or was quarantined because it cannot be read ("truncated",
        ...) or because its key was used before in this run or by a different image ("duplicate key").

        Args:
            extra: rows of further annotation tables, by kind.
            source: origin of the image for the quarantine, by default that of the writer.
            examined: the result of `examine` for the same bytes, which saves a second decoding.
            location: the image stays in this file, of which `data` are the bytes, and only the index refers to it. For
                an existing image whose file moved, the index is updated.
            stamp: the files of the image and its annotations, by which a later import sees whether they changed.

        Raises:
            UserError: a key, text, box or path cannot be stored.
        """
        layout.check_key(key)
        origin = self.source if source is None else source
        sha256 = examined.sha256 if examined else hashlib.sha256(data).hexdigest()
        # Hashes are compared before decoding, which takes far longer and is only needed for new images.
        if not self._is_new(key, sha256, origin):
            # The bytes are the same, so only the path can be new.
            if location is not None and self._known.get(key) == sha256:
                self._update_reference(key, location, len(data))
            return False
        reference = Reference("", 0)
        try:
            examined = examined or examine(data, max_pixels=self._max_pixels)
            if location is not None:
                reference = make_reference(location, collection=self.path, length=len(data), began_ns=self._start_ns)
        except BadImage as error:
            self.quarantine(key, error.reason, str(error), origin)
            return False
        rows = image_rows(
            key,
            captions=captions,
            regions=regions,
            labels=labels or {},
            context=context,
            extra={tables.check_kind(kind): kind_rows for kind, kind_rows in (extra or {}).items()},
        )
        # Register the key only now: an image whose annotations were refused must not count as known.
        self._known[key] = sha256
        self._index.append(
            {
                "key": key,
                "shard": self._shard,
                # -1 marks an image that stays in its own file.
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
        finished = {kind: finish_rows(kind, kind_rows, provenance) for kind, kind_rows in rows.items()}
        if stamp is not None:
            finished[FILES] = finish_rows(FILES, [stamp.to_row(key, list_ids(finished))], provenance)
        for kind, kind_rows in finished.items():
            self._annotations.setdefault(kind, []).extend(kind_rows)
        self.summary.imported += 1
        self.summary.captions_imported += len(rows.get("captions", ()))
        self.summary.regions_imported += len(rows.get("regions", ()))
        self.summary.animated += examined.info.frames > 1
        # Decide by images and bytes, never by time, so that a resumed import cuts its shards where an undisturbed one
        # does.
        full = len(self._index) >= self._images_per_shard
        if full or (self._tar is not None and self._tar.offset >= self._bytes_per_shard):
            self.commit()
        return True

    def skip(self, key: str) -> None:
        """Count an image whose files did not change as existing, or as removed earlier."""
        self._seen.add(key)  # a second file with the same key is a duplicate
        if key in self._removed:
            self.summary.removed_earlier += 1
        else:
            self.summary.existing += 1

    def revise(
        self,
        key: str,
        stamp: FileStamp,
        *,
        version: int,
        rows: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
        ids: Sequence[str] = (),
    ) -> None:
        """Queue a newer version of the files of an image; `commit` writes it.

        Args:
            version: number of the version, one more than the last.
            rows: its annotation rows by kind, checked; rows that only earlier versions had become outdated.
            ids: instead of `rows`: those of the last version.
        """
        provenance = Provenance(source=self.source, created=self._created)
        finished = {kind: finish_rows(kind, of_kind, provenance) for kind, of_kind in (rows or {}).items()}
        row = stamp.to_row(key, ids if rows is None else list_ids(finished), version=version)
        finished[FILES] = finish_rows(FILES, [row], provenance)
        for kind, of_kind in finished.items():
            self._revisions.setdefault(kind, []).extend(of_kind)
        if len(self._revisions[FILES]) >= ROWS_PER_CHUNK:  # dictionaries take some twenty times the memory of a table
            self._write_revisions()

    def _write_revisions(self) -> None:
        # The rows of `files` come last: without them the next run writes this version again, and rows that exist are
        # not added twice.
        kinds = sorted(self._revisions.keys() - {FILES})
        for kind in kinds:
            self._append_new(kind, self._revisions[kind])
        if self._revisions:
            # No version exists twice, so these need no comparison with all that there are.
            table = tables.to_table(FILES, self._revisions[FILES])
            tables.write_table(layout.next_added_path(self.path, FILES), table)
        self._revisions = {}

    def forget(self, keys: Iterable[str]) -> int:
        """Delete images without a tombstone, so that they can be imported again; return how many there were.

        After a kill in the middle the table `files` still has them, and the next call finishes.
        """
        self.commit()
        # Rows of `files` go last: as long as they are there, the next call knows that an image was being forgotten.
        keys = set(keys)
        self._shard = purge_images(self.path, keys, keep_until_last=FILES, next_tar=self._shard).next_tar
        count = len(keys & self._known.keys())
        for key in keys:
            self._known.pop(key, None)
            self._referenced.pop(key, None)
            self._seen.discard(key)
        return count

    def _is_new(self, key: str, sha256: str, origin: str) -> bool:
        if key in self._seen:
            detail = f"key {key!r} occurs twice in one import; the first image is kept"
            self.quarantine(key, "duplicate key", detail, origin)
            return False
        self._seen.add(key)
        # First, since a removed image whose bytes were kept is also known.
        if self._was_removed(key, sha256):
            self.summary.removed_earlier += 1
            return False
        if key not in self._known:
            return True
        if self._known[key] == sha256:
            self.summary.existing += 1
        else:
            self._refused.add(key)
            detail = f"key {key!r} belongs to a different image, which is kept"
            self.quarantine(key, "duplicate key", detail, origin)
        return False

    def _update_reference(self, key: str, location: Path, length: int) -> None:
        """Note the new path of a referenced image whose file moved; `commit` writes it to the index."""
        if key not in self._referenced or key in self._removed:  # bytes in a shard need no file
            return
        # The file has vanished or changed since it was read, so it cannot serve as a reference; the old one stays.
        with contextlib.suppress(BadImage):
            reference = make_reference(location, collection=self.path, length=length, began_ns=self._start_ns)
            if reference.path != self._referenced[key]:
                self._moved[key] = reference
                self.summary.further["referenced files found at another place"] += 1

    def _append(self, key: str, format: str, data: bytes) -> int:
        """Write one image to the tar and return the offset of its bytes."""
        with name_in_errors(self._temporary_tar()):
            if self._tar is None:
                layout.tar_path(self.path, self._shard).parent.mkdir(parents=True, exist_ok=True)
                self._tar = tarfile.open(self._temporary_tar(), "w", format=tarfile.PAX_FORMAT)  # keys of any length
            return append_member(self._tar, key, format, data)

    def _temporary_tar(self) -> Path:
        final = layout.tar_path(self.path, self._shard)
        return final.with_name(f".{final.name}.tmp")  # a rename is atomic only within a file system

    def commit(self) -> None:
        """Commit the shard that is being filled, if it has images, and the quarantine, if it grew."""
        # The index part comes last: its existence is what makes the shard part of the collection, so everything that it
        # refers to must be on disk before.
        if self._tar is not None:
            tar, self._tar = self._tar, None
            with name_in_errors(self._temporary_tar()):
                # Closing writes the end of the archive, which may find the disk full.
                try:
                    tar.close()
                except OSError:
                    abandon(tar)
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
        self._write_revisions()
        if self._moved:
            move_references(self.path, self._moved)
            self._moved = {}

    def quarantine(
        self, key: str, reason: str, detail: str, source: str, *, subject: str = "image", position: int = -1
    ) -> None:
        """Record something that could not be imported; equal findings are stored once.

        Args:
            reason: a short code that is counted.
            detail: one sentence.
            subject: "image", "region", "caption", "sidecar" or "member".
            position: number of the region or caption within the image; -1 for the image itself.
        """
        self.summary.quarantined[f"{subject}: {reason}"] += 1
        self._quarantine.add(
            key, reason, detail, source=source, subject=subject, position=position, created=self._created
        )

    def annotate(self, kind: str, rows: Sequence[Mapping[str, object]], provenance: Provenance) -> int:
        """Add annotation rows to committed images; return how many were new. Existing rows are skipped.

        Args:
            rows: each with a `key` and columns of the table `kind`.

        Raises:
            UserError: a key is unknown, or a known table does not have a column.
        """
        tables.check_kind(kind)
        # Images of the open shard are not committed yet: a kill would leave rows without an image.
        pending = {row["key"] for row in self._index}
        for number, row in enumerate(rows):
            for key in row_image_keys(kind, row):
                if key not in self._known or key in pending or key in self._removed:
                    raise UserError(f"annotations/{kind}: row {number}: no image has the key {key!r}")
        if not provenance.created:
            provenance = Provenance(provenance.source, provenance.model, provenance.recipe_hash, self._created)
        return self._append_new(kind, finish_rows(kind, [check_row(kind, row) for row in rows], provenance))

    def _append_new(self, kind: str, finished: Sequence[Mapping[str, object]]) -> int:
        """Write the rows that do not exist to a new part; return how many there are."""
        # Ids are hashes of the rows: what a killed run has written is found again, and not added twice.
        column = tables.id_column(kind)
        parts = layout.annotation_parts(self.path, kind, set(layout.committed_shards(self.path)))
        existing = {value for part in parts for value in tables.read_annotations([part], kind)[column].to_pylist()}
        new = [row for row in finished if row[column] not in existing]
        if new:
            tables.write_table(layout.next_added_path(self.path, kind), tables.to_table(kind, new))
        return len(new)

    def add_dataset_rows(self, kind: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Add rows to a table about the whole data set; see the function `add_dataset_rows`."""
        return add_dataset_rows(self.path, kind, rows, source=self.source, created=self._created)

    def replace_dataset_rows(self, kind: str, rows: Iterable[Mapping[str, object]], *, by: str) -> int:
        """Add rows to a table about the whole data set in place of equal ones; see `replace_dataset_rows`."""
        return replace_dataset_rows(self.path, kind, rows, by=by, source=self.source, created=self._created)

    def remove(self, keys: Iterable[str], *, reason: str | Mapping[str, str], purge: bool = False) -> int:
        """Remove images for good; return how many were newly removed.

        Readers skip them, and they are not imported again under any key. Bytes and rows stay on disk until the method
        `purge` is called, and also then unless `purge` is true here.

        Args:
            reason: one for all keys, or one per key.
            purge: mark the images for the method `purge`.

        Raises:
            UserError: a key is unknown; then none is removed.
        """
        self.commit()  # images of the open shard can be removed, too
        all_sha256 = {**self._removed, **self._known}
        # All keys are checked before the first tombstone is written, so that an unknown key removes nothing.
        sha256_by_key = {key: check_removable(key, all_sha256, self.description["name"]) for key in keys}
        new = len(sha256_by_key.keys() - self._removed.keys())
        add_tombstones(self.path, sha256_by_key, reason=reason, created=self._created, purge=purge)
        self._removed |= sha256_by_key
        self._removed_sha256.update(sha256_by_key.values())
        return new

    def purge(self) -> PurgeSummary:
        """Delete bytes and rows of the images that were removed with `purge`."""
        self.commit()
        keys = pending_purge(self.path) & self._known.keys()  # tombstones outlive the purge
        summary = purge_images(self.path, keys)
        for key in keys:
            del self._known[key]
        # Rewritten shards have new numbers, and old ones are never used again.
        self._shard = read_committed(self.path).next_number
        return summary
