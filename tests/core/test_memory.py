"""The most memory that a process held."""

import subprocess
import sys

import pytest

from foveate.core.devices import peak_gigabytes

SCRIPT = "from foveate.core.devices import peak_gigabytes; {}; print(peak_gigabytes())"


def _peak_of(statement: str) -> float:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_freed_memory_still_counts() -> None:
    assert _peak_of("held = bytearray(2**28); del held") - _peak_of("pass") == pytest.approx(0.25, abs=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process begins with the number of its parent")
def test_memory_of_the_parent_does_not_count() -> None:
    held = bytearray(2**29)
    assert peak_gigabytes() > 0.5
    assert _peak_of("pass") < 0.2
    del held
