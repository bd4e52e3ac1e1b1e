"""Old import paths give the modules that have taken their place, once, with one line of warning."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest
from processes import environment

from foveate.core.moved import _MOVED


@pytest.mark.parametrize("name", sorted(_MOVED))
def test_an_old_name_is_the_new_module(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = importlib.import_module(name)
    assert old is importlib.import_module(_MOVED[name])
    assert old.__name__ == _MOVED[name]
    assert old.__spec__ is not None
    assert old.__spec__.name == _MOVED[name]


def _run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=60)


def test_a_module_of_a_moved_package_warns_once_and_is_not_loaded_twice() -> None:
    done = _run(
        "from foveate.records.survey.types import Medium\n"
        "from foveate.records.survey.hours import parse_times\n"
        "from foveate.survey import types, hours\n"
        "assert types.Medium is Medium and hours.parse_times is parse_times\n"
    )
    assert done.stderr.count("Warning") == 1
    assert "foveate.records.survey is now foveate.survey" in done.stderr


def test_new_names_warn_of_nothing() -> None:
    assert _run("import foveate.survey.types, foveate.search.api, foveate.records.collection").stderr == ""
