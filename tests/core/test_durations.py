"""Seconds in words."""

from __future__ import annotations

import math

import pytest

from foveate.core.progress import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.24, "8.2 s"), (59.4, "59 s"), (417.3, "6 min 57 s"), (3600, "1 h 00 min"), (100_000, "27 h 46 min"),
        (466_560, "5.4 days"), (None, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
