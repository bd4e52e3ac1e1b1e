"""Self-contained HTML pages and images, made from a run folder: no torch, no network, no wing imported."""

from __future__ import annotations

from foveate.report.render import render

__all__ = ["render"]
