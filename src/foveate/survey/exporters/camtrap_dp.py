"""Export a survey as a Camtrap DP 1.0.2 package, with decisions of a machine where they are given.

The package is read again and checked before it appears under its name. What a Camtrap DP package was imported with
comes out equal; what another format does not state (title, contributors, design) is asked for.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from foveate.core.errors import UserError
from foveate.core.export_folder import check_empty_folder, staged_folder
from foveate.core.recipes import Settings
from foveate.core.version import __version__
from foveate.records import tables
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import SUFFIXES
from foveate.records.importers.files import locate_file
from foveate.records.importers.sample import Problem
from foveate.survey.camtrap_schema import BOX_COLUMNS, TABLES, URL, Violation, columns, is_valid_time
from foveate.survey.deployments import describe_digits, round_deployments, state_offsets
from foveate.survey.detections import Decision, format_comment
from foveate.survey.exporters.survey_rows import MergedObservations, SurveyRows, format_time
from foveate.survey.hours import TimeStatus, parse_times, stated_offset
from foveate.survey.importers.camtrap_dp import FILES_TABLE, NAME
from foveate.survey.importers.camtrap_package import DESCRIPTOR, check_written, refuse
from foveate.survey.taxa import RANKS, Taxa
from foveate.survey.types import LEVELS, Deployment, Medium, Observation
from foveate.survey.videos import find_video, join_frames, media_type

CoordinateDigits = Annotated[
    Literal[1, 2, 3, "recorded", "drop"],
    BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdigit() else value),
]
SamplingDesign = Literal[
    "simpleRandom", "systematicRandom", "clusteredRandom", "experimental", "targeted", "opportunistic"
]
# Names under which tables and JSON of others hold places. Wide on purpose: a false hit costs a resource of the package,
# a miss publishes where an animal or a camera is.
_COORDINATES = re.compile(
    r"latitude|longitude|coordinates|(^|[\",;\t])(lat|lon|lng)[\",;\s]", re.IGNORECASE | re.MULTILINE
)
_LISTED = 5
_OWN_FILES = (DESCRIPTOR, *(f"{name}.csv" for name in TABLES))
_LAST_SECOND = 24 * 3600 - 1  # last second of a day
_OFFSET = "state the offset from UTC: --utc-offset +02:00, or utc_offset in deployments.csv and collect again"
_REPAIRS = {"contributors": "name a person or organization with --contributor"} | dict.fromkeys(
    ("deploymentStart", "deploymentEnd", "timestamp", "eventStart", "eventEnd"), _OFFSET
)


class CamtrapSettings(Settings):
    """Options of an export to Camtrap DP; title, contributors and design only where the survey has none.

    Example:
        >>> CamtrapSettings(coordinate_digits=2, contributor=("A. Author",)).sampling_design
        'opportunistic'
    """

    coordinate_digits: CoordinateDigits | None = Field(
        None,
        description="decimals of coordinates: 1 (about 10 km), 2 (1 km), 3 (100 m), recorded, or drop, which leaves a "
        "package that validators refuse",
    )
    title: str | None = Field(None, description="title of the package; by default the collection's name")
    contributor: tuple[str, ...] = Field((), description="name of a person or organization; the first is the contact")
    sampling_design: SamplingDesign = Field("opportunistic", description="how the places of the cameras were chosen")
    utc_offset: tuple[str, ...] = Field(
        (), description="offset from UTC of times without one: +02:00 for all deployments, or DEPLOYMENT=+02:00"
    )
    classifier: str = Field(f"Foveate {__version__}", description="name and version of the model that decided")


@dataclass(slots=True)
class CamtrapExport:
    """Written folder, rows by table, further counts, and sentences for the user."""

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def export_camtrap_dp(
    collection: Collection,
    folder: str | Path,
    *,
    settings: CamtrapSettings,
    decisions: Sequence[Decision] | None = None,
    events: Mapping[str, Sequence[str]] | None = None,
    taxa: Taxa | None = None,
    created: str | None = None,
    without: Set[str] | None = None,
) -> CamtrapExport:
    """Write the survey of a collection to `folder`, atomically. Images are not copied.

    Args:
        decisions: replace earlier rows of machines about the same images; images without any label become
            "unclassified". None writes the survey as it is.
        events: keys of the images of each event that was pooled; by default the survey's sequences.
        taxa: what `taxonomic` says of new names; by default the collection's.
        created: time stamp of package and decisions (ISO 8601 with offset), by default now.
        without: keys of images that are left out, see `SurveyRows`.

    Raises:
        UserError: there is no survey, a required value is missing (file, row and field are named), a decision is
            about an unknown image or event, or the folder cannot be written.

    Example:
        >>> settings = CamtrapSettings(coordinate_digits=2, contributor=("A. Author",), utc_offset=("+02:00",))
        >>> export_camtrap_dp(Collection.open(survey_folder), new_folder, settings=settings).rows
        {'deployments': 4, 'media': 64, 'observations': 56}
    """
    folder = Path(folder)
    # Check early, since reading a large survey takes a while; `staged_folder` checks again.
    check_empty_folder(folder)
    rows = SurveyRows(collection, without=without)
    if settings.coordinate_digits is None:
        recorded = f"Camtrap DP publishes places, and {describe_digits([*rows.deployments.values()])}"
        raise UserError(f"coordinate_digits is missing: {recorded}; expected 1, 2, 3, recorded or drop")
    # Set offsets before anything reads the cached times of the rows, which take the offset of a deployment from here.
    rows.deployments = state_offsets(rows.deployments, settings.utc_offset)
    created = created or tables.now()
    merged = MergedObservations(rows, decisions, events)
    export = CamtrapExport(folder)
    with staged_folder(folder) as stage:
        known = taxa or Taxa.from_rows(collection.dataset_table("taxa").to_pylist())
        writer = _PackageWriter(rows, settings, known, created, stage, export)
        writer.write(merged)
        # Check in the staging folder, so that a refused package never appears under its final name.
        violations, doubts = check_written(stage)
        dropped = ("latitude", "longitude", "spatial") if settings.coordinate_digits == "drop" else ()
        refuse(folder, _group_rows(entry for entry in violations if entry.field not in dropped), advice=_REPAIRS)
        export.notes += map(str, doubts[:_LISTED])
    # Unary plus drops what was counted 0 times.
    export.counts = +export.counts
    if dropped:
        export.notes.append("coordinates dropped: Camtrap DP requires them, so validators refuse this package")
    return export


@dataclass
class _PackageWriter:
    rows: SurveyRows
    settings: CamtrapSettings
    taxonomy: Taxa
    created: str
    stage: Path
    export: CamtrapExport

    def __post_init__(self) -> None:
        rows = self.rows.collection.dataset_table("survey").to_pylist()
        descriptors = [json.loads(row["descriptor"]) for row in rows if row["format"] == NAME]
        self.descriptor = merge_descriptors(descriptors) if descriptors else {}
        self.taxa: dict[str, dict[str, str]] = {}
        self.levels: set[str] = set()
        self.ids: set[str] = set()
        self.left_out: set[str] = set()
        self.files = {row["path"] for row in self.rows.collection.dataset_table(FILES_TABLE).to_pylist()}
        # Ids of the media that are written; a medium without a time is left out.
        self.media_ids: dict[str, str] = {}
        # Times of the first and last frame of each video.
        self.videos: dict[str, tuple[str, str]] = {}

    def write(self, merged: MergedObservations) -> None:
        deployments = self._write_deployments()
        self._write_table("media", self._media_rows())
        self._write_table("observations", self._note_levels(join_frames(self._observation_rows(merged), self.videos)))
        self._write_further()
        descriptor = self._describe(deployments, decided=merged.decisions is not None)
        text = json.dumps(descriptor, indent=2, ensure_ascii=False, allow_nan=False)
        (self.stage / DESCRIPTOR).write_text(text + "\n", encoding="utf-8")

    def _write_table(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        with (self.stage / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns(name), restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            count = 0
            for row in rows:
                writer.writerow(row)
                count += 1
        self.export.rows[name] = count

    def _write_deployments(self) -> list[dict[str, object]]:
        digits, entries = self.settings.coordinate_digits, list(self.rows.deployments.values())
        if digits in (1, 2, 3, "drop"):
            entries = round_deployments(entries, digits=digits, precision=self.descriptor.get("coordinatePrecision"))
        members: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(self.rows.media["deployment"].to_pylist()):
            members[name].append(row)
        rows = [self._deployment_row(entry, self._span(members[entry.id])) for entry in entries]
        self._write_table("deployments", rows)
        return rows

    def _span(self, rows: Sequence[int]) -> tuple[str, str]:
        """Return the first and last time of some media; "" where none has one."""
        known = [row for row in rows if self.rows.times[row]]
        if not known:
            return "", ""
        # Sort by the instant: the clock is set back an hour at the end of daylight saving, and times with different
        # offsets do not sort as texts. Without the offset of each image only the clock is left.
        offsets = self.rows.offset_N[known]
        instants = self.rows.clock_N[known] - (0.0 if np.isnan(offsets).any() else offsets)
        return self.rows.times[known[int(instants.argmin())]], self.rows.times[known[int(instants.argmax())]]

    def _deployment_row(self, entry: Deployment, span: tuple[str, str]) -> dict[str, object]:
        if not (entry.start and entry.end):
            self.export.counts["deployments whose start or end is that of their images"] += 1
        named = entry.extra.get("locationName") == entry.location
        issues = entry.extra.get("timestampIssues") or ("true" if entry.timestamp_issues else "")
        return {
            **entry.extra,
            "deploymentID": entry.id,
            "locationID": entry.extra.get("locationID") or ("" if named else entry.location),
            "latitude": "" if entry.latitude is None else entry.latitude,
            "longitude": "" if entry.longitude is None else entry.longitude,
            # The standard takes whole meters from 1 on.
            "coordinateUncertainty": "" if entry.uncertainty is None else max(1, round(entry.uncertainty)),
            "deploymentStart": _complete_time(entry.start, entry, second=0) or span[0],
            "deploymentEnd": _complete_time(entry.end, entry, second=_LAST_SECOND) or span[1],
            "timestampIssues": issues,
            "habitat": entry.habitat,
        }

    def _media_rows(self) -> Iterator[dict[str, object]]:
        formats = dict(zip(self.rows.collection.keys, self.rows.collection.index["format"], strict=True))
        for row, medium in self.rows.read_media():
            if not self.rows.times[row]:
                self.export.counts["images without a time, which Camtrap DP has no row for"] += 1
                continue
            video = find_video(medium.key)
            identity = self.media_ids[medium.key] = video or medium.extra.get("mediaID") or medium.key
            if video in self.videos:
                # The video is the medium, not its frames.
                self.videos[video] = self.videos[video][0], self.rows.times[row]
                continue
            if video:
                self.videos[video] = self.rows.times[row], self.rows.times[row]
            format = formats.get(medium.key, "JPEG")
            extra = dict(medium.extra)
            if self.settings.coordinate_digits != "recorded" and extra.pop("exifData", None) is not None:
                self.export.counts["cells of exifData left out, which may hold coordinates"] += 1
            path = _clean_path(medium, format)
            yield {
                "filePublic": "false",
                "fileName": PurePosixPath(path).name,
                "fileMediatype": media_type(video) if video else f"image/{format.lower()}",
                # A medium from a package keeps its cells as they were, even empty ones.
                **(dict.fromkeys(("fileName",), "") if "mediaID" in extra else {}),
                **extra,
                "mediaID": identity,
                "deploymentID": medium.deployment,
                "timestamp": self.rows.times[row],
                "filePath": path,
            }

    def _observation_rows(self, merged: MergedObservations) -> Iterator[dict[str, object]]:
        for observation in merged.read():
            if observation.key and observation.key not in self.media_ids:
                self.export.counts["observations of images without a time"] += 1
                continue
            yield self._note(self._observation_row(observation, merged))
        answered: set[tuple[str, str]] = set()
        for answer in merged.read_answers():
            if answer.is_new and not any(key in self.media_ids for key in answer.event_keys):
                # Its images have no rows, and an event without a time is none of the standard's.
                self.export.counts["observations of images without a time"] += 1
            elif answer.is_new:
                answered.add((answer.row.deployment, answer.row.event))
                yield self._note(self._observation_row(answer.row, merged, answer.event_keys))
        self.export.counts["events with the answer of a person"] += len(answered)
        for decision in merged.new():
            # Several rows of one event have its times.
            members = (merged.events or {})[decision.event] if decision.event else (decision.key,)
            rows = [self.rows.find_row(key) for key in members]
            start, end = self._span(rows)
            # Images without a time have no row of media, and so none of observations.
            if start:
                self.export.counts["decisions written"] += decision.kind != "unclassified"
                yield self._note(self._decision_row(decision, rows, start, end), decision)
        skipped = merged.num_skipped
        self.export.counts["decisions left out: a person reviewed the image or event"] += skipped

    def _note_levels(self, rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        for row in rows:
            self.levels.add(str(row["observationLevel"]))
            yield row

    def _note(self, row: dict[str, object], decision: Decision | None = None) -> dict[str, object]:
        """Note id and taxon of a row for the descriptor and for later ids."""
        self.ids.add(str(row["observationID"]))
        name = str(row["scientificName"])
        if name:
            taxon = self.taxa.setdefault(name, {})
            if decision is not None:
                taxon |= {"taxonID": decision.taxon_id, "taxonRank": decision.rank if decision.rank in RANKS else ""}
        return row

    def _observation_row(
        self, observation: Observation, merged: MergedObservations, keys: Sequence[str] = ()
    ) -> dict[str, object]:
        """Return the row of an observation; `keys` are those of an event whose id the survey does not have."""
        row = self.rows.keys.get(observation.key, -1)
        sequence = keys or self.rows.sequences.get((observation.deployment, observation.event), ())
        members = [row] if row >= 0 else [self.rows.keys[key] for key in sequence]
        span = ("", "") if observation.event_start and observation.event_end else self._span(members)
        deployment = self.rows.deployments.get(observation.deployment) or Deployment(observation.deployment)
        classified = observation.classified_at
        if classified and not is_valid_time(classified):
            # MegaDetector writes the clock of some computer, and no offset is known.
            self.export.counts["times of classifications left out, which have no offset from UTC"] += 1
            classified = ""
        probability = observation.probability
        # Fill in the event only for rows of a review or another format: in a package, an empty cell is intended.
        is_own = not self.descriptor or (observation.key, observation.id) in self.rows.review_ids
        event = merged.name_event(observation.key) if row >= 0 and is_own else ""
        return {
            **observation.extra,
            **_box_cells(observation.box),
            "observationID": self._find_id(observation),
            "deploymentID": observation.deployment,
            "mediaID": self.media_ids.get(observation.key) or observation.extra.get("mediaID", ""),
            "eventID": observation.event or event,
            "eventStart": _complete_event_time(observation.event_start, deployment) or span[0],
            "eventEnd": _complete_event_time(observation.event_end, deployment) or span[1],
            "observationLevel": observation.level,
            "observationType": observation.kind,
            "scientificName": observation.taxon,
            "count": "" if observation.count is None else observation.count,
            "classificationMethod": observation.method,
            "classifiedBy": observation.classifier,
            "classificationTimestamp": classified,
            "classificationProbability": "" if probability is None else probability,
        }

    def _decision_row(self, decision: Decision, rows: Sequence[int], start: str, end: str) -> dict[str, object]:
        media = self.rows.media
        processed = decision.kind != "unclassified"
        identity = decision.event or self.media_ids[decision.key]
        probability = "" if decision.probability is None else round(decision.probability, 6)
        return {
            **_box_cells(decision.box),
            "observationID": self._new_id(identity, "machine"),
            "deploymentID": media["deployment"][rows[0]].as_py(),
            "mediaID": "" if decision.event else identity,
            "eventID": decision.event or media["sequence"][rows[0]].as_py(),
            "eventStart": start,
            "eventEnd": end,
            "observationLevel": "event" if decision.event else "media",
            "observationType": decision.kind,
            "scientificName": decision.taxon if decision.kind == "animal" else "",
            "count": "" if decision.count is None else decision.count,
            # An image that was not processed has no classification, and so neither method, name nor time of one.
            "classificationMethod": "machine" if processed else "",
            "classifiedBy": self.settings.classifier if processed else "",
            "classificationTimestamp": self.created if processed else "",
            "classificationProbability": probability if processed else "",
            "observationComments": format_comment(decision),
        }

    def _find_id(self, observation: Observation) -> str:
        """Return the id of a row; other formats may have none, or number the rows of each image."""
        if observation.id and observation.id not in self.ids:
            return observation.id
        return self._new_id(observation.id or observation.key or observation.event, "row")

    def _new_id(self, identity: str, kind: str) -> str:
        number = 1
        # Deterministic, so that a repeated export is equal; a free number where another row has the id.
        while (name := f"{identity}-{kind}-{number}") in self.ids:
            number += 1
        return name

    def _write_further(self) -> None:
        for row in self.rows.collection.dataset_table(FILES_TABLE).to_pylist():
            content = base64.b64decode(row["content"])
            if self._keep_further(row["path"], content.decode("utf-8", "replace")):
                path = _locate_further(row["path"], self.stage)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def _keep_further(self, name: str, text: str) -> bool:
        """Whether a further resource stays: one that seems to hold places is left out where places are rounded."""
        keep = self.settings.coordinate_digits == "recorded" or not _COORDINATES.search(text)
        if not keep and name not in self.left_out:
            self.left_out.add(name)
            self.export.notes.append(f"{name} left out: it seems to hold coordinates, which are not rounded there")
        return keep

    def _describe(self, deployments: Sequence[Mapping[str, object]], *, decided: bool) -> dict[str, Any]:
        source, settings = self.descriptor, self.settings
        title = settings.title or source.get("title") or self.rows.collection.name
        people = [
            {"title": name, "role": "contributor" if number else "contact"}
            for number, name in enumerate(settings.contributor)
        ]
        # The standard requires these fields of a project, and other formats do not state them.
        project = source.get("project") or {
            "title": title,
            "samplingDesign": settings.sampling_design,
            "captureMethod": ["activityDetection"],
            "individualAnimals": False,
        }
        levels = [level for level in LEVELS if level in self.levels]
        described = {
            **source,
            "resources": [*map(_resource, TABLES), *self._further_resources()],
            "profile": f"{URL}/camtrap-dp-profile.json",
            "created": self.created,
            "contributors": people or source.get("contributors") or [],
            "project": {**project, "observationLevel": levels or [*LEVELS]},
            # The dates of the first start and the last end, as written at the place.
            "temporal": {
                "start": min((str(row["deploymentStart"])[:10] for row in deployments), default=""),
                "end": max((str(row["deploymentEnd"])[:10] for row in deployments), default=""),
            },
            "taxonomic": self._taxonomic(),
        }
        if settings.title or "title" not in source:
            described["title"] = title
        if decided:
            tool = {"title": settings.classifier}
            # The tool is named once, even if the imported package was written with decisions of the same model.
            described["sources"] = [entry for entry in source.get("sources", ()) if entry != tool] + [tool]
        if settings.coordinate_digits != "recorded" or "spatial" not in source:
            # The source's own `spatial` encloses the places before they were rounded: it would publish them.
            described["spatial"] = _spatial(deployments)
        if isinstance(settings.coordinate_digits, int):
            described["coordinatePrecision"] = 10.0**-settings.coordinate_digits
        if settings.coordinate_digits == "drop":
            described = {
                key: value for key, value in described.items() if key not in ("spatial", "coordinatePrecision")
            }
        return described

    def _further_resources(self) -> list[Mapping[str, Any]]:
        further = []
        for resource in self.descriptor.get("resources", ()):
            paths = resource.get("path") or ()
            local = {path for path in ({paths} if isinstance(paths, str) else paths) if "://" not in path}
            inline = json.dumps(resource.get("data"), ensure_ascii=False)
            # A resource of several files stays whole or not at all.
            if resource["name"] not in TABLES and local <= self.files - self.left_out:
                if self._keep_further(resource["name"], inline):
                    further.append(resource)
        return further

    def _taxonomic(self) -> list[dict[str, Any]]:
        # The source's entries of taxa stay, in their order; new names follow.
        entries = [entry for entry in self.descriptor.get("taxonomic", ()) if entry["scientificName"] in self.taxa]
        known = {entry["scientificName"] for entry in entries}
        for name in sorted(set(self.taxa) - known):
            cells = {**self._look_up(name), **{key: value for key, value in self.taxa[name].items() if value}}
            entries.append({"scientificName": name, **cells})
        return entries

    def _look_up(self, name: str) -> dict[str, Any]:
        """Return what the taxonomy knows of a name, in the fields of the standard."""
        taxonomy = self.taxonomy
        index = taxonomy.find(name)
        if index < 0:
            return {}
        ranks = {taxonomy.ranks[i]: taxonomy.names[i] for i in taxonomy.lineage(index)[1:]}
        rank, identity, common = taxonomy.ranks[index], taxonomy.ids[index], taxonomy.common[index]
        # An id such as "genus:Vulpes" was made by the import, because its source had none.
        entry: dict[str, Any] = {"taxonID": "" if identity.startswith(f"{rank}:") else identity}
        entry |= {"taxonRank": rank if rank in RANKS else ""}
        entry |= {higher: ranks[higher] for higher in RANKS[:6] if higher in ranks}
        entry |= {"vernacularNames": {"eng": common} if common else {}}
        return {key: value for key, value in entry.items() if value}


def merge_descriptors(descriptors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the descriptor of several packages in one: the first's, with what the others list and it does not."""
    merged = dict(descriptors[0])
    for name, by in (("contributors", "title"), ("taxonomic", "scientificName"), ("resources", "name")):
        for descriptor in descriptors[1:]:
            # A contributor may have no title.
            known = {str(entry.get(by)) for entry in merged.get(name) or ()}
            merged[name] = [
                *(merged.get(name) or ()),
                *(entry for entry in descriptor.get(name) or () if str(entry.get(by)) not in known),
            ]
    precisions = {descriptor.get("coordinatePrecision") for descriptor in descriptors}
    if len(precisions) > 1:
        # Each precision holds for some of the places; subtracting its share of the uncertainty would be wrong for the
        # others.
        merged.pop("coordinatePrecision", None)
    return merged


def _resource(name: str) -> dict[str, str]:
    return {
        "name": name,
        "path": f"{name}.csv",
        "profile": "tabular-data-resource",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "schema": f"{URL}/{name}-table-schema.json",
    }


def _locate_further(name: str, stage: Path) -> Path:
    """Return where a further resource is written.

    Raises:
        UserError: that is outside of the package, or one of its own files.
    """
    location = locate_file(name, stage)
    # Collections from elsewhere may contain any path, and some file systems ignore case.
    if isinstance(location, Problem) or PurePosixPath(location[0]).parts[0].lower() in _OWN_FILES:
        expected = f"a path below the package other than {', '.join(_OWN_FILES)}"
        raise UserError(f"{FILES_TABLE}.parquet: path {name!r:.200} cannot be written; expected {expected}")
    return location[1]


def _spatial(deployments: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """Return the GeoJSON box around all deployments, a point where they are at one place."""
    placed = [row for row in deployments if row["latitude"] != "" and row["longitude"] != ""]
    if not placed:
        return {}
    longitudes, latitudes = ([float(str(row[name])) for row in placed] for name in ("longitude", "latitude"))
    west, east, south, north = min(longitudes), max(longitudes), min(latitudes), max(latitudes)
    if (west, south) == (east, north):
        return {"type": "Point", "coordinates": [west, south]}
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _box_cells(box: Box | None) -> dict[str, object]:
    if box is None:
        return {}
    # Twelve digits: a width as the difference of two corners is 0.19999999999999996 where it was 0.2.
    values = (box.x1, box.y1, box.width, box.height)
    return {name: float(f"{value:.12g}") for name, value in zip(BOX_COLUMNS, values, strict=True)}


def _group_rows(violations: Iterable[Violation]) -> list[Violation]:
    """Keep the first violation of each column, with the number of further rows."""
    columns: dict[tuple[str, str], list[Violation]] = defaultdict(list)
    for violation in violations:
        columns[violation.file, violation.field].append(violation)
    return [replace(rows[0], others=sum(1 + row.others for row in rows) - 1) for rows in columns.values()]


def _complete_time(text: str, deployment: Deployment, *, second: int) -> str:
    """Return a start or end with the stated offset from UTC; a mere date gets this second of the day."""
    if is_valid_time(text):
        return text
    times = parse_times([text])
    if times.status_N[0] not in (TimeStatus.OK, TimeStatus.DATE_ONLY):
        return text
    offset = stated_offset(deployment) if np.isnan(times.offset_N[0]) else float(times.offset_N[0])
    wall = times.wall_N[0] if times.status_N[0] == TimeStatus.OK else times.midnight_N[0] + second
    return text if np.isnan(offset) else format_time(float(wall), offset)


def _complete_event_time(text: str, deployment: Deployment) -> str:
    """Return the time of an event by the shifted clock, in whole seconds and with the stated offset from UTC."""
    if is_valid_time(text) and not deployment.clock_shift:
        return text
    try:
        # `parse_times` is slow for a single text. The import has checked that this one is ISO 8601.
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    offset = stated_offset(deployment)
    if moment.tzinfo is None and not np.isnan(offset):
        moment = moment.replace(tzinfo=timezone(timedelta(seconds=offset)))
    return (moment + timedelta(seconds=deployment.clock_shift)).isoformat(timespec="seconds")


def _clean_path(medium: Medium, format: str) -> str:
    """Return the path of a medium as the standard allows it: forward slashes, below the package."""
    path = re.sub(r"^([A-Za-z]:)?[/.~]+", "", medium.file.replace("\\", "/"))
    return path if path and ".." not in path else f"{medium.key}.{SUFFIXES.get(format, 'jpg')}"
