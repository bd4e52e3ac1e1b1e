"""A training of three stages that is killed again and again ends with the same weights as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foveate.core.model_folder import WEIGHTS, read_tensors
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import train_mllm
from foveate.records.collection import Collection
from tiny_mllm import make_recipe

KILLS, STEPS = 50, 8
# Checkpoints that a session writes before it is killed: 0 = it is killed while it starts.
CHECKPOINTS = (0, 1, 2, 3, 4)


def make_kill_recipe(kind: str) -> MllmRecipe:
    """Alignment and two stages of conversations, with a checkpoint after every step; "ferret" reads regions."""
    alignment, instruction = (stage.model_dump() for stage in make_recipe().stages)
    tuning = {**instruction, "name": "tuning", "max_conversations": 2, "connector_rate": 0.0}
    stages = [
        {**stage, "training": {**stage["training"], "steps": STEPS, "checkpoint_every": 1}}
        for stage in (alignment, instruction, tuning)
    ]
    if kind != "ferret":
        return make_recipe(stages=stages)
    model = make_recipe().model.model_dump()
    regions = {
        "regions": "hybrid",
        "region_encoder": {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]},
        "region_points": 32,
        "language": model["language"] | {"max_position_embeddings": 256},
    }
    return make_recipe(model=model | regions, stages=stages)


def list_progress(run: Path) -> set[Path]:
    """List the checkpoints and finished stages of a run."""
    return {*run.glob("stage-*/checkpoints/step-*"), *run.glob("stage-*/stage.json")}


def train_until(kind: str, collection: Path, run: Path, checkpoints: int | None, delay: float) -> bool:
    """Train in a forked process, killed some seconds after so many checkpoints; return whether it finished before."""
    before = list_progress(run)
    # Forked, as importing torch and transformers anew takes longer than the whole training.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Collection.open(collection) as opened:
                train_mllm(make_kill_recipe(kind), opened, run, device="cpu")
            status = 0
        finally:
            os._exit(status)
    deadline = None
    # Old checkpoints are removed, so that new ones are collected.
    new: set[Path] = set()
    while deadline is None or time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        new |= list_progress(run) - before
        if deadline is None and checkpoints is not None and len(new) >= checkpoints:
            deadline = time.monotonic() + delay
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_kills(kind: str, collection: Path, folder: Path, total: int) -> None:
    """Kill trainings of one run folder `total` times; a finished one is begun again in the next folder."""
    torch.set_num_threads(1)
    assert train_until(kind, collection, folder / "whole", None, 0)
    begun = time.time()
    assert train_until(kind, collection, folder / "timed", None, 0)
    ends = sorted(path.stat().st_mtime for path in (folder / "timed").glob("stage-*/stage.json"))
    step = (ends[-1] - ends[0]) / (2 * STEPS)
    start = max(ends[0] - begun - STEPS * step, step)
    expected = read_tensors(folder / "whole" / "model" / WEIGHTS)
    draw, kills, runs = random.Random(0), 0, 0
    while kills < total:
        runs += 1
        run = folder / f"run-{runs}"
        finished = False
        while not finished:
            checkpoints = draw.choice(CHECKPOINTS) if kills < total else None
            # Anywhere in the start of a session, or in the step behind a checkpoint.
            delay = draw.uniform(0, step if checkpoints else start)
            finished = train_until(kind, collection, run, checkpoints, delay)
            kills += not finished
        weights = read_tensors(run / "model" / WEIGHTS)
        assert expected.keys() == weights.keys()
        for name, value in expected.items():
            assert torch.equal(value, weights[name]), (run, name)
    print(f"{kills} kills in {runs} trainings")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", ["plain", "ferret"])
def test_fifty_kills_of_three_stages_change_nothing(kind: str, asked_collection: Path, tmp_path: Path) -> None:
    # A process of its own: forking one with threads of other tests could hang.
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root.parent / "src"), str(root), str(root / "mllm")])
    command = [sys.executable, __file__, kind, str(asked_collection), str(tmp_path), str(KILLS)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.startswith(str(KILLS))


if __name__ == "__main__":
    run_kills(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
