"""Seconds in the words that people use for them."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """`417.3` -> `6 min 57 s`; `8.24` -> `8.2 s`; from two days on `5.4 days`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{seconds / 86_400:,.3g} days"
