"""Large surveys: 200,000 rows come in and go out within a gigabyte, whatever their format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FORMATS = ("coco-camera-traps", "wilds", "megadetector", "speciesnet")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("format", "rows", "megabytes"),
    [
        ("camtrap-dp", 2_000, 300),
        pytest.param("camtrap-dp", 200_000, 1_000, marks=pytest.mark.slow),
        *(pytest.param(format, 200_000, 1_000, marks=pytest.mark.slow) for format in FORMATS),
    ],
)
def test_memory_of_large_tables(format: str, rows: int, megabytes: int, tmp_path: Path) -> None:
    # In a process of its own: the peak of this one has other tests in it.
    command = [sys.executable, str(HERE / "big_survey.py"), str(tmp_path / "big"), str(rows), format]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["rows"].values()) <= {3, rows, 2 * rows}
    assert result["rows"]["media" if format == "camtrap-dp" else "images"] == rows
    assert result["mb"] < megabytes
