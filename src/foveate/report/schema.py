"""Results that have no wing of their own or whose wing has not declared them yet (see `foveate.core.results`)."""

from __future__ import annotations

from typing import Any

from foveate.core.results import (
    Example,
    Histogram,
    ResultModel,
)


class Quarantined(ResultModel):
    reason: str
    count: int
    example: str | None = ""


class InspectResult(ResultModel):
    kind: str
    title: str = ""
    summary: dict[str, Any] = {}
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    quarantine: list[Quarantined] = []
    command: str | list[str] = ""
