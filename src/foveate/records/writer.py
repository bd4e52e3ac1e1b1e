"""Writing a collection: pictures go into shards, and a shard is committed by the rename of its index part.

A writer that is killed loses at most the shard that it was filling. What it left of that shard has no index
part, is invisible to readers, and is cleared away by the next writer, which then fills the same shard from
the same pictures. So the same command after a kill ends with the collection of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from foveate.records import layout, tables
from foveate.records.collection import check_description
from foveate.records.pictures import MAX_PIXELS, SUFFIXES, BadPicture, Examined, examine
from foveate.records.quarantine import Quarantine
from foveate.records.record import Caption, Context, Region, Turn
from foveate.records.rows import check_row, finish_rows, picture_rows
from foveate.records.summary import ImportSummary
from foveate.records.tables import Provenance
from foveate.settings.errors import UserError
from foveate.settings.files import FolderLock, commit_atomically, read_json, write_json_atomically

PICTURES_PER_SHARD = 1000
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
        licence: str | None = None,
        source: str = "",
        pictures_per_shard: int = PICTURES_PER_SHARD,
        bytes_per_shard: int = BYTES_PER_SHARD,
        max_pixels: int = MAX_PIXELS,
        created: str | None = None,
    ) -> None:
        """Prepare to write to the folder `path`; nothing is touched before the `with` block.

        Args:
            path: the collection folder; made where it does not exist.
            name: name of a new collection, by default the folder's name.
            licence: licence of what this writer adds, by default "unknown".
            source: provenance of what this writer adds.
            pictures_per_shard: a shard is committed at this many pictures,
            bytes_per_shard: or as soon as it holds this many bytes.
            max_pixels: larger pictures are quarantined.
            created: time stamp of all rows (ISO 8601), by default the present.
        """
        if pictures_per_shard < 1 or bytes_per_shard < 1:
            raise UserError("pictures_per_shard and bytes_per_shard: allowed are whole numbers of at least 1")
        self.path = Path(path)
        self.source = source
        self.summary = ImportSummary(source=source)
        self._name = name
        self._licence = licence
        self._pictures_per_shard = pictures_per_shard
        self._bytes_per_shard = bytes_per_shard
        self._max_pixels = max_pixels
        self._created = created or tables.now()
        self._lock = FolderLock(self.path, purpose=f"adding {source}" if source else "adding pictures")
        self._known: dict[str, str] = {}
        self._removed: dict[str, str] = {}
        self._removed_sha256: set[str] = set()
        self._seen: set[str] = set()
        self._shard = 0
        self._tar: tarfile.TarFile | None = None
        self._index: list[dict[str, object]] = []
        self._annotations: dict[str, list[dict[str, object]]] = {}

    def __enter__(self) -> Self:
        self._refuse_foreign_folder()
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
            elif self._tar is not None:
                self._tar.close()
                self._temporary_tar().unlink()
        finally:
            self._lock.__exit__(None, None, None)

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: a collection is a folder")
        if not self.path.is_dir() or (self.path / layout.DESCRIPTION).is_file():
            return
        others = [entry.name for entry in self.path.iterdir()]
        others = sorted(name for name in others if name != layout.LOCK_FILE and not name.endswith(".tmp"))
        if others:
            found = f"holds other files ({others[0]!r}) and no {layout.DESCRIPTION}"
            raise UserError(f"{self.path} {found}: choose a new folder")

    def _prepare(self) -> None:
        place = self.path / layout.DESCRIPTION
        self.description: dict[str, Any] = {}
        if place.is_file():
            self.description = read_json(place)
            check_description(self.path, self.description)
            if self._name is not None and self._name != self.description["name"]:
                raise UserError(f"{place}: field 'name' is {self.description['name']!r}, not {self._name!r}")
        else:
            self.description = {
                "format": layout.FORMAT,
                "version": layout.VERSION,
                "name": self._name or self.path.resolve().name,
                "licence": self._licence or "unknown",
                "sources": [],
                "pictures": 0,
                "shards": 0,
                "pictures_per_shard": self._pictures_per_shard,
                "bytes_per_shard": self._bytes_per_shard,
            }
            write_json_atomically(place, self.description)
        # The sizes of the first writer hold, so that a resumed import cuts its shards at the same pictures.
        self._pictures_per_shard = int(self.description["pictures_per_shard"])
        self._bytes_per_shard = int(self.description["bytes_per_shard"])
        shards = layout.committed_shards(self.path)
        self._shard = shards[-1] + 1 if shards else 0
        self._clear_leftovers(set(shards))
        for shard in shards:
            part = tables.read_table(layout.index_path(self.path, shard))
            self._known.update(zip(part["key"].to_pylist(), part["sha256"].to_pylist(), strict=True))
        removed = self.path / layout.REMOVED_FILE
        if removed.is_file():
            table = tables.read_table(removed)
            self._removed = dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))
            self._removed_sha256 = set(self._removed.values())
        self._quarantine = Quarantine(self.path)

    def _clear_leftovers(self, shards: set[int]) -> None:
        """Delete what a killed writer left: temporary files, and parts of a shard that has no index part."""
        for folder in (self.path, *self._part_folders()):
            for path in folder.iterdir():
                number = path.stem if path.suffix in (".tar", ".parquet") else ""
                uncommitted = folder != self.path and number.isdigit() and int(number) not in shards
                if uncommitted or (path.name.startswith(".") and path.name.endswith(".tmp")):
                    path.unlink()

    def _part_folders(self) -> list[Path]:
        kinds = layout.annotation_kinds(self.path)
        folders = [
            self.path / "images",
            self.path / "index",
            *(self.path / "annotations" / kind for kind in kinds),
        ]
        return [folder for folder in folders if folder.is_dir()]

    def known_sha256(self, key: str) -> str | None:
        """The SHA-256 of the picture that is there under `key` (committed or not yet), or None."""
        return self._known.get(key)

    def accepts(self, key: str, sha256: str) -> bool:
        """Whether `add` would take a readable picture: its key is new, and it was not removed earlier."""
        removed = key in self._removed or sha256 in self._removed_sha256
        return not removed and key not in self._known and key not in self._seen

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
    ) -> bool:
        """Take in one picture with what is known of it; True if it was taken.

        False means that it is already there, was removed earlier, or was quarantined: because it cannot be
        read ("truncated", ...), or because the key was already used in this run or by a different picture
        ("duplicate key"). `extra` holds rows of further annotation tables; `examined` spares a second
        decoding where the caller has already examined the same bytes. `source` says where the picture came
        from, for the quarantine. Raises UserError for a key, a text or a box that cannot be stored.
        """
        layout.check_key(key)
        origin = self.source if source is None else source
        sha256 = examined.sha256 if examined else hashlib.sha256(data).hexdigest()
        if not self._is_new(key, sha256, origin):
            return False
        if examined is None:
            try:
                examined = examine(data, max_pixels=self._max_pixels)
            except BadPicture as error:
                self.quarantine(key, error.reason, str(error), origin)
                return False
        rows = picture_rows(
            key,
            captions=captions,
            regions=regions,
            labels=labels or {},
            turns=turns,
            context=context,
            extra={tables.check_kind(kind): kind_rows for kind, kind_rows in (extra or {}).items()},
        )
        self._known[key] = sha256
        suffix = SUFFIXES[examined.info.format]
        self._index.append(
            {
                "key": key,
                "shard": self._shard,
                "offset": self._append(layout.member_name(key, suffix), data),
                "length": len(data),
                "width": examined.info.width,
                "height": examined.info.height,
                "format": examined.info.format,
                "sha256": sha256,
                "perceptual_hash": examined.perceptual_hash,
                "group": group,
                "split": split or "",
                "source": self.source,
            }
        )
        provenance = Provenance(source=self.source, created=self._created)
        for kind, kind_rows in rows.items():
            self._annotations.setdefault(kind, []).extend(finish_rows(kind, kind_rows, provenance))
        self.summary.taken += 1
        self.summary.captions_taken += len(rows.get("captions", ()))
        self.summary.regions_taken += len(rows.get("regions", ()))
        self.summary.animated += examined.info.frames > 1
        full = len(self._index) >= self._pictures_per_shard
        if full or (self._tar is not None and self._tar.offset >= self._bytes_per_shard):
            self.commit()
        return True

    def _is_new(self, key: str, sha256: str, origin: str) -> bool:
        if key in self._seen:
            detail = f"the key {key!r} comes twice in one import; the first stays"
            self.quarantine(key, "duplicate key", detail, origin)
            return False
        self._seen.add(key)
        if key in self._removed or sha256 in self._removed_sha256:
            self.summary.removed_earlier += 1
            return False
        if key not in self._known:
            return True
        if self._known[key] == sha256:
            self.summary.already_there += 1
        else:
            detail = f"the key {key!r} is taken by a different picture, which stays"
            self.quarantine(key, "duplicate key", detail, origin)
        return False

    def _append(self, name: str, data: bytes) -> int:
        """Write one tar member; returns the offset of its bytes in the tar file."""
        if self._tar is None:
            final = layout.tar_path(self.path, self._shard)
            final.parent.mkdir(parents=True, exist_ok=True)
            self._tar = tarfile.open(self._temporary_tar(), "w", format=tarfile.PAX_FORMAT)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        blocks = -(-len(data) // tarfile.BLOCKSIZE)
        return self._tar.offset - blocks * tarfile.BLOCKSIZE

    def _temporary_tar(self) -> Path:
        final = layout.tar_path(self.path, self._shard)
        return final.with_name(f".{final.name}.tmp")

    def commit(self) -> None:
        """Commit the shard that is being filled, if it has pictures; and the quarantine, if it grew.

        The order is: the tar file, the annotations, the quarantine, and last the index part.
        """
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            commit_atomically(self._temporary_tar(), layout.tar_path(self.path, self._shard))
        for kind, rows in self._annotations.items():
            path = layout.annotation_path(self.path, kind, self._shard)
            tables.write_table(path, tables.to_table(kind, rows))
        self._quarantine.save()
        if self._index:
            table = pa.Table.from_pylist(self._index, schema=tables.INDEX)
            tables.write_table(layout.index_path(self.path, self._shard), table)
            self._shard += 1
        self._index = []
        self._annotations = {}

    def quarantine(
        self, key: str, reason: str, detail: str, source: str, *, subject: str = "picture", position: int = -1
    ) -> None:
        """Note what could not be taken in; the same finding is kept once, however often it is met.

        `reason` is a short code that is counted, `detail` one sentence, `subject` what it is about
        ("picture", "region", "caption", "sidecar", "member") and `position` its number within the picture.
        """
        self.summary.quarantined[f"{subject}: {reason}"] += 1
        self._quarantine.add(
            key, reason, detail, source=source, subject=subject, position=position, created=self._created
        )

    def annotate(self, kind: str, rows: Sequence[Mapping[str, object]], provenance: Provenance) -> int:
        """Add annotation rows to pictures that are committed; returns how many were new.

        Each row has a `key` and the columns of the table `kind`. Rows that are already there are skipped.
        Raises UserError where a key is unknown or a column is not one of a known table.
        """
        tables.check_kind(kind)
        pending = {row["key"] for row in self._index}
        for number, row in enumerate(rows):
            if row.get("key") not in self._known or row["key"] in pending:
                key = row.get("key")
                raise UserError(f"annotations/{kind}: row {number} has the key {key!r}, which is not there")
        if not provenance.created:
            provenance = Provenance(provenance.source, provenance.model, provenance.recipe_hash, self._created)
        finished = finish_rows(kind, [check_row(kind, row) for row in rows], provenance)
        column = tables.id_column(kind)
        parts = layout.annotation_parts(self.path, kind, set(layout.committed_shards(self.path)))
        there = {value for part in parts for value in tables.read_table(part)[column].to_pylist()}
        new = [row for row in finished if row[column] not in there]
        if new:
            tables.write_table(layout.next_added_path(self.path, kind), tables.to_table(kind, new))
        return len(new)

    def remove(self, keys: Iterable[str], *, reason: str) -> int:
        """Take pictures out for good: readers skip them, and they are not taken in again, under any key.

        Their bytes stay in the shard. Returns how many were newly removed. Raises UserError for an unknown
        key.
        """
        self.commit()
        before = len(self._removed)
        path = self.path / layout.REMOVED_FILE
        rows = tables.read_table(path).to_pylist() if path.is_file() else []
        for key in keys:
            if key not in self._known:
                raise UserError(f"no picture {key!r} in the collection {self.description['name']!r}")
            if key not in self._removed:
                self._removed[key] = self._known[key]
                self._removed_sha256.add(self._known[key])
                rows.append({"key": key, "sha256": self._known[key], "reason": reason, "created": self._created})
        if len(self._removed) > before:
            tables.write_table(path, pa.Table.from_pylist(rows, schema=tables.REMOVED))
        return len(self._removed) - before

    def _write_description(self) -> None:
        counts = {"pictures": len(self._known.keys() - self._removed.keys()), "shards": self._shard}
        entry = {"source": self.source, "licence": self._licence or "unknown"}
        sources = list(self.description["sources"])
        if self.source and entry not in sources:
            sources.append(entry)
        updated = {**self.description, **counts, "sources": sources}
        if updated != self.description:
            write_json_atomically(self.path / layout.DESCRIPTION, updated)
            self.description = updated
