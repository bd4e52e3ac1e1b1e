"""Import a folder of pictures, each with an optional `.txt` and `.json` beside it.

The key of `birds/owl.jpg` is `birds/owl`; its sidecars are `birds/owl.txt` and `birds/owl.json` (see
`foveate.records.importers.sidecar` for what they may hold). Pictures without sidecars are kept.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from foveate.records import layout
from foveate.records.importers.sample import (
    MAX_BYTES,
    PICTURE_SUFFIXES,
    REFUSED_SUFFIXES,
    Problem,
    Sample,
)
from foveate.records.importers.taking import check_source, default_workers, take_samples
from foveate.records.pictures import MAX_PIXELS, BadPicture
from foveate.records.summary import ImportSummary
from foveate.records.writer import BYTES_PER_SHARD, PICTURES_PER_SHARD, CollectionWriter
from foveate.settings.errors import UserError, choose
from foveate.settings.progress import track

GROUPINGS = ("none", "folder")


def import_folder(
    source: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    source_name: str | None = None,
    group_by: str = "none",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    pictures_per_shard: int = PICTURES_PER_SHARD,
    bytes_per_shard: int = BYTES_PER_SHARD,
    created: str | None = None,
) -> ImportSummary:
    """Take all pictures below the folder `source` into the collection `target`, in the order of their paths.

    Doing it again takes in only what is new. Symbolic links that lead out of `source`, and files that are no
    regular files, are quarantined. Hidden files and folders, and files that are neither pictures nor sidecars
    of one, are ignored and counted.

    Args:
        source: folder with pictures, at any depth.
        target: collection folder, made where it does not exist.
        name: name of a new collection, by default that of the target folder.
        licence: licence of the pictures.
        source_name: provenance, by default the name of the source folder.
        group_by: "folder" puts pictures of one folder into one group (a JSON field "group" goes before it).
        workers: threads that examine pictures.
        max_pixels, pictures_per_shard, bytes_per_shard, created: see `CollectionWriter`.

    Raises:
        UserError: the source does not exist, is no folder, is a collection or has no picture; or the target
            is no collection, or is being written by another process.
    """
    source = check_source(Path(source))
    choose(group_by, GROUPINGS, "grouping")
    if not source.is_dir():
        raise UserError(f"{source} is a file: a folder of pictures is wanted")
    if (source / layout.DESCRIPTION).is_file():
        raise UserError(f"{source} is a collection already: a folder of pictures is wanted")
    files, ignored = _list_files(source, Path(target))
    pictures = [path for path in files if _suffix(path) in PICTURE_SUFFIXES | REFUSED_SUFFIXES]
    if not pictures:
        allowed = ", ".join(sorted(PICTURE_SUFFIXES))
        raise UserError(f"{source} has no pictures: looked for files that end in {allowed}")
    sidecars = {path for path in files if _suffix(path) in ("txt", "json")}
    used = {path.with_suffix(suffix) for path in pictures for suffix in (".txt", ".json")} & sidecars
    with CollectionWriter(
        target,
        name=name,
        licence=licence,
        source=source_name if source_name is not None else source.resolve().name,
        pictures_per_shard=pictures_per_shard,
        bytes_per_shard=bytes_per_shard,
        max_pixels=max_pixels,
        created=created,
    ) as writer:
        writer.summary.ignored_files = ignored + len(files) - len(pictures) - len(used)
        samples = _samples(source, pictures, used, group_by)
        shown = track(samples, description="importing pictures", total=len(pictures))
        take_samples(writer, shown, workers=workers or default_workers(), max_pixels=max_pixels)
    return writer.summary


def _suffix(path: Path) -> str:
    return path.suffix[1:].lower()


def _list_files(source: Path, target: Path) -> tuple[list[Path], int]:
    """All files below `source` in the order of their paths, and how many hidden ones are left out."""
    inside = target.resolve()
    files: list[Path] = []
    hidden = 0
    for folder, subfolders, names in os.walk(source):
        subfolders[:] = [
            sub for sub in subfolders if not sub.startswith(".") and (Path(folder) / sub).resolve() != inside
        ]
        hidden += sum(name.startswith(".") for name in names)
        files.extend(Path(folder) / name for name in names if not name.startswith("."))
    return sorted(files, key=lambda path: os.fsencode(path.relative_to(source).as_posix())), hidden


def _samples(source: Path, pictures: list[Path], sidecars: set[Path], group_by: str) -> Iterator[Sample]:
    root = source.resolve()
    for path in pictures:
        relative = path.relative_to(source)
        folder = relative.parent.as_posix()
        sample = Sample(
            key=relative.with_suffix("").as_posix(),
            source=relative.as_posix(),
            load=_reader(path),
            group=folder if group_by == "folder" and folder != "." else "",
        )
        problem = _refused(path, root)
        if problem is not None:
            sample.load = _refusing(problem)
        for suffix, field in ((".txt", "text"), (".json", "json")):
            beside = path.with_suffix(suffix)
            if beside not in sidecars:
                continue
            problem = _refused(beside, root)
            if problem is None:
                setattr(sample, field, _reader(beside))
            else:
                sample.problems.append(Problem("sidecar", problem.reason, f"{suffix}: {problem.detail}"))
        yield sample


def _refused(path: Path, root: Path) -> Problem | None:
    """Why a file is not even opened: a link out of the folder, or a pipe, socket or device."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        detail = "the symbolic link leads out of the imported folder"
        return Problem("picture", "link leaves the folder", detail)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Problem("picture", "unreadable", f"the file cannot be read: {error.strerror or error}")
    if not stat.S_ISREG(mode):
        return Problem("picture", "no regular file", "the path is a folder, pipe, socket or device")
    return None


def _reader(path: Path) -> Callable[[], bytes]:
    """A function that reads the file, but not much more than the bytes that are allowed."""

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)

    return read


def _refusing(problem: Problem) -> Callable[[], bytes]:
    def refuse() -> bytes:
        raise BadPicture(problem.reason, problem.detail)

    return refuse
