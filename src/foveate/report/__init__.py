"""Self-contained HTML pages and pictures, made from a run folder: no torch, no network, no wing imported."""

from __future__ import annotations

from foveate.report.figure import readme_picture
from foveate.report.render import render

__all__ = ["readme_picture", "render"]
