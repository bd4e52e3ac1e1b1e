"""The allocator of commands: large arrays that are freed and allocated again cost no new pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_FAULTS = """
import json, resource, sys
import numpy as np
from foveate.core.devices import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(12_000_000)  # 92 MiB
before = faults()
for _ in range(10):
    np.ones(12_000_000)
print(json.dumps({"told": told, "faults": faults() - before}))
"""


def _count_faults(argument: str, **environment: str) -> dict[str, int]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _FAULTS, argument]
    done = subprocess.run(command, env=variables | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_freed_memory_is_kept_for_the_next_allocation() -> None:
    kept, plain = _count_faults("keep"), _count_faults("plain")
    if not kept["told"]:
        pytest.skip("another C library than glibc")
    assert kept["faults"] < 1000
    # The control: each of ten arrays is mapped anew, 23,437 pages, or fewer where pages are huge.
    assert plain["faults"] > 5 * kept["faults"]


def test_variables_of_the_user_come_first() -> None:
    assert not _count_faults("keep", MALLOC_ARENA_MAX="2")["told"]
