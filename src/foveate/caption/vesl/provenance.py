"""The name of pseudo-labelled regions in a table that holds other regions, too."""

from __future__ import annotations

PREFIX = "vesl:"


def source_of(detector: str) -> str:
    """What the column `source` says of the regions of a detector."""
    return f"{PREFIX}{detector}"


def is_ours(source: str) -> bool:
    """Whether a region with this source is a pseudo-label."""
    return source.startswith(PREFIX)
