"""Unchecked samples (an image with its sidecars) that importers yield, and the options that all importers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, get_args

from foveate.records.importers.formats import Grouping
from foveate.records.record import Caption, Context, Region
from foveate.records.source_files import FileStamp

GROUPINGS: tuple[str, ...] = get_args(Grouping)


class SharedOptions(TypedDict, total=False):
    """Keywords of every importer.

    Args:
        name: name of a new collection, by default that of the target folder.
        license: license of the images.
        source_name: provenance, by default the name of the source.
        workers: threads that examine images.
        max_pixels, images_per_shard, bytes_per_shard, created: see `CollectionWriter`.
    """

    name: str | None
    license: str | None
    source_name: str | None
    workers: int | None
    max_pixels: int
    images_per_shard: int
    bytes_per_shard: int
    created: str | None


# Files with these extensions are read as images; their first bytes decide the format.
IMAGE_SUFFIXES = frozenset("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff avif heic heif".split())
# Image formats that are not supported: quarantined with a reason rather than ignored.
REFUSED_SUFFIXES = frozenset("svg jp2 jxl psd ico tga ppm pgm pbm eps".split())
MAX_BYTES = 256 * 2**20  # size of one image or sidecar


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding for the quarantine; see `CollectionWriter.quarantine`."""

    subject: str
    reason: str
    detail: str
    position: int = -1


@dataclass(slots=True)
class Sample:
    """One image with its sidecars, unread and unchecked.

    Args:
        source: origin, for the quarantine.
        load: returns the bytes of the image, possibly in another thread; None if there is no image.
        texts, objects: read the text and JSON sidecars.
        class_names: of the classes of YOLO text files.
        label_texts: the text sidecars lie in a folder `labels`, so numbers in them are no caption.
        labels: known without a sidecar; those of the JSON file take precedence.
        ignored: number of files of the sample that are not used.
        only_problems: there is no sample, only problems at this point of the source.
        fields: content of a JSON sidecar, if the importer has read the annotations already.
        stated_size: (width, height) that boxes in pixels refer to, as stated in a file.
        extra: rows of further annotation tables, by kind.
        region_rows, caption_rows: a table and one row per entry of the fields "regions" and "captions"; rows of the
            imported entries are stored with their `position` among these.
        location: the image's own file, if it has one.
        context: where and when it was taken.
        stamp: its files, where an import of the same folder can be repeated.
        unchanged: its files are those of an earlier import; nothing is read.
    """

    key: str
    source: str
    load: Callable[[], bytes] | None
    texts: list[Callable[[], bytes]] = field(default_factory=list)
    objects: list[Callable[[], bytes]] = field(default_factory=list)
    class_names: Sequence[str] = ()
    label_texts: bool = False
    group: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    ignored: int = 0
    only_problems: bool = False
    fields: Mapping[str, object] | None = None
    stated_size: tuple[int, int] | None = None
    extra: dict[str, list[Mapping[str, object]]] = field(default_factory=dict)
    region_rows: tuple[str, list[Mapping[str, object]]] | None = None
    caption_rows: tuple[str, list[Mapping[str, object]]] | None = None
    location: Path | None = None
    context: Context | None = None
    stamp: FileStamp | None = None
    unchanged: bool = False


@dataclass(slots=True)
class Sidecar:
    """Usable content of the sidecars of one image, and problems with the rest.

    Args:
        caption_indices, region_indices: position of each caption and region among those in the file.
        further: counts by description, for the summary.
    """

    captions: list[Caption] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    group: str = ""
    split: str = ""
    url: str = ""
    status: str = ""
    key: str = ""
    problems: list[Problem] = field(default_factory=list)
    clipped: int = 0
    cleaned: int = 0
    caption_indices: list[int] = field(default_factory=list)
    region_indices: list[int] = field(default_factory=list)
    context: Context | None = None
    further: Counter[str] = field(default_factory=Counter)
