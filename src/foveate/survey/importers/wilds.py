"""Import iWildCam of WILDS: metadata.csv has splits, cameras, bursts and times, categories.csv the names of classes.

Source: https://github.com/p-lambda/wilds, `wilds/datasets/iwildcam_dataset.py` (version 2.0 of the data set).
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError, nearest
from foveate.core.tables import find_column, need_column, read_rows
from foveate.core.text_tables import open_text
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import make_key
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source
from foveate.records.importers.sample import SharedOptions
from foveate.survey.file_index import normalize_path
from foveate.survey.importers.coco_camera_traps import (
    BAD_TIMES,
    SurveyFile,
    SurveyImage,
    classify_name,
    count_bad_times,
    describe_setup,
    import_survey_file,
    make_deployments,
)
from foveate.survey.types import Medium, Observation

NAME = "wilds"
_NEEDED = ("split", "filename", "y")
# The names of the data set's files and releases: of the competition first, for these have places.
_LOCATIONS, _SEQUENCES = ("location", "location_remapped"), ("seq_id", "sequence", "sequence_remapped")
# "val" and "test" have unseen cameras, id_val and id_test those of the training.
_SPLITS = {"val": "validation"}


def import_wilds(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    deployments: str | Path | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images that a metadata.csv of iWildCam2020-WILDS names, with their splits.

    Args:
        source: metadata.csv, or the folder that has it beside categories.csv.
        target: collection folder; created if it does not exist.
        images: folder of the images; by default `train` beside the table, which has those of all splits.
        deployments: table of locations, see `foveate.survey.importers.coco_camera_traps.read_locations`.
        reference: leave the files where they are and only refer to them.
        shared: see `SharedOptions`.

    Raises:
        UserError: a table is missing or damaged, lacks a column, or a class has no name; no image is found.
    """
    path = check_source(Path(source))
    path = check_source(path / "metadata.csv") if path.is_dir() else path
    read = read_wilds(path)
    read.deployments = make_deployments(read, deployments)
    folders = [path.parent / "train", path.parent / "images", path.parent]
    return import_survey_file(path, read, target, folders, format=NAME, images=images, reference=reference, **shared)


def read_wilds(path: Path) -> SurveyFile:
    """Read metadata.csv and the categories.csv beside it.

    Raises:
        UserError: a table is missing or damaged, a file occurs twice, or a class has no name; the error names the row.
    """
    table = read_rows(path)
    columns = table.names
    used = {name: need_column(columns, (name,), requested=None, option="SOURCE", where=path) for name in _NEEDED}
    used["location"] = need_column(columns, _LOCATIONS, requested=None, option="SOURCE", where=path)
    for name, usual in (("sequence", _SEQUENCES), ("datetime", ("datetime",)), ("frame", ("frame_num",))):
        column = find_column(columns, usual, requested=None, option="SOURCE", where=path)
        if column is not None:
            used[name] = column
    classes = _read_categories(check_source(path.parent / "categories.csv"))
    read, seen = SurveyFile(), set()
    for row, cells in enumerate(table.to_dicts(), start=1):
        split, file, y, location, sequence, time, frame = (
            cells[used[name]].strip() if name in used else ""
            for name in (*_NEEDED, "location", "sequence", "datetime", "frame")
        )
        if file in seen:
            raise UserError(f"{path}: row {row}: filename {file!r} occurs twice")
        seen.add(file)
        if y not in classes:
            raise UserError(f"{path}: row {row}: class y={y!r} has no name in categories.csv{nearest(y, classes)}")
        # isdecimal, because isdigit accepts superscripts, which int() refuses.
        frame_number = int(frame) if frame.isdecimal() else None
        medium = Medium(make_key(normalize_path(file)), location, sequence, frame_number, time, file)
        # Pass only the name: y numbers the classes of WILDS and is not the category_id of COCO, where 0 is empty.
        kind, taxon = classify_name(classes[y])
        about = {"kind": kind, "taxon": taxon, "method": "human", "extra": describe_setup(classes[y])}
        # The file is the id, since the data set has one label for each file.
        observation = Observation(file, location, medium.key, sequence, **about)
        read.images.append(SurveyImage(file, medium, [observation], split=_SPLITS.get(split, split)))
    read.further[BAD_TIMES] += count_bad_times(read.images)
    return read


def _read_categories(path: Path) -> dict[str, str]:
    """Return the name of each class, by its number as text."""
    table = read_rows(path)
    number, name = (
        need_column(table.names, (each,), requested=None, option="categories.csv", where=path) for each in ("y", "name")
    )
    rows = [(cells[number].strip(), cells[name].strip()) for cells in table.to_dicts()]
    return {y: text for y, text in rows if y}


def _recognize(source: str) -> str | None:
    path = Path(source) / "metadata.csv" if Path(source).is_dir() else Path(source)
    if path.name != "metadata.csv" or not path.is_file() or not (path.parent / "categories.csv").is_file():
        return None
    try:
        columns = {name.strip() for name in open_text(path).names}
    except UserError:
        return None
    return "metadata.csv of iWildCam-WILDS" if columns.issuperset(_NEEDED) else None


FORMATS = (
    Format(
        name=NAME, run=import_wilds, recognize=_recognize, options=("images", "deployments", "reference"), survey=True
    ),
)
