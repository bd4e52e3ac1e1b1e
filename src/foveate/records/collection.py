"""Read a collection: images by row number, their captions and regions, rows by split and label.

A reader never waits for a writer. It takes a snapshot of what is committed when it is opened and sees only that until
it is opened again. The exception is a purge: images and rows that it deletes may be gone for open readers, too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError, choose, nearest
from foveate.core.files import open_descriptor, read_at, read_json
from foveate.records import layout, tables
from foveate.records.boxes import Box
from foveate.records.images import BadImage
from foveate.records.record import Caption, Context, Record, Region
from foveate.records.source_files import KIND as FILES
from foveate.records.source_files import find_outdated, read_reference
from foveate.records.state import Snapshot, take_snapshot
from foveate.records.tables import GroupedTable

_MAX_OPEN_SHARDS = 256  # a quarter of the usual limit of 1,024 open files


class Collection:
    """A collection opened for reading; create it with `Collection.open`.

    Rows are numbered 0 to len-1 in the order of the shards; removed images have no row. All methods are thread-safe.

    Example:
        >>> with Collection.open(collection_folder) as collection:
        ...     record = collection.record(0)
        >>> (record.width, record.split)
        (64, 'train')
    """

    def __init__(self, path: Path, description: Mapping[str, object], snapshot: Snapshot) -> None:
        self.path = path
        self.description = description
        self.shards = snapshot.parts
        self._snapshot = snapshot
        self._table = snapshot.index
        # The lock is reentrant, because `grouped` holds it while it calls `table`.
        self._lock = threading.RLock()
        self._tables: dict[str, pa.Table] = {}
        self._grouped: dict[str, GroupedTable] = {}
        self._descriptors: dict[int, int] = {}
        # It holds the dictionary, not the collection, which could otherwise never be freed.
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, path: str | Path) -> Collection:
        """Open a collection folder; raise UserError if it is none or was written by another version."""
        path = layout.check_collection(Path(path))
        description = read_json(path / layout.DESCRIPTION)
        # Checked before the tables are read: another version may have written them in another form.
        check_description(path, description)
        return cls(path, description, take_snapshot(path))

    @property
    def name(self) -> str:
        return str(self.description["name"])

    @property
    def license(self) -> str:
        """License of the first import; later sources have their own in `description["sources"]`."""
        return str(self.description["license"])

    def __len__(self) -> int:
        return self._table.num_rows

    def __repr__(self) -> str:
        counts = f"{len(self)} images in {len(self.shards)} shards"
        return f"Collection({self.name!r}, {counts}, {str(self.path)!r})"

    def __iter__(self) -> Iterator[Record]:
        return (self.record(row) for row in range(len(self)))

    def __getitem__(self, key: str) -> Record:
        """Return the record of a key; raise UserError with the nearest key if it is unknown."""
        if not isinstance(key, str):
            raise UserError(f"collection[{key!r}]: expected the key of an image; records by row are `record(row)`")
        return self.record(self.find_row(key))

    def __contains__(self, key: object) -> bool:
        return key in self._rows_by_key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open shard files; using the collection afterwards opens them again."""
        with self._lock:
            _close_all(self._descriptors)

    @cached_property
    def keys(self) -> list[str]:
        """Image keys by row."""
        return self._table["key"].to_pylist()

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """The index by column, as numpy arrays of length len(self).

        Numeric: shard, offset, length, width, height, perceptual_hash, mtime_ns. Objects of type str: key, format,
        sha256, group, split, source, path. A referenced image has a `path` and the offset -1.
        """
        return {name: self._table[name].to_numpy() for name in tables.INDEX.names}

    @cached_property
    def splits(self) -> np.ndarray:
        """The split of each row (objects of type str), "" where none is assigned.

        splits.parquet takes precedence over the split that an image was imported with.
        """
        return self._from_splits_file("split")

    @cached_property
    def groups(self) -> np.ndarray:
        """The group of each row (objects of type str), "" where none was given."""
        return self.index["group"]

    def _from_splits_file(self, column: str) -> np.ndarray:
        imported = self.index[column]
        assigned = self._snapshot.splits
        if assigned is None:
            return imported
        # Match by key: splits.parquet may have been written before images were added or removed.
        rows = tables.positions(self._table["key"], among=assigned["key"])
        # The column belongs to the cached index, which other callers share.
        result = imported.copy()
        result[rows >= 0] = assigned[column].to_numpy()[rows[rows >= 0]]
        return result

    @cached_property
    def removed(self) -> frozenset[str]:
        """Keys of removed images, whether or not their bytes are still in a shard."""
        return frozenset(self._snapshot.removed["key"].to_pylist())

    def find_row(self, key: str) -> int:
        """Return the row number of a key; raise UserError with the nearest key if it is unknown."""
        row = self.get_row(key)
        if row is None:
            raise UserError(f"no image {key!r} in the collection {self.name!r}{nearest(key, self.keys)}")
        return row

    def get_row(self, key: str) -> int | None:
        """Return the row number of a key, None if it is unknown; no nearest key is searched, which takes seconds."""
        return self._rows_by_key.get(key)

    @cached_property
    def _rows_by_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def image_bytes(self, row: int, *, verify: bool = False) -> bytes:
        """Read the bytes of an image as they were imported.

        Args:
            verify: compare the SHA-256, too; by default only the length, since hashing halves the reading speed.

        Raises:
            BadImage: with the reason "damaged shard", "unreadable" or "missing shard"; for a referenced image "missing
                file" or "changed file".
        """
        columns = self._byte_ranges
        path = columns["path"][row]
        length, sha256 = int(columns["length"][row]), columns["sha256"][row]
        if path:
            mtime_ns = int(columns["mtime_ns"][row])
            recorded = {"collection": self.path, "length": length, "mtime_ns": mtime_ns, "sha256": sha256}
            return read_reference(path, **recorded, verify=verify)
        shard = int(columns["shard"][row])
        descriptor, stays_open = self._descriptor(shard)
        tar = layout.tar_path(self.path, shard)
        try:
            data = read_at(descriptor, length, int(columns["offset"][row]))
        except OSError as error:
            raise BadImage("unreadable", f"{tar} cannot be read: {error.strerror or error}") from error
        finally:
            if not stays_open:
                os.close(descriptor)
        if len(data) != length:
            raise BadImage("damaged shard", f"{tar} ends within the image {self.keys[row]!r}")
        if verify and hashlib.sha256(data).hexdigest() != sha256:
            raise BadImage("damaged shard", f"{tar} has other bytes for {self.keys[row]!r} than were imported")
        return data

    def can_reach(self, row: int) -> bool:
        """Whether the bytes of an image can be read now; a damaged image can be, one whose card is away cannot."""
        try:
            self.image_bytes(row)
        except BadImage as problem:
            return not problem.is_passing
        return True

    @cached_property
    def _byte_ranges(self) -> dict[str, np.ndarray]:
        # `index` builds all columns; a loader needs only these.
        names = ("shard", "offset", "length", "path", "mtime_ns", "sha256")
        return {name: self.index[name] for name in names}

    def _descriptor(self, shard: int) -> tuple[int, bool]:
        """Open a shard; return its descriptor, and whether it stays open (those beyond 256 do not)."""
        # Look up without the lock first: looking up is atomic, and threads of a loader would wait for one another here.
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            return descriptor, True
        with self._lock:
            # Test again under the lock: two threads may have missed it at the same time.
            if shard not in self._descriptors:
                path = layout.tar_path(self.path, shard)
                try:
                    descriptor = open_descriptor(path)
                except FileNotFoundError as error:
                    raise BadImage("missing shard", f"{path} is missing") from error
                except OSError as error:
                    raise BadImage("unreadable", f"{path} cannot be read: {error.strerror or error}") from error
                if len(self._descriptors) >= _MAX_OPEN_SHARDS:
                    return descriptor, False
                self._descriptors[shard] = descriptor
            return self._descriptors[shard], True

    def table(self, kind: str) -> pa.Table:
        """Read the annotation table `kind`: all parts in the order of writing, without rows that do not hold.

        Left out are rows of removed images, and rows whose file has changed since (`foveate collect --update`).

        A known kind without rows gives an empty table; an unknown one raises UserError.
        """
        with self._lock:
            if kind not in self._tables:
                kinds = {*tables.SCHEMAS, *self._snapshot.annotations}
                choose(kind, sorted(kinds), f"annotation table of the collection {self.name!r}")
                parts = self._snapshot.annotations.get(kind, [])
                table = tables.read_annotations(parts, kind)
                if table.num_rows:
                    # A row may name several images, such as a conversation; it holds as long as none of them was
                    # removed.
                    present, total = tables.count_images(table, among=self._table["key"])
                    table = table.filter(pa.array(present == total)).combine_chunks()
                if kind in self._outdated:
                    outdated = tables.positions(table[tables.id_column(kind)], among=self._outdated[kind]) >= 0
                    table = table.filter(pa.array(~outdated)).combine_chunks()
                self._tables[kind] = table
            return self._tables[kind]

    @cached_property
    def _outdated(self) -> dict[str, pa.Array]:
        """Ids of rows by kind that were imported with an earlier version of an image's files."""
        return find_outdated(self._snapshot.annotations.get(FILES, []))

    def dataset_table(self, kind: str) -> pa.Table:
        """Return a table about the whole data set, such as `coco_categories`; empty if there is none."""
        return self._snapshot.dataset_tables.get(kind, pa.table({}))

    def grouped(self, kind: str) -> GroupedTable:
        """Return the annotation table `kind` grouped by image row (cached)."""
        with self._lock:
            if kind not in self._grouped:
                self._grouped[kind] = GroupedTable(self.table(kind), self._table["key"])
            return self._grouped[kind]

    def read_captions(self, row: int) -> tuple[Caption, ...]:
        """Return the captions of an image, in the order in which they were added."""
        captions = self.grouped("captions")
        start, end = captions.bounds(row)
        columns = (captions.texts(name, start, end) for name in ("text", "kind", "source"))
        return tuple(Caption(*values) for values in zip(*columns, strict=True))

    def read_regions(self, row: int) -> tuple[Region, ...]:
        """Return the regions of an image, in the order in which they were added; corners have float32 precision."""
        regions = self.grouped("regions")
        start, end = regions.bounds(row)
        if start == end:
            return ()
        columns = (regions.texts(name, start, end) for name in ("phrase", "label", "slice", "source"))
        scores = regions.array("score")[start:end].tolist()
        boxes = self.region_boxes[start:end].tolist()
        return tuple(
            Region(Box(*box), phrase, score, label, part, source)
            for box, score, phrase, label, part, source in zip(boxes, scores, *columns, strict=True)
        )

    @cached_property
    def region_boxes(self) -> np.ndarray:
        """Corners (R, 4) float32 in [0, 1] of all regions, in the order of `grouped("regions")`."""
        regions = self.grouped("regions")
        return np.stack([regions.array(name) for name in ("x1", "y1", "x2", "y2")], axis=1)

    def read_labels(self, row: int) -> dict[str, str]:
        """Return {field: value}; the last value of a field wins."""
        labels = self.grouped("labels")
        start, end = labels.bounds(row)
        return dict(zip(labels.texts("field", start, end), labels.texts("value", start, end), strict=True))

    def read_context(self, row: int) -> Context | None:
        """Return where and when an image was taken, or None."""
        context = self.grouped("context")
        start, end = context.bounds(row)
        if start == end:
            return None
        # The last one written holds, as for labels.
        values = context.table.slice(end - 1, 1).to_pylist()[0]
        return Context(values["latitude"], values["longitude"], values["time"], values["place"])

    def record(self, row: int) -> Record:
        """Return all annotations of one image, without its bytes."""
        index = self.index
        return Record(
            key=self.keys[row],
            width=int(index["width"][row]),
            height=int(index["height"][row]),
            captions=self.read_captions(row),
            regions=self.read_regions(row),
            labels=self.read_labels(row),
            split=self.splits[row],
            group=self.groups[row],
            context=self.read_context(row),
            path=self.image_path(row),
            read=functools.partial(self.image_bytes, row),
        )

    def image_path(self, row: int) -> str:
        """Return the absolute path of the file that an image refers to; "" where the collection holds a copy."""
        path = str(self._byte_ranges["path"][row])
        # `join` leaves an absolute path as it is, so that it serves files inside and outside of the collection.
        return os.path.normpath(os.path.join(self._root, path)) if path else ""

    @cached_property
    def _root(self) -> str:
        # Once, since links of the file system are slow to follow.
        return str(self.path.resolve())

    @property
    def has_survey(self) -> bool:
        """Whether images of the collection are those of a camera-trap survey."""
        return self.table("media").num_rows > 0

    @cached_property
    def cameras(self) -> np.ndarray:
        """Name of the camera of each image of a survey: the place of its deployment, or else the deployment.

        Images of no deployment have their group in the collection.
        """
        media = self.table("media")
        places = {row["id"]: row["place"] or row["id"] for row in self.dataset_table("deployments").to_pylist()}
        named = np.array([places.get(name, name) for name in media["deployment"].to_pylist()], dtype=object)
        positions = tables.positions(media["key"], among=pa.array(self.keys, pa.string()))
        cameras = np.full(len(self), "", dtype=object)
        # numpy assigns repeated positions in order: a later row of an image replaces an earlier one.
        cameras[positions[positions >= 0]] = named[positions >= 0]
        return np.where(cameras == "", self.groups, cameras)

    def label_values(self, field: str) -> np.ndarray:
        """Return the value of one label field per row (objects of type str), "" for images without it.

        Raises:
            UserError: no image has the field; the error names the nearest.
        """
        labels = self.grouped("labels")
        fields = labels.table["field"]
        known = sorted(fields.unique().to_pylist())
        if not known:
            raise UserError(
                f"collection {self.name!r} has no labels (got label field {field!r}); collect it again with "
                "--label-from-folder or --label-column, or with labels in JSON files"
            )
        choose(field, known, f"label field of the collection {self.name!r}")
        values = np.full(len(self), "", dtype=object)
        of_field = fields.to_numpy() == field
        # NumPy assigns repeated rows in order, so the last value of an image wins, as in `read_labels`.
        values[labels.row_numbers[of_field]] = labels.table["value"].filter(pa.array(of_field)).to_numpy()
        return values

    def rows(self, split: str | None = None, where: Mapping[str, str | Sequence[str]] | None = None) -> np.ndarray:
        """Return row numbers (int64, ascending) of one split and of given label values.

        Args:
            split: all rows by default.
            where: label field -> accepted value or values; all conditions must hold.

        Raises:
            UserError: the split or a field does not exist; the error names the nearest.
        """
        mask = np.ones(len(self), dtype=bool)
        if split is not None:
            choose(split, sorted(set(self.splits.tolist())), f"split of the collection {self.name!r}")
            mask &= self.splits == split
        for field, values in (where or {}).items():
            accepted = [values] if isinstance(values, str) else list(values)
            # Compare fixed-width texts: `isin` sorts them in C, where objects would be compared one by one.
            mask &= np.isin(self.label_values(field).astype(str), accepted)
        return np.flatnonzero(mask)

    def quarantine(self) -> pa.Table:
        """Read the quarantine: key, subject, position, reason, detail, source, created of each finding."""
        path = self.path / layout.QUARANTINE_FILE
        return tables.read_known(path, tables.QUARANTINE) if path.is_file() else tables.QUARANTINE.empty_table()


def check_description(path: Path, description: object) -> None:
    """Raise UserError if collection.json is not one that this version reads."""
    file = path / layout.DESCRIPTION
    if not isinstance(description, dict) or description.get("format") != layout.FORMAT:
        raise UserError(f"{file}: field 'format' must be {layout.FORMAT!r}")
    version = description.get("version")
    if version != layout.VERSION:
        older = isinstance(version, int) and version < layout.VERSION
        remedy = "collect the images again" if older else "update Foveate"
        raise UserError(
            f"{file}: field 'version' must be {layout.VERSION} (got {version!r}): the collection was written by "
            f"{'an older' if older else 'another'} version of Foveate; {remedy}"
        )
    for name in ("name", "license"):
        if not isinstance(description.get(name), str):
            raise UserError(f"{file}: field {name!r} must be a string (got {description.get(name)!r:.40})")


def check_writable(path: Path, description: Mapping[str, object]) -> None:
    """Raise UserError if collection.json lacks what a writer needs, besides `check_description`."""
    file = path / layout.DESCRIPTION
    for name in ("images_per_shard", "bytes_per_shard"):
        value = description.get(name)
        # A bool is an int in Python, and `true` would make shards of one image.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
            raise UserError(f"{file}: field {name!r} must be an integer of at least 1 (got {value!r:.40})")
    if not isinstance(description.get("sources"), list):
        raise UserError(f"{file}: field 'sources' must be a list")


def _close_all(descriptors: dict[int, int]) -> None:
    # One by one out of the dictionary: a second call, by `close` or the finalizer, finds no descriptor twice.
    while descriptors:
        os.close(descriptors.popitem()[1])
