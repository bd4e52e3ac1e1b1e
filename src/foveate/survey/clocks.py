"""Detect faults of camera clocks from times; such images have no hour until `clock_shift` is set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.survey.hours import DAY

TOLERANCE = float(DAY)  # around the deployment: it may be written in another offset, or as a date
YEARS_OFF = 300 * DAY
FIRST_YEAR = 2000  # digital camera traps are not older
# New batteries reset many clocks to January 1, 0:00; these years are suspicious even without dates of a deployment.
_FACTORY_YEARS = (1970, 1980, 2000)
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
    bounds_N2 = np.concatenate([bounds_D2, np.full((1, 2), np.nan)])[deployment_N]
    with np.errstate(invalid="ignore"):
        # Comparisons with NaN are false: without bounds nothing lies outside.
        early_N = np.fmax(bounds_N2[:, 0] - clock_N, 0)
        late_N = np.fmax(clock_N - bounds_N2[:, 1], 0)
        distance_N = np.where(np.isnan(clock_N), 0, np.fmax(np.nan_to_num(early_N), np.nan_to_num(late_N)))
        outside_N = distance_N > TOLERANCE
        future_N = clock_N > imported_N + TOLERANCE
    year_N, starts_year_N = _years(clock_N)
    factory_N = starts_year_N & (outside_N | (np.isnan(bounds_N2).all(axis=1) & np.isin(year_N, _FACTORY_YEARS)))
    years_N = ~factory_N & ((distance_N >= YEARS_OFF) | (year_N < FIRST_YEAR))
    days_N = outside_N & ~factory_N & ~years_N
    set_back_D = find_set_back(clock_N, deployment_N, files, num_deployments=len(bounds_D2))
    masks = (factory_N, years_N, days_N, future_N & ~factory_N & ~years_N & ~days_N)
    # Either side of a jump may be the right one: no image of the deployment has a known hour.
    set_back_N = np.append(set_back_D, False)[deployment_N] & ~np.isnan(clock_N)
    return dict(zip(FAULTS, (*masks, set_back_N), strict=True))


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
