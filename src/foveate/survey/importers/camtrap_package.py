"""Open a Camtrap DP package: a folder, its `datapackage.json`, or a zip; tables as CSV, gzipped CSV or Parquet."""

from __future__ import annotations

import gzip
import json
import posixpath
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.arrow_tables import read_parquet, read_text_columns
from foveate.core.errors import UserError, nearest
from foveate.records.images import BadImage
from foveate.records.importers.files import check_file, file_sample, locate_file, make_key, read_annotations
from foveate.records.importers.sample import MAX_BYTES, Problem, Sample
from foveate.survey.camtrap_profile import check_package
from foveate.survey.camtrap_schema import (
    TABLES,
    Violation,
    check_references,
    check_table,
    fill_missing,
    find_doubts,
)

DESCRIPTOR = "datapackage.json"
MAX_TABLE_BYTES = 2**30  # size of an unpacked table: a zip of 1 MB may hold 1 GB of zeros
_MAX_FURTHER_BYTES = 2**24
_LISTED = 10
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class Files:
    """The files of a package by their paths in it: in a folder, or in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._names: dict[str, str] = {}
        self.descriptor = DESCRIPTOR
        if path.is_dir():
            self.root = path
        elif path.suffix.lower() == ".zip":
            self._open_zip()
        else:
            self.root, self.descriptor = path.parent, path.name

    def _open_zip(self) -> None:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _ZIP_ERRORS as error:
            raise UserError(f"{self.path} cannot be read as a zip: {error}") from error
        names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        # The shortest path first: a package nested in another one does not take its place.
        inside = sorted((name for name in names if posixpath.basename(name) == DESCRIPTOR), key=lambda name: len(name))
        if not inside:
            raise UserError(f"{self.path} has no {DESCRIPTOR}{nearest(DESCRIPTOR, map(posixpath.basename, names))}")
        # Many zips hold one folder. Members above it, or that lead out of it, have no name in the package.
        folder = inside[0].removesuffix(DESCRIPTOR)
        safe = (name for name in names if not {"..", ""} & set(name.split("/")) and "\\" not in name)
        self._names = {name.removeprefix(folder): name for name in safe if name.startswith(folder)}

    @property
    def is_zip(self) -> bool:
        return self._zip is not None

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def has(self, name: str) -> bool:
        """Whether the package has a file of this path."""
        if self.is_zip:
            # A zip knows its members by their exact names only.
            return posixpath.normpath(name.replace("\\", "/")) in self._names
        location = locate_file(name, self.root)
        return not isinstance(location, Problem) and location[1].is_file()

    def normalize(self, name: str) -> str:
        """Return the path of a file below the package; an absolute one that leads into it becomes relative."""
        location = None if self.is_zip else locate_file(name, self.root)
        if location is None or isinstance(location, Problem):
            return posixpath.normpath(name.replace("\\", "/"))
        return Path(location[0]).as_posix()

    @contextmanager
    def open(self, name: str, *, max_bytes: int) -> Iterator[BinaryIO]:
        """Open a file of the package.

        Raises:
            UserError: there is none, it lies outside of the package, or it has more bytes than allowed.
        """
        where = f"{self.path}: {name}" if self.is_zip else f"{self.root / name}"
        if self._zip is not None:
            member = self._names.get(posixpath.normpath(name))
            if member is None:
                raise UserError(f"{self.path} has no file {name!r}{nearest(name, self._names)}")
            if self._zip.getinfo(member).file_size > max_bytes:
                raise UserError(
                    f"{where} has {self._zip.getinfo(member).file_size:,} bytes; expected at most {max_bytes:,}"
                )
            try:
                with self._zip.open(member) as file:
                    yield file  # type: ignore[misc]
            except _ZIP_ERRORS as error:
                raise UserError(f"{where} cannot be read: {error}") from error
            return
        location = locate_file(name, self.root)
        problem = location if isinstance(location, Problem) else check_file(location[1], self.root.resolve())
        if isinstance(location, Problem) or problem is not None:
            raise UserError(f"{where}: {problem.detail if problem else ''}")
        if location[1].stat().st_size > max_bytes:
            raise UserError(f"{where} has {location[1].stat().st_size:,} bytes; expected at most {max_bytes:,}")
        with location[1].open("rb") as file:
            yield file

    def image_sample(self, name: str, *, source: str) -> Sample:
        """Return the sample of an image of the package."""
        if self._zip is None:
            return file_sample(name, self.root, source=source)
        normal = posixpath.normpath(name.replace("\\", "/"))

        def load() -> bytes:
            # One byte more than allowed, so that the size is noticed without trusting the zip's directory.
            try:
                with self.open(normal, max_bytes=MAX_BYTES) as file:
                    return file.read(MAX_BYTES + 1)
            except UserError as error:
                # One damaged member does not end the import.
                raise BadImage("unreadable", str(error)) from error

        return Sample(key=make_key(normal), source=source, load=load)


@dataclass(slots=True)
class CamtrapPackage:
    """A package that was read and checked.

    Args:
        tables: texts by table and column, null where missing; all columns of the standard.
        warnings: what was tolerated, and what is allowed but doubtful.
        further: contents of the files of further resources, by their path.
    """

    files: Files
    descriptor: dict[str, Any]
    tables: dict[str, pa.Table]
    warnings: list[Violation] = field(default_factory=list)
    further: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def open_package(path: Path) -> Iterator[CamtrapPackage]:
    """Open a package, read its tables and check them.

    Raises:
        UserError: a file is missing or damaged, or the schema is violated in a way that reading does not tolerate.
    """
    files = Files(path)
    try:
        yield _read(files)
    finally:
        files.close()


def _read(files: Files) -> CamtrapPackage:
    descriptor, problems = read_descriptor(files)
    # Refuse before the tables are read: that code takes the descriptor's required fields for granted.
    refuse(files.path, problems)
    tables = {name: _read_resource(files, resource) for name, resource in _table_resources(descriptor).items()}
    problems += check_tables(descriptor, tables)
    refuse(files.path, problems)
    doubts = [*_find_typed_utc(descriptor, tables), *find_doubts(tables, _file_names(descriptor))]
    further, too_large = _read_further(files, descriptor)
    return CamtrapPackage(files, descriptor, tables, [*problems, *doubts, *too_large], further)


def read_descriptor(files: Files) -> tuple[dict[str, Any], list[Violation]]:
    """Read the descriptor of a package; return it with its violations."""
    with files.open(files.descriptor, max_bytes=MAX_TABLE_BYTES) as file:
        descriptor = _parse_descriptor(file, files)
    resources = descriptor.get("resources") if isinstance(descriptor, dict) else None
    for entry in resources if isinstance(resources, list) else ():
        # Data Package allows a list of paths; a list of one file is that file.
        if isinstance(entry, dict) and isinstance(entry.get("path"), list) and len(entry["path"]) == 1:
            entry["path"] = entry["path"][0]
    return descriptor, list(check_package(descriptor, file=files.descriptor))


def check_tables(descriptor: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> list[Violation]:
    """Return the violations of the three tables."""
    names = _file_names(descriptor)
    problems = [entry for name, table in tables.items() for entry in check_table(name, table, file=names[name])]
    # A table without its columns has nothing to refer to.
    broken = any(entry.row == 0 and not entry.tolerated for entry in problems)
    return problems if broken else [*problems, *check_references(tables, names)]


def check_written(folder: Path) -> tuple[list[Violation], list[Violation]]:
    """Return the violations of a package in a folder, and what is allowed but doubtful."""
    files = Files(folder)
    descriptor, problems = read_descriptor(files)
    tables = {name: _read_resource(files, resource) for name, resource in _table_resources(descriptor).items()}
    problems += check_tables(descriptor, tables)
    return problems, [] if problems else list(find_doubts(tables, _file_names(descriptor)))


def _table_resources(descriptor: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in descriptor["resources"] if entry["name"] in TABLES}


def _file_names(descriptor: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(resource["path"]) for name, resource in _table_resources(descriptor).items()}


def _parse_descriptor(file: BinaryIO, files: Files) -> dict[str, Any]:
    if not files.is_zip:
        return read_annotations(files.root / files.descriptor)
    try:
        return json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{files.path}: {files.descriptor} cannot be read as JSON ({str(error)[:120]})") from error


def refuse(where: Path, problems: Sequence[Violation], *, advice: Mapping[str, str] | None = None) -> None:
    """Raise UserError with the first violations, behind what repairs them.

    Args:
        advice: field -> repair, for what was written; None lets those pass that reading tolerates.
    """
    errors = [problem for problem in problems if advice is not None or not problem.tolerated]
    if errors:
        further = f"; and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
        repairs = dict.fromkeys(advice[error.field] for error in errors if error.field in advice) if advice else ()
        text = "; ".join([*map(str, errors[:_LISTED])]) + further
        raise UserError(f"{where}: {''.join(f'{repair}. ' for repair in repairs)}{text}")


def _read_resource(files: Files, resource: Mapping[str, Any]) -> pa.Table:
    name = str(resource["path"])
    if "://" in name:
        raise UserError(f"{files.path}: resource '{resource['name']}' is a URL ({name}); download it into the package")
    # Two suffixes, since .csv.gz has its format in the first.
    suffix = "".join(PurePosixPath(name).suffixes[-2:]).lower()
    packed = suffix.endswith(".gz") or resource.get("compression") == "gz"
    parquet = ".parquet" in suffix or resource.get("format") == "parquet"
    with tempfile.TemporaryDirectory() as folder, files.open(name, max_bytes=MAX_TABLE_BYTES) as file:
        # The house's reader of tables takes a path. A bad line is an error, while other imports skip it: a skipped row
        # would be missing from the next export.
        path = Path(folder) / f"{resource['name']}{'.parquet' if parquet else '.csv'}"
        _unpack(gzip.open(file) if packed else file, path, where=f"{files.path}: {name}")
        try:
            table = _read_parquet(path) if parquet else read_text_columns(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), f"{files.path}: {name}")) from error
    return fill_missing(table)


def _unpack(file: Any, path: Path, *, where: str) -> None:
    try:
        with path.open("wb") as target:
            # Read in pieces, because a gzip's stated size can be wrong.
            while piece := file.read(2**20):
                target.write(piece)
                if target.tell() > MAX_TABLE_BYTES:
                    raise UserError(f"{where} has more than {MAX_TABLE_BYTES:,} bytes")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be unpacked: {error}") from error


def _read_parquet(path: Path) -> pa.Table:
    table = read_parquet(path)
    try:
        return pa.table({name: _as_text(table[name]) for name in table.column_names})
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())[:200]}") from error


def _as_text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return typed cells as a CSV file would have them."""
    kind = cells.type
    if pa.types.is_timestamp(kind):
        # An unsafe cast, because a safe one refuses times with fractions of a second.
        utc = cells.cast(pa.timestamp("s", kind.tz), safe=False)
        # strftime writes the clock of the column's zone; most writers use UTC, which hides the clock of the place.
        layout = "%Y-%m-%dT%H:%M:%S" + ("Z" if kind.tz == "UTC" else "%z" if kind.tz else "")
        return pc.call_function("strftime", [utc], pc.StrftimeOptions(layout)).cast(pa.large_string())
    return cells.cast(pa.large_string())


def _find_typed_utc(descriptor: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> Iterator[Violation]:
    """Yield a doubt where times of images were typed in UTC, which hides the hour at the place."""
    name = _file_names(descriptor)["media"]
    times = tables["media"]["timestamp"]
    in_utc = pc.call_function("ends_with", [times.drop_null()], pc.MatchSubstringOptions("Z"))
    if ".parquet" in name and len(in_utc) and pc.call_function("all", [in_utc]).as_py():
        problem = "is typed in UTC: hours are those of UTC, not of the places; state utc_offset per deployment"
        yield Violation(name, 0, "timestamp", problem, tolerated=True)


def _read_further(files: Files, descriptor: Mapping[str, Any]) -> tuple[dict[str, bytes], list[Violation]]:
    """Read the files of further resources; return them, and those that are too large to be stored."""
    further, too_large = {}, []
    for resource in descriptor["resources"]:
        paths = resource.get("path") or ()
        if resource["name"] in TABLES or not paths:
            continue
        names = [str(path) for path in ([paths] if isinstance(paths, str) else paths)]
        for path in names:
            if "://" in path:
                continue
            with files.open(path, max_bytes=MAX_TABLE_BYTES) as file:
                # One byte more than allowed shows that a file is too large without reading all of it.
                content = file.read(_MAX_FURTHER_BYTES + 1)
            if len(content) <= _MAX_FURTHER_BYTES:
                further[files.normalize(path)] = content
            else:
                problem = f"has more than {_MAX_FURTHER_BYTES:,} bytes and is not stored"
                too_large.append(Violation(files.descriptor, 0, f"resources: {path}", problem, tolerated=True))
        # Normalize paths in the same way as the stored contents: an export writes them below its own folder.
        normal = [path if "://" in path else files.normalize(path) for path in names]
        resource["path"] = normal[0] if isinstance(paths, str) else normal
    return further, too_large
