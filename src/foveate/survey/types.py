"""Rows of a camera-trap survey: deployments, images (media) and observations, in the terms of Camtrap DP 1.0.2.

Times are stored as their source writes them; `foveate.survey.hours` interprets them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from foveate.core.errors import UserError
from foveate.records.boxes import Box

Level = Literal["media", "event"]
LEVELS: tuple[str, ...] = get_args(Level)
ObservationKind = Literal["animal", "human", "vehicle", "blank", "unknown", "unclassified"]
KINDS: tuple[str, ...] = get_args(ObservationKind)
# Integer columns have no nulls (`foveate.records.tables`), and 0 is a frame number and, elsewhere, a count.
_NONE = -1
_MAX_INTEGER = 2**31 - 1  # limit of the integer columns
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A camera at one place for one period.

    Args:
        location: its name; deployments of one location share a camera for splits.
        latitude, longitude: degrees (WGS 84); None where unknown.
        start, end: as written.
        utc_offset: the offset of the place as the user states it, such as "+02:00"; "" where not stated.
        clock_shift: seconds that are added to every time of the camera.
        timestamp_issues: the clock cannot be trusted: images have no hour.
        uncertainty: of the coordinates, in meters.
        extra: further fields of the source.

    Example:
        >>> Deployment("oak-2024", location="oak", latitude=51.123, longitude=4.5, utc_offset="+02:00").camera
        'oak'
    """

    id: str
    location: str = ""
    latitude: float | None = None
    longitude: float | None = None
    start: str = ""
    end: str = ""
    utc_offset: str = ""
    clock_shift: int = 0
    timestamp_issues: bool = False
    uncertainty: float | None = None
    habitat: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def camera(self) -> str:
        """Name by which images are split: the location, or else the deployment."""
        return self.location or self.id

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the deployment of a row of the dataset table `deployments`."""
        texts = {name: row[name] for name in ("id", "start", "end", "utc_offset", "habitat")}
        degrees = {name: row[name] for name in ("latitude", "longitude", "uncertainty")}
        flags = {"clock_shift": row["clock_shift"], "timestamp_issues": row["timestamp_issues"]}
        # The column keeps the name that it had in 0.1.0.
        return cls(location=row["place"], **texts, **degrees, **flags, extra=_decode(row["extra"]))


@dataclass(frozen=True, slots=True)
class Medium:
    """One image of a survey.

    Args:
        key: of the image in the collection.
        deployment: id of its deployment.
        sequence: id of its burst; "" where the source has none.
        frame_number: position in the burst.
        time: as written.
        file: path as the source spells it.
        extra: further fields of the source.
    """

    key: str
    deployment: str
    sequence: str = ""
    frame_number: int | None = None
    time: str = ""
    file: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the medium of a row of the annotation table `media`."""
        texts = {name: row[name] for name in ("key", "deployment", "sequence", "time", "file")}
        return cls(**texts, frame_number=_integer(row["frame_number"]), extra=_decode(row["extra"]))


@dataclass(frozen=True, slots=True)
class Observation:
    """Observation of a person or a machine on an image or in an event.

    Args:
        key: of the image; "" for a row about an event.
        event: id of the event; "" where the source has none.
        taxon: scientific name, of any rank.
        count: of individuals, at least 1.
        method: "human" or "machine"; "" where not stated.
        probability: of the taxon, by a machine, in [0, 1].
        extra: further fields of the source.
    """

    id: str
    deployment: str
    key: str = ""
    event: str = ""
    level: Level = "media"
    kind: ObservationKind = "unknown"
    taxon: str = ""
    taxon_id: str = ""
    count: int | None = None
    box: Box | None = None
    method: str = ""
    classifier: str = ""
    classified_at: str = ""
    probability: float | None = None
    event_start: str = ""
    event_end: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the observation of a row of `observations`, or of the dataset table `event_observations`."""
        names = ("id", "deployment", "event", "level", "kind", "taxon", "taxon_id", "method", "classifier")
        values = {name: row[name] for name in (*names, "classified_at", "probability", "event_start", "event_end")}
        box = None if row["x1"] is None else Box(*(row[corner] for corner in _CORNERS))
        count, extra = _integer(row["count"]), _decode(row["extra"])
        # Rows about events have no column `key`.
        return cls(key=row.get("key") or "", **values, count=count, box=box, extra=extra)


def deployment_row(deployment: Deployment) -> dict[str, object]:
    """Return the row of a deployment for the dataset table `deployments`."""
    columns = {name: name for name in Deployment.__slots__ if name != "extra"} | {"location": "place"}
    return {
        **{column: getattr(deployment, name) for name, column in columns.items()},
        "extra": _encode(deployment.extra),
    }


def media_row(medium: Medium) -> dict[str, object]:
    """Return the row of an image for the annotation table `media`, without row id and provenance."""
    row: dict[str, object] = {name: getattr(medium, name) for name in ("key", "deployment", "sequence", "time", "file")}
    frame_number = _store_integer(medium.frame_number, f"image {medium.key!r}: frame number")
    return {**row, "frame_number": frame_number, "extra": _encode(medium.extra)}


def observation_row(observation: Observation) -> dict[str, object]:
    """Return the row of an observation, without row id and provenance.

    One with a key belongs to the annotation table `observations`, others to the dataset table `event_observations`,
    which has no column `key`.

    Raises:
        UserError: the count is beyond what a column holds.
    """
    left_out = ("key", "count", "box", "extra")
    row: dict[str, object] = {
        name: getattr(observation, name) for name in Observation.__slots__ if name not in left_out
    }
    box = observation.box
    row |= {corner: None if box is None else getattr(box, corner) for corner in _CORNERS}
    where = f"observation {observation.id!r} of {observation.key or observation.event!r}: count"
    row |= {"count": _store_integer(observation.count, where), "extra": _encode(observation.extra)}
    return {"key": observation.key, **row} if observation.key else row


def _store_integer(value: int | None, where: str) -> int:
    # Arrow would refuse it as well, but without naming the row.
    if value is not None and value > _MAX_INTEGER:
        raise UserError(f"{where}: out of range (got {value}); expected at most {_MAX_INTEGER}")
    return _NONE if value is None else value


def _integer(value: int) -> int | None:
    return None if value == _NONE else value


def _encode(extra: Mapping[str, str]) -> str:
    # Rows without extra fields get no text at all: most of 200,000 rows have none.
    return json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else ""


def _decode(text: str) -> dict[str, str]:
    return json.loads(text) if text else {}
