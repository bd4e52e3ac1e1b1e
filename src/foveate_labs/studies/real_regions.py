"""Regions of real images from two optional Debian packages: maps of kgeography, details of GCompris.

Both are Debian packages under GPL (`apt-get install kgeography-data gcompris-qt-data`) and are never shipped; a folder
into which a package was unpacked (`dpkg -x PACKAGE.deb FOLDER`) does as well.

Maps: 154 drawn maps, every division with its name and an exact mask. Their flat colors would give a name away, so
each drawing of a map is recolored at random. Details: 21 photographs and paintings, each with some details cut out;
nothing names a detail, but a model can be asked which box of the image shows it.
"""

from __future__ import annotations

import io
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.boxes import Box, PixelBox
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter

# Read the files inside a Qt resource file (.rcc) without Qt.
#
# Layout (Qt's own documentation of rcc, format versions 1 to 3): magic `qres`; big-endian version and offsets of tree,
# data and names; tree nodes of 14 bytes (version 1) or 22; names as length, hash, UTF-16.


_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_MAX_BYTES = 256 * 2**20  # of one file inside


def read_rcc(path: Path) -> dict[str, bytes]:
    """Map the path of every file that is stored plain or packed with zlib to its bytes.

    Files packed with zstd are left out: the images of the packages that are read here are stored plain.

    Raises:
        UserError: the file is no resource file or is cut off.
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise UserError(f"{path}: not a Qt resource file (it does not begin with 'qres')")
    try:
        return _files(data)
    except (struct.error, zlib.error, UnicodeDecodeError, IndexError, RecursionError) as problem:
        raise UserError(f"{path}: the resource file is broken ({problem})") from problem


def _files(data: bytes) -> dict[str, bytes]:
    version, tree, body, names = struct.unpack_from(">4I", data, 4)
    size = 14 if version == 1 else 22
    contents: dict[str, bytes] = {}
    seen: set[int] = set()

    def walk(number: int, prefix: str) -> None:
        # A damaged tree could point back to a parent and recurse forever.
        if number in seen:
            raise IndexError("a node is its own child")
        seen.add(number)
        at = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, at)
        name = _name(data, names + name_at) if number else ""
        path = f"{prefix}/{name}" if name else prefix
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                walk(child, path)
        elif not flags & _ZSTD:
            (start,) = struct.unpack_from(">I", data, at + 10)
            contents[path] = _content(data, body + start, packed=bool(flags & _ZLIB))

    walk(0, "")
    return contents


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, at: int, *, packed: bool) -> bytes:
    (length,) = struct.unpack_from(">I", data, at)
    content = data[at + 4 : at + 4 + length]
    if len(content) != length:
        raise IndexError("a file inside is cut off")
    # Four bytes of the unpacked length come first.
    return zlib.decompressobj().decompress(content[4:], _MAX_BYTES) if packed else content


KGEOGRAPHY = "usr/share/kgeography"
DETAILS = "usr/share/gcompris-qt/rcc/details.rcc"
LONGEST = 336
MIN_SIDE = 0.06  # of the map: what a grid of 14 x 14 can tell apart
MAX_DIVISIONS = 8  # the largest of a map


@dataclass(frozen=True)
class MapDivision:
    """A named division of a map and the color of its pixels."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class DrawnMap:
    """A map as labels.

    labels_HW: index of the division of each pixel, len(divisions) for the rest (water, frontiers, others).
    """

    key: str
    name: str
    divisions: tuple[MapDivision, ...]
    labels_HW: NDArray[np.int16]
    frontier_HW: NDArray[np.bool_]


@dataclass(frozen=True)
class Details:
    """An image with details cut out of it, as images and as boxes."""

    key: str
    caption: str
    image: Image.Image
    boxes: tuple[Box, ...]
    crops: tuple[Image.Image, ...]


def find_installed(folders: tuple[Path, ...] = (Path("/"),)) -> tuple[Path | None, Path | None]:
    """Find the folder of kgeography's maps and the resource file of GCompris' details; None for each missing."""
    maps = [folder / KGEOGRAPHY for folder in folders if (folder / KGEOGRAPHY).is_dir()]
    details = [folder / DETAILS for folder in folders if (folder / DETAILS).is_file()]
    return (maps[0] if maps else None), (details[0] if details else None)


def read_map(path: Path) -> DrawnMap:
    """Read a .kgm file and its image.

    Raises:
        UserError: a part is missing or unreadable.
    """
    try:
        root = ElementTree.parse(path).getroot()
        # The name alone: a map file must not open files outside its folder.
        image = Image.open(path.parent / Path(root.findtext("mapFile") or "").name).convert("RGB")
    except (ElementTree.ParseError, OSError) as problem:
        raise UserError(f"{path}: the map cannot be read ({problem})") from problem
    # Bytes would overflow in the shifts that make one number of each color.
    pixels_HW3 = np.asarray(image).astype(np.int32)
    codes_HW = (pixels_HW3[..., 0] << 16) | (pixels_HW3[..., 1] << 8) | pixels_HW3[..., 2]
    divisions, labels_HW = [], np.full(codes_HW.shape, -1, np.int16)
    for element in root.iter("division"):
        name = (element.findtext("name") or "").strip()
        try:
            red, green, blue = (int(element.findtext(f"color/{part}") or "") for part in ("red", "green", "blue"))
        except ValueError as problem:
            raise UserError(f"{path}: the division '{name}' has no color") from problem
        if element.findtext("ignore") != "yes" and name:
            labels_HW[codes_HW == (red << 16 | green << 8 | blue)] = len(divisions)
            divisions.append(MapDivision(name, (red, green, blue)))
    labels_HW[labels_HW < 0] = len(divisions)
    title = (root.findtext("name") or path.stem).strip()
    return DrawnMap(path.stem, title, tuple(divisions), labels_HW, codes_HW == 0)


def recolor(drawn: DrawnMap, rng: np.random.Generator) -> Image.Image:
    """Draw the map in random colors, with a longest side of LONGEST pixels."""
    # A new color for every division and drawing: by the flat colors of the files a model could name divisions.
    palette = rng.integers(30, 226, (len(drawn.divisions) + 1, 3)).astype(np.uint8)
    palette[-1] = rng.integers(200, 256, 3)
    pixels_HW3 = palette[drawn.labels_HW]
    pixels_HW3[drawn.frontier_HW] = rng.integers(0, 60, 3)
    image = Image.fromarray(pixels_HW3)
    scale = LONGEST / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Box filter: bicubic would draw halos of other colors along the frontiers.
    return image.resize((width, height), Image.Resampling.BOX)


def map_regions(drawn: DrawnMap) -> list[Region]:
    """Return the largest divisions of sufficient size, by decreasing area of the box."""
    height, width = drawn.labels_HW.shape
    regions = []
    for number, division in enumerate(drawn.divisions):
        rows, columns = np.nonzero(drawn.labels_HW == number)
        if not len(rows):
            continue
        bounds = PixelBox(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        box = Box.from_pixels(bounds, width, height)
        if min(box.x2 - box.x1, box.y2 - box.y1) >= MIN_SIDE:
            regions.append(Region(box, division.name, label=f"{drawn.key}: {division.name}", slice="maps"))
    return sorted(regions, key=lambda region: -region.box.area)[:MAX_DIVISIONS]


def build_maps(target: Path, folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write `train` + `test` recolored drawings of every map that has at least two usable divisions.

    Test drawings have the names of the training drawings in other colors: only shape and position of a division can be
    learned.

    Raises:
        UserError: the folder holds no map.
    """
    paths = sorted(folder.glob("*.kgm"))
    if not paths:
        raise UserError(f"{folder}: no maps of kgeography found; expected *.kgm files")
    with CollectionWriter(target, license="kgeography-data, GPL-2+", source="maps") as writer:
        for path in track(paths, description="maps"):
            drawn = read_map(path)
            regions = map_regions(drawn)
            # With one box there is nothing to choose between.
            if len(regions) < 2:
                continue
            for split, count in (("train", train), ("test", test)):
                for number in range(count):
                    rng = generator("maps", seed, split, number, drawn.key)
                    target_bytes = io.BytesIO()
                    # Lossless: JPEG would smear colors across borders.
                    recolor(drawn, rng).save(target_bytes, "PNG")
                    writer.add(
                        f"map-{drawn.key}-{split}-{number:03d}",
                        target_bytes.getvalue(),
                        captions=(Caption(f"Map of {drawn.name}", "alt", "kgeography"),),
                        regions=tuple(regions),
                        labels={"source": "maps"},
                        split=split,
                    )


_BOARD_TEXT = re.compile(r'instruction:\s*qsTr\("([^"]*)"')
_BOARD_ITEM = re.compile(
    r'"pixmapfile"\s*:\s*"([^"]+)"\s*,\s*"x"\s*:\s*"([0-9.]+)"\s*,\s*"y"\s*:\s*"([0-9.]+)"', re.DOTALL
)
_BOARD_GROUND = re.compile(r'"pixmapfile"\s*:\s*"([^"]+_background\.[a-z]+)"')


def read_details(path: Path) -> list[Details]:
    """Read the images of GCompris' activity "details" with the boxes of their details.

    A detail's box has the size of its own image, relative to the whole image, about the stated center.

    Raises:
        UserError: the file is no resource file.
    """
    files = read_rcc(path)
    root = "/gcompris/src/activities/details/resource"
    details = []
    for name, content in sorted(files.items()):
        if "/board/" not in name or not name.endswith(".qml"):
            continue
        text = content.decode("utf-8", "replace")
        ground = _BOARD_GROUND.search(text)
        whole = files.get(f"{root}/{ground.group(1)}") if ground else None
        if whole is None:
            continue
        image = Image.open(io.BytesIO(whole)).convert("RGB")
        boxes, crops = [], []
        for file, x, y in _BOARD_ITEM.findall(text):
            if f"{root}/{file}" in files:
                crop = Image.open(io.BytesIO(files[f"{root}/{file}"]))
                boxes.append(_about(float(x), float(y), crop.size, image.size))
                crops.append(crop.convert("RGB"))
        instruction = _BOARD_TEXT.search(text)
        # The question is which of the image's boxes a detail is from, so it takes at least two.
        if len(boxes) > 1:
            caption = instruction.group(1) if instruction else ""
            details.append(Details(Path(name).stem, caption, image, tuple(boxes), tuple(crops)))
    return details


def _about(x: float, y: float, size: tuple[int, int], whole: tuple[int, int]) -> Box:
    half = size[0] / whole[0] / 2, size[1] / whole[1] / 2
    low, high = (max(0.0, x - half[0]), max(0.0, y - half[1])), (min(1.0, x + half[0]), min(1.0, y + half[1]))
    return Box(*low, *high)
