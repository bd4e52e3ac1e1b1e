"""Round coordinates for publication, and add what rounding costs to their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from foveate.core.errors import UserError
from foveate.survey.types import Deployment

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
    if precision is not None and digits >= -math.log10(precision) - 1e-9:
        raise UserError(f"coordinates: coordinatePrecision is {precision:g} already (got {digits} digits); use fewer")
    added = _BANDS[-1][1] if rule == "conservative" else _band(latitude)
    total = (GPS_UNCERTAINTY if uncertainty is None else uncertainty) + added[digits - 1]
    if uncertainty is not None and precision is not None:
        recorded_digits = round(-math.log10(precision))
        total -= added[recorded_digits - 1] if recorded_digits <= len(added) else 0
    # + 0.0: rounding makes -0.0 of -0.001, which would be printed.
    return RoundedPlace(round(latitude, digits) + 0.0, round(longitude, digits) + 0.0, total, 10.0**-digits)


def _band(latitude: float) -> tuple[int, int, int]:
    # Use the latitude before rounding: 59.9999 is written as 60.0 and lies below it.
    return next(added for start, added in _BANDS if abs(latitude) >= start)


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
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
