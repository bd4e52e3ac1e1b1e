"""Paths of the package's own files, of what it fetches, and as people read them."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / "data"
"""Built-in images, weights and their licenses."""
CHECKOUT = PACKAGE.parents[1]
"""The repository's root in a checkout; of an installed wheel it is any folder, so look for what you need in it."""


def cache_folder() -> Path:
    """Return the folder of fetched files: $XDG_CACHE_HOME/foveate, ~/.cache/foveate by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate"


def shorten_path(path: str) -> str:
    """Return a path below the working directory as its user would name it, relative to it; any other unchanged."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
