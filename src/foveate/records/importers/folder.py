"""Import a folder of images, each with optional sidecars, and import it again when its files have changed.

The key of `birds/owl.jpg` is `birds/owl`, or `birds/owl.jpg` where another image has that key. Its texts and objects
are `birds/owl.txt`, `birds/owl.jpg.txt`, `birds/owl.json`, `birds/owl.jpg.json`, in any case of the extension; the
files of Google Takeout; and YOLO's labels in a folder `labels` instead of `images`. Their content is described in
`foveate.records.importers.sidecar`. Images without sidecars are imported, too.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Unpack

from foveate.core.encodings import decode_text
from foveate.core.errors import UserError
from foveate.core.yaml_text import read_yaml
from foveate.records import layout
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import (
    check_file,
    count_kinds,
    get_suffix,
    list_names,
    make_finding,
    make_reader,
    make_refusal,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES, Problem, Sample, SharedOptions
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
    skip_links: bool = False,
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
        skip_links: leave out links to other images of the folder, which would be in the collection twice.
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
    if label_from_folder is not None and not label_from_folder.strip():
        raise UserError("--label-from-folder: expected the name of a label field, such as category")
    if label_from_folder is not None and all("/" not in image.name for image in files.images):
        raise UserError(f"--label-from-folder: {source} has no subfolders with images")
    if skip_links:
        _leave_out_links(source, files)
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
        total=len(files.links) + len(files.copies) + len(files.images),
        ignored=files.ignored,
        group_by=group_by,
        reference=reference,
        versions=versions,
        finish=finish,
        **shared,
    )


def _samples(
    source: Path, files: FolderFiles, versions: FolderVersions, *, first_line: bool, label: str | None
) -> Iterator[Sample]:
    root = source.resolve()
    for link in files.links:
        problem = check_file(source / link, root)
        if problem is not None:
            yield make_finding(link, link, "image", problem.reason, problem.detail)
    for link, name in files.copies.items():
        problem = Problem("image", LINK_TO_IMAGE, f"the symbolic link leads to {name}, which is used")
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
                readers.append(partial(_read_first_line, read) if is_text and first_line else read)
        yield sample


def _prepare_sample(sample: Sample, path: Path, root: Path, *, label: str | None) -> None:
    sample.load, sample.location = make_reader(path), path
    folder = sample.source.rpartition("/")[0].rpartition("/")[2]
    if label is not None and folder:
        sample.labels = {label: folder}
    problem = check_file(path, root)
    if problem is not None:
        sample.load = make_refusal(problem)


def _read_first_line(read: Callable[[], bytes]) -> bytes:
    data = read()
    with contextlib.suppress(UnicodeDecodeError):
        text, encoding = decode_text(data)
        if encoding in ("utf-16", "utf-32"):
            # A byte 0A may be part of another character there, and the line end has several bytes.
            return text.lstrip("\ufeff\r\n").split("\n", 1)[0].encode(encoding)
    return data.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n").split(b"\n", 1)[0]


# Google Takeout since 2024 writes IMG_1.jpg.supplemental-metadata.json and cuts the name before ".json" to 46
# characters: IMG_1.jpg.supplemental-me.json. Before 2024 it cut long names of images in the same way.
_TAKEOUT = ".supplemental-metadata"
_MAX_TAKEOUT_NAME = 46
_COPY = re.compile(r"(.*)(\(\d+\))")
LINK_TO_IMAGE = "link to another image"
_CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
_MAX_CLASS = 100_000


@dataclass(slots=True)
class ImageFiles:
    """An image file and its sidecars, by their paths below the folder ("trip/cat.jpg")."""

    name: str
    texts: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        return [self.name, *self.texts, *self.objects]


@dataclass(slots=True)
class FolderFiles:
    """The images of a folder in the order of their paths.

    Args:
        ignored: kind (".md", "hidden") -> number of files that are neither images nor sidecars.
        class_files: folder -> its file of YOLO's class names.
        links: to folders; they are not followed.
        copies: links to other images of the folder that are left out -> these images.
    """

    images: list[ImageFiles]
    ignored: Counter[str]
    class_files: dict[str, str]
    links: list[str]
    copies: dict[str, str] = field(default_factory=dict)


def pair_files(source: Path, target: Path) -> FolderFiles:
    """List the images below `source` with their sidecars; a collection `target` inside of it is left out."""
    names, links, hidden = list_names(source, target)
    suffixes = [_split_suffix(name) for name in names]
    # "trip/cat" and "trip/cat.jpg" -> the sidecars of that name
    texts: dict[str, list[str]] = {}
    objects: dict[str, list[str]] = {}
    for name, suffix in zip(names, suffixes, strict=True):
        if suffix in ("txt", "json"):
            sidecars = texts if suffix == "txt" else objects
            sidecars.setdefault(name[: -len(suffix) - 1], []).append(name)
    endings = IMAGE_SUFFIXES | REFUSED_SUFFIXES
    images = []
    for name, suffix in zip(names, suffixes, strict=True):
        if suffix not in endings:
            continue
        image = ImageFiles(name)
        images.append(image)
        stem = name[: -len(suffix) - 1]
        image.texts = [*texts.get(stem, ()), *texts.get(image.name, ())]
        image.objects = [*objects.get(stem, ()), *objects.get(image.name, ())]
        label = _to_yolo_label(stem)
        if not image.texts and label is not None:
            image.texts = list(texts.get(label, ()))
        # Takeout has over 20 possible names per image, so they are tried only if there is JSON but no usual sidecar.
        if objects and not image.objects:
            image.objects = [name for base in _list_takeout_names(image.name) for name in objects.get(base, ())][:1]
    class_files: dict[str, str] = {}
    for name, suffix in zip(names, suffixes, strict=True):
        if suffix in ("txt", "yaml", "names"):
            folder, _, file = name.rpartition("/")
            if file.lower() in _CLASS_FILES:
                class_files.setdefault(folder, name)
    used = {name for image in images for name in image.all} | set(class_files.values())
    unused = (suffix for name, suffix in zip(names, suffixes, strict=True) if name not in used)
    return FolderFiles(images, count_kinds(unused, hidden=hidden), class_files, links)


def _leave_out_links(source: Path, files: FolderFiles) -> None:
    """Move links to other images of the folder from the images to `copies`."""
    root = source.resolve()
    targets = {image.name for image in files.images if not os.path.islink(source / image.name)}
    for image in files.images:
        if image.name in targets:
            continue
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a loop of links, or a link out of the folder
            name = (source / image.name).resolve().relative_to(root).as_posix()
            if name in targets:
                files.copies[image.name] = name
    files.images = [image for image in files.images if image.name not in files.copies]


def _split_suffix(name: str) -> str:
    """Return the extension of a path in lower case, without the dot; `os.path.splitext` takes four times as long."""
    _, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and "/" not in suffix else ""


def _to_yolo_label(stem: str) -> str | None:
    """Return where YOLO has the labels of images/train/1: labels/train/1; None without a folder `images`."""
    parts = stem.split("/")
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            return "/".join([*parts[:position], "labels", *parts[position + 1 :]])
    return None


def _list_takeout_names(name: str) -> Iterator[str]:
    """Yield the names before ".json" that Google Takeout gives to the file of an image."""
    folder, file = os.path.split(name)
    stem, suffix = os.path.splitext(file)
    copy = _COPY.fullmatch(stem)
    stem, number = copy.groups() if copy else (stem, "")
    # An edited copy shares the file of its original.
    for plain in dict.fromkeys((f"{stem}{suffix}", f"{stem.removesuffix('-edited')}{suffix}")):
        full = f"{plain}{_TAKEOUT}"
        lengths = range(len(full), len(plain) - 1, -1) if len(plain) <= _MAX_TAKEOUT_NAME else (_MAX_TAKEOUT_NAME,)
        for length in lengths:
            yield os.path.join(folder, f"{full[:length]}{number}")


class ClassNames:
    """The class names of YOLO text files, from the nearest file of names at or above an image."""

    def __init__(self, source: Path, class_files: Mapping[str, str]) -> None:
        self._source, self._files = source, class_files
        self._names: dict[str, tuple[str, ...]] = {}

    def find(self, name: str) -> tuple[str, ...]:
        """Return the class names for a file; () if there are none."""
        if not self._files:
            return ()
        for folder in PurePosixPath(name).parents:
            file = self._files.get("" if str(folder) == "." else str(folder))
            if file is not None:
                if file not in self._names:
                    self._names[file] = _read_class_names(self._source / file)
                return self._names[file]
        return ()


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = read_yaml(text, where=str(path)) if get_suffix(path) == "yaml" else {"names": text.splitlines()}
    # Without readable names boxes are still imported, as "class 7", and the summary says so.
    except (OSError, ValueError, UserError):
        return ()
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        # The list has a name for every index up to the largest, so a damaged file must not choose its length.
        indices = [number for number in names if isinstance(number, int) and 0 <= number <= _MAX_CLASS]
        names = [names.get(number, "") for number in range(1 + max(indices, default=-1))]
    return tuple(str(name).strip() for name in names) if isinstance(names, list) else ()


def _recognize(source: str) -> str | None:
    return "a folder" if Path(source).is_dir() else None


FORMATS = (
    Format(
        name="folder",
        run=import_folder,
        recognize=_recognize,
        options=("group_by", "reference", "first_line", "label_from_folder", "update"),
        fallback=True,
    ),
)
