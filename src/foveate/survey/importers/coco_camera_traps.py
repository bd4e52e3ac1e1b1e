"""Import COCO Camera Traps, and iWildCam of WILDS: images of cameras with labels of images or whole bursts.

An image without an annotation is unlabeled, not empty; category 0 is empty. An annotation of a burst
(`sequence_level_annotation`) means that the burst has the species, not that this frame has it: it becomes one
observation of the event. The format has no coordinates: they come from a table of deployments.

Of WILDS, metadata.csv has splits, cameras, bursts and times, categories.csv the names of classes.

Source: https://github.com/agentmorris/MegaDetector, "COCO Camera Traps format"; https://github.com/p-lambda/wilds,
`wilds/datasets/iwildcam_dataset.py` (version 2.0 of the data set).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from foveate.core.errors import UserError, nearest
from foveate.core.tables import find_column, need_column, read_rows
from foveate.core.text_tables import open_text
from foveate.records.boxes import EDGE_ROUNDING, Box
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coco import is_camera_traps, is_coco
from foveate.records.importers.files import (
    file_sample,
    find_image_folder,
    get_list,
    get_stated_size,
    is_number,
    make_key,
    read_annotations,
    read_head,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.writer import CollectionWriter
from foveate.survey.deployments import read_deployments
from foveate.survey.detections import get_kind
from foveate.survey.file_index import normalize_path
from foveate.survey.hours import TimeStatus, parse_times
from foveate.survey.store import (
    MOVED,
    find_contradictions,
    make_context,
    select_deployments,
    survey_rows,
    update_images,
    write_survey,
)
from foveate.survey.types import Deployment, Medium, Observation, ObservationKind
from foveate.survey.verdicts import Judge, format_names

NAME = "coco-camera-traps"
_EMPTY = 0
_SETUP = ("start", "end", "setup")  # a person puts up the camera or takes it down
_NAMES: Mapping[ObservationKind, tuple[str, ...]] = {
    "human": ("human", "person", "people", "homo sapiens"),
    "vehicle": ("vehicle", "car", "truck", "bus", "motorcycle", "bicycle", "atv"),
    # A misfire has an unknown trigger, so it is filed with animals that could not be named.
    "unknown": ("misfire", "unknown", "unidentified", "unidentifiable", *_SETUP),
}

OF_BURSTS = "annotations of whole bursts: of events, not of images"
NO_PLACE = "cameras without coordinates"


def classify_name(name: str, category: int | None = None) -> tuple[ObservationKind, str]:
    """Return kind and taxon of a category of a camera-trap data set.

    >>> classify_name("vulpes vulpes"), classify_name("empty"), classify_name("start")
    (('animal', 'Vulpes vulpes'), ('blank', ''), ('unknown', ''))
    """
    text = name.strip()
    kind = next((kind for kind, names in _NAMES.items() if text.lower() in names), get_kind(text))
    # The format reserves the number 0 for empty images, whatever the category's name is.
    kind = "blank" if category == _EMPTY else kind
    # Files write names in lower case; a scientific name begins with a capital.
    return kind, text[:1].upper() + text[1:] if kind == "animal" and text.lower() != "animal" else ""


def describe_setup(name: str) -> dict[str, str]:
    """Return the field of an observation that marks categories about setting up the camera."""
    return {"cameraSetupType": "setup"} if name.strip().lower() in _SETUP else {}


def import_coco_camera_traps(
    source: str | Path, target: str | Path, *, deployments: str | Path | None = None, **options: Any
) -> ImportSummary:
    """Import the images of a COCO Camera Traps file as a survey into the collection `target`.

    Args:
        source: the JSON file.
        deployments: table of locations, see `read_locations`.
        options: see `import_survey_file`; `images` is the folder that `file_name` is relative to.

    Raises:
        UserError: the file contradicts itself (an annotation of an unknown image or category, an id that occurs
            twice), or no image is found.
    """
    path = check_source(Path(source))
    read = read_camera_traps(path)
    read.deployments = make_deployments(read, deployments)
    folders = [path.parent / "images", path.parent, path.parent.parent / "images", path.parent.parent]
    return import_survey_file(path, read, target, folders, format=NAME, **options)


def import_survey_file(
    path: Path,
    read: SurveyFile,
    target: str | Path,
    folders: list[Path],
    *,
    format: str,
    images: str | Path | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images of an annotation file that was read.

    Args:
        target: collection folder; created if it does not exist.
        folders: where the images may be, if `images` does not say it.
        format: name of the importer.
        reference: leave the files where they are and only refer to them.
        shared: see `SharedOptions`.
    """
    requested = None if images is None else Path(images)
    names: list[list[object]] = [[image.file] for image in read.images]
    root = find_image_folder(names, folders, source=path, requested=requested)

    def finish(writer: CollectionWriter) -> None:
        deployments, events = read.deployments.values(), read.events
        write_survey(
            writer, deployments=deployments, event_observations=events, format=format, descriptor=read.descriptor
        )
        # A repeated import reads no image again: corrected locations and coordinates reach existing ones here.
        keys = {image.medium.key: image.medium.deployment for image in read.images}
        writer.summary.further[MOVED] += update_images(writer, keys, deployments)
        # Unary plus drops what was counted 0 times.
        writer.summary.further = +writer.summary.further

    summary = import_samples(
        target,
        _make_samples(read, root, source=path.name),
        # Every release of WILDS has a metadata.csv, so the folder's name identifies the release.
        default_source=path.parent.name if path.stem == "metadata" else path.stem,
        total=len(read.images),
        reference=reference,
        further=read.further,
        begin=lambda writer: select_deployments(writer, read.deployments.values()),
        finish=finish,
        **shared,
    )
    summary.notes += format_names(read.named)
    return summary


@dataclass(slots=True)
class SurveyImage:
    """One image that an annotation file lists; the medium has its key.

    Args:
        regions: as in a sidecar.
        stated_size: (width, height) in pixels that boxes refer to.
        corrupt: its owner marked the file as unreadable.
    """

    file: str
    medium: Medium
    observations: list[Observation] = field(default_factory=list)
    regions: list[dict[str, object]] = field(default_factory=list)
    stated_size: tuple[int, int] | None = None
    split: str = ""
    corrupt: bool = False


@dataclass(slots=True)
class SurveyFile:
    """Content of an annotation file of a survey, with the doubts of `Judge`."""

    images: list[SurveyImage] = field(default_factory=list)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    events: list[Observation] = field(default_factory=list)
    descriptor: dict[str, object] = field(default_factory=dict)
    further: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)


def _make_samples(read: SurveyFile, root: Path, *, source: str) -> Iterator[Sample]:
    for image in read.images:
        sample = file_sample(image.file, root, source=f"{source}: {image.file}"[:400])
        if image.corrupt:
            detail = f"the file marks {image.file!r} as corrupt"
            sample.only_problems, sample.problems = True, [Problem("image", "corrupt", detail)]
        if not sample.only_problems:
            medium, deployment = image.medium, read.deployments.get(image.medium.deployment)
            sample.key = medium.key
            # Splits are drawn by group: no camera may be trained on and tested.
            sample.group = deployment.camera if deployment else medium.key.rpartition("/")[0]
            sample.context = make_context(medium, deployment)
            sample.extra = survey_rows(medium, image.observations)
            sample.fields = {"regions": image.regions, "split": image.split}
            sample.stated_size = image.stated_size
        yield sample


def read_locations(path: str | Path) -> dict[str, Deployment]:
    """Read what is known of each location: a table of deployments, or the gps_locations.json of iWildCam.

    Raises:
        UserError: the file cannot be read, or a cell is impossible (record and field are named).
    """
    path = check_source(Path(path))
    if path.suffix.lower() != ".json":
        return {deployment.id: deployment for deployment in read_deployments(path).deployments}
    content = read_annotations(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object of locations (got {type(content).__name__})")
    locations = {}
    for name, entry in content.items():
        degrees = []
        for field_name, limit in (("latitude", 90), ("longitude", 180)):
            value = entry.get(field_name) if isinstance(entry, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
                where = f"{path}: {name!r}.{field_name}"
                # Leave the value out: errors end in logs, where coordinates must not be.
                raise UserError(f"{where}: missing or out of range; expected degrees from -{limit} to {limit}")
            degrees.append(float(value))
        locations[name] = Deployment(name, name, latitude=degrees[0], longitude=degrees[1])
    return locations


def make_deployments(read: SurveyFile, table: str | Path | None) -> dict[str, Deployment]:
    """Return one deployment for each location of the images, as the table has it.

    Raises:
        UserError: no location is in the table.
    """
    listed = {} if table is None else read_locations(table)
    names = list(dict.fromkeys(image.medium.deployment for image in read.images if image.medium.deployment))
    # One common name is enough, since a table may list the cameras of many years; without any, it is another survey's.
    if listed and not listed.keys() & set(names):
        hint = nearest(names[0], listed) if names else ""
        raise UserError(
            f"{table}: no row has a location of the images (got {', '.join(list(listed)[:5])}); "
            f"expected {', '.join(names[:5])}{hint}"
        )
    deployments = {name: listed.get(name) or Deployment(name, location=name) for name in names}
    read.further[NO_PLACE] += sum(deployment.latitude is None for deployment in deployments.values())
    return deployments


def _finish(read: SurveyFile, judge: Judge) -> None:
    """Count the times that say nothing, which stay as written and give no hour, and what is empty and a species."""
    status_N = parse_times([image.medium.time for image in read.images]).status_N
    judge.count("time", int(((status_N != TimeStatus.OK) & (status_N != TimeStatus.EMPTY)).sum()))
    observations = [*read.events, *(entry for image in read.images for entry in image.observations)]
    rows = (
        (entry.key or (entry.deployment, entry.event), entry.key or entry.event, entry.kind, entry.taxon)
        for entry in observations
    )
    for name in find_contradictions(rows):
        judge.count("empty-and-species", name=name)
    read.further += judge.counts
    read.named = judge.named


def read_camera_traps(path: Path) -> SurveyFile:
    """Read a COCO Camera Traps file.

    Raises:
        UserError: the file contradicts itself; the error names record and field.
    """
    content = read_annotations(path)
    read, judge = SurveyFile(), Judge(path)
    by_id: dict[str, SurveyImage] = {}
    for position, entry in enumerate(get_list(content, "images", path)):
        where = f"images[{position}]"
        number = _parse_id(entry, "id", where, judge)
        if number in by_id:
            raise judge.reject("id-twice", f"{where}.id", f"{number!r} occurs twice; ids must be unique")
        by_id[number] = _parse_image(entry, where, judge)
    read.images = list(by_id.values())
    categories = _parse_categories(get_list(content, "categories", path), judge)
    seen: set[str] = set()
    labeled: set[str] = set()
    for position, entry in enumerate(get_list(content, "annotations", path)):
        where = f"annotations[{position}]"
        number = _parse_id(entry, "id", where, judge)
        if number in seen:
            raise judge.reject("id-twice", f"{where}.id", f"{number!r} occurs twice; ids must be unique")
        seen.add(number)
        where = f"{where} ({number})"
        image_id = _parse_id(entry, "image_id", where, judge)
        if image_id not in by_id:
            problem = f"no image has the id {image_id!r}{nearest(image_id, by_id)}"
            raise judge.reject("reference", f"{where}.image_id", problem)
        category = entry.get("category_id")
        # JSON may contain any type here, such as a list, which is not hashable.
        if not isinstance(category, int | float) or category not in categories:
            raise judge.reject("category", f"{where}.category_id", f"no category has the id {category!r}")
        judge.count("fraction-as-category", isinstance(category, float))
        _add_annotation(entry, number, categories[category], by_id[image_id], image_id, read, judge)
        labeled.add(image_id)
    read.events = list({observation.id: observation for observation in read.events}.values())
    info = content.get("info")
    read.descriptor = {"info": info if isinstance(info, dict) else {}, "categories": content["categories"]}
    judge.count("annotation-missing", len(by_id) - len(labeled))
    _finish(read, judge)
    return read


def _parse_id(entry: object, name: str, where: str, judge: Judge) -> str:
    if not isinstance(entry, dict):
        raise judge.reject("id", where, f"expected an object (got {type(entry).__name__})")
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        problem = f"expected an id (got {str(value)[:40]}){nearest(name, map(str, entry))}"
        raise judge.reject("id", f"{where}.{name}", problem)
    # Plain COCO has integers: as texts they are as unique.
    judge.count("integer-id", isinstance(value, int))
    return str(value)


def _parse_image(entry: Mapping[str, Any], where: str, judge: Judge) -> SurveyImage:
    file = entry.get("file_name")
    if not isinstance(file, str) or not file.strip():
        problem = f"expected the path of an image (got {str(file)[:40]})"
        raise judge.reject("no-path", f"{where}.file_name", problem)
    judge.count("backslashes", "\\" in file)
    location, frame = entry.get("location"), entry.get("frame_num")
    judge.count("no-location", location is None or location == "")
    judge.count("number-as-location", is_number(location))
    sequence = entry.get("seq_id")
    for name in ("sequence_id", "sequence"):
        judge.count("sequence-name", name in entry)
        sequence = entry.get(name) if sequence is None else sequence
    # A frame number beyond the 32 bits of its column would stop the import; without one, file names break ties in time.
    is_frame = isinstance(frame, int) and not isinstance(frame, bool) and 0 <= frame < 2**31
    judge.count("frame", frame is not None and not is_frame)
    medium = Medium(
        key=make_key(normalize_path(file)),
        deployment="" if location is None else str(location),
        sequence="" if sequence is None else str(sequence),
        frame_number=frame if is_frame else None,
        time="" if entry.get("datetime") is None else str(entry["datetime"]),
        file=file,
    )
    is_corrupt = _parse_flag(entry, "corrupt", judge)
    judge.count("corrupt", is_corrupt, name=file)
    return SurveyImage(file, medium, stated_size=get_stated_size(entry), corrupt=is_corrupt)


def _parse_flag(entry: Mapping[str, Any], name: str, judge: Judge) -> bool:
    value = entry.get(name)
    if isinstance(value, str):
        # A burst's label that is taken for that of a frame, because its flag is a text, would be wrong in many frames.
        judge.count("text-as-flag")
        return value.strip().lower() in ("true", "1", "yes")
    return value is True or value == 1


def _parse_categories(entries: list[Any], judge: Judge) -> dict[int, tuple[ObservationKind, str, str]]:
    """Return kind, taxon and name by the number of the category."""
    categories: dict[int, tuple[ObservationKind, str, str]] = {}
    for position, entry in enumerate(entries):
        where = f"categories[{position}]"
        number = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(entry.get("name"), str):
            problem = f"expected an object with an integer 'id' and a 'name' (got {str(entry)[:60]})"
            raise judge.reject("category", where, problem)
        if number in categories:
            raise judge.reject("id-twice", f"{where}.id", f"{number} occurs twice; ids must be unique")
        judge.count("category-name-twice", entry["name"] in {name for *_, name in categories.values()})
        categories[number] = (*classify_name(entry["name"], number), entry["name"])
    return categories


def _add_annotation(
    entry: Mapping[str, Any],
    number: str,
    category: tuple[ObservationKind, str, str],
    image: SurveyImage,
    image_id: str,
    read: SurveyFile,
    judge: Judge,
) -> None:
    (kind, taxon, name), medium = category, image.medium
    # The format reserves category 0, whatever it is called: the name is kept beside the row.
    is_misnamed = kind == "blank" and get_kind(name) != "blank"
    judge.count("empty-category-name", is_misnamed, name=f"{image.file} ({name[:80]})")
    is_of_burst = _parse_flag(entry, "sequence_level_annotation", judge)
    count = entry.get("count")
    common: dict[str, Any] = {"deployment": medium.deployment, "kind": kind, "taxon": taxon, "method": "human"}
    common["extra"] = describe_setup(name) | ({"category": name} if is_misnamed else {})
    if is_of_burst:
        # Every frame of a burst repeats the annotation: one row for the event and its species.
        event = medium.sequence or image_id
        read.further[OF_BURSTS] += 1
        row_id = f"{medium.deployment}|{event}|{entry['category_id']}"
        read.events.append(Observation(row_id, event=event, level="event", **common))
        return
    box = _parse_box(entry, image, judge)
    if box is not None:
        corners = [box.x1, box.y1, box.x2, box.y2]
        image.regions.append(
            {"box": corners, "format": "xyxy", "unit": "normalized", "phrase": name, "label": taxon or kind}
        )
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    judge.count("count", count is not None and not is_count)
    image.observations.append(
        Observation(number, key=medium.key, event=medium.sequence, count=count if is_count else None, box=box, **common)
    )


def _parse_box(entry: Mapping[str, Any], image: SurveyImage, judge: Judge) -> Box | None:
    """Return the box of an annotation, clipped; None if it has none, or one that cannot be used."""
    # Fractions first: a box in pixels needs the size of its image, which a file may not state.
    relative = entry.get("bbox_relative")
    scale, bbox = (image.stated_size, entry.get("bbox")) if relative is None else ((1, 1), relative)
    if bbox is None:
        return None
    if scale is None:
        judge.count("box-without-size")
        return None
    if not isinstance(bbox, list) or len(bbox) < 4 or not all(map(is_number, bbox[:4])):
        judge.count("unusable-box")
        return None
    x, y, width, height = map(float, bbox[:4])
    corners = (x / scale[0], y / scale[1], (x + width) / scale[0], (y + height) / scale[1])
    # NaN passes through min and max when it comes first, and then fails the comparison below.
    clipped = [min(max(corner, 0.0), 1.0) for corner in corners]
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        judge.count("unusable-box")
        return None
    judge.count("clipped-box", max(-corners[0], -corners[1], corners[2] - 1, corners[3] - 1) > EDGE_ROUNDING)
    return Box(*clipped)


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json")
    return "annotations of camera traps in JSON" if is_coco(head) and is_camera_traps(head) else None


WILDS = "wilds"
_NEEDED = ("split", "filename", "y")
# The names of the data set's files and releases: of the competition first, for these have places.
_LOCATIONS, _SEQUENCES = ("location", "location_remapped"), ("seq_id", "sequence", "sequence_remapped")
# "val" and "test" have unseen cameras, id_val and id_test those of the training.
_SPLITS = {"val": "validation"}


def import_wilds(
    source: str | Path, target: str | Path, *, deployments: str | Path | None = None, **options: Any
) -> ImportSummary:
    """Import the images that a metadata.csv of iWildCam2020-WILDS names, with their splits.

    Args:
        source: metadata.csv, or the folder that has it beside categories.csv.
        deployments: table of locations, see `read_locations`.
        options: see `import_survey_file`; `images` is by default `train` beside the table, which has those of all
            splits.

    Raises:
        UserError: a table is missing or damaged, lacks a column, or a class has no name; no image is found.
    """
    path = check_source(Path(source))
    path = check_source(path / "metadata.csv") if path.is_dir() else path
    read = read_wilds(path)
    read.deployments = make_deployments(read, deployments)
    folders = [path.parent / "train", path.parent / "images", path.parent]
    return import_survey_file(path, read, target, folders, format=WILDS, **options)


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
    classes = _read_class_names(check_source(path.parent / "categories.csv"))
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
    _finish(read, Judge(path))
    return read


def _read_class_names(path: Path) -> dict[str, str]:
    """Return the name of each class, by its number as text."""
    table = read_rows(path)
    number, name = (
        need_column(table.names, (each,), requested=None, option="categories.csv", where=path) for each in ("y", "name")
    )
    rows = [(cells[number].strip(), cells[name].strip()) for cells in table.to_dicts()]
    return {y: text for y, text in rows if y}


def _recognize_wilds(source: str) -> str | None:
    path = Path(source) / "metadata.csv" if Path(source).is_dir() else Path(source)
    if path.name != "metadata.csv" or not path.is_file() or not (path.parent / "categories.csv").is_file():
        return None
    try:
        columns = {name.strip() for name in open_text(path).names}
    except UserError:
        return None
    return "metadata.csv of iWildCam-WILDS" if columns.issuperset(_NEEDED) else None


_OPTIONS = ("images", "deployments", "reference")
FORMATS = (
    Format(name=NAME, run=import_coco_camera_traps, recognize=_recognize, options=_OPTIONS, survey=True),
    Format(name=WILDS, run=import_wilds, recognize=_recognize_wilds, options=_OPTIONS, survey=True),
)
