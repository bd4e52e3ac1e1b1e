"""Images that travel inside the package: clip art and emoji, as collections and as cut-outs."""

from __future__ import annotations

from foveate.records.builtin.cutouts import Cutout, load_cutouts
from foveate.records.builtin.single_objects import build_clipart, build_emoji

__all__ = ["Cutout", "build_clipart", "build_emoji", "load_cutouts"]
