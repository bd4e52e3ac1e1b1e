"""What an importer reads before it is checked: bytes of a picture and of its sidecar files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from foveate.records.record import Caption, Region

# Files with these endings are taken for pictures; their first bytes decide what they are.
PICTURE_SUFFIXES = frozenset("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff".split())
# These are pictures too, but of formats that are not taken in: they are quarantined, not ignored.
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
    """One picture with its sidecars, unread and unchecked.

    `source` says where it came from, for the quarantine. `load` gives the picture's bytes (it may be called
    in another thread), or is None where there is no picture. `text` and `json` read the sidecars.
    `ignored` counts files that belong to the sample and are not used. With `only_problems` there is no
    sample, just something to note at this point of the source.
    """

    key: str
    source: str
    load: Callable[[], bytes] | None
    text: Callable[[], bytes] | None = None
    json: Callable[[], bytes] | None = None
    group: str = ""
    problems: list[Problem] = field(default_factory=list)
    ignored: int = 0
    only_problems: bool = False


@dataclass(slots=True)
class Sidecar:
    """What the sidecars of one picture say, as far as it could be used, and what could not."""

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
