"""kill -9 at random moments, then the same command again: the same final weights and the same log."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run_processes, start_processes

from killing import Server, kill_at_random

SCRIPT = Path(__file__).resolve().parent / "contrastive_toy.py"
OPTIONS = ("--steps", 200, "--checkpoint-every", 3, "--dropout", 0.2)


def log(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "samples_per_second")}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("kills") / "straight"
    run_processes(SCRIPT, run, *OPTIONS)
    return run


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def same(run: Path, straight: Path) -> bool:
    names = ("final.safetensors", "average.safetensors")
    return log(run) == log(straight) and all((run / one).read_bytes() == (straight / one).read_bytes() for one in names)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("contrastive_toy") as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 50])
def test_killed_at_random_moments(kills: int, server: Server, straight: Path, tmp_path: Path) -> None:
    words = list(map(str, OPTIONS))
    took = server.seconds("main", [str(tmp_path / "alone"), *words])
    assert same(tmp_path / "alone", straight)
    run, attempt = tmp_path / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal run, attempt
        attempt += 1
        if not dead:  # the next kills fall into a new run
            assert same(run, straight)
            run = tmp_path / f"killed-{attempt}"

    kill_at_random(
        lambda: server.start("main", [str(run), *words]), kills=kills, longest=took / 2, seed=kills, after=check
    )
    server.start("main", [str(run), *words]).finish()
    assert same(run, straight)


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_success(straight: Path, tmp_path: Path) -> None:
    process = start_processes(SCRIPT, tmp_path, *OPTIONS)[0]
    while lines(tmp_path) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "run the same command to resume" in said
    run_processes(SCRIPT, tmp_path, *OPTIONS)
    assert (tmp_path / "final.safetensors").read_bytes() == (straight / "final.safetensors").read_bytes()
    assert log(tmp_path) == log(straight)
