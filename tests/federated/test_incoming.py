"""Weights that come in: refused where no honest server sends them, taken wherever an honest one may."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.federated import incoming, reasons
from foveate.federated.incoming import MAX_GROWTH, SLACK, IncomingWeights
from foveate.federated.privacy import send_change
from foveate.federated.reasons import Refusal

RANDOM = np.random.default_rng(0)
START = RANDOM.uniform(-0.4, 0.4, 500).astype(np.float32)
DIRECTION = RANDOM.normal(size=500)
DIRECTION /= np.linalg.norm(DIRECTION)
ROUNDS = 20


def moved(length: float, origin: np.ndarray = START) -> np.ndarray:
    return (origin + length * DIRECTION).astype(np.float32)


def check(memory: IncomingWeights, weights_P: np.ndarray, round: int, **more: Any) -> None:
    chosen = {"run": "seed 0", "rounds": ROUNDS, "start": lambda: START.copy(), "clip": 1.0} | more
    memory.check(weights_P, round, **chosen)


def refuses(memory: IncomingWeights, weights_P: np.ndarray, round: int, **more: Any) -> bool:
    reason = None
    try:
        check(memory, weights_P, round, **more)
    except Refusal as refusal:
        reason = refusal.code, refusal.count
    # Nothing but the code leaves.
    assert reason in (None, (reasons.WEIGHTS, None))
    return reason is not None


@pytest.fixture
def memory(tmp_path: Path) -> IncomingWeights:
    return IncomingWeights(tmp_path / "weights", "data")


def test_the_first_round_has_the_weights_of_the_seed(memory: IncomingWeights) -> None:
    assert refuses(memory, moved(1e-3), 0)
    assert refuses(memory, -START, 0)
    assert not memory.folder.exists()
    assert not refuses(memory, START, 0)
    # Processors may differ in the last bit of what they draw.
    assert not refuses(IncomingWeights(memory.folder, "other"), np.nextafter(START, np.float32(1)), 0)


BAD = {
    "NaN": np.full(500, np.nan, np.float32),
    "infinity": np.full(500, np.inf, np.float32),
    "another length": START[:-1],
    "another type": START.astype(np.float64),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("round", [0, 3])
def test_other_weights_than_those_of_the_network(name: str, round: int, memory: IncomingWeights) -> None:
    assert refuses(memory, BAD[name], round)


def test_huge_weights_are_refused(memory: IncomingWeights) -> None:
    start = START.astype(np.float64)
    assert refuses(memory, np.full(500, 1e300), 3, start=lambda: start)


@pytest.mark.parametrize("round", [-1, ROUNDS, 10**9])
def test_rounds_that_no_run_has(round: int, memory: IncomingWeights) -> None:
    assert refuses(memory, START, round)


def test_a_later_round_moves_by_a_bounded_norm(memory: IncomingWeights) -> None:
    check(memory, START, 0)
    for round in range(1, 4):
        check(memory, moved(0.6 * round), round)
    assert refuses(memory, moved(1.8 + 1.01 * SLACK), 4)
    assert not refuses(memory, moved(1.8 + 0.99 * SLACK), 4)


def test_a_refused_request_moves_nothing(memory: IncomingWeights) -> None:
    check(memory, moved(1.0), 2)
    before = memory.path("seed 0").read_bytes()
    assert refuses(memory, moved(1.0 + 1.5 * SLACK), 3)
    assert memory.path("seed 0").read_bytes() == before
    assert refuses(memory, moved(1.0 + 1.5 * SLACK), 3)
    # Two rounds later the same weights may be honest.
    assert not refuses(memory, moved(1.0 + 1.5 * SLACK), 4)


def test_the_same_round_has_the_same_weights(memory: IncomingWeights) -> None:
    check(memory, moved(1.0), 2)
    for _ in range(3):  # a box, a field, a training; or a server that was killed and asks once more
        check(memory, moved(1.0), 2)
    assert refuses(memory, np.nextafter(moved(1.0), np.float32(1)), 2)


def test_a_client_that_joins_late_or_misses_rounds(memory: IncomingWeights) -> None:
    assert not refuses(memory, moved(4.0), 7), "never asked before"
    assert not refuses(memory, moved(6.0), 12)
    assert refuses(IncomingWeights(memory.folder, "other"), moved(7.01 * SLACK), 7)


def test_a_server_that_begins_again(memory: IncomingWeights) -> None:
    for round in range(4):
        check(memory, moved(0.6 * round), round)
    assert not refuses(memory, START, 0), "the same run from its start"
    # Its other rounds differ where clients add noise.
    assert not refuses(memory, moved(-0.6), 1)
    # A server that lost its last rounds.
    check(memory, moved(3.0), 9)
    assert not refuses(memory, moved(2.0), 6)


def test_another_seed_is_another_run(memory: IncomingWeights) -> None:
    check(memory, moved(1.0), 2)
    other = RANDOM.uniform(-0.1, 0.1, 500).astype(np.float32)
    assert refuses(memory, other, 0)
    assert not refuses(memory, other, 0, run="seed 1", start=lambda: other)
    assert not refuses(memory, moved(1.5), 3), "both are remembered"


def test_noise_needs_no_room(memory: IncomingWeights) -> None:
    rng, weights = np.random.default_rng(1), START
    for round in range(ROUNDS):
        assert not refuses(memory, weights, round), f"round {round}"
        # One client alone, with its whole noise, which is a hundred times as long as what it may send.
        weights = send_change(weights, weights, clip=1.0, sigma=5.0, source=rng)
    assert refuses(memory, moved(2 * SLACK), 1)
    assert refuses(memory, (START + rng.normal(0, 5.0, 500)).astype(np.float32), 1)


def test_a_trimmed_mean_of_many_clients_has_room(memory: IncomingWeights) -> None:
    # Each client moves other weights: the largest value of each, as 100 clients agree on none, has ten times the norm.
    assert not refuses(memory, moved(0.999 * SLACK), 1)


def test_the_norm_is_bounded_whatever_the_round(memory: IncomingWeights) -> None:
    bound = MAX_GROWTH * float(np.linalg.norm(START.astype(float)))
    assert refuses(memory, moved(1.1 * bound), 900, rounds=1000, clip=100.0)
    assert not refuses(memory, moved(0.8 * bound), 900, rounds=1000, clip=100.0)


def test_the_memory_is_the_owners_alone(memory: IncomingWeights) -> None:
    check(memory, START, 0)
    assert stat.S_IMODE(memory.path("seed 0").stat().st_mode) == 0o600
    assert stat.S_IMODE(memory.folder.stat().st_mode) == 0o700
    assert [path.name for path in memory.folder.iterdir()] == [memory.path("seed 0").name], "no temporary file is left"


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_a_damaged_memory_is_none(content: bytes, memory: IncomingWeights) -> None:
    check(memory, moved(1.0), 2)
    memory.path("seed 0").write_bytes(content)
    assert not refuses(memory, moved(0.9), 2)
    assert refuses(memory, moved(1.0), 2), "remembered again"


def test_a_memory_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(Refusal) as refusal:
        check(IncomingWeights(tmp_path / "weights", "data"), START, 0)
    assert refusal.value.code == reasons.LEDGER_UNWRITABLE


def test_the_memory_is_bounded(memory: IncomingWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "MAX_FILES", 3)
    for number in range(6):
        check(memory, START, 0, run=f"seed {number}")
        os.utime(memory.path(f"seed {number}"), (time.time() - 100 + number,) * 2)
    assert {path.name for path in memory.folder.iterdir()} <= {memory.path(f"seed {n}").name for n in (3, 4, 5)}
    os.utime(memory.path("seed 4"), (time.time() - 91 * 86_400,) * 2)
    check(memory, START, 0, run="seed 9")
    assert not memory.path("seed 4").exists()


def test_it_loads_no_torch() -> None:
    text = Path(incoming.__file__).read_text(encoding="utf-8")
    assert "torch" not in text
