"""The index folder on disk: index.json names the segments that count; everything else is work in progress.

    index.json               model, collection, settings, counts, segments
    embeddings/NAME.npy      unit-length vectors [rows, E] of one kind
    rows/NAME.parquet        what each of these rows is: key, kind, box, phrase
    quarantine.parquet       images that could not be embedded, and why
    building/                parts of a run that has not finished

A run makes new segments beside the old ones and then replaces index.json in one step, so that a reader sees the index
before the run or after it, never in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from foveate.core.errors import UserError
from foveate.core.files import atomic_file, read_json, sha256_file, write_json_atomically
from foveate.records.region_sources import ALL, OWN
from foveate.records.tables import read_table
from foveate.vision.localizer.folder import CONFIG, PREPROCESS, WEIGHTS

KIND, FORMAT = "index", 1
DESCRIPTION, QUARANTINE, BUILDING = "index.json", "quarantine.parquet", "building"
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
class Place:
    """Where something lies: its full path, and the way to it from the index folder, should all have moved together."""

    path: str
    relative: str

    @classmethod
    def of(cls, target: Path, folder: Path) -> Place:
        return cls(str(target.resolve()), os.path.relpath(target.resolve(), folder.resolve()))

    def found(self, folder: Path, marker: str) -> Path:
        """The folder that holds the file `marker`: at its full path, else relative to the index, else the former."""
        moved = (folder / self.relative).resolve()
        full = Path(self.path)
        return moved if not (full / marker).is_file() and (moved / marker).is_file() else full


@dataclass(frozen=True, slots=True)
class Segment:
    """One embeddings file with its table of rows; all rows are of one kind."""

    kind: str
    name: str
    rows: int

    def embeddings_path(self, folder: Path) -> Path:
        return folder / "embeddings" / f"{self.name}.npy"

    def rows_path(self, folder: Path) -> Path:
        return folder / "rows" / f"{self.name}.parquet"

    def embeddings(self, folder: Path) -> NDArray[np.floating]:
        """The vectors, memory-mapped, read-only.

        Raises:
            UserError: when the file is missing, damaged, or does not have the promised rows.
        """
        path = self.embeddings_path(folder)
        array = read_vectors(path)
        if len(array) != self.rows:
            raise UserError(f"{path}: has {len(array)} rows, {DESCRIPTION} promises {self.rows}; make the index anew")
        return array


@dataclass(frozen=True)
class Description:
    """The content of index.json.

    Attributes:
        fingerprint: of the model, see `fingerprint`. embed_dim: length E of the vectors.
        regions: which boxes are embedded. precision: "float32" or "float16", of the stored vectors.
        region_sources: whose regions are an image's own, as in `foveate.records.region_sources`.
        finished: no run is under way, or one that was stopped.
        counts: of images, regions and unreadable images. next_number: of the next segment.
    """

    model: Place
    fingerprint: str
    embed_dim: int
    method: str
    collection: Place
    collection_name: str
    regions: str
    precision: str
    region_sources: tuple[str, ...] = (OWN,)
    finished: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"images": 0, "regions": 0, "unreadable": 0})
    next_number: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        return PRECISIONS[self.precision]

    def write(self, folder: Path) -> None:
        """Replaces index.json: the moment at which a run's segments count."""
        write_json_atomically(folder / DESCRIPTION, {"kind": KIND, "format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Reads index.json.

        Raises:
            UserError: when `folder` is no index, of another version, or a field is missing or wrong.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise UserError(f"{folder}: not an index, it has no {DESCRIPTION}; `foveate index` makes one")
        value = read_json(path)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise UserError(f"{path}: field 'kind' must be '{KIND}'")
        if value.get("format") != FORMAT:
            raise UserError(f"{path}: format {value.get('format')}, this version reads {FORMAT}")
        try:
            # Before there was a choice, all regions were embedded.
            told = {"region_sources": [ALL], **value}
            fields: dict[str, Any] = {name: told[name] for name in cls.__dataclass_fields__}
            read = TypeAdapter(cls).validate_python(fields)
        except KeyError as error:
            raise UserError(f"{path}: a field is missing or unknown ({error})") from error
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: a field is missing or unknown ('{name}': {first['msg']})") from error
        if read.precision not in PRECISIONS or any(one.kind not in KINDS for one in read.segments):
            raise UserError(f"{path}: fields 'precision' or 'segments' hold what this version does not know")
        if any(Path(one.name).name != one.name for one in read.segments):
            raise UserError(f"{path}: a segment's name leads out of the folder")
        return read


def read_vectors(path: Path) -> NDArray[np.floating]:
    """A memory-mapped array [rows, E] of float32 or float16.

    Raises:
        UserError: naming the file, when it is missing, cut short or something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{path}: cannot be read as an array of embeddings ({error}); make the index anew") from error
    if array.ndim != 2 or array.dtype not in PRECISIONS.values():
        raise UserError(f"{path}: holds {array.dtype} of shape {list(array.shape)}, not embeddings")
    return array


def read_rows(paths: Sequence[Path], schema: pa.Schema = ROWS) -> pa.Table:
    """Tables of rows, joined in order."""
    parts = [schema.empty_table()]
    for path in paths:
        part = read_table(path)
        if not part.schema.equals(schema):
            raise UserError(f"{path}: has other columns than an index has; make the index anew")
        parts.append(part)
    return pa.concat_tables(parts).combine_chunks()


@contextmanager
def new_vectors(path: Path, *, rows: int, width: int, dtype: np.dtype[Any]) -> Iterator[BinaryIO]:
    """An .npy file of a shape known beforehand that appears whole or not at all: write the rows' bytes into it."""
    with atomic_file(path) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(handle, header)
        yield handle


def sweep(folder: Path, description: Description) -> None:
    """Removes what a killed run left behind and index.json does not name. For the writer only."""
    named = {one.embeddings_path(folder) for one in description.segments}
    named |= {one.rows_path(folder) for one in description.segments}
    for inner in ("embeddings", "rows"):
        for path in (folder / inner).glob("*") if (folder / inner).is_dir() else ():
            if path not in named and path.is_file():
                path.unlink()
    for place in (folder, folder / BUILDING):
        for path in place.glob(".*.tmp") if place.is_dir() else ():
            path.unlink()


def fingerprint(folder: Path) -> str:
    """The fingerprint of a model folder: 32 hexadecimal digits.

    Its card, its metrics and the rule by which it locates phrases do not count: they change no embedding. Weights
    that come with a package are named, with their hash, by the encoder's kind.

    Raises:
        UserError: when `folder` is no model folder.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a model folder, it has no {CONFIG}")
    config = read_json(folder / CONFIG)
    recipe = config.get("recipe") if isinstance(config, dict) else None
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / CONFIG}: field 'recipe' is missing")
    built_of = {name: value for name, value in recipe.items() if name not in ("data", "training")}
    try:
        files = [sha256_file(folder / name) for name in (PREPROCESS, WEIGHTS)]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; the model folder is not complete") from error
    content = json.dumps([built_of, *files], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
