"""kill -9 at random moments, then the same command again: the same final weights and the same log."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from processes import run_processes, start_processes

SCRIPT = Path(__file__).resolve().parent / "contrastive_toy.py"
OPTIONS = ("--steps", 600, "--checkpoint-every", 3, "--dropout", 0.2)


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


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, straight: Path, tmp_path: Path) -> None:
    moments = random.Random(kills)
    killed = 0
    for _ in range(kills):
        before = lines(tmp_path)
        process = start_processes(SCRIPT, tmp_path, *OPTIONS)[0]
        until = time.monotonic() + 60
        while lines(tmp_path) in (0, before) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= kills // 2, "the run was over before it could be killed"
    run_processes(SCRIPT, tmp_path, *OPTIONS)
    for name in ("final.safetensors", "average.safetensors"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
    assert log(tmp_path) == log(straight)


def test_sigterm_saves_and_leaves_with_success(straight: Path, tmp_path: Path) -> None:
    process = start_processes(SCRIPT, tmp_path, *OPTIONS)[0]
    while lines(tmp_path) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "the same command goes on from there" in said
    run_processes(SCRIPT, tmp_path, *OPTIONS)
    assert (tmp_path / "final.safetensors").read_bytes() == (straight / "final.safetensors").read_bytes()
    assert log(tmp_path) == log(straight)
