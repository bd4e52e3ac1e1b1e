"""Annotations of one image: captions, regions, labels and context.

All types are immutable. Boxes are always `foveate.records.boxes.Box`: corners in [0, 1] of the image after EXIF
rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.images import decode

# Groups of the training mixture that a conversation may belong to.
Group = Literal[
    "general",
    "text-rich",
    "refer-ground",
    "dense-regions",
    "science",
    "math",
    "code",
    "multi-image",
    "text",
    "short-captions",
    "descriptions",
]
GROUPS: tuple[str, ...] = get_args(Group)
# Captions in requested formats, rewritten from short captions and recognized text, or from descriptions.
CAPTION_GROUPS: tuple[Group, Group] = ("short-captions", "descriptions")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text about the whole image.

    Args:
        kind: "alt", "title", "keywords", "description", "exact", ...
        source: data set, person or model; "" means the source of the import.

    Example:
        >>> Caption("A red boat.").kind
        'alt'
    """

    text: str
    kind: str = "alt"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """A box with the phrase that describes it.

    Args:
        score: confidence in [0, 1]; 1 for boxes of people and exact boxes.
        label: class or concept name.
        slice: group that it is reported in, such as "seen" or "unseen".

    Example:
        >>> Region(Box(0.1, 0.2, 0.5, 0.6), "a red boat", label="boat").box.width
        0.4
    """

    box: Box
    phrase: str
    score: float = 1.0
    label: str = ""
    slice: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """Location and time of an image: degrees (WGS 84), a name, an ISO 8601 time; None or "" where unknown."""

    latitude: float | None = None
    longitude: float | None = None
    time: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a collection; its bytes are read by `open`.

    Args:
        width, height: pixels after EXIF rotation.
        split: "" if none is assigned.
        group: images of one group stay in one split (a location, a concept, a photographer).
        path: of the file, absolute, where the collection refers to it; "" where it holds a copy.
        read: returns the bytes; set by the collection.

    Example:
        >>> record = Record("harbor/1", 640, 480, regions=(Region(Box(0.1, 0.2, 0.5, 0.6), "a red boat"),))
        >>> [region.phrase for region in record.regions]
        ['a red boat']
    """

    key: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    group: str = ""
    context: Context | None = None
    # The path is no annotation: records of copies of a collection compare equal.
    path: str = field(default="", compare=False)
    read: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    def open(self) -> Image.Image:
        """Decode the image: RGB, upright, in full size.

        Raises:
            BadImage: the file is missing, changed or damaged.
            UserError: the record does not come from a collection.
        """
        if self.read is None:
            raise UserError(f"record {self.key!r}: has no image; expected a record of an opened collection")
        return decode(self.read())
