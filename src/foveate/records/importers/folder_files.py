"""Pair the images of a folder with the files of their texts and boxes, as people and their programs name them.

The texts and objects of `trip/cat.jpg` are `trip/cat.txt`, `trip/cat.jpg.txt`, `trip/cat.json`, `trip/cat.jpg.json`, in
any case of the extension; the files of Google Takeout; and YOLO's labels in a folder `labels` instead of `images`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from foveate.core.errors import UserError
from foveate.core.yaml_text import read_yaml
from foveate.records.importers.files import count_kinds, get_suffix, list_names
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES

# Google Takeout since 2024 writes IMG_1.jpg.supplemental-metadata.json and cuts the name before ".json" to 46
# characters: IMG_1.jpg.supplemental-me.json. Before 2024 it cut long names of images in the same way.
_TAKEOUT = ".supplemental-metadata"
_MAX_TAKEOUT_NAME = 46
_COPY = re.compile(r"(.*)(\(\d+\))")
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
    """

    images: list[ImageFiles]
    ignored: Counter[str]
    class_files: dict[str, str]
    links: list[str]


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
    except (OSError, ValueError, UserError):
        return ()
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        indices = [number for number in names if isinstance(number, int) and 0 <= number <= _MAX_CLASS]
        names = [names.get(number, "") for number in range(1 + max(indices, default=-1))]
    return tuple(str(name).strip() for name in names) if isinstance(names, list) else ()
