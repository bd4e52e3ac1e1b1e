"""Large Camtrap DP packages: 200,000 rows come in and go out within a gigabyte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("rows", "megabytes"), [(2_000, 300), pytest.param(200_000, 1_000, marks=pytest.mark.slow)])
def test_memory_of_large_tables(rows: int, megabytes: int, tmp_path: Path) -> None:
    # In a process of its own: the peak of this one has other tests in it.
    command = [sys.executable, str(HERE / "big_survey.py"), str(tmp_path / "big"), str(rows)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["rows"] == {"deployments": 3, "media": rows, "observations": rows}
    assert result["mb"] < megabytes
