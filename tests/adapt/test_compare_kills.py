"""kill -9 at any moment of a comparison, then the same command: no training lost that was finished, none doubled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.compared import stripes
from killing import Server, kill_at_random

TIMES = ("seconds", "training_seconds")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("adapt.compare_to_kill") as found:
        yield found


def prepared(folder: Path) -> Path:
    folder.mkdir()
    stripes(folder / "stripes.npz")
    return folder


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def cells(folder: Path) -> dict[str, Any]:
    found = (folder / "run" / "cells").glob("stripes-*.json")
    return {path.name: without_times(json.loads(path.read_text())) for path in found}


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "run" / "cells").glob("stripes-*.json")}


def whole(folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Everything that a finished comparison says, without times and its own place."""
    result = without_times(json.loads((folder / "run" / "result.json").read_text()))
    logits = {path.name: np.load(path)["logits"].tolist() for path in (folder / "run" / "logits").rglob("*.npz")}
    result["recipe"].pop("tasks")
    result.pop("revision")  # of the code, which may be committed meanwhile
    return result, cells(folder), logits


@pytest.mark.slow
def test_a_kill_before_and_after_files_is_mended(server: Server, tmp_path: Path) -> None:
    steps = server.start("run", prepared(tmp_path / "plain")).finish()
    expected = whole(tmp_path / "plain")
    assert len(expected[1]) == 2 + 2 * 2  # the solved head of linear has one candidate, so nothing to choose
    assert len(expected[2]) == 4
    for share, moment in ((0.1, "before"), (0.45, "after"), (0.7, "before"), (0.9, "after")):
        folder = prepared(tmp_path / f"{moment}-{share}")
        server.start("run", folder, die_at=round(share * steps), moment=moment).end()
        before = cells(folder)
        assert before.items() <= expected[1].items()
        times = written(folder)
        server.start("run", folder).finish()
        assert whole(folder) == expected
        assert times.items() <= written(folder).items(), "a finished training was done again"
        assert not [path for path in (folder / "run").rglob("*") if path.suffix == ".tmp" or path.name == "checkpoints"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_at_random_moments(server: Server, tmp_path: Path) -> None:
    took = server.seconds("run", prepared(tmp_path / "plain"))
    expected = whole(tmp_path / "plain")
    folder, attempt, kept = prepared(tmp_path / "killed-0"), 0, {}

    def check(dead: bool) -> None:
        nonlocal folder, attempt, kept
        attempt += 1
        found = cells(folder)
        assert kept.items() <= found.items() <= expected[1].items()
        kept = found
        if not dead:
            assert whole(folder) == expected
            shutil.rmtree(folder)
            folder, kept = prepared(tmp_path / f"killed-{attempt}"), {}

    kill_at_random(lambda: server.start("run", folder), kills=30, longest=took, seed=5, after=check)
    server.start("run", folder).finish()
    assert whole(folder) == expected
