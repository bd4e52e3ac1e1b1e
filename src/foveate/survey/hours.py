"""Read times of cameras, shift them, convert them to the hour at the place, find faults of clocks, and group events.

A time without an offset is the camera's clock as it was. It is converted only where its text carries an offset and the
user states the offset of the place; an offset is never guessed from coordinates, and daylight saving never applied.
Images of a clock with a fault have no hour until `clock_shift` is set.

An event has images of one deployment that follow each other closely, or that their source puts into one sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.survey.types import Deployment

DAY = 86_400
# Year first, as in EXIF ("2021:05:31 08:25:38"), ISO 8601 and CCT. Day first would be a guess: 04/05 is two dates.
_PATTERN = (
    r"^\s*(?P<year>\d{4})[-:/](?P<month>\d{1,2})[-:/](?P<day>\d{1,2})"
    r"(?P<clock>[T ]\s*(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9})\d*)?)?"
    r"\s*(?P<zone>[Zz]|(?P<sign>[+-])(?P<zone_hour>\d{2}):?(?P<zone_minute>\d{2})?)?)?\s*$"
)
_OFFSET = re.compile(r"(?P<sign>[+-])(?P<hour>\d{1,2})(?::?(?P<minute>\d{2}))?")
_MAX_OFFSET = 14 * 3600  # Kiribati, the farthest east


class TimeStatus(IntEnum):
    """Status of a time's text: usable, empty, a mere date, no time, or a date or hour that does not exist."""

    OK = 0
    EMPTY = 1
    DATE_ONLY = 2
    UNREADABLE = 3
    IMPOSSIBLE = 4


@dataclass(frozen=True, slots=True)
class Times:
    """Times of N images as written, in columns.

    Args:
        wall_N: float64 seconds of the written clock since 1970 (as if it were UTC); NaN unless the status is OK.
        offset_N: float64 seconds east of UTC; NaN where the text has none.
        is_utc_N: the text ends in Z.
        status_N: `TimeStatus` of each text.
        midnight_N: float64 seconds of the beginning of the day, also of a date alone; NaN where there is no date.
    """

    wall_N: NDArray[np.float64]
    offset_N: NDArray[np.float64]
    is_utc_N: NDArray[np.bool_]
    status_N: NDArray[np.int8]
    midnight_N: NDArray[np.float64]


def parse_times(texts: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> Times:
    """Parse times with the year first: EXIF, ISO 8601, with or without fractions of seconds and offset.

    All rows at once: 200,000 texts take about half a second and no Python object each.
    """
    column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.string())
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.cast(pa.string()).fill_null("")
    groups = pc.call_function("extract_regex", [column], pc.ExtractRegexOptions(_PATTERN))
    matched_N = groups.is_valid().to_numpy(zero_copy_only=False)
    parts = {
        name: _to_integers(groups.field(name))
        for name in ("year", "month", "day", "hour", "minute", "second", "zone_hour", "zone_minute")
    }
    clock_N = matched_N & _filled(groups.field("clock"))
    days_N, exists_N = _days(parts["year"], parts["month"], parts["day"])
    in_day_N = (parts["hour"] < 24) & (parts["minute"] < 60) & (parts["second"] < 60)
    sign_N = np.where(_equals(groups.field("sign"), "-"), -1.0, 1.0)
    offset_N = sign_N * (parts["zone_hour"] * 3600 + parts["zone_minute"] * 60)
    zone_exists_N = (np.abs(offset_N) <= _MAX_OFFSET) & (parts["zone_minute"] < 60)
    has_zone_N = matched_N & _filled(groups.field("zone"))
    usable_N = clock_N & exists_N & in_day_N & zone_exists_N
    wall_N = days_N * DAY + parts["hour"] * 3600.0 + parts["minute"] * 60 + parts["second"]
    wall_N += _fraction(groups.field("fraction"))
    # Go from the weakest claim to the strongest: each line overrules those before it.
    status_N = np.full(len(column), TimeStatus.UNREADABLE, np.int8)
    status_N[matched_N] = TimeStatus.IMPOSSIBLE
    status_N[matched_N & exists_N & ~clock_N] = TimeStatus.DATE_ONLY
    status_N[usable_N] = TimeStatus.OK
    blank = pc.call_function("equal", [pc.call_function("utf8_trim_whitespace", [column]), pa.scalar("")])
    status_N[blank.to_numpy(zero_copy_only=False)] = TimeStatus.EMPTY
    return Times(
        np.where(usable_N, wall_N, np.nan),
        np.where(usable_N & has_zone_N, offset_N, np.nan),
        usable_N & (_equals(groups.field("zone"), "Z") | _equals(groups.field("zone"), "z")),
        status_N,
        np.where(matched_N & exists_N, days_N * DAY, np.nan),
    )


def _to_integers(texts: pa.Array) -> NDArray[np.int64]:
    """Convert matched digits to int64; texts that are null or empty become 0."""
    filled = pc.call_function("if_else", [pc.call_function("equal", [texts, pa.scalar("")]), pa.scalar("0"), texts])
    return filled.fill_null("0").cast(pa.int64()).to_numpy(zero_copy_only=False)


def _fraction(texts: pa.Array) -> NDArray[np.float64]:
    # The last argument is the separator: this puts "0." before the digits, so that the cast reads a fraction.
    decimal = pc.call_function("binary_join_element_wise", ["0.", texts.fill_null("0"), ""])
    decimal = pc.call_function("if_else", [pc.call_function("equal", [decimal, "0."]), pa.scalar("0"), decimal])
    return decimal.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _equals(texts: pa.Array, value: str) -> NDArray[np.bool_]:
    return pc.call_function("equal", [texts, pa.scalar(value)]).fill_null(False).to_numpy(zero_copy_only=False)


def _filled(texts: pa.Array) -> NDArray[np.bool_]:
    return ~_equals(texts.fill_null(""), "")


def _days(
    year_N: NDArray[np.int64], month_N: NDArray[np.int64], day_N: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return days since 1970, and whether the date exists (February 30 and year 0 do not)."""
    # Months are clipped only to keep the arithmetic in range; wrong ones do not exist below.
    months_N = ((year_N - 1970) * 12 + np.clip(month_N, 1, 12) - 1).astype("datetime64[M]")
    dates_N = months_N.astype("datetime64[D]") + (day_N - 1).astype("timedelta64[D]")
    # A day beyond the month's end lands in another month.
    exists_N = (dates_N.astype("datetime64[M]") == months_N) & (year_N >= 1) & (month_N >= 1) & (month_N <= 12)
    return dates_N.astype(np.int64).astype(np.float64), exists_N


def parse_offset(text: str, *, where: str = "utc_offset") -> int:
    """Return an offset such as "+02:00", "-0330" or "Z" in seconds east of UTC.

    Args:
        where: file, row and column, for the error.

    Raises:
        UserError: it is none. Names of time zones are refused: they would bring daylight saving, which cameras that
            stay on winter time all year do not follow.
    """
    stripped = text.strip().replace("\N{MINUS SIGN}", "-")
    if stripped.upper() in ("Z", "UTC"):
        return 0
    match = _OFFSET.fullmatch(stripped.upper().removeprefix("UTC"))
    seconds = 0 if match is None else int(match["hour"]) * 3600 + int(match["minute"] or 0) * 60
    if match is None or seconds > _MAX_OFFSET or int(match["minute"] or 0) > 59:
        raise UserError(f"{where}: an offset from UTC is needed (got {text[:40]!r}); expected one as +02:00 or Z")
    return -seconds if match["sign"] == "-" else seconds


def stated_offset(deployment: Deployment) -> float:
    """Return the seconds east of UTC that the user states for a deployment; NaN where none is stated.

    Raises:
        UserError: the stated text is no offset.
    """
    where = f"utc_offset of deployment {deployment.id!r}"
    return parse_offset(deployment.utc_offset, where=where) if deployment.utc_offset else float("nan")


def local_clock(
    times: Times, *, shift_N: NDArray[np.int64], place_offset_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return seconds (N,) of the clock at the place; NaN where there is no time.

    Args:
        shift_N: seconds added to the camera's clock, before anything else.
        place_offset_N: seconds east of UTC as the user states them; NaN leaves the clock as written.
    """
    clock_N = times.wall_N + shift_N
    # Convert only with both offsets: one of them does not give the difference between the two clocks.
    convert_N = ~np.isnan(times.offset_N) & ~np.isnan(place_offset_N)
    return np.where(convert_N, clock_N - times.offset_N + place_offset_N, clock_N)


def hours_of_day(clock_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the hour 0 to 23 of seconds of a clock; NaN stays."""
    # mod takes the sign of the divisor: also before 1970, where seconds are negative, hours are 0 to 23.
    return np.floor(np.mod(clock_N, DAY) / 3600)


def format_day(day: float) -> str:
    """Return a day since 1970 as 2026-05-31; "" for NaN."""
    return "" if np.isnan(day) else str(np.datetime64(int(day), "D"))


def months(clock_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the month 1 to 12 of seconds of a clock; NaN stays."""
    return _calendar(clock_N)[0]


def days_of_year(clock_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the day of the year, 1 to 366, of seconds of a clock; NaN stays."""
    return _calendar(clock_N)[1]


def _calendar(clock_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known_N = ~np.isnan(clock_N)
    dates = np.floor(clock_N[known_N] / DAY).astype(np.int64).astype("datetime64[D]")
    month_N, day_N = np.full(len(clock_N), np.nan), np.full(len(clock_N), np.nan)
    month_N[known_N] = dates.astype("datetime64[M]").astype(np.int64) % 12 + 1
    day_N[known_N] = (dates - dates.astype("datetime64[Y]")).astype(np.int64) + 1
    return month_N, day_N


TOLERANCE = float(DAY)  # around the deployment: it may be written in another offset, or as a date
YEARS_OFF = 300 * DAY
FIRST_YEAR = 2000  # digital camera traps are not older
# New batteries reset many clocks to January 1, 0:00; these years are suspicious even without dates of a deployment.
_FACTORY_YEARS = (1970, 1980, 2000)
# A camera that was reset may wait so many days for its first animal.
_RESET_DAYS = 7
_BACKWARDS = 60.0  # seconds: within a burst, files may be written in another order than taken
# At most one in ten gaps between events may run backwards. If files are not named in the order of taking, every
# second gap does; with only a few events the cause cannot be decided.
_MIN_GAPS_PER_JUMP = 10
_LAST_NUMBER, _FIRST_NUMBER = 9990, 10  # cameras count files from 1 to 9999 and begin again
_NUMBERED = r"^(?P<name>.*?)(?P<number>\d{1,9})?[^0-9/]*$"

FAULTS = ("factory date", "years off", "outside the deployment", "later than the import", "set back")


def find_clock_faults(
    clock_N: NDArray[np.float64],
    deployment_N: NDArray[np.int64],
    *,
    bounds_D2: NDArray[np.float64],
    imported_N: NDArray[np.float64],
    files: pa.Array,
) -> dict[str, NDArray[np.bool_]]:
    """Return a mask (N,) for each of `FAULTS`; an image has at most one of the first four.

    Args:
        clock_N: seconds of the local clock, shifted; NaN where unknown.
        deployment_N: index into `bounds_D2`; -1 for none.
        bounds_D2: start and end of each deployment on the same clock; NaN where unknown.
        imported_N: seconds (UTC) at which each image was imported; NaN where unknown.
        files: names as the source spells them, which are in the order of capture within a folder.
    """
    # Images without a deployment have the index -1, which picks the row of NaN at the end.
    bounds_N2 = np.concatenate([bounds_D2, np.full((1, 2), np.nan)])[deployment_N]
    with np.errstate(invalid="ignore"):
        # Comparisons with NaN are false: without bounds nothing lies outside.
        early_N = np.fmax(bounds_N2[:, 0] - clock_N, 0)
        late_N = np.fmax(clock_N - bounds_N2[:, 1], 0)
        distance_N = np.where(np.isnan(clock_N), 0, np.fmax(np.nan_to_num(early_N), np.nan_to_num(late_N)))
        outside_N = distance_N > TOLERANCE
        # The import is in UTC, and the clock is local: the tolerance of a day covers any offset.
        future_N = clock_N > imported_N + TOLERANCE
    year_N, starts_year_N = _years(clock_N)
    is_unbounded_N = np.isnan(bounds_N2).all(axis=1)
    factory_N = starts_year_N & (outside_N | (is_unbounded_N & np.isin(year_N, _FACTORY_YEARS)))
    factory_N |= np.isnan(bounds_N2[:, 0]) & find_resets(clock_N, deployment_N)
    years_N = ~factory_N & ((distance_N >= YEARS_OFF) | (year_N < FIRST_YEAR))
    days_N = outside_N & ~factory_N & ~years_N
    set_back_D = find_set_back(clock_N, deployment_N, files, num_deployments=len(bounds_D2))
    masks = (factory_N, years_N, days_N, future_N & ~factory_N & ~years_N & ~days_N)
    # Either side of a jump may be the right one: no image of the deployment has a known hour.
    set_back_N = np.append(set_back_D, False)[deployment_N] & ~np.isnan(clock_N)
    return dict(zip(FAULTS, (*masks, set_back_N), strict=True))


def find_resets(clock_N: NDArray[np.float64], deployment_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which images (N,) a clock that was reset has dated, judged by the other times alone.

    Cameras begin at different dates (2000-01-01, 2015-01-01), and the first image may come days later. So a run of
    images is one whose first lies in the first days of a year, and at least 300 days before the next run of the
    deployment. A deployment without other images is compared with the median of all others, and must begin in the first
    hour of a year: a season may well begin in January.
    """
    reset_N = np.zeros(len(clock_N), np.bool_)
    known = np.flatnonzero(~np.isnan(clock_N))
    if not len(known):
        return reset_N
    day_N, (year_N, is_first_hour_N) = _calendar(clock_N)[1], _years(clock_N)
    order = known[np.lexsort((clock_N[known], deployment_N[known]))]
    is_new = (np.diff(deployment_N[order]) != 0) | (np.diff(clock_N[order]) >= YEARS_OFF)
    runs = np.split(order, np.flatnonzero(is_new) + 1)
    for index, run in enumerate(runs):
        first, deployment = run[0], deployment_N[run[0]]
        follows = index + 1 < len(runs) and deployment_N[runs[index + 1][0]] == deployment
        is_alone = not follows and (index == 0 or deployment_N[runs[index - 1][0]] != deployment)
        if follows:
            reset_N[run] = day_N[first] <= _RESET_DAYS
        elif is_alone and (is_first_hour_N[first] or (year_N[first] in _FACTORY_YEARS and day_N[first] <= _RESET_DAYS)):
            others = clock_N[known[deployment_N[known] != deployment]]
            reset_N[run] = len(others) > 0 and np.median(others) - clock_N[run].max() >= YEARS_OFF
    return reset_N


def _years(clock_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the year, NaN where unknown, and whether it is the first hour of that year."""
    known_N = ~np.isnan(clock_N)
    seconds = np.floor(clock_N[known_N]).astype(np.int64).astype("datetime64[s]")
    years = seconds.astype("datetime64[Y]")
    year_N, starts_N = np.full(len(clock_N), np.nan), np.zeros(len(clock_N), np.bool_)
    year_N[known_N] = years.astype(np.int64) + 1970
    starts_N[known_N] = (seconds - years.astype("datetime64[s]")).astype(np.int64) < 3600
    return year_N, starts_N


def find_set_back(
    clock_N: NDArray[np.float64], deployment_N: NDArray[np.int64], files: pa.Array, *, num_deployments: int
) -> NDArray[np.bool_]:
    """Return for each deployment whether its clock runs backwards between files that follow each other."""
    rows = np.flatnonzero(~np.isnan(clock_N) & (deployment_N >= 0))
    if not len(rows):
        return np.zeros(num_deployments, np.bool_)
    groups = pc.call_function("extract_regex", [files.take(pa.array(rows))], pc.ExtractRegexOptions(_NUMBERED))
    digits = groups.field("number")
    digits = pc.call_function("if_else", [pc.call_function("equal", [digits, ""]), pa.scalar("-1"), digits])
    file_number = digits.fill_null("-1").cast(pa.int64())
    names = groups.field("name")
    columns = {"deployment": pa.array(deployment_N[rows]), "name": names, "number": file_number}
    sorting = pc.SortOptions([(column, "ascending") for column in columns])
    order = pc.call_function("sort_indices", [pa.table(columns)], sorting).to_numpy()
    clock, deployment, number = clock_N[rows][order], deployment_N[rows][order], file_number.to_numpy()[order]
    # 100RECNX/IMG_ and 101RECNX/IMG_ count on; names of letters and digits at random count nothing.
    pattern = pc.call_function("replace_substring_regex", [names], pc.ReplaceSubstringOptions(r"\d+", "#"))
    code = pc.call_function("dictionary_encode", [pattern]).indices.to_numpy()[order]
    same = (deployment[1:] == deployment[:-1]) & (code[1:] == code[:-1]) & (number[1:] >= 0) & (number[:-1] >= 0)
    jumps = same & (clock[1:] < clock[:-1] - _BACKWARDS)
    num_jumps = np.bincount(deployment[1:][jumps], minlength=num_deployments)
    gaps = same & (np.abs(np.diff(clock)) > _BACKWARDS)
    num_gaps = np.bincount(deployment[1:][gaps], minlength=num_deployments)
    is_ordered = num_jumps * _MIN_GAPS_PER_JUMP <= num_gaps
    # A folder that begins at 0001 again and ends at 9999 has its newest files first.
    starts = np.flatnonzero(np.concatenate([[True], deployment[1:] != deployment[:-1]]))
    ends = np.concatenate([starts[1:], [len(rows)]]) - 1
    wrapped = np.zeros(num_deployments, np.bool_)
    is_wrapped = (number[starts] <= _FIRST_NUMBER) & (number[ends] >= _LAST_NUMBER)
    wrapped[deployment[starts[is_wrapped & (clock[starts] >= clock[ends])]]] = True
    return (num_jumps > 0) & is_ordered & ~(wrapped & (num_jumps == 1))


# Longest gap within a burst or one passing animal; statistical independence (30 to 60 minutes) is a later filter.
GAP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Events:
    """Events of N images.

    Args:
        event_N: number of each image's event, 0 to E-1, in the order of deployment and time.
        order_N: image rows sorted by event, and inside by time, frame number and file name.
        starts: (E + 1,) positions in `order_N` where events begin, and its end.
    """

    event_N: NDArray[np.int64]
    order_N: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, event: int) -> NDArray[np.int64]:
        """Return the image rows of an event, first image first."""
        return self.order_N[self.starts[event] : self.starts[event + 1]]


def group_events(
    deployment_N: NDArray[np.int64],
    instant_N: NDArray[np.float64],
    *,
    sequence_N: NDArray[np.int64],
    frame_N: NDArray[np.int64],
    files: pa.Array,
    gap_seconds: float = GAP_SECONDS,
) -> Events:
    """Group images into events.

    Images of one deployment and sequence are one event. Others are ordered by instant, then frame number, then file
    name, and a new event begins where the gap is strictly larger than `gap_seconds`. An image without a time is an
    event.

    Args:
        deployment_N: number of the deployment of each image; negative numbers are deployments, too.
        instant_N: seconds of one clock per deployment; NaN where unknown.
        sequence_N: number of the source's sequence; -1 for none.
        frame_N: -1 for none.
        files: texts, the last criterion: images of a burst may share a second and have no frame number.
    """
    columns = {"deployment": deployment_N, "instant": instant_N, "frame": frame_N, "file": files}
    keys = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    # from_pandas makes NaN null, and nulls sort last.
    options = pc.SortOptions([(name, "ascending") for name in columns])
    order = pc.call_function("sort_indices", [keys], options).to_numpy().astype(np.int64)
    in_sequence = sequence_N[order] >= 0
    label = np.empty(len(order), np.int64)
    # One number per (deployment, sequence); those without a sequence are numbered behind.
    pairs = np.stack([deployment_N[order][in_sequence], sequence_N[order][in_sequence]], axis=1)
    names, label_of_pair = np.unique(pairs, axis=0, return_inverse=True)
    label[in_sequence] = label_of_pair.ravel()
    single = order[~in_sequence]
    with np.errstate(invalid="ignore"):
        # A comparison with NaN is false: an unknown time always breaks.
        joined = np.diff(instant_N[single]) <= gap_seconds
    joined &= np.diff(deployment_N[single]) == 0
    label[~in_sequence] = len(names) + np.cumsum(np.concatenate([[0], ~joined]))[: len(single)]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    # Numbered by their first image.
    rank = np.argsort(np.argsort(first))
    event = rank[inverse.ravel()]
    event_N = np.empty(len(order), np.int64)
    event_N[order] = event
    starts = np.concatenate([[0], np.cumsum(np.bincount(event, minlength=len(first)))]).astype(np.int64)
    return Events(event_N, order[np.argsort(event, kind="stable")], starts)
