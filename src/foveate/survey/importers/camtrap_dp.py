"""Import a Camtrap DP 1.0.2 package: a folder, its `datapackage.json` or a zip.

Rows of images go to the annotation tables `media` and `observations`, rows about events and everything else to tables
about the whole data set, so that `foveate.survey.exporters.camtrap_dp` writes equal content again. Rows of media
without an image (missing, unreadable, a video) are stored in `media_without_image` and `observations_without_image`.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Unpack, cast

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError
from foveate.records.boxes import Box, find_box_problem
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import make_key
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Sample, SharedOptions
from foveate.records.layout import check_key
from foveate.records.record import Region
from foveate.records.rows import region_row
from foveate.records.tables import positions
from foveate.records.writer import CollectionWriter
from foveate.survey.camtrap_schema import BOX_COLUMNS, BOX_TOLERANCE
from foveate.survey.deployments import parse_shift
from foveate.survey.hours import parse_offset, parse_times
from foveate.survey.importers.camtrap_package import DESCRIPTOR, CamtrapPackage, Files, open_package
from foveate.survey.store import (
    EMPTY_AND_SPECIES,
    MOVED,
    find_contradictions,
    make_context,
    select_deployments,
    survey_rows,
    update_images,
    write_survey,
)
from foveate.survey.taxa import RANKS, Taxa
from foveate.survey.types import Deployment, Medium, Observation, media_row, observation_row
from foveate.survey.verdicts import format_names

NAME = "camtrap-dp"
WITHOUT_IMAGE = ("media_without_image", "observations_without_image")
FILES_TABLE = "survey_files"
NOT_THERE = "images that are not there: their rows are stored"
AT_ADDRESS = "images at addresses, which are not downloaded: their rows are stored"
_BATCH_ROWS = 1000
_LISTED = 5
_TRUE = ("true", "True", "TRUE", "1")
# Columns that `Deployment` has a field for. Not the location's: it may be an id or a name. Not timestampIssues: an
# explicit "false" is not the same as no answer.
_DEPLOYMENT_COLUMNS = (
    "deploymentID",
    "latitude",
    "longitude",
    "deploymentStart",
    "deploymentEnd",
    "coordinateUncertainty",
    "habitat",
)
_OBSERVATION_FIELDS = {
    "event": "eventID",
    "level": "observationLevel",
    "kind": "observationType",
    "taxon": "scientificName",
    "method": "classificationMethod",
    "classifier": "classifiedBy",
    "classified_at": "classificationTimestamp",
    "event_start": "eventStart",
    "event_end": "eventEnd",
}


def import_camtrap_dp(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the survey of a Camtrap DP package, with those of its images that are there, into `target`.

    An image is grouped by its camera (the location, or else the deployment).

    Args:
        source: the package's folder, its `datapackage.json`, or a zip.
        target: collection folder; created if it does not exist.
        images: folder of images, by `filePath` or `fileName`, the latter where one medium has it;
            by default that of the package.
        reference: leave the files where they are and only refer to them.
        shared: see `SharedOptions`.

    Raises:
        UserError: a file is missing or damaged, or violates the schema (file, row and field are named).

    Example:
        >>> settings = CamtrapSettings(coordinate_digits=2, contributor=("A. Author",), utc_offset=("+02:00",))
        >>> survey, package = Collection.open(survey_folder), new_folder / "package"
        >>> export = export_camtrap_dp(survey, package, settings=settings)
        >>> summary = import_camtrap_dp(package, new_folder / "survey")  # the folder has no images, only their rows
        >>> summary.further["images that are not there: their rows are stored"]
        64
    """
    path = check_source(Path(source))
    if images is not None and not Path(images).is_dir():
        raise UserError(f"--images: {images} is not a folder")
    with open_package(path) as package:
        # A reference needs a file of its own on disk.
        if reference and images is None and package.files.is_zip:
            raise UserError(f"--reference has no effect: the images lie inside of {path}")
        survey = _Survey(package, Files(Path(images)) if images is not None else package.files, images is not None)
        summary = import_samples(
            target,
            survey.samples(),
            default_source=str(package.descriptor.get("name") or path.stem),
            total=package.tables["media"].num_rows,
            reference=reference,
            further=survey.counts,
            begin=lambda writer: select_deployments(writer, survey.deployments.values()),
            finish=survey.write_tables,
            **shared,
        )
    summary.notes += survey.notes()
    if summary.imported + summary.existing == 0:
        summary.notes.append(
            "no image was found: the collection has the rows of the package, and an export writes them again. To "
            "import images, put them where filePath says, or set --images to a folder that has them by name"
        )
    return summary


@dataclass
class _Survey:
    package: CamtrapPackage
    images: Files
    by_name: bool
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        tables = self.package.tables
        media, observations = tables["media"], tables["observations"]
        self.deployments = {row["deploymentID"]: make_deployment(row) for row in tables["deployments"].to_pylist()}
        self.taxon_ids = {
            entry["scientificName"]: str(entry.get("taxonID") or "") for entry in self.package.descriptor["taxonomic"]
        }
        self.keys = make_keys(media)
        # Cameras count from 1 on every card, so a repeated name without its folder does not identify an image.
        paths, names = media["filePath"].to_pylist(), _column(media, "fileName").to_pylist()
        self.num_media = Counter(name for row in zip(paths, names, strict=True) for name in _bare_names(*row))
        levels = observations["observationLevel"].to_numpy()
        media_ids = _column(observations, "mediaID")
        # Row of the medium that an observation labels; -1 for rows about events.
        self.medium_O = np.where(levels == "media", positions(media_ids, among=media["mediaID"]), -1)
        # Sorted once, so that the observations of some media are one slice.
        order = np.argsort(self.medium_O, kind="stable")
        self.order, self.sorted_media = order, self.medium_O[order]
        self.sequences = assign_sequences(media, observations, self.medium_O)
        self.named = {EMPTY_AND_SPECIES: names} if (names := _find_contradictions(media, observations)) else {}
        self.counts[EMPTY_AND_SPECIES] = len(names)

    def samples(self) -> Iterator[Sample]:
        """Yield the sample of every image that is there."""
        for start, rows, observations in self._batches():
            for position, row in enumerate(rows):
                sample = self._find_image(row)
                if sample is not None:
                    yield self._fill(sample, row, start + position, observations.get(start + position, []))

    def _batches(self) -> Iterator[tuple[int, list[dict[str, Any]], dict[int, list[dict[str, Any]]]]]:
        """Yield the first number, the rows and the observations of some media at a time."""
        media, observations = self.package.tables["media"], self.package.tables["observations"]
        # Work in batches: as dictionaries, 200,000 observations would take half a gigabyte at once.
        for start in range(0, media.num_rows, _BATCH_ROWS):
            rows = media.slice(start, _BATCH_ROWS).to_pylist()
            first, last = np.searchsorted(self.sorted_media, (start, start + len(rows)))
            entries = observations.take(pa.array(self.order[first:last])).to_pylist()
            grouped: dict[int, list[dict[str, Any]]] = {}
            for number, row in zip(self.sorted_media[first:last].tolist(), entries, strict=True):
                grouped.setdefault(number, []).append(row)
            yield start, rows, grouped

    def _find_image(self, row: Mapping[str, Any]) -> Sample | None:
        if not str(row["fileMediatype"]).startswith("image/"):
            self.counts["media that are no images (videos, sounds)"] += 1
            return None
        path, name = row["filePath"], row.get("fileName") or ""
        # An address names no file of the package, but --images may have the image under its bare name.
        candidates = [] if "://" in path else [path]
        if self.by_name:
            bare = [each for each in _bare_names(path, name) if self.num_media[each] == 1]
            candidates += [f"{row['deploymentID']}/{name}" if name else "", *bare]
        for candidate in candidates:
            if candidate and self.images.has(candidate):
                return self.images.image_sample(candidate, source=f"media {row['mediaID']}")
        self.counts[AT_ADDRESS if "://" in path else NOT_THERE] += 1
        return None

    def _medium(self, row: Mapping[str, Any], number: int) -> Medium:
        used = ("deploymentID", "timestamp", "filePath")
        return Medium(
            key=self.keys[number],
            deployment=row["deploymentID"],
            sequence=self.sequences[number],
            time=row["timestamp"],
            file=row["filePath"],
            extra={name: value for name, value in row.items() if value is not None and name not in used},
        )

    def _fill(self, sample: Sample, row: Mapping[str, Any], number: int, rows: Sequence[Mapping[str, Any]]) -> Sample:
        medium, deployment = self._medium(row, number), self.deployments[row["deploymentID"]]
        observations = [make_observation(entry, self.taxon_ids, key=medium.key) for entry in rows]
        regions = [make_region(observation) for observation in observations]
        sample.key, sample.group, sample.context = medium.key, deployment.camera, make_context(medium, deployment)
        sample.extra = survey_rows(medium, observations)
        boxes = [region_row(medium.key, region) for region in regions if region is not None]
        if boxes:
            sample.extra["regions"] = list(boxes)
        self.counts["observations imported"] += len(observations)
        return sample

    def write_tables(self, writer: CollectionWriter) -> None:
        """Write what is about the whole survey, and the rows of media that became no image."""
        observations = self.package.tables["observations"]
        # -1 means a row about an event, or a row of the level "media" that names no medium.
        events = observations.filter(pa.array(self.medium_O < 0))
        writer.summary.further["observations of events"] += events.num_rows
        write_survey(
            writer,
            deployments=self.deployments.values(),
            event_observations=(
                make_observation(row, self.taxon_ids)
                for batch in events.to_batches(max_chunksize=_BATCH_ROWS)
                for row in batch.to_pylist()
            ),
            format=NAME,
            descriptor=self.package.descriptor,
        )
        deployments = self.package.tables["media"]["deploymentID"].to_pylist()
        moved = update_images(writer, dict(zip(self.keys, deployments, strict=True)), self.deployments.values())
        if moved:
            writer.summary.further[MOVED] += moved
        taxa = read_taxa(self.package.descriptor["taxonomic"])
        writer.replace_dataset_rows("taxa", taxa.to_rows(), by="id")
        files = [
            {"path": path, "content": base64.b64encode(content).decode("ascii")}
            for path, content in self.package.further.items()
        ]
        writer.replace_dataset_rows(FILES_TABLE, files, by="path")
        media_table, observations_table = WITHOUT_IMAGE
        writer.replace_dataset_rows(media_table, self._rows_without_image(writer), by="key")
        writer.replace_dataset_rows(observations_table, self._observations_without_image(writer), by="id")

    def _rows_without_image(self, writer: CollectionWriter) -> Iterator[Mapping[str, object]]:
        for start, rows, _ in self._batches():
            for number, row in enumerate(rows, start):
                # Check after the import: an image whose file exists but could not be read is absent as well.
                if writer.known_sha256(self.keys[number]) is None:
                    yield media_row(self._medium(row, number))

    def _observations_without_image(self, writer: CollectionWriter) -> Iterator[Mapping[str, object]]:
        for _, _, observations in self._batches():
            for number, rows in observations.items():
                if writer.known_sha256(self.keys[number]) is None:
                    writer.summary.further["observations of images that are not there"] += len(rows)
                    yield from (
                        observation_row(make_observation(row, self.taxon_ids, key=self.keys[number])) for row in rows
                    )

    def notes(self) -> list[str]:
        """Return a sentence per warning, the first few."""
        warnings = self.package.warnings
        further = [f"{len(warnings) - _LISTED} further warnings"] if len(warnings) > _LISTED else []
        return [*map(str, warnings[:_LISTED]), *further, *format_names(self.named)]


def _find_contradictions(media: pa.Table, observations: pa.Table) -> list[str]:
    names = ("deploymentID", "mediaID", "eventID", "classificationMethod", "classifiedBy")
    columns = [_column(observations, name).to_pylist() for name in (*names, "observationType", "scientificName")]
    files = dict(zip(media["mediaID"].to_pylist(), media["filePath"].to_pylist(), strict=True))
    return find_contradictions(
        # The key contains the observer: a machine that misses an animal which a person names is no contradiction.
        ((deployment, medium or event, method, person), files.get(medium) or event or "", kind, taxon or "")
        for deployment, medium, event, method, person, kind, taxon in zip(*columns, strict=True)
    )


def _bare_names(path: str, name: str | None) -> list[str]:
    """Return the names without folder by which an image may be found: `fileName`, then that of `filePath`."""
    return [each for each in dict.fromkeys((name or "", PurePosixPath(path).name)) if each]


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows, pa.large_string())])


def make_keys(media: pa.Table) -> list[str]:
    """Return the key of every medium: its path without extension, or deployment and file name where it is a URL.

    A key that an earlier medium has, or that cannot be one, becomes the deployment and the medium's id, with a number
    where an earlier medium has that, too.
    """
    keys: dict[str, None] = {}
    columns = (media["mediaID"], media["deploymentID"], media["filePath"], _column(media, "fileName"))
    for identity, deployment, path, name in zip(*(column.to_pylist() for column in columns), strict=True):
        key = f"{deployment}/{make_key(name or identity)}" if "://" in path else make_key(path)
        if key in keys or not _is_key(key):
            # Ids are free text, but a key has no backslash.
            key = base = f"{deployment}/{identity}".replace("\\", "_")
            number = 2
            while key in keys:
                key, number = f"{base}-{number}", number + 1
        keys[key] = None
    return list(keys)


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except UserError:
        return False
    return True


def assign_sequences(media: pa.Table, observations: pa.Table, medium_O: np.ndarray) -> list[str]:
    """Return the event of every medium, "" for none: that of its observations, else the event that it falls into.

    Args:
        medium_O: row of the medium of each observation, -1 for rows about events.
    """
    sequences = [""] * media.num_rows
    events = _column(observations, "eventID").to_pylist()
    for number, event in zip(medium_O.tolist(), events, strict=True):
        if number >= 0 and event and not sequences[number]:
            sequences[number] = event
    about_events = np.flatnonzero(medium_O < 0)
    if not len(about_events):
        return sequences
    spans = observations.take(pa.array(about_events))
    times_M, starts_E, ends_E = map(parse_times, (media["timestamp"], spans["eventStart"], spans["eventEnd"]))
    # A deployment is the first of its media; -1 for one without any.
    deployment_M = positions(media["deploymentID"], among=media["deploymentID"])
    deployment_E = positions(spans["deploymentID"], among=media["deploymentID"])
    # If any time of a deployment has no offset, instants cannot be compared, but the clocks as written can.
    no_offset = [
        deployment[~np.isnan(times.wall_N) & np.isnan(times.offset_N)]
        for deployment, times in ((deployment_M, times_M), (deployment_E, starts_E), (deployment_E, ends_E))
    ]
    by_clock = np.unique(np.concatenate(no_offset))
    time_M, start_E, end_E = (
        times.wall_N - np.where(np.isin(deployment, by_clock), 0, times.offset_N)
        for deployment, times in ((deployment_M, times_M), (deployment_E, starts_E), (deployment_E, ends_E))
    )
    # Sort by deployment, then by time: an event is a range that two binary searches find. NaN is sorted last.
    order = np.lexsort((time_M, deployment_M))
    sorted_deployment, sorted_time = deployment_M[order], time_M[order]
    first_E = np.searchsorted(sorted_deployment, deployment_E, "left")
    last_E = np.searchsorted(sorted_deployment, deployment_E, "right")
    for event in np.flatnonzero(~np.isnan(start_E) & ~np.isnan(end_E)).tolist():
        first, last = first_E[event], last_E[event]
        low = first + np.searchsorted(sorted_time[first:last], start_E[event], "left")
        high = first + np.searchsorted(sorted_time[first:last], end_E[event], "right")
        for number in order[low:high].tolist():
            # The event that a medium's own observations name goes before one that it only falls into.
            sequences[number] = sequences[number] or events[about_events[event]] or ""
    return sequences


def make_deployment(row: Mapping[str, Any]) -> Deployment:
    """Return the deployment of a row; columns without a field of their own are kept in `extra`."""
    uncertainty = row.get("coordinateUncertainty")
    where = f"deployments, {row['deploymentID']!r}"
    # Columns of our own table, which a user adds where times end in Z or a clock was wrong.
    offset, shift = row.get("utc_offset") or "", row.get("clock_shift") or "0"
    if offset:
        parse_offset(offset, where=f"{where}, utc_offset")
    try:
        clock_shift = parse_shift(shift)
    except ValueError as error:
        expected = "expected seconds, or hours and minutes as -1:00"
        raise UserError(f"{where}, clock_shift: wrong value (got {shift[:40]!r}); {expected}") from error
    used = (*_DEPLOYMENT_COLUMNS, "utc_offset", "clock_shift")
    return Deployment(
        id=row["deploymentID"],
        location=row.get("locationID") or row.get("locationName") or "",
        latitude=float(row["latitude"]),
        longitude=float(row["longitude"]),
        start=row["deploymentStart"],
        end=row["deploymentEnd"],
        utc_offset=offset,
        clock_shift=clock_shift,
        timestamp_issues=row.get("timestampIssues") in _TRUE,
        uncertainty=None if uncertainty is None else float(uncertainty),
        habitat=row.get("habitat") or "",
        extra={name: value for name, value in row.items() if value is not None and name not in used},
    )


def make_observation(row: Mapping[str, Any], taxon_ids: Mapping[str, str], *, key: str = "") -> Observation:
    """Return the observation of a row; columns without a field of their own are kept in `extra`."""
    box = make_box(row)
    count, probability, taxon = row.get("count"), row.get("classificationProbability"), row.get("scientificName") or ""
    used = {*_OBSERVATION_FIELDS.values(), "observationID", "deploymentID", "count", "classificationProbability"}
    used |= (set() if box is None else set(BOX_COLUMNS)) | ({"mediaID"} if key else set())
    values = {name: row.get(column) or "" for name, column in _OBSERVATION_FIELDS.items()}
    return Observation(
        id=row["observationID"],
        deployment=row["deploymentID"],
        key=key,
        **cast(Any, values),
        taxon_id=taxon_ids.get(taxon, ""),
        # A table that went through pandas has 2.0.
        count=None if count is None else int(float(count)),
        box=box,
        probability=None if probability is None else float(probability),
        extra={name: value for name, value in row.items() if value is not None and name not in used},
    )


def make_box(row: Mapping[str, Any]) -> Box | None:
    """Return the box of an observation; None if it has none, or one without any area in the image."""
    cells = [row.get(name) for name in BOX_COLUMNS]
    if any(cell is None for cell in cells):
        return None
    x, y, width, height = (float(cell) for cell in cells if cell is not None)
    # More than rounding: numbers in another unit, which clipping would hide.
    if max(x + width, y + height) > 1 + BOX_TOLERANCE:
        return None
    corners = (x, y, min(1.0, x + width), min(1.0, y + height))
    # A box that begins at the edge, or whose size is lost in that of its corner, has no area.
    return None if find_box_problem(*corners) else Box(*corners)


def make_region(observation: Observation) -> Region | None:
    """Return the region of an observation with a box."""
    # A box on a blank image surrounds nothing: its region would have the phrase "blank".
    if observation.box is None or observation.kind == "blank":
        return None
    name = observation.taxon or observation.kind
    if observation.method == "machine":
        score = 1.0 if observation.probability is None else observation.probability
        return Region(observation.box, name, score, name, source=observation.classifier or "machine")
    return Region(observation.box, name, label=name)


def read_taxa(taxonomic: Sequence[Mapping[str, Any]]) -> Taxa:
    """Return the taxa of a package's list `taxonomic`, with the higher taxa that its entries name."""
    # Higher taxa have no id in the standard. Their rank distinguishes them from homonyms of another rank.
    ids = {
        (str(entry.get("taxonRank") or ""), str(entry["scientificName"])): str(entry.get("taxonID") or "")
        for entry in taxonomic
    }
    rows: dict[str, dict[str, object]] = {}

    def add(rank: str, name: str, parent: str, common: str = "") -> str:
        identity = ids.get((rank, name)) or f"{rank or 'taxon'}:{name}"
        known = rows.get(identity, {})
        row = {"id": identity, "name": name, "rank": rank, "parent": parent, "common": common}
        # The first value of a field stays; a later entry fills in missing ones.
        rows[identity] = row | {column: value for column, value in known.items() if value}
        return identity

    for entry in taxonomic:
        name, rank, parent = str(entry["scientificName"]), str(entry.get("taxonRank") or ""), ""
        # Go from the kingdom down: each is the parent of the next.
        for higher in RANKS[: RANKS.index(rank) if rank in RANKS else len(RANKS)]:
            if entry.get(higher):
                parent = add(higher, str(entry[higher]), parent)
        names = entry.get("vernacularNames") or {}
        add(rank, name, parent, str(names.get("eng") or next(iter(names.values()), "")))
    return Taxa.from_rows(rows.values())


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        return DESCRIPTOR if (path / DESCRIPTOR).is_file() else None
    if path.name == DESCRIPTOR and path.is_file():
        return "a data package"
    if path.suffix.lower() == ".zip" and path.is_file():
        try:
            files = Files(path)
        except UserError:
            return None
        files.close()
        return f"a zip with {DESCRIPTOR}"
    return None


FORMATS = (
    Format(name=NAME, run=import_camtrap_dp, recognize=_recognize, options=("images", "reference"), survey=True),
)
