"""Captioning as a function of paths, for processes that are killed."""

from __future__ import annotations

from pathlib import Path

from captioned import ask

from foveate.core import progress


def run(collection: str, endpoint: str, rows_per_part: int) -> None:
    progress.configure(quiet=True)
    done = ask(Path(collection), endpoint, rows_per_part=rows_per_part, seconds_per_part=0.2)
    assert done.failure is None
    assert not done.stopped
