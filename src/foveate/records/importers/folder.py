"""Import a folder of images, each with optional `.txt` and `.json` sidecars.

The key of `birds/owl.jpg` is `birds/owl`; its sidecars are `birds/owl.txt` and `birds/owl.json` (see
`foveate.records.importers.sidecar` for their content). Images without sidecars are imported, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import check_file, get_suffix, list_files, make_reader, make_refusal
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
    """Import all images below the folder `source` into the collection `target`, in the order of their paths.

    Importing again adds only what is new. Symbolic links that lead out of `source`, pipes and devices are quarantined.
    Hidden files, and files that are neither images nor their sidecars, are ignored and counted.

    Args:
        source: folder with images, at any depth.
        target: collection folder; created if it does not exist.
        group_by: "folder" puts images of one folder into one group (a JSON field "group" takes precedence).
        reference: leave the files where they are and only refer to them.
        first_line: use only the first line of a `.txt`, for files with translations or notes below.
        label_from_folder: name of a label field for the folder name, for sources with a folder per class (a JSON
            label of the same name takes precedence).
        shared: see `SharedOptions`.

    Raises:
        UserError: the source does not exist, is not a folder, is a collection or has no image; labels are requested but
            all images are in one folder; the target is not a collection, or another process writes it.
    """
    source = check_source(Path(source))
    if not source.is_dir():
        raise UserError(f"{source} is a file; expected a folder of images")
    if (source / layout.DESCRIPTION).is_file():
        raise UserError(f"{source} is a collection already; expected a folder of images")
    files, ignored = list_files(source, Path(target))
    images = [path for path in files if get_suffix(path) in IMAGE_SUFFIXES | REFUSED_SUFFIXES]
    if not images:
        allowed = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{source} has no images; expected files that end in {allowed}")
    if label_from_folder is not None:
        _check_label(label_from_folder, source, images)
    sidecars = {path for path in files if get_suffix(path) in ("txt", "json")}
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
        raise UserError("--label-from-folder: expected the name of a label field, such as category")
    if all(path.parent == source for path in images):
        raise UserError(f"--label-from-folder: {source} has no subfolders with images")


def _samples(
    source: Path, images: list[Path], sidecars: set[Path], *, first_line: bool, label: str | None
) -> Iterator[Sample]:
    root = source.resolve()
    for path in images:
        relative = path.relative_to(source)
        key = relative.with_suffix("").as_posix()
        sample = Sample(key=key, source=relative.as_posix(), load=make_reader(path), location=path)
        if label is not None and relative.parent.name:
            sample.labels = {label: relative.parent.name}
        problem = check_file(path, root)
        if problem is not None:
            sample.load = make_refusal(problem)
        for suffix, field in ((".txt", "text"), (".json", "json")):
            sidecar = path.with_suffix(suffix)
            if sidecar not in sidecars:
                continue
            problem = check_file(sidecar, root)
            if problem is None:
                read = make_reader(sidecar)
                setattr(sample, field, _read_first_line(read) if field == "text" and first_line else read)
            else:
                sample.problems.append(Problem("sidecar", problem.reason, f"{suffix}: {problem.detail}"))
        yield sample


def _read_first_line(read: Callable[[], bytes]) -> Callable[[], bytes]:
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
