"""The drawn images of docs/how-to/several-labels.md: shapes in one picture, how many there are, and an angle."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

_EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "several-labels.py"))
SHAPES: tuple[str, ...] = _EXAMPLE["SHAPES"]
write_tables: Callable[..., Path] = _EXAMPLE["write_tables"]
