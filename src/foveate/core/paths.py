"""Paths of the package's own files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / "data"
"""Built-in images, weights and their licenses."""
CHECKOUT = PACKAGE.parents[1]
"""The repository's root in a checkout; of an installed wheel it is any folder, so look for what you need in it."""
