"""What an importer reads before it is checked: bytes of an image and of its sidecar files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from foveate.records.record import Caption, Region

GROUPINGS = ("none", "folder")


class SharedOptions(TypedDict, total=False):
    """Keywords of every importer.

    `name`: of a new collection, by default that of the target folder. `license`: of the images.
    `source_name`: provenance, by default the name of the source. `workers`: threads that examine images.
    `max_pixels`, `images_per_shard`, `bytes_per_shard`, `created`: see `CollectionWriter`.
    """

    name: str | None
    license: str | None
    source_name: str | None
    workers: int | None
    max_pixels: int
    images_per_shard: int
    bytes_per_shard: int
    created: str | None


# Files with these endings are taken for images; their first bytes decide what they are.
IMAGE_SUFFIXES = frozenset("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff".split())
# These are images too, but of formats that are not taken in: they are quarantined, not ignored.
REFUSED_SUFFIXES = frozenset("avif heic heif svg jp2 jxl psd ico tga ppm pgm pbm eps".split())
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that goes to the quarantine: see `CollectionWriter.quarantine`."""

    subject: str
    reason: str
    detail: str
    position: int = -1


@dataclass(slots=True)
class Sample:
    """One image with its sidecars, unread and unchecked.

    `source` says where it came from, for the quarantine. `load` gives the image's bytes (it may be called
    in another thread), or is None where there is no image. `text` and `json` read the sidecars.
    `labels` are known without a sidecar; those of the JSON file go before them.
    `ignored` counts files that belong to the sample and are not used. With `only_problems` there is no
    sample, just something to note at this point of the source.

    Where an importer has read the annotations already, `fields` is the object that a JSON sidecar would hold.
    `stated_size` (width, height) is the size that boxes in pixels refer to, where a file states it. `extra`
    holds rows of further annotation tables. `region_rows` and `caption_rows` are a table and one row for each
    entry of the fields "regions" and "captions": those of the taken ones are kept, with their `position`
    among them. `location` is the image's own file, if it has one.
    """

    key: str
    source: str
    load: Callable[[], bytes] | None
    text: Callable[[], bytes] | None = None
    json: Callable[[], bytes] | None = None
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


@dataclass(slots=True)
class Sidecar:
    """What the sidecars of one image say, as far as it could be used, and what could not.

    `captions_kept` and `regions_kept` are the places that the kept ones had among those given.
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
    captions_kept: list[int] = field(default_factory=list)
    regions_kept: list[int] = field(default_factory=list)
