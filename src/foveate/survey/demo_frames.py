"""Forty real camera-trap images under permissive licenses: where they are published, and their import from a folder.

The images do not come along. A file is known by its SHA-256, that of the published file or of its copy with 640 pixels:
names and folders do not matter, and nothing else is taken for one of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.paths import DATA
from foveate.core.tables import read_rows
from foveate.records.importers.files import get_suffix
from foveate.records.importers.sample import IMAGE_SUFFIXES
from foveate.records.writer import CollectionWriter
from foveate.survey.importers.cards import read_time
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.taxa import load_builtin_taxa
from foveate.survey.types import KINDS, Medium, Observation

SOURCE = "demo-frames"


@dataclass(frozen=True)
class FrameSet:
    """A published set: its address, the license of its images, and its subject."""

    name: str
    url: str
    license: str
    description: str


SETS = (
    FrameSet(
        "speciesnet",
        "https://github.com/google/cameratrapai/tree/main/test_data",
        "CDLA-Permissive-1.0",
        "mammals, a vehicle and empty images of four data sets of LILA BC",
    ),
    FrameSet(
        "ena24",
        "https://github.com/drivendataorg/zamba/tree/master/tests/assets/images/ena24_small",
        "CDLA-Permissive-1.0",
        "seven species of ENA24-detection (Yousif et al. 2019, LILA BC), three images each",
    ),
    FrameSet(
        "mica",
        "https://github.com/tdwg/camtrap-dp/tree/main/example",
        "CC-BY-4.0",
        "a burst of a gray heron, MICA, Research Institute for Nature and Forest (INBO)",
    ),
)


@dataclass(frozen=True)
class DemoFrame:
    """An image of a set: its species ("blank", "vehicle" where none is), and the data set that it is from."""

    set: str
    name: str
    label: str
    dataset: str


@dataclass
class DemoImport:
    """Counts of an import: images by set, and files that belong to none."""

    imported: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    others: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"imported": dict(self.imported), "missing": dict(self.missing), "others": self.others}

    def lines(self) -> list[str]:
        """Return a line for each set, and one for files of no set."""
        lines = [
            f"{each.name}: {self.imported[each.name]} images"
            + (f", {self.missing[each.name]} missing ({each.url})" if self.missing[each.name] else "")
            for each in SETS
        ]
        return [*lines, f"{self.others} other files left alone"] if self.others else lines


@functools.cache
def load_demo_frames() -> dict[str, DemoFrame]:
    """Return {SHA-256: image}, each image under that of its published file and that of its copy with 640 pixels."""
    frames = {}
    for row in read_rows(DATA / "demo-frames.csv").to_dicts():
        frame = DemoFrame(row["set"], row["name"], row["label"], row["dataset"])
        frames[row["original_sha256"]] = frames[row["scaled_sha256"]] = frame
    return frames


def describe_sets() -> list[dict[str, object]]:
    """Return name, number of images, address, license and description of each set."""
    # A set, because each image is listed under two hashes.
    counts = Counter(frame.set for frame in set(load_demo_frames().values()))
    return [
        {
            "name": each.name,
            "images": counts[each.name],
            "url": each.url,
            "license": each.license,
            "description": each.description,
        }
        for each in SETS
    ]


def import_demo_frames(folder: Path, target: Path) -> DemoImport:
    """Import the images of the sets that lie in or below `folder` as a survey; existing ones are kept.

    They are labeled as published, without boxes and places. Time is that of EXIF. Images of a data set are one group,
    since their cameras are not published with them.

    Args:
        folder: with copies of one or more of the published folders.
        target: collection folder; created if it does not exist.

    Raises:
        UserError: the folder does not exist, or has none of the images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with copies of the published images")
    known, outcome = load_demo_frames(), DemoImport()
    files: dict[DemoFrame, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and get_suffix(path) in IMAGE_SUFFIXES):
        frame = known.get(hashlib.sha256(path.read_bytes()).hexdigest())
        if frame is None:
            outcome.others += 1
        else:
            # The published file and its copy with 640 pixels are one image: the first in the order of paths is taken.
            files.setdefault(frame, path)
    if not files:
        addresses = ", ".join(each.url for each in SETS)
        raise UserError(f"{folder}: none of its {outcome.others} images is one of the sets; they are at {addresses}")
    licenses = {each.name: each.license for each in SETS}
    for name, license in licenses.items():
        members = {frame: path for frame, path in files.items() if frame.set == name}
        # A writer for each set: a license belongs to all images of a writer.
        if members:
            with CollectionWriter(target, license=license, source=f"{SOURCE}: {name}") as writer:
                write_survey(writer, format=SOURCE, descriptor={"sets": [each.url for each in SETS]})
                taxa = load_builtin_taxa()
                writer.replace_dataset_rows("taxa", taxa.to_rows(), by="id")
                for frame, path in members.items():
                    outcome.imported[name] += _add_frame(writer, frame, path, folder)
    present = Counter(frame.set for frame in files)
    for each in describe_sets():
        outcome.missing[str(each["name"])] = int(str(each["images"])) - present[str(each["name"])]
    return outcome


def _add_frame(writer: CollectionWriter, frame: DemoFrame, path: Path, folder: Path) -> bool:
    data = path.read_bytes()
    key = f"{frame.set}/{frame.name}"
    medium = Medium(key, frame.dataset, time=read_time(data), file=path.relative_to(folder).as_posix())
    taxa = load_builtin_taxa()
    animal = frame.label not in KINDS
    index = taxa.find(frame.label) if animal else -1
    observation = Observation(
        f"{key}-0",
        frame.dataset,
        key=key,
        kind="animal" if animal else "blank" if frame.label == "blank" else "vehicle",
        taxon=frame.label if animal else "",
        taxon_id=taxa.ids[index] if index >= 0 else "",
        method="human",
    )
    return writer.add(
        key,
        data,
        labels={"source": SOURCE, "species": frame.label, "credit": frame.dataset},
        group=frame.dataset,
        context=make_context(medium, None),
        extra=survey_rows(medium, [observation]),
    )
