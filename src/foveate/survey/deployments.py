"""Deployments of a survey: read `deployments.csv`, and round coordinates for publication.

The table has a row per camera folder, with Camtrap DP's column names and three of our own. Cards without one have a
deployment per folder, and a first table is written for them that a person completes. What rounding costs is added to
the uncertainty of a place.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foveate.core.errors import UserError, nearest
from foveate.core.tables import csv_rows, read_rows
from foveate.records.images import BadImage, read_exif
from foveate.records.rows import clean_text
from foveate.survey.hours import TimeStatus, parse_offset, parse_times
from foveate.survey.types import Deployment

if TYPE_CHECKING:
    from foveate.survey.survey import Survey

TABLE = "deployments.csv"
OUR_COLUMNS = ("folder", "utc_offset", "clock_shift")
CAMTRAP_COLUMNS = (
    *("deploymentID", "locationID", "locationName", "latitude", "longitude", "coordinateUncertainty"),
    *("deploymentStart", "deploymentEnd", "setupBy", "cameraID", "cameraModel", "cameraDelay", "cameraHeight"),
    *("cameraDepth", "cameraTilt", "cameraHeading", "detectionDistance", "timestampIssues", "baitUse"),
    *("featureType", "habitat", "deploymentGroups", "deploymentTags", "deploymentComments"),
)
# Columns of a first table that help a person to complete it; they are not stored.
NOTES = ("images", "first_image", "last_image")
# Folders that cameras make on a card: DCIM, and below it those of the standard DCF, such as 100RECNX.
_CARD_FOLDER = re.compile(r"[1-9]\d\d(?P<free>[A-Z0-9_]{5})", re.IGNORECASE)
_SERIAL_NUMBER = 0xA431  # tag BodySerialNumber of EXIF
_FIELDS = ("deploymentID", "latitude", "longitude", "coordinateUncertainty", "deploymentStart", "deploymentEnd")
_MISSING = ("NA", "N/A", "NaN", "nan", "NULL", "null")
_TRUE, _FALSE = ("true", "t", "yes", "1"), ("false", "f", "no", "0")
_SHIFT = re.compile(r"(?P<sign>[+-]?)(?:(?P<seconds>\d+)|(?P<hours>\d+):(?P<minutes>[0-5]\d)(?::(?P<rest>[0-5]\d))?)")


@dataclass(frozen=True, slots=True)
class DeploymentTable:
    """Deployments of a table in its order, and the id of the deployment of each of its folders."""

    deployments: tuple[Deployment, ...]
    ids: dict[str, str] = field(default_factory=dict)


def read_deployments(path: str | Path) -> DeploymentTable:
    """Read a table of deployments, CSV, Parquet, Arrow or JSON Lines.

    Only `deploymentID` is required; COCO Camera Traps call it `location`. `folder` is the camera's folder, by default
    the id. `clock_shift` is added to every time: seconds, or hours and minutes as in -1:00. `utc_offset` states the
    offset of the place. Further columns are stored with the deployment.

    Raises:
        UserError: the table cannot be read; a column is misspelled; a cell, an id or a folder is impossible (file, row
            and column are named).

    Example:
        >>> [deployment.id for deployment in read_deployments(cards_folder / "deployments.csv").deployments]
        ['oak-1']
    """
    path = Path(path)
    rows, decimal_comma = _read_rows(path)
    deployments: dict[str, Deployment] = {}
    ids: dict[str, str] = {}
    first_rows: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}, row {number}"
        deployment = _read_row(row, where, decimal_comma=decimal_comma)
        if deployment.id in deployments:
            raise UserError(f"{where}, deploymentID: {deployment.id!r} is that of row {first_rows[deployment.id]}, too")
        folder = row.get("folder") or deployment.id
        # "." becomes "", the row for all folders that no other row takes.
        folder = "/".join(part for part in folder.replace("\\", "/").split("/") if part not in ("", "."))
        if folder in ids:
            raise UserError(f"{where}, folder: {folder!r} is that of deployment {ids[folder]!r}, too")
        deployments[deployment.id], ids[folder], first_rows[deployment.id] = deployment, deployment.id, number
    if not deployments:
        raise UserError(f"{path} has no rows; expected one per camera folder")
    return DeploymentTable(tuple(deployments.values()), ids)


def _read_rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], bool]:
    """Return the rows with their line numbers, and whether numbers may have a decimal comma."""
    try:
        table = read_rows(path)
    except UserError as error:
        if path.is_file():
            raise
        raise UserError(f"--deployments: {error}") from error
    header = _match_columns([clean_text(name) for name in table.names], path)
    rows = []
    for number, cells in table.rows:
        cleaned = [clean_text(cell) for cell in cells]
        if any(cleaned):
            present = ["" if cell in _MISSING else cell for cell in cleaned]
            rows.append((number, dict(zip(header, present, strict=True))))
    # Where commas separate cells, they are not decimal commas.
    return rows, table.delimiter not in (",", "")


def _match_columns(header: list[str], path: Path) -> list[str]:
    """Return the header with known names in their spelling; case, blanks and underscores do not matter."""
    folded = {_fold(name): name for name in (*CAMTRAP_COLUMNS, *OUR_COLUMNS, *NOTES)}
    names = [folded.get(_fold(name), name) for name in header]
    if "deploymentID" not in names:
        names = ["deploymentID" if _fold(name) == "location" else name for name in names]
    if doubled := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"{path}: column {doubled[0]!r} occurs twice")
    missing = [name for name in folded.values() if name not in names]
    for name in names:
        # A misspelled column would be stored and have no effect, and its coordinates would be lost.
        if name not in folded.values() and (hint := nearest(name, missing)):
            raise UserError(f"{path}: unknown column {name!r}{hint} Rename it, or give it another name if it is new")
    if "deploymentID" not in names:
        listed = ", ".join(header[:30])
        raise UserError(f"{path} has no column 'deploymentID' (got {listed}); its rows are the camera folders")
    return names


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _read_row(row: Mapping[str, str], where: str, *, decimal_comma: bool) -> Deployment:
    def read(column: str, convert: Callable[[str], Any], expected: str) -> Any:
        text = row.get(column, "")
        try:
            return convert(text) if text else None
        except ValueError as error:
            # Errors end in logs, where coordinates must not be.
            problem = "not a number" if column in ("latitude", "longitude") else repr(text[:40])
            raise UserError(f"{where}, {column}: {problem}; expected {expected}") from error

    def number(text: str) -> float:
        value = float(text.replace(",", ".") if decimal_comma else text)
        # float() reads "inf" and "infinity", too.
        if not math.isfinite(value):
            raise ValueError(text)
        return value

    if not row["deploymentID"]:
        raise UserError(f"{where}, deploymentID: is empty; expected a name for the deployment")
    latitude = read("latitude", number, "degrees from -90 to 90, such as 51.496")
    longitude = read("longitude", number, "degrees from -180 to 180, such as 4.774")
    if latitude is not None and abs(latitude) > 90:
        # Suggested only if the other number could be a latitude.
        swapped = longitude is not None and abs(longitude) <= 90
        hint = "; latitude and longitude may be swapped" if swapped else ""
        raise UserError(f"{where}, latitude: out of range; expected -90 to 90{hint}")
    if longitude is not None and abs(longitude) > 180:
        raise UserError(f"{where}, longitude: out of range; expected -180 to 180")
    uncertainty = read("coordinateUncertainty", number, "meters of at least 1")
    if uncertainty is not None and uncertainty < 1:
        raise UserError(f"{where}, coordinateUncertainty: {uncertainty:g}; expected meters of at least 1")
    for column in ("deploymentStart", "deploymentEnd"):
        text = row.get(column, "")
        if parse_times([text]).status_N[0] in (TimeStatus.UNREADABLE, TimeStatus.IMPOSSIBLE):
            raise UserError(f"{where}, {column}: {text[:40]!r}; expected a time as 2024-05-31 or 2024-05-31 08:30:00")
    offset = row.get("utc_offset", "")
    if offset:
        parse_offset(offset, where=f"{where}, utc_offset")
    return Deployment(
        row["deploymentID"],
        row.get("locationID") or row.get("locationName") or "",
        latitude,
        longitude,
        row.get("deploymentStart", ""),
        row.get("deploymentEnd", ""),
        offset,
        read("clock_shift", parse_shift, "seconds, or hours and minutes as -1:00") or 0,
        bool(read("timestampIssues", _parse_flag, "true or false")),
        uncertainty,
        row.get("habitat", ""),
        {name: text for name, text in row.items() if text and name not in (*_FIELDS, "habitat", *OUR_COLUMNS, *NOTES)},
    )


def derive_table(folders: Iterable[str], *, name: str) -> DeploymentTable:
    """Return the deployments of cards without a table: one per folder of a camera, named like it.

    DCIM and what lies below it belongs to the camera, and so do folders that only count on, such as 100RECNX and
    101RECNX.

    Args:
        folders: with images, below the source, with slashes; "." for the source.
        name: of the deployment of images that lie in no folder of a camera.

    >>> derive_table(["A/DCIM/100RECNX", "A/DCIM/101RECNX", "2026/B"], name="cards").ids
    {'2026/B': '2026-B', 'A': 'A'}
    """
    cameras = [_find_camera(folder) for folder in set(folders)]
    # Folders of one card have equal letters behind their numbers; 101CREEK and 102RIVER are two places.
    letters: dict[str, set[str]] = {}
    for parent, match in (_split_card_folder(camera) for camera in cameras):
        if match:
            letters.setdefault(parent, set()).add(match)
    named = set()
    for camera in cameras:
        parent, match = _split_card_folder(camera)
        named.add(parent if match and len(letters[parent]) == 1 else camera)
    joined = {folder: folder.replace("/", "-") or name for folder in sorted(named)}
    # Where a/b and a-b would be one name, each keeps its path.
    ids = {folder: text if list(joined.values()).count(text) == 1 else folder or "." for folder, text in joined.items()}
    return DeploymentTable(tuple(map(Deployment, ids.values())), ids)


def _find_camera(folder: str) -> str:
    parts = [part for part in PurePosixPath(folder).parts if part != "."]
    card = next((index for index, part in enumerate(parts) if part.upper() == "DCIM"), len(parts))
    return "/".join(parts[:card])


def _split_card_folder(folder: str) -> tuple[str, str]:
    """Return the folder above one that a camera has counted and its five free letters; "" for other folders."""
    parent, _, last = folder.rpartition("/")
    match = _CARD_FOLDER.fullmatch(last)
    return (parent, match["free"].upper()) if match else (folder, "")


def write_first_table(survey: Survey, path: Path) -> Path:
    """Write a table with a row per deployment of a survey, to be completed and read by `read_deployments`; return it.

    What is known is filled in. Further columns tell the number of images, and the times of the first and last one as
    the camera has them: they are no start and end of the deployment, because clocks may be wrong.

    Raises:
        UserError: the file exists: a person may have completed it.
    """
    if path.exists():
        raise UserError(f"{path} exists; expected a new file, since that one may have been completed")
    files = survey.media["file"].to_pylist()
    header = ("deploymentID", "folder", "locationID", "latitude", "longitude", "deploymentStart", "deploymentEnd")
    header = (*header, "cameraID", "utc_offset", "clock_shift", *NOTES)
    rows: list[list[str]] = []
    for index, entry in enumerate(survey.deployments):
        images = np.flatnonzero(survey.deployment_N == index).tolist()
        folders = {_find_camera(PurePosixPath(files[row].replace("\\", "/")).parent.as_posix()) for row in images}
        clock = survey.unmasked_clock_N[images]
        clock = clock[~np.isnan(clock)]
        times = [_format_time(clock.min()), _format_time(clock.max())] if len(clock) else ["", ""]
        # The serial number of one image is enough: cards with images of several cameras are rare, and have one folder.
        serial = entry.extra.get("cameraID") or (_read_serial(survey, images[0]) if images else "")
        known = (entry.location, entry.latitude, entry.longitude, entry.start, entry.end, serial, entry.utc_offset)
        texts = ["" if value is None else str(value) for value in (*known, entry.clock_shift or "")]
        # "." is the row of all images that are in no other row's folder.
        folder = posixpath.commonpath(folders) or "." if images else ""
        rows.append([entry.id, folder, *texts, str(len(images)), *times])
    with csv_rows(path, header) as writer:
        writer.writerows(dict(zip(header, row, strict=True)) for row in rows)
    return path


def _format_time(seconds: float) -> str:
    return str(np.datetime64(int(seconds // 1), "s")).replace("T", " ")


def _read_serial(survey: Survey, row: int) -> str:
    # A package without its images has rows alone.
    if row >= len(survey.collection):
        return ""
    try:
        value = read_exif(survey.collection.image_bytes(row)).get(_SERIAL_NUMBER)
    except BadImage:
        return ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return clean_text(text.split("\0")[0])[:64] if isinstance(text, str) else ""


def parse_shift(text: str) -> int:
    """Return seconds from "3600", "-1:00" or "+12:00:30".

    Raises:
        ValueError: it is none of these.
    """
    # Text copied from a document may have the typographic minus sign.
    match = _SHIFT.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if match is None:
        raise ValueError(text)
    seconds = int(match["seconds"] or 0)
    seconds += int(match["hours"] or 0) * 3600 + int(match["minutes"] or 0) * 60 + int(match["rest"] or 0)
    # A shift of thousands of years is a typing error, and the arithmetic of dates ends there.
    if seconds > 100 * 366 * 86_400:
        raise ValueError(text)
    return -seconds if match["sign"] == "-" else seconds


def _parse_flag(text: str) -> bool:
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    raise ValueError(text)


Digits = Literal[1, 2, 3]
Rule = Literal["camtrapdp", "conservative"]
GPS_UNCERTAINTY = 30.0  # meters, assumed where none is recorded
# Largest error by rounding to 1, 2 and 3 digits, in meters, from a latitude on. A degree of longitude shrinks towards
# the poles.
_BANDS: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (85, (11211, 1121, 112)),
    (60, (12461, 1246, 125)),
    (30, (14697, 1470, 147)),
    (0, (15691, 1570, 157)),
)


@dataclass(frozen=True, slots=True)
class RoundedPlace:
    """A rounded place in degrees, its uncertainty in meters, and the precision in degrees."""

    latitude: float
    longitude: float
    uncertainty: float
    precision: float


def round_place(
    latitude: float,
    longitude: float,
    *,
    digits: Digits,
    uncertainty: float | None = None,
    precision: float | None = None,
    rule: Rule = "camtrapdp",
) -> RoundedPlace:
    """Round one place.

    Args:
        digits: decimals to keep: 1 (about 10 km), 2 (1 km) or 3 (100 m).
        uncertainty: recorded, in meters; 30 is assumed where there is none.
        precision: recorded `coordinatePrecision` in degrees. What an earlier rounding added is subtracted first.
        rule: "camtrapdp" adds by latitude; "conservative" adds the values of the equator everywhere.

    Raises:
        UserError: the place is recorded with as few digits already.

    Source: `round_coordinates()` of the R package camtrapdp 0.6.0; Chapman and Wieczorek 2020, table 3.
    """
    if precision is not None and not 0 < precision < math.inf:
        raise UserError(f"coordinatePrecision must be above 0 (got {precision:g})")
    # The logarithm of a power of ten may be off in its last bit.
    if precision is not None and digits >= -math.log10(precision) - 1e-9:
        raise UserError(f"coordinates: coordinatePrecision is {precision:g} already (got {digits} digits); use fewer")
    # By the latitude before rounding: 59.9999 is written as 60.0 and lies below it.
    start = 0.0 if rule == "conservative" else abs(latitude)
    added = next(errors for band, errors in _BANDS if start >= band)
    total = (GPS_UNCERTAINTY if uncertainty is None else uncertainty) + added[digits - 1]
    if uncertainty is not None and precision is not None:
        recorded_digits = round(-math.log10(precision))
        total -= added[recorded_digits - 1] if recorded_digits <= len(added) else 0
    # + 0.0: rounding makes -0.0 of -0.001, which would be printed.
    return RoundedPlace(round(latitude, digits) + 0.0, round(longitude, digits) + 0.0, total, 10.0**-digits)


def describe_digits(deployments: Sequence[Deployment]) -> str:
    """Say with how many decimals the places of deployments are recorded, without a place.

    >>> describe_digits([Deployment("oak", latitude=51.12345, longitude=4.5), Deployment("creek")])
    'places of 1 of 2 deployments are recorded, with 5 decimals (about 1 m)'
    """
    placed = [entry for entry in deployments if entry.latitude is not None and entry.longitude is not None]
    if not placed:
        return f"none of {len(deployments)} deployments has a place"
    digits = max(
        _decimals(value) for entry in placed for value in (entry.latitude, entry.longitude) if value is not None
    )
    # A degree of latitude is 111 km.
    meters = 111_000 / 10**digits
    size = f"{meters / 1000:.0f} km" if meters >= 1000 else f"{max(meters, 1):.0f} m"
    return (
        f"places of {len(placed)} of {len(deployments)} deployments are recorded, with {digits} decimals (about {size})"
    )


def state_offsets(deployments: Mapping[str, Deployment], offsets: Sequence[str]) -> dict[str, Deployment]:
    """Return the deployments with an offset from UTC where they state none.

    Args:
        offsets: "+02:00" for all, or "DEPLOYMENT=+02:00", which goes before it.

    Raises:
        UserError: a text is no offset, or no deployment has that name.
    """
    general, named = "", {}
    for text in offsets:
        # Split from the right: an id may hold "=" itself, an offset never does.
        name, _, offset = text.rpartition("=")
        parse_offset(offset, where="utc_offset")
        if not name:
            general = offset
        elif name in deployments:
            named[name] = offset
        else:
            raise UserError(f"utc_offset: no deployment {name!r}{nearest(name, deployments)}")
    return {
        name: replace(entry, utc_offset=entry.utc_offset or named.get(name, general))
        for name, entry in deployments.items()
    }


def round_deployments(
    deployments: Sequence[Deployment],
    *,
    digits: Digits | Literal["drop"],
    precision: float | None = None,
    rule: Rule = "camtrapdp",
) -> list[Deployment]:
    """Return the deployments with coordinates rounded or dropped; those without a place stay.

    Args:
        digits, precision, rule: see `round_place`; "drop" removes coordinates and uncertainty.

    Raises:
        UserError: the coordinates have as few digits already.

    Example:
        >>> [rounded] = round_deployments([Deployment("oak-2024", latitude=51.12345, longitude=4.51234)], digits=2)
        >>> rounded.latitude, rounded.longitude, rounded.uncertainty
        (51.12, 4.51, 1500.0)
    """
    if digits == "drop":
        return [replace(entry, latitude=None, longitude=None, uncertainty=None) for entry in deployments]
    latitudes = [entry.latitude for entry in deployments if entry.latitude is not None]
    recorded_digits = max((_decimals(latitude) for latitude in latitudes), default=0)
    if precision is None and latitudes and recorded_digits <= digits:
        raise UserError(f"coordinates: no latitude has more than {recorded_digits} decimals (got {digits} digits)")
    rounded = []
    for entry in deployments:
        if entry.latitude is None or entry.longitude is None:
            rounded.append(entry)
            continue
        options = {"uncertainty": entry.uncertainty, "precision": precision}
        result = round_place(entry.latitude, entry.longitude, digits=digits, rule=rule, **options)
        values = {"latitude": result.latitude, "longitude": result.longitude, "uncertainty": result.uncertainty}
        rounded.append(replace(entry, **values))
    return rounded


def _decimals(value: float) -> int:
    # The shortest text of a float has the decimals that were written; its binary value has dozens of them.
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
