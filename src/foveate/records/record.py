"""What one image carries: captions, regions, labels, turns of a conversation, and context.

All types are small frozen values. Boxes are always `foveate.records.boxes.Box`: corners in [0, 1] of the
image as it is seen, that is after its EXIF rotation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foveate.records.boxes import Box


@dataclass(frozen=True, slots=True)
class Caption:
    """A text about the whole image.

    `kind` says what sort of text it is ("alt", "title", "keywords", "description", "exact", ...), `source`
    who made it (a data set, a person, a model). An empty source means the source of the import that added it.
    """

    text: str
    kind: str = "alt"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """A box in the image with the words that describe it.

    `score` in [0, 1] is the confidence of whoever made it (1 for a person's or an exact box), `label` a
    class or concept name, `slice` the group it is reported in (for example "seen" or "unseen").
    """

    box: Box
    phrase: str
    score: float = 1.0
    label: str = ""
    slice: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation about the image; `role` is "user" or "assistant"."""

    role: str
    text: str
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when an image was taken: degrees (WGS 84) and an ISO 8601 time; None or "" where unknown."""

    latitude: float | None = None
    longitude: float | None = None
    time: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a collection, without its bytes.

    `width` and `height` are pixels after EXIF rotation. `group` names what must stay in one split (a site, a
    concept, a photographer); `split` is "" where none was assigned.
    """

    key: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    group: str = ""
    turns: tuple[Turn, ...] = ()
    context: Context | None = None
