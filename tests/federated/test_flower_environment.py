"""The tests of Flower run by default with the slow tests, in an environment that the Makefile makes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_slow_tests_include_flowers() -> None:
    # Dry, and without the targets before it: nothing is installed or run.
    command = ["make", "-n", "-o", ".venv/.installed-dev", "-o", "install-dev", "test-slow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    runs = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert any(".venv-flower/bin/python" in line and "test_flower" in line and "-m slow" not in line for line in runs)
