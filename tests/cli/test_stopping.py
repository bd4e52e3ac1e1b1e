"""Ctrl-C and SIGTERM stop a training after a checkpoint; the same command goes on to the same weights."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import environment
from safetensors.torch import load_file

import tiny

STEPS = 60
# Seconds; far more than it takes, for machines that do other work.
PATIENCE = 300


def command(recipe: Path, collection: Path, run: Path) -> list[str]:
    given = ["--collection", str(collection), "--out", str(run), "--device", "cpu", "--no-evaluation"]
    return [sys.executable, "-m", "foveate", "pretrain", str(recipe), f"training.steps={STEPS}", *given]


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_repeated(sent: signal.Signals, tiny_collection: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml", training={"checkpoint_every": 1000})
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    subprocess.run(command(recipe, tiny_collection, straight), env=environment(), check=True, timeout=PATIENCE)
    process = subprocess.Popen(
        command(recipe, tiny_collection, stopped), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + PATIENCE
        while rows(stopped) < 5 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(sent)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "run the same command to resume" in said
    assert "Traceback" not in said
    assert 5 <= rows(stopped) < STEPS
    again = subprocess.run(
        command(recipe, tiny_collection, stopped), env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert again.returncode == 0, again.stderr
    assert "resumed from step" in again.stderr
    assert rows(stopped) == STEPS
    one, two = (load_file(run / "model" / "model.safetensors") for run in (straight, stopped))
    assert not [name for name in one if not bool((one[name] == two[name]).all())]
