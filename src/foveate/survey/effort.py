"""Tables that follow from a survey: independent records, trap nights, abundance index, activity, detection history.

A record is an animal's taxon on one image, at a station: the place of a deployment, or else the deployment. Images
whose clock is doubtful have no time, so they make no record; they are counted. The tables have the columns that the R
packages camtrapR (`recordTable`, `cameraOperation`) and unmarked (`unmarkedFrameOccu`) read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.core.tables import csv_rows
from foveate.survey.detections import Decision
from foveate.survey.exporters.survey_rows import MergedObservations, SurveyRows, list_image_labels
from foveate.survey.hours import DAY, format_day, hours_of_day
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate.survey.videos import find_video

ComparedTo = Literal["lastIndependentRecord", "lastRecord"]
_NIGHTS = 100  # of the index
_MISSING = "NA"  # as R reads it
_DECIDED = "\x1fdecision"  # marks labels of decisions; no classifier has this name
_RECORD_COLUMNS = ("Station", "Species", "DateTimeOriginal", "Date", "Time", "delta.time.secs", "Directory", "FileName")
_EFFORT_COLUMNS = ("deployment", "Station", "Setup_date", "Retrieval_date", "nights", "dates", "images", "records")
_INDEX_COLUMNS = ("taxon", "rank", "records", "stations", "nights", "rai", "naive_occupancy")


@dataclass(frozen=True, slots=True)
class Records:
    """Animals on images, in the order of station, taxon and time.

    Attributes:
        stations_R, taxa_R: names. rows_R: of the images in the survey. times_R: seconds of the local clock.
        ranks: of each taxon, "" where unknown.
        without_time: animals on images without a time that can be trusted.
    """

    stations_R: NDArray[np.object_]
    taxa_R: NDArray[np.object_]
    rows_R: NDArray[np.int64]
    times_R: NDArray[np.float64]
    ranks: Mapping[str, str] = field(default_factory=dict)
    without_time: int = 0


def read_records(
    survey: Survey,
    *,
    decisions: Sequence[Decision] | None = None,
    events: Mapping[str, Sequence[str]] | None = None,
    taxa: Taxa | None = None,
) -> Records:
    """Return the records of a survey: what people say, and where they say nothing, what machines do.

    Several rows about one taxon on one image are one record. An animal without a taxon is "animal".

    Args:
        survey: opened with `without_images`, so that images at addresses count, too.
        decisions, events: see `export_observations_csv`.
        taxa: for the ranks; by default the collection's.

    Example:
        >>> len(read_records(Survey.open(survey_folder)).taxa_R)
        48
    """
    rows = SurveyRows(survey.collection)
    merged = MergedObservations(rows, decisions, events)
    keys, position = list(rows.keys), {key: row for row, key in enumerate(survey.keys)}
    by_people, by_machines = defaultdict[int, set[str]](set), defaultdict[int, set[str]](set)
    ranks: dict[str, str] = {}
    for label in list_image_labels(merged, taxa=taxa, classifier=_DECIDED):
        row = position[keys[label.row]]
        # A row that does not say who made it counts as a person's.
        is_machine = label.source == "machine" or label.classifier == _DECIDED
        named = (by_machines if is_machine else by_people)[row]
        if label.kind == "animal":
            named.add(label.taxon or "animal")
            ranks[label.taxon or "animal"] = label.rank
    entries = [(row, name) for row, names in by_people.items() for name in names]
    entries += [(row, name) for row, names in by_machines.items() if row not in by_people for name in names]
    timed = [(row, name) for row, name in entries if not np.isnan(survey.clock_N[row])]
    stations = [str(survey.camera_N[row]) for row, _ in timed]
    times = [float(survey.clock_N[row]) for row, _ in timed]
    order = sorted(range(len(timed)), key=lambda index: (stations[index], timed[index][1], times[index], timed[index]))
    return Records(
        np.array([stations[index] for index in order], dtype=object),
        np.array([timed[index][1] for index in order], dtype=object),
        np.array([timed[index][0] for index in order], dtype=np.int64),
        np.array([times[index] for index in order], dtype=np.float64),
        ranks,
        len(entries) - len(timed),
    )


def filter_independent(
    times_R: NDArray[np.float64],
    groups_R: NDArray[np.int64],
    *,
    minutes: float,
    compared_to: ComparedTo = "lastIndependentRecord",
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which records (R,) are independent, and the seconds to the record that each was compared with.

    The first record of a group is independent, with 0 seconds; a later one is if it comes at least `minutes` after the
    last independent record of the group, or after its last record. Records of one second count once.

    Args:
        times_R: seconds, in ascending order within a group.
        groups_R: number of each record's station and taxon, ascending.

    Source: `recordTable` of the R package camtrapR, arguments minDeltaTime, deltaTimeComparedTo and
        removeDuplicateRecords.

    >>> mask, seconds = filter_independent(np.array([0.0, 1200, 2400]), np.zeros(3, np.int64), minutes=30)
    >>> mask.tolist(), seconds.tolist()
    ([True, False, True], [0.0, 1200.0, 2400.0])
    """
    choose(compared_to, get_args(ComparedTo), "compared_to")
    independent_R, seconds_R = np.zeros(len(times_R), np.bool_), np.zeros(len(times_R))
    last = 0.0
    for index, time in enumerate(times_R.tolist()):
        is_first = index == 0 or groups_R[index] != groups_R[index - 1]
        seconds_R[index] = 0.0 if is_first else time - last
        is_copy = not is_first and time == times_R[index - 1]
        independent_R[index] = is_first or (seconds_R[index] >= minutes * 60 and not is_copy)
        if independent_R[index] or compared_to == "lastRecord":
            last = time
    return independent_R, seconds_R


def find_dates(survey: Survey) -> tuple[NDArray[np.float64], list[str]]:
    """Return first and last day (D, 2) of each deployment since 1970, and where each pair comes from.

    The days are "stated" by deploymentStart and deploymentEnd; a missing one is that of the first or last image with a
    time that can be trusted ("images"); NaN and "" where there is neither.
    """
    # A mere end date ends its day in `bounds_D2`; one second less is within it.
    days_D2 = np.floor((survey.bounds_D2 - np.array([0, 1])) / DAY)
    sources = ["stated"] * len(days_D2)
    for index in np.flatnonzero(np.isnan(days_D2).any(axis=1)).tolist():
        clock = survey.clock_N[survey.deployment_N == index]
        clock = clock[~np.isnan(clock)]
        seen = np.floor(np.array([clock.min(), clock.max()]) / DAY) if len(clock) else np.full(2, np.nan)
        days_D2[index] = np.where(np.isnan(days_D2[index]), seen, days_D2[index])
        sources[index] = "" if np.isnan(days_D2[index]).any() else "images"
    return days_D2, sources


def count_nights(days_D2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nights (D,) between first and last day; NaN where a day is unknown.

    Raises:
        UserError: a deployment ends before it begins.
    """
    nights_D = days_D2[:, 1] - days_D2[:, 0]
    if (nights_D < 0).any():
        raise UserError(f"deployment {int(np.flatnonzero(nights_D < 0)[0]) + 1} of the table ends before it begins")
    return nights_D


def relative_abundance(records: int, nights: float) -> float:
    """Return independent records per 100 trap nights; NaN without a night.

    It compares one species between places or years, if it is detected equally well; it is no density.

    Source: O'Brien, Kinnaird and Wibisono 2003, Animal Conservation 6, 131-139.

    >>> relative_abundance(3, 120)
    2.5
    """
    return _NIGHTS * records / nights if nights > 0 else float("nan")


def count_active_days(days_D2: NDArray[np.float64], occasions: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    """Return the days (D, O) on which each deployment was active in each occasion, its first and last day included.

    Args:
        days_D2: first and last day of each deployment. occasions: first day of each. length: days of an occasion.
    """
    starts_DO = np.maximum(days_D2[:, :1], occasions[None])
    ends_DO = np.minimum(days_D2[:, 1:], occasions[None] + length - 1)
    return np.clip(np.nan_to_num(ends_DO - starts_DO + 1), 0, None).astype(np.int64)


@dataclass(frozen=True, slots=True)
class EffortResult:
    """Counts of `write_effort`, which returns one.

    Attributes:
        records: animals on images with a time. independent: those that `filter_independent` keeps.
        without_time: animals on images without a time that can be trusted.
        nights: of all deployments. undated: deployments without dates and images, or with images alone.
        index: rows of the abundance index, most records first.
        tables: name -> path.
    """

    records: int
    independent: int
    without_time: int
    stations: int
    nights: float
    undated: list[str]
    index: list[dict[str, Any]]
    tables: dict[str, Path]

    def lines(self) -> list[str]:
        """Format the result for a terminal."""
        lines = [
            f"{self.independent:,} independent of {self.records:,} records at {self.stations} stations in "
            f"{self.nights:,.0f} trap nights",
            *(f"  {row['taxon']}: {row['records']} records, {row['rai']} per 100 nights" for row in self.index[:20]),
        ]
        if self.without_time:
            lines.append(f"{self.without_time:,} records left out: their images have no time that can be trusted")
        if self.undated:
            listed = ", ".join(self.undated[:5])
            lines.append(f"{len(self.undated)} deployments without start or end, dated by their images: {listed}")
        return lines


def write_effort(
    survey: Survey,
    records: Records,
    folder: Path,
    *,
    minutes: float = 30.0,
    compared_to: ComparedTo = "lastIndependentRecord",
    occasion_days: int = 7,
) -> EffortResult:
    """Write records.csv, effort.csv, abundance.csv, activity.csv and detections/ into a folder.

    Args:
        minutes, compared_to: see `filter_independent`.
        occasion_days: days of an occasion of the detection histories; the first begins with the survey.

    Raises:
        UserError: no deployment has a date, or one ends before it begins.

    Example:
        >>> survey = Survey.open(survey_folder)
        >>> result = write_effort(survey, read_records(survey), new_folder)
        >>> result.nights, result.tables["effort"].name
        (60.0, 'effort.csv')
    """
    days_D2, sources = find_dates(survey)
    nights_D = count_nights(days_D2)
    if np.isnan(nights_D).all():
        raise UserError("no deployment has dates or images with a time; state deploymentStart and deploymentEnd")
    names = [f"{station}\x1f{taxon}" for station, taxon in zip(records.stations_R, records.taxa_R, strict=True)]
    groups_R = np.unique(names, return_inverse=True)[1].astype(np.int64) if names else np.zeros(0, np.int64)
    mask_R, seconds_R = filter_independent(records.times_R, groups_R, minutes=minutes, compared_to=compared_to)
    stations = sorted({entry.camera for entry, nights in zip(survey.deployments, nights_D, strict=True) if nights >= 0})
    total = float(np.nansum(nights_D))
    kept = np.flatnonzero(mask_R)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: folder / f"{name}.csv" for name in ("records", "effort", "abundance", "activity")}
    _write_records(tables["records"], survey, records, kept, seconds_R)
    _write_effort(tables["effort"], survey, records, kept, days_D2, nights_D, sources)
    index = _index_taxa(records, kept, stations, total)
    _write(tables["abundance"], _INDEX_COLUMNS, index)
    _write_activity(tables["activity"], records, kept)
    tables |= _write_histories(folder / "detections", survey, records, days_D2, stations, occasion_days)
    undated = [entry.id for entry, source in zip(survey.deployments, sources, strict=True) if source != "stated"]
    return EffortResult(len(names), len(kept), records.without_time, len(stations), total, undated, index, tables)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with csv_rows(path, columns) as writer:
        writer.writerows(rows)


def _write_records(
    path: Path, survey: Survey, records: Records, kept: NDArray[np.int64], seconds_R: NDArray[np.float64]
) -> None:
    files, rows = survey.media["file"].to_pylist(), []
    for index in kept.tolist():
        row = int(records.rows_R[index])
        date, _, clock = str(np.datetime64(int(records.times_R[index] // 1), "s")).partition("T")
        file = (files[row] or survey.keys[row]).replace("\\", "/")
        values = (records.stations_R[index], records.taxa_R[index], f"{date} {clock}", date, clock)
        values = (*values, f"{seconds_R[index]:g}", *file.rpartition("/")[::2])
        rows.append(dict(zip(_RECORD_COLUMNS, values, strict=True)))
    _write(path, _RECORD_COLUMNS, rows)


def _write_effort(
    path: Path,
    survey: Survey,
    records: Records,
    kept: NDArray[np.int64],
    days_D2: NDArray[np.float64],
    nights_D: NDArray[np.float64],
    sources: Sequence[str],
) -> None:
    # A video is one medium, however many of its frames are images here.
    media = {find_video(key) or key: row for row, key in enumerate(survey.keys)}
    images_D = np.bincount(survey.deployment_N[[*media.values()]] + 1, minlength=len(survey.deployments) + 1)[1:]
    owners = survey.deployment_N[records.rows_R[kept]]
    records_D = np.bincount(owners + 1, minlength=len(survey.deployments) + 1)[1:]
    rows = []
    for index, entry in enumerate(survey.deployments):
        nights = _MISSING if np.isnan(nights_D[index]) else f"{nights_D[index]:.0f}"
        dates = [format_day(day) or _MISSING for day in days_D2[index]]
        counts = (nights, sources[index] or _MISSING, int(images_D[index]), int(records_D[index]))
        rows.append(dict(zip(_EFFORT_COLUMNS, (entry.id, entry.camera, *dates, *counts), strict=True)))
    _write(path, _EFFORT_COLUMNS, rows)


def _index_taxa(
    records: Records, kept: NDArray[np.int64], stations: Sequence[str], nights: float
) -> list[dict[str, Any]]:
    rows = []
    for taxon in sorted(set(records.taxa_R[kept].tolist())):
        mine = kept[records.taxa_R[kept] == taxon]
        seen = len(set(records.stations_R[mine].tolist()) & set(stations))
        index = relative_abundance(len(mine), nights)
        values = (taxon, records.ranks.get(taxon, ""), len(mine), seen, f"{nights:.0f}")
        values = (*values, _format(index), _format(seen / len(stations)))
        rows.append(dict(zip(_INDEX_COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: (-row["records"], row["taxon"]))


def _format(value: float) -> str:
    return _MISSING if np.isnan(value) else f"{value:.4g}"


def _write_activity(path: Path, records: Records, kept: NDArray[np.int64]) -> None:
    hours = [f"{hour:02}" for hour in range(24)]
    rows = []
    for taxon in sorted(set(records.taxa_R[kept].tolist())):
        times = records.times_R[kept[records.taxa_R[kept] == taxon]]
        counts = np.bincount(hours_of_day(times).astype(np.int64), minlength=24).tolist()
        rows.append({"taxon": taxon, **dict(zip(hours, counts, strict=True))})
    _write(path, ("taxon", *hours), rows)


def _write_histories(
    folder: Path, survey: Survey, records: Records, days_D2: NDArray[np.float64], stations: Sequence[str], length: int
) -> dict[str, Path]:
    """Write a table per taxon, and the active days of each occasion; return their paths.

    1: detected, 0: not, NA: no camera of the station was active. All records count, not only independent ones.
    """
    first, last = np.nanmin(days_D2[:, 0]), np.nanmax(days_D2[:, 1])
    occasions = np.arange(first, last + 1, length)
    cameras = np.array([entry.camera for entry in survey.deployments], dtype=object)
    active_DO = count_active_days(days_D2, occasions, length)
    active_SO = np.array([active_DO[cameras == station].sum(axis=0) for station in stations])
    columns = ["Station", *(f"o{number}" for number in range(1, len(occasions) + 1))]
    row_of = {station: row for row, station in enumerate(stations)}
    paths = {"detections/effort": folder / "effort.csv"}
    folder.mkdir(parents=True, exist_ok=True)
    effort = [[station, *map(str, active_SO[row].tolist())] for station, row in row_of.items()]
    _write(paths["detections/effort"], columns, [dict(zip(columns, line, strict=True)) for line in effort])
    for taxon in sorted(set(records.taxa_R.tolist())):
        seen_SO = np.zeros_like(active_SO, dtype=bool)
        for index in np.flatnonzero(records.taxa_R == taxon).tolist():
            occasion = int((records.times_R[index] // DAY - first) // length)
            station = row_of.get(str(records.stations_R[index]), -1)
            if station >= 0 and 0 <= occasion < len(occasions):
                seen_SO[station, occasion] = True
        lines = [
            [station, *(_MISSING if not days else str(int(seen)) for days, seen in zip(*pair, strict=True))]
            for station, pair in zip(stations, zip(active_SO.tolist(), seen_SO.tolist(), strict=True), strict=True)
        ]
        # A name of a taxon becomes a file: "Canis lupus (x)" -> Canis_lupus_x.
        name = re.sub(r"\W+", "_", taxon).strip("_") or "taxon"
        if name == "effort" or f"detections/{name}" in paths:
            name = f"{name}_{len(paths)}"
        paths[f"detections/{name}"] = folder / f"{name}.csv"
        _write(paths[f"detections/{name}"], columns, [dict(zip(columns, line, strict=True)) for line in lines])
    return paths
