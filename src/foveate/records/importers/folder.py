"""Import a folder of images, each with an optional `.txt` and `.json` beside it.

The key of `birds/owl.jpg` is `birds/owl`; its sidecars are `birds/owl.txt` and `birds/owl.json` (see
`foveate.records.importers.sidecar` for what they may hold). Images without sidecars are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import read_later, refuse_later, refused
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES, Problem, Sample, SharedOptions


def import_folder(
    source: str | Path,
    target: str | Path,
    *,
    group_by: str = "none",
    reference: bool = False,
    first_line: bool = False,
    label_from_folder: str | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Take all images below the folder `source` into the collection `target`, in the order of their paths.

    Doing it again takes in only what is new. Symbolic links that lead out of `source`, and files that are no
    regular files, are quarantined. Hidden files and folders, and files that are neither images nor sidecars
    of one, are ignored and counted.

    Args:
        source: folder with images, at any depth.
        target: collection folder, made where it does not exist.
        group_by: "folder" puts images of one folder into one group (a JSON field "group" goes before it).
        reference: leave the files where they are; the collection points at them.
        first_line: only the first line of a `.txt` is the image's text, as where translations or notes follow it.
        label_from_folder: name of a label field whose value is the name of the folder that an image lies in, as
            where every class has its folder (a JSON label of that name goes before it).
        shared: see `SharedOptions`.

    Raises:
        UserError: the source does not exist, is no folder, is a collection or has no image; labels are asked for
            and no image lies in a folder of its own class; or the target is no collection, or is being written by
            another process.
    """
    source = check_source(Path(source))
    if not source.is_dir():
        raise UserError(f"{source} is a file: a folder of images is wanted")
    if (source / layout.DESCRIPTION).is_file():
        raise UserError(f"{source} is a collection already: a folder of images is wanted")
    files, ignored = _list_files(source, Path(target))
    images = [path for path in files if _suffix(path) in IMAGE_SUFFIXES | REFUSED_SUFFIXES]
    if not images:
        allowed = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{source} has no images: looked for files that end in {allowed}")
    if label_from_folder is not None:
        _check_label(label_from_folder, source, images)
    sidecars = {path for path in files if _suffix(path) in ("txt", "json")}
    used = {path.with_suffix(suffix) for path in images for suffix in (".txt", ".json")} & sidecars
    return import_samples(
        target,
        _samples(source, images, used, first_line=first_line, label=label_from_folder),
        default_source=source.resolve().name,
        total=len(images),
        ignored_files=ignored + len(files) - len(images) - len(used),
        group_by=group_by,
        reference=reference,
        **shared,
    )


def _check_label(name: str, source: Path, images: list[Path]) -> None:
    if not name.strip():
        raise UserError("--label-from-folder: the label field needs a name, such as category")
    if all(path.parent == source for path in images):
        raise UserError(f"--label-from-folder: {source} has no folders with images; all lie in it itself")


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


def _samples(
    source: Path, images: list[Path], sidecars: set[Path], *, first_line: bool, label: str | None
) -> Iterator[Sample]:
    root = source.resolve()
    for path in images:
        relative = path.relative_to(source)
        key = relative.with_suffix("").as_posix()
        sample = Sample(key=key, source=relative.as_posix(), load=read_later(path), location=path)
        if label is not None and relative.parent.name:
            sample.labels = {label: relative.parent.name}
        problem = refused(path, root)
        if problem is not None:
            sample.load = refuse_later(problem)
        for suffix, field in ((".txt", "text"), (".json", "json")):
            beside = path.with_suffix(suffix)
            if beside not in sidecars:
                continue
            problem = refused(beside, root)
            if problem is None:
                read = read_later(beside)
                setattr(sample, field, _first_line(read) if field == "text" and first_line else read)
            else:
                sample.problems.append(Problem("sidecar", problem.reason, f"{suffix}: {problem.detail}"))
        yield sample


def _first_line(read: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: read().lstrip(b"\xef\xbb\xbf\r\n").split(b"\n", 1)[0]


def _recognize(source: str) -> str | None:
    return "a folder" if Path(source).is_dir() else None


FORMAT = Format(
    name="folder",
    run=import_folder,
    recognize=_recognize,
    options=("group_by", "reference", "first_line", "label_from_folder"),
    fallback=True,
)
