"""The index folder on disk: index.json lists the valid segments; everything else is work in progress.

index.json               model, collection, settings, counts, segments
    embeddings/NAME.npy      unit-length vectors [rows, E] of one kind
    rows/NAME.parquet        what each of these rows is: key, kind, box, phrase
    texts-HASH.parquet       inverted index of captions and file names, one document for each row of an image
    random-texts.npy         embeddings of random words, for the calibration in index.json
    random-letters.npy       embeddings of random letters, for the floor in index.json
    quarantine.parquet       images that could not be embedded, and why
    building/                parts of a run that has not finished

A run writes new segments and then replaces index.json atomically, so a reader sees the index before the run or after
it, never in between.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from foveate.core.errors import UserError
from foveate.core.files import atomic_file, read_json, write_json_atomically
from foveate.core.model_folder import CONFIG
from foveate.core.npz_files import DAMAGE
from foveate.records.bm25 import TextIndex
from foveate.records.collection import Collection
from foveate.records.ocr import FILE, recognize_text
from foveate.records.region_sources import ALL_SOURCES, OWN_SOURCES
from foveate.records.tables import positions, read_table, write_table

if TYPE_CHECKING:
    from foveate.vision.localizer.sources import ModelSource

KIND, FORMAT = "index", 1
DESCRIPTION, QUARANTINE, BUILDING = "index.json", "quarantine.parquet", "building"
TEXTS, RANDOM_TEXTS, RANDOM_LETTERS = "texts-{}.parquet", "random-texts.npy", "random-letters.npy"
IMAGE, REGION = "image", "region"
KINDS = (IMAGE, REGION)
PRECISIONS: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}

_CORNERS = [pa.field(name, pa.float32()) for name in ("x1", "y1", "x2", "y2")]
ROWS = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("kind", pa.string()),
        *_CORNERS,
        pa.field("phrase", pa.string()),
        pa.field("source", pa.string()),
        pa.field("content", pa.string()),
    ]
)
UNREADABLE = pa.schema([pa.field(name, pa.string()) for name in ("key", "content", "reason")])


@dataclass(frozen=True, slots=True)
class MovablePath:
    """An absolute path, and the relative one from the index folder for when all folders were moved together."""

    path: str
    relative: str

    @classmethod
    def of(cls, target: Path, folder: Path) -> MovablePath:
        return cls(str(target.resolve()), os.path.relpath(target.resolve(), folder.resolve()))

    def resolve(self, folder: Path, *markers: str) -> Path:
        """Return the absolute path, or the relative one if only there one of the files `markers` exists."""
        # Index, model and collection are often copied together to another machine.
        moved = (folder / self.relative).resolve()
        full = Path(self.path)
        is_here, was_moved = (any((path / marker).is_file() for marker in markers) for path in (full, moved))
        return moved if not is_here and was_moved else full


@dataclass(frozen=True, slots=True)
class Segment:
    """An embeddings file and its table of rows, all of one kind."""

    kind: str
    name: str
    rows: int

    def embeddings_path(self, folder: Path) -> Path:
        return folder / "embeddings" / f"{self.name}.npy"

    def rows_path(self, folder: Path) -> Path:
        return folder / "rows" / f"{self.name}.parquet"

    def embeddings(self, folder: Path) -> NDArray[np.floating]:
        """Open the vectors memory-mapped, read-only.

        Raises:
            UserError: when the file is missing, damaged, or has another number of rows than index.json says.
        """
        path = self.embeddings_path(folder)
        array = read_vectors(path)
        if len(array) != self.rows:
            raise UserError(
                f"{path}: has {len(array)} rows; expected {self.rows} ({DESCRIPTION}). Build the index again"
            )
        return array


@dataclass(frozen=True, slots=True)
class Floor:
    """What texts without a meaning score in an index; see `foveate.search.calibration`.

    Attributes:
        z: kind of a search ("images", "regions", "both") -> the score below which nothing is found.
        letters_above: share of random letters above the floor. names_below: share of random names below it.
        letters_cosine: cosine with the mean of random letters above which a word is unknown to the text tower.
        names_unknown: share of random names above that cosine.
    """

    z: dict[str, float]
    letters_above: float
    names_below: float
    letters_cosine: float
    names_unknown: float


@dataclass(frozen=True)
class Description:
    """The content of index.json.

    Attributes:
        model: folder of the model. source: name of one that is no folder of the user's, such as OWNER/NAME@COMMIT; the
            path of `model` then repeats it. fingerprint: see `ModelSource`. embed_dim: length E of the vectors.
        regions: which boxes are embedded. precision: "float32" or "float16", of the stored vectors.
        crops: whether boxes were embedded as images of their own, for a model that never learned places.
        region_sources: sources of the regions that are embedded, as in `foveate.records.region_sources`.
        finished: False while a run is under way or after one was stopped.
        counts: of images, regions and unreadable images. next_number: of the next segment.
        spreads: of cosines with random queries, see `foveate.search.calibration`. texts: file name of the
            inverted index. ocr: whether it has the words that are read in the images. floor: below which nothing is
            found. Indexes of old releases have none of them.
    """

    model: MovablePath
    fingerprint: str
    embed_dim: int
    method: str
    collection: MovablePath
    collection_name: str
    regions: str
    precision: str
    region_sources: tuple[str, ...] = (OWN_SOURCES,)
    source: str = ""
    crops: bool = False
    finished: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"images": 0, "regions": 0, "unreadable": 0})
    next_number: int = 0
    segments: tuple[Segment, ...] = ()
    spreads: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    texts: str = ""
    ocr: bool = False
    floor: Floor | None = None

    def at(self, source: ModelSource, collection: Path, folder: Path) -> Description:
        """Return a copy that refers to the model and the collection where they are now."""
        # A name on the hub is no path: `MovablePath.of` would resolve it against the working directory.
        model = MovablePath(source.name, "") if not source.is_local else MovablePath.of(Path(source.name), folder)
        name = "" if source.is_local else source.name
        return replace(self, model=model, source=name, collection=MovablePath.of(collection, folder))

    def model_name(self, folder: Path) -> str | Path:
        """Return what `find_model` finds the model by."""
        # Imported here: an index is recognized without torch, so that a wrong path is refused at once.
        from foveate.vision.localizer.sources import OPEN_CLIP_CONFIG

        return self.source or self.model.resolve(folder, CONFIG, OPEN_CLIP_CONFIG)

    @property
    def dtype(self) -> np.dtype[Any]:
        return PRECISIONS[self.precision]

    def write(self, folder: Path) -> None:
        """Replace index.json atomically: this makes the new segments valid."""
        write_json_atomically(folder / DESCRIPTION, {"kind": KIND, "format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read index.json.

        Raises:
            UserError: when `folder` is not an index, has another format, or a field is missing or wrong.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise UserError(f"{folder}: not an index: {DESCRIPTION} is missing; `foveate index` builds one")
        value = read_json(path)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise UserError(f"{path}: field 'kind' must be '{KIND}'")
        if value.get("format") != FORMAT:
            raise UserError(f"{path}: format {value.get('format')}, this version reads {FORMAT}")
        try:
            # Indexes without these fields embedded the regions of all sources, from the tokens of a folder's model, and
            # were searched by cosines alone.
            old = {
                "region_sources": [ALL_SOURCES],
                "source": "",
                "crops": False,
                "spreads": {},
                "texts": "",
                "ocr": False,
                "floor": None,
            }
            complete = {**old, **value}
            fields: dict[str, Any] = {name: complete[name] for name in cls.__dataclass_fields__}
            description = TypeAdapter(cls).validate_python(fields)
        except KeyError as error:
            raise UserError(f"{path}: a field is missing or unknown ({error})") from error
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: a field is missing or unknown ('{name}': {first['msg']})") from error
        unknown_kind = any(segment.kind not in KINDS for segment in description.segments)
        if description.precision not in PRECISIONS or unknown_kind:
            raise UserError(f"{path}: fields 'precision' or 'segments' have values that this version does not know")
        # A crafted index must not make the program read or delete files elsewhere.
        names = [segment.name for segment in description.segments]
        if any(Path(name).name != name for name in (*names, description.texts)):
            raise UserError(f"{path}: a segment's name points outside the folder")
        return description


def read_vectors(path: Path) -> NDArray[np.floating]:
    """Open a memory-mapped array [rows, E] of float32 or float16.

    Raises:
        UserError: when the file is missing, cut short or something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as an array of embeddings ({error}); build the index again") from error
    if array.ndim != 2 or array.dtype not in PRECISIONS.values():
        raise UserError(f"{path}: expected embeddings (got {array.dtype} of shape {list(array.shape)})")
    return array


def read_rows(paths: Sequence[Path], schema: pa.Schema = ROWS) -> pa.Table:
    """Read tables of rows and join them in order."""
    parts = [schema.empty_table()]
    for path in paths:
        part = read_table(path)
        if not part.schema.equals(schema):
            raise UserError(f"{path}: columns differ from those of an index; build the index again")
        parts.append(part)
    return pa.concat_tables(parts).combine_chunks()


@contextmanager
def new_vectors(path: Path, *, rows: int, width: int, dtype: np.dtype[Any]) -> Iterator[BinaryIO]:
    """Write an .npy file of known shape atomically: yields a handle for the bytes of the rows."""
    with atomic_file(path) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
        # `np.save` needs the whole array in memory; after a header written here, rows can be streamed.
        np.lib.format.write_array_header_1_0(handle, header)
        yield handle


def sweep(folder: Path, description: Description) -> None:
    """Remove files that index.json does not list, left by a killed run. Only the writer may call it."""
    listed = {segment.embeddings_path(folder) for segment in description.segments}
    listed |= {segment.rows_path(folder) for segment in description.segments}
    for inner in ("embeddings", "rows"):
        for path in (folder / inner).glob("*") if (folder / inner).is_dir() else ():
            if path not in listed and path.is_file():
                path.unlink()
    for path in folder.glob(TEXTS.format("*")):
        if path.name != description.texts:
            path.unlink()
    for parent in (folder, folder / BUILDING):
        for path in parent.glob(".*.tmp") if parent.is_dir() else ():
            path.unlink()


# The last steps of a build: merge parts and old segments into new ones, and add what is derived from them.


# Rows of one segment: with 512 numbers each in float32, half a gigabyte.
SEGMENT_ROWS = 2**18
_COPY_ROWS = 2**14
# Raised whenever texts are split into other terms, so that the next run writes the texts of an older index again.
_TERMS_VERSION = 3


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of one kind in an old segment or a part of this run; `mask` marks those to keep."""

    # A path, not an open file: a run has thousands of parts, and a process may have far fewer files open.

    table: pa.Table
    vectors: Path
    mask: NDArray[np.bool_]
    segment: Segment | None = None


def merge_parts(target: Description, out: Path, *, contents: Mapping[str, str]) -> Description:
    """Write the segments of an index's new state and return its description, which makes them valid once written.

    Args:
        contents: key -> content hash of every image of the collection; rows of others are dropped.
    """
    sources: dict[str, list[_Source]] = {kind: [] for kind in KINDS}
    indexed: set[str] = set()
    stale: set[str] = set()
    for segment in target.segments:
        if segment.kind == IMAGE:
            table = read_rows([segment.rows_path(out)])
            mask = _is_current(table, contents, indexed)
            indexed |= set(table["key"].filter(pa.array(mask)).to_pylist())
            stale |= set(table["key"].filter(pa.array(~mask)).to_pylist())
            sources[IMAGE].append(_Source(table, segment.embeddings_path(out), mask, segment))
    for segment in target.segments:
        if segment.kind == REGION:
            table = read_rows([segment.rows_path(out)])
            mask = np.array([key not in stale for key in table["key"].to_pylist()], dtype=bool)
            sources[REGION].append(_Source(table, segment.embeddings_path(out), mask, segment))
    unreadable = _add_parts(out, contents, indexed, sources)
    segments: list[Segment] = []
    number = target.next_number
    for kind in KINDS:
        new_segments, number = _write_segments(out, kind, sources[kind], number, target)
        segments += new_segments
    _write_quarantine(out, unreadable, contents, indexed)
    counts = {f"{kind}s": sum(segment.rows for segment in segments if segment.kind == kind) for kind in KINDS}
    counts["unreadable"] = read_table(out / QUARANTINE).num_rows if (out / QUARANTINE).is_file() else 0
    return replace(target, finished=True, counts=counts, next_number=number, segments=tuple(segments))


def write_texts(description: Description, out: Path, collection: Collection) -> str:
    """Write the inverted index of the texts of an index's images: keys, captions, text in them; return its name."""
    segments = [segment for segment in description.segments if segment.kind == IMAGE]
    keys = read_rows([segment.rows_path(out) for segment in segments])["key"]
    rows = positions(keys, among=pa.array(collection.keys, pa.string())).tolist()
    written = recognize_text(collection, [row for row in rows if row >= 0], out / FILE) if description.ocr else {}
    documents = []
    for key, row in zip(keys.to_pylist(), rows, strict=True):
        # Removed images keep their rows until the next merge, and a row has a document.
        captions = collection.read_captions(row) if row >= 0 else ()
        documents.append([key, *(caption.text for caption in captions), *written.get(row, ())])
    content = json.dumps([_TERMS_VERSION, documents]).encode()
    # Named by its content, so that the old one stays valid until index.json names the new one.
    name = TEXTS.format(hashlib.blake2b(content, digest_size=8).hexdigest())
    if not (out / name).is_file():
        TextIndex.build(documents).write(out / name)
    return name


def _is_current(table: pa.Table, contents: Mapping[str, str], indexed: set[str]) -> NDArray[np.bool_]:
    """Mark rows whose image is unchanged and not indexed yet."""
    pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
    return np.array([contents.get(key) == content and key not in indexed for key, content in pairs], dtype=bool)


def _add_parts(
    out: Path, contents: Mapping[str, str], indexed: set[str], sources: dict[str, list[_Source]]
) -> list[dict[str, str]]:
    """Add the parts of the run to the sources; return the images that could not be read."""
    unreadable: list[dict[str, str]] = []
    for path in sorted((out / BUILDING).glob("?????.parquet")):
        table = read_table(path)
        kind_N = table["kind"].to_numpy()
        by_kind = {kind: table.filter(pa.array(kind_N == kind)) for kind in (*KINDS, "unreadable")}
        images = by_kind[IMAGE]
        mask = _is_current(images, contents, indexed)
        fresh = set(images["key"].filter(pa.array(mask)).to_pylist())
        indexed |= fresh
        region_mask = np.array([key in fresh for key in by_kind[REGION]["key"].to_pylist()], dtype=bool)
        for kind, kind_mask in ((IMAGE, mask), (REGION, region_mask)):
            vectors = path.with_name(f"{path.stem}-{kind}.npy")
            sources[kind].append(_Source(by_kind[kind].select(ROWS.names), vectors, kind_mask))
        unreadable += by_kind["unreadable"].select(UNREADABLE.names).to_pylist()
    return unreadable


def _write_segments(
    out: Path, kind: str, sources: list[_Source], number: int, target: Description
) -> tuple[list[Segment], int]:
    """Return the segments of one kind: complete ones stay as they are, the others are merged and written."""
    segments: list[Segment] = []
    waiting: list[_Source] = []
    filled = [source for source in sources if source.mask.any()]
    for index, source in enumerate(filled):
        last = index == len(filled) - 1
        # A complete segment is never rewritten, so an update costs what is new and not the size of the index.
        whole = source.segment is not None and source.mask.all() and (last or len(source.mask) >= SEGMENT_ROWS)
        if whole and not waiting:
            assert source.segment is not None
            segments.append(source.segment)
        else:
            waiting.append(source)
    pieces = [(source, np.flatnonzero(source.mask)) for source in waiting]
    total = sum(len(rows) for _, rows in pieces)
    for start in range(0, total, SEGMENT_ROWS):
        segment = Segment(kind, f"{number:05d}-{kind}", min(SEGMENT_ROWS, total - start))
        _write_segment(out, segment, _cut(pieces, start, segment.rows), target)
        segments.append(segment)
        number += 1
    return segments, number


def _cut(
    pieces: list[tuple[_Source, NDArray[np.int64]]], start: int, count: int
) -> list[tuple[_Source, NDArray[np.int64]]]:
    """Return the `count` rows from `start` on of concatenated pieces."""
    selected, at = [], 0
    for source, rows in pieces:
        low, high = max(start - at, 0), min(start + count - at, len(rows))
        if low < high:
            selected.append((source, rows[low:high]))
        at += len(rows)
    return selected


def _write_segment(
    out: Path, segment: Segment, pieces: list[tuple[_Source, NDArray[np.int64]]], target: Description
) -> None:
    path = segment.embeddings_path(out)
    with new_vectors(path, rows=segment.rows, width=target.embed_dim, dtype=target.dtype) as handle:
        for source, rows in pieces:
            vectors = read_vectors(source.vectors)
            if len(vectors) != len(source.mask):
                raise UserError(f"{source.vectors}: has {len(vectors)} rows; its table has {len(source.mask)}")
            # Indexing by an array copies, so rows are copied in blocks: a whole segment may have half a gigabyte.
            for start in range(0, len(rows), _COPY_ROWS):
                handle.write(vectors[rows[start : start + _COPY_ROWS]].tobytes())
    tables = [source.table.take(pa.array(rows)) for source, rows in pieces]
    write_table(segment.rows_path(out), pa.concat_tables(tables).combine_chunks())


def _write_quarantine(out: Path, new: list[dict[str, str]], contents: Mapping[str, str], indexed: set[str]) -> None:
    """Write the quarantine, each image once; without those that are readable by now, changed or removed."""
    path = out / QUARANTINE
    before = read_table(path).to_pylist() if path.is_file() else []
    rows = {
        row["key"]: row
        for row in [*before, *new]
        if contents.get(row["key"]) == row["content"] and row["key"] not in indexed
    }
    if rows:
        write_table(path, pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=UNREADABLE))
    else:
        path.unlink(missing_ok=True)
