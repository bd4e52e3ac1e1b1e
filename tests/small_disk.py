"""A small disk for tests of what happens when it is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A small disk of its own, made of memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def change(self, options: str) -> None:
        """Mount it, or mount it anew with other options."""
        place = ["-t", "tmpfs", "tmpfs", str(self.folder)]
        subprocess.run(["mount", "-o", options, *place], check=True, capture_output=True)

    def resize(self, size: str) -> None:
        self.change(f"remount,rw,size={size}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 192 KiB."""
    made = Disk(tmp_path / "disk")
    made.folder.mkdir()
    try:
        made.change("size=192k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)
