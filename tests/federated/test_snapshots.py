"""States on disk: both trainings write and refuse them alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foveate.core.errors import UserError
from foveate.federated.deep.checkpoint import TrainingSnapshot, load_stand, save_stand
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.rounds import Deep
from foveate.federated.embedding.checkpoint import load_state, save_state
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.server import State
from naming import raises_naming

DEEP, MAP = DeepOptions(clusters=3), EmbeddingOptions()


def deep(path: Path) -> Callable[[], TrainingSnapshot | None]:
    state = Deep(np.arange(5, dtype=np.float32), 2, np.eye(3, 2), round=4, history=[{"loss": 0.5}])
    state.excluded, state.suspects = {3: "silent"}, {(1, "norm"): "far from the others"}
    save_stand(TrainingSnapshot(state, [{"kind": "query.train", "up": True}], 1.5), DEEP, path)
    return lambda: load_stand(path, DEEP)


def embedding(path: Path) -> Callable[[], State | None]:
    save_state(State(round=4, encoder=np.arange(5, dtype=np.float32), sizes={0: 7}, features=3), MAP, path)
    return lambda: load_state(path, MAP)


BOTH = pytest.mark.parametrize(("write", "name"), [(deep, "stand"), (embedding, "state")])


def rewritten(path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    about = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][name])
    about = change(about) or about
    save_file(load_file(path), path, {name: json.dumps(about)})


def test_states_come_back(tmp_path: Path) -> None:
    stand = deep(tmp_path / "deep")()
    assert stand is not None
    assert stand.state.weights.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(stand.state.centers, np.eye(3, 2))
    assert (stand.state.round, stand.state.width, stand.seconds) == (4, 2, 1.5)
    assert stand.state.excluded == {3: "silent"}
    assert stand.state.suspects == {(1, "norm"): "far from the others"}
    assert stand.exchanged == [{"kind": "query.train", "up": True}]
    state = embedding(tmp_path / "map")()
    assert state is not None
    assert (state.round, state.sizes, state.features, state.grid) == (4, {0: 7}, 3, None)
    assert state.encoder.tolist() == [0, 1, 2, 3, 4]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert load_stand(tmp_path / "none", DEEP) is None
    assert load_state(tmp_path / "none", MAP) is None


@BOTH
@pytest.mark.parametrize("content", [b"", b"\x00" * 30, b"{}"])
def test_bytes_that_are_no_state_are_damage(tmp_path: Path, write: Any, name: str, content: bytes) -> None:
    read = write(tmp_path / "kept")
    (tmp_path / "kept").write_bytes(content)
    with pytest.raises(UserError, match=r"kept: damaged \(\w+\); remove it to begin again$"):
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
def test_a_missing_or_wrong_part_is_damage(tmp_path: Path, write: Any, name: str, change: Any) -> None:
    read = write(tmp_path / "kept")
    rewritten(tmp_path / "kept", name, change)
    with pytest.raises(UserError, match=r"kept: damaged \(\w+\); remove it to begin again$"):
        read()


@BOTH
def test_a_missing_array_is_damage(tmp_path: Path, write: Any, name: str) -> None:
    path = tmp_path / "kept"
    read = write(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    about = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    save_file({"other": np.zeros(2)}, path, about)
    with raises_naming(UserError, "KeyError"):
        read()


@BOTH
def test_another_format_or_other_options_are_named(tmp_path: Path, write: Any, name: str) -> None:
    path = tmp_path / "kept"
    read = write(path)
    rewritten(path, name, lambda about: {**about, "format": 99})
    with raises_naming(UserError, "99", "2"):
        read()
    read = write(path)
    rewritten(path, name, lambda about: {**about, "options": {**about["options"], "seed": 7}})
    with raises_naming(UserError, "7", "0"):
        read()
