"""Format numbers for a page."""

from __future__ import annotations

import math
from typing import Any

from foveate.core.progress import duration as duration


def count(value: int | float | None) -> str:
    """Format `12345` as `12,345`, None as a dash."""
    return "–" if value is None else f"{round(value):,}"


def percent(value: float | None, *, digits: int = 1) -> str:
    """Format a fraction as a percentage, None or NaN as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}%"


def rounded_percent(value: float | None) -> str:
    """Format a percentage for the first screen: whole numbers, one digit more below one percent."""
    small = value is not None and 0 < abs(value) < 0.01
    return percent(value, digits=1 if small else 0)


def decimal(value: float | None, digits: int = 2) -> str:
    """Format a number with a true minus sign and without a negative zero, None as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    # A small negative number rounds to -0.00.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Format `+4.30` with a true minus sign; "" for None."""
    text = decimal(value, digits)
    return "" if value is None else text if text.startswith("−") else f"+{text}"


def measure(value: float | None, *, unit: str = "fraction", digits: int = 1) -> str:
    """Format a table value: fractions as percentages, everything else as a number with its unit."""
    if unit == "fraction" or value is None or not math.isfinite(value):
        return percent(value, digits=digits)
    return f"{value:.3g} {unit}".strip()


def field(value: Any) -> str:
    """Format a field of a recipe or a summary: whole numbers with commas, lists with theirs, None as a dash."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def interval(low: float | None, high: float | None, *, unit: str = "fraction") -> str:
    """Format `0.431, 0.498` as `43.1–49.8`; empty where there is no interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if unit == "fraction":
        return f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{low:.3g}–{high:.3g}"


def millions(value: int | float | None) -> str:
    """Format a parameter count: `1234567` as `1.2 million`."""
    if value is None:
        return "–"
    if value >= 1e6:
        return f"{value / 1e6:.1f} million"
    return count(value)


def money(value: float) -> str:
    """Format a sum in any currency: cents from 1 on, else two digits (`12.35`, `0.0022`)."""
    return f"{value:.2f}" if value >= 1 or not value else f"{value:.2g}"


def short(value: float) -> str:
    """Format an axis label: at most four significant digits, thousands as k."""
    if value != 0 and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value + 0.0:.4g}"  # + 0.0 makes a zero of a negative one


def size_words(count: int) -> str:
    """Format a number of bytes: `1234567` as `1.2 MB`."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"
