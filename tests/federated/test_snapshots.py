"""Snapshots on disk: both trainings write and refuse them alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foveate.core.errors import UserError
from foveate.federated.deep.job import DeepJob, DeepState
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.state import MapState
from foveate.federated.job import FORMAT, load_snapshot, save_snapshot
from naming import raises_naming

DEEP, MAP = DeepJob(DeepOptions(clusters=3)), MapJob(EmbeddingOptions())


def deep(path: Path) -> Callable[[], DeepState | None]:
    state = DeepState(np.arange(5, dtype=np.float32), 2, np.eye(3, 2), round=4, history=[{"loss": 0.5}])
    state.excluded, state.suspects = {3: "silent"}, {(1, "norm"): "far from the others"}
    state.exchanged, state.seconds = [{"kind": "query.train", "up": True}], 1.5
    save_snapshot(path, DEEP, state)
    return lambda: load_snapshot(path, DEEP)


def embedding(path: Path) -> Callable[[], MapState | None]:
    save_snapshot(path, MAP, MapState(np.arange(5, dtype=np.float32), {0: 7}, 3, round=4, resumed=2))
    return lambda: load_snapshot(path, MAP)


BOTH = pytest.mark.parametrize("write", [deep, embedding])


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["snapshot"])
    header = change(header) or header
    save_file(load_file(path), path, {"snapshot": json.dumps(header)})


def test_states_come_back(tmp_path: Path) -> None:
    state = deep(tmp_path / "deep")()
    assert state is not None
    assert state.weights.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(state.centers, np.eye(3, 2))
    assert (state.round, state.width, state.seconds) == (4, 2, 1.5)
    assert state.excluded == {3: "silent"}
    assert state.suspects == {(1, "norm"): "far from the others"}
    assert state.exchanged == [{"kind": "query.train", "up": True}]
    positions = embedding(tmp_path / "map")()
    assert positions is not None
    assert (positions.round, positions.sizes, positions.features, positions.grid) == (4, {0: 7}, 3, None)
    assert positions.resumed == 2
    assert positions.encoder.tolist() == [0, 1, 2, 3, 4]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path / "none", DEEP) is None
    assert load_snapshot(tmp_path / "none", MAP) is None


@BOTH
@pytest.mark.parametrize("content", [b"", b"\x00" * 30, b"{}"])
def test_bytes_that_are_no_state_are_damage(tmp_path: Path, write: Any, content: bytes) -> None:
    read = write(tmp_path / "snapshot")
    (tmp_path / "snapshot").write_bytes(content)
    with raises_naming(UserError, "snapshot: damaged"):
        read()


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("round") and None,
        lambda about: about.pop("options") and None,
        lambda about: {**about, "history": None, "round": "third"},
        lambda about: {**about, "options": [1]},
        lambda about: ["not", "a", "state"],
    ],
    ids=["no round", "no options", "a round in words", "a list of options", "a list"],
)
def test_a_missing_or_wrong_part_is_damage(tmp_path: Path, write: Any, change: Any) -> None:
    read = write(tmp_path / "snapshot")
    rewritten(tmp_path / "snapshot", change)
    with raises_naming(UserError, "snapshot: damaged"):
        read()


@BOTH
def test_a_missing_array_is_damage(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "snapshot"
    read = write(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    about = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    save_file({"other": np.zeros(2)}, path, about)
    with raises_naming(UserError, "KeyError"):
        read()


@BOTH
def test_another_format_or_other_options_are_named(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "snapshot"
    read = write(path)
    rewritten(path, lambda about: {**about, "format": 99})
    with raises_naming(UserError, "99", str(FORMAT)):
        read()
    read = write(path)
    rewritten(path, lambda about: {**about, "options": {**about["options"], "seed": 7}})
    with raises_naming(UserError, "7", "0"):
        read()
