"""An import format of `foveate collect`: Pascal VOC, a folder with `Annotations/*.xml` and `JPEGImages`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack
from xml.etree import ElementTree

from foveate.core.errors import UserError
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import file_sample
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Problem, Sample, SharedOptions

EDGES = ("xmin", "ymin", "xmax", "ymax")


def import_voc(
    source: str | Path, target: str | Path, *, reference: bool = False, **shared: Unpack[SharedOptions]
) -> ImportSummary:
    """Import the images that have a file of annotations, with a region for each object.

    Raises:
        UserError: the folder is missing, or it has no `Annotations`.
    """
    folder = check_source(Path(source))
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise UserError(f"{folder}: expected files Annotations/*.xml")
    return import_samples(target, _samples(files, folder), default_source=folder.name, reference=reference, **shared)


def _samples(files: list[Path], folder: Path) -> Iterator[Sample]:
    for file in files:
        try:
            root = ElementTree.fromstring(file.read_bytes())
            sample = file_sample(root.findtext("filename"), folder / "JPEGImages", source=str(file))
            sample.fields = {"regions": [_region(thing) for thing in root.iter("object")]}
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            # Quarantined: a file that is damaged does not end the import of the others.
            problem = Problem("record", "malformed annotations", str(error))
            sample = Sample(file.stem, str(file), load=None, problems=[problem], only_problems=True)
        yield sample


def _region(thing: ElementTree.Element) -> dict[str, object]:
    """Return a region as sidecars have it. VOC counts pixels from 1, both corners included."""
    x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{edge}", "")) for edge in EDGES)
    return {"label": thing.findtext("name", ""), "box": [x1 - 1, y1 - 1, x2, y2], "unit": "pixel"}


def recognize(source: str) -> str | None:
    """Return what of VOC lies at a source."""
    return "Annotations/*.xml" if any(Path(source, "Annotations").glob("*.xml")) else None


FORMATS = (Format(name="voc", run=import_voc, recognize=recognize, options=("reference",)),)
