"""Two folders of real images for benchmarks/search_quality.py, and what their images are called.

Stamps: 962 cut-outs of the Debian package tuxpaint-stamps-default, with texts in up to 70 languages. Photographs: 267
of gcompris-qt-data, of animals, tools, buildings and power stations. Both are GPL: read where they are installed or
unpacked (`dpkg -x PACKAGE.deb FOLDER`), never shipped. Their queries (search_queries.csv) were written before any of
them was searched; what is right was corrected for four of them after a look at the hits ("The letter X" is no answer to
"writing a letter").
"""

from __future__ import annotations

from pathlib import Path

from foveate.records.bm25 import split_terms
from foveate.records.collection import Collection
from foveate_labs.studies.real_regions import read_rcc

_STAMPS = "usr/share/tuxpaint/stamps"
_RESOURCES = "usr/share/gcompris-qt/rcc"
_PHOTOGRAPHS = (
    "erase",
    "explore_world_animals",
    "explore_farm_animals",
    "explore_monuments",
    "categorization",
    "details",
)


def find_folder(name: str, root: Path, work: Path) -> Path | None:
    """Return the folder of images of a package below `root`; None where the package is not there.

    Args:
        work: photographs are unpacked below this folder, since their package keeps them in files of Qt.
    """
    if name == "stamps":
        return root / _STAMPS if (root / _STAMPS).is_dir() else None
    folder = work / name
    if not folder.is_dir():
        if not (root / _RESOURCES / f"{_PHOTOGRAPHS[0]}.rcc").is_file():
            return None
        for resource in _PHOTOGRAPHS:
            _unpack(resource, root / _RESOURCES / f"{resource}.rcc", folder)
    return folder


def _unpack(resource: str, file: Path, folder: Path) -> None:
    """Write the photographs of a resource file, under the names that they have in it."""
    for name, content in read_rcc(file).items():
        path = Path(name)
        # Drawn letters, and the details that were cut out of a photograph.
        is_other = path.parent.name in ("alphabets", "numbers") or (
            resource == "details" and not path.stem.endswith("_background")
        )
        if path.suffix == ".webp" and "resource" in path.parts and not is_other:
            group = path.parent.name if resource in ("categorization", "explore_monuments") else resource
            target = folder / group / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def read_texts(name: str, collection: Collection, key: str) -> tuple[str, list[str]]:
    """Return what an image is called, for the judge, and the captions that a user could have."""
    stem = Path(key).name
    if name == "photographs":
        # As alt-texts are often found: "fish", "screw driver".
        caption = " ".join(term for term in split_terms(stem) if not term.isdigit() and term != "background")
        return caption, [caption]
    # The first line is English; the others are translations.
    lines = [caption.text.strip().splitlines()[0] for caption in collection.read_captions(collection.find_row(key))]
    return " ".join([*split_terms(stem), *(term for line in lines for term in split_terms(line))]), lines
