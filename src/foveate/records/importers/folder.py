"""Import a folder of images, each with optional sidecars, and import it again when its files have changed.

The key of `birds/owl.jpg` is `birds/owl`, or `birds/owl.jpg` where another image has that key; see
`foveate.records.importers.folder_files` for the names of its sidecars and `foveate.records.importers.sidecar` for their
content. Images without sidecars are imported, too.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from foveate.core.encodings import decode_text
from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import check_file, make_reader, make_refusal
from foveate.records.importers.folder_files import ClassNames, FolderFiles, pair_files
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.json_files import make_finding
from foveate.records.importers.sample import IMAGE_SUFFIXES, Problem, Sample, SharedOptions
from foveate.records.importers.versions import FolderVersions
from foveate.records.writer import CollectionWriter


def import_folder(
    source: str | Path,
    target: str | Path,
    *,
    group_by: str = "none",
    reference: bool = False,
    first_line: bool = False,
    label_from_folder: str | None = None,
    update: bool = False,
    mirror: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import all images below the folder `source` into the collection `target`, in the order of their paths.

    Importing again adds only what is new, and reads only files whose length or time differ from the earlier import.
    Changes of imported files are counted, and with `update` taken: changed sidecars give newer rows, and a file with
    other bytes is a new image of the same key, without the annotations of the old one.

    Symbolic links that lead out of `source`, links to folders, pipes and devices are quarantined. Hidden files, and
    files that are neither images nor their sidecars, are ignored and counted.

    Args:
        source: folder with images, at any depth.
        target: collection folder; created if it does not exist.
        group_by: "folder" puts images of one folder into one group (a JSON field "group" takes precedence).
        reference: leave the files where they are and only refer to them.
        first_line: use only the first line of a `.txt`, for files with translations or notes below.
        label_from_folder: name of a label field for the folder name, for sources with a folder per class (a JSON
            label of the same name takes precedence).
        update: take changed sidecars and replaced images.
        mirror: also delete images whose files are gone, without a tombstone: the collection is derived from the folder.
        shared: see `SharedOptions`.

    Raises:
        UserError: the source does not exist, is not a folder, is a collection or has no image; labels are requested but
            all images are in one folder; a folder cannot be read; the target is not a collection, or another process
            writes it.
    """
    source = check_source(Path(source))
    if not source.is_dir():
        raise UserError(f"{source} is a file; expected a folder of images")
    if (source / layout.DESCRIPTION).is_file():
        raise UserError(f"{source} is a collection already; expected a folder of images")
    files = pair_files(source, Path(target))
    if not files.images:
        allowed = ", ".join(sorted(IMAGE_SUFFIXES))
        links = f"; links to folders are not followed, such as {files.links[0]!r}" if files.links else ""
        raise UserError(f"{source} has no images; expected files that end in {allowed}{links}")
    if label_from_folder is not None:
        _check_label(label_from_folder, source, files)
    versions = FolderVersions(source, take=update)

    def finish(writer: CollectionWriter) -> None:
        summary = writer.summary
        summary.updated = update
        names = [image.name for image in files.images]
        summary.gone = versions.list_gone(writer, names)
        summary.renamed = versions.list_renamed(writer, summary.gone, names)
        if mirror:
            # After the list of renamed files, which compares with images that are still there.
            writer.forget(summary.gone)

    return import_samples(
        target,
        _samples(source, files, versions, first_line=first_line, label=label_from_folder),
        # Resolved, because "." has no name.
        default_source=source.resolve().name,
        total=len(files.links) + len(files.images),
        ignored=files.ignored,
        group_by=group_by,
        reference=reference,
        versions=versions,
        finish=finish,
        **shared,
    )


def _check_label(name: str, source: Path, files: FolderFiles) -> None:
    if not name.strip():
        raise UserError("--label-from-folder: expected the name of a label field, such as category")
    if all("/" not in image.name for image in files.images):
        raise UserError(f"--label-from-folder: {source} has no subfolders with images")


def _samples(
    source: Path, files: FolderFiles, versions: FolderVersions, *, first_line: bool, label: str | None
) -> Iterator[Sample]:
    root = source.resolve()
    for link in files.links:
        problem = check_file(source / link, root)
        if problem is not None:
            yield make_finding(link, link, "image", problem.reason, problem.detail)
    classes = ClassNames(source, files.class_files)
    keys = versions.assign_keys([image.name for image in files.images])
    for image in files.images:
        sample = Sample(key=keys[image.name], source=image.name, load=None)
        names = classes.find(image.texts[0]) if image.texts else ()
        # Options and class names are in the stamp: with others the same files give other rows.
        versions.compare(sample, image.all, (first_line, label, *names))
        if not sample.unchanged:
            path = source / image.name
            _prepare_sample(sample, path, root, label=label)
            sample.class_names = names
            # In YOLO's folder "labels", numbers that are no boxes mean a damaged file, not a caption.
            sample.label_texts = any("labels" in name.split("/")[:-1] for name in image.texts)
            for name in [*image.texts, *image.objects]:
                is_text = name in image.texts
                sidecar = source / name
                # Only the bad sidecar is put aside: the image is imported without it.
                problem = check_file(sidecar, root)
                if problem is not None:
                    sample.problems.append(Problem("sidecar", problem.reason, f"{sidecar.suffix}: {problem.detail}"))
                    continue
                read = make_reader(sidecar)
                readers = sample.texts if is_text else sample.objects
                readers.append(_read_first_line(read) if is_text and first_line else read)
        yield sample


def _prepare_sample(sample: Sample, path: Path, root: Path, *, label: str | None) -> None:
    sample.load, sample.location = make_reader(path), path
    folder = sample.source.rpartition("/")[0].rpartition("/")[2]
    if label is not None and folder:
        sample.labels = {label: folder}
    problem = check_file(path, root)
    if problem is not None:
        sample.load = make_refusal(problem)


def _read_first_line(read: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: _cut_first_line(read())


def _cut_first_line(data: bytes) -> bytes:
    with contextlib.suppress(UnicodeDecodeError):
        text, encoding = decode_text(data)
        if encoding in ("utf-16", "utf-32"):
            # A byte 0A may be part of another character there, and the line end has several bytes.
            return text.lstrip("\ufeff\r\n").split("\n", 1)[0].encode(encoding)
    return data.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n").split(b"\n", 1)[0]


def _recognize(source: str) -> str | None:
    return "a folder" if Path(source).is_dir() else None


FORMAT = Format(
    name="folder",
    run=import_folder,
    recognize=_recognize,
    options=("group_by", "reference", "first_line", "label_from_folder", "update"),
    fallback=True,
)
