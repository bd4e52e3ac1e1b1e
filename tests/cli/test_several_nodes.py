"""torchrun with two agents, as on two machines, meeting at a c10d rendezvous on the loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import environment, free_port
from safetensors.torch import load_file

import tiny


def pretrain_arguments(recipe: Path, collection: Path, run: Path) -> list[str]:
    return [
        "foveate", "pretrain", str(recipe), "--collection", str(collection), "--out", str(run),
        "--device", "cpu", "--no-evaluation", "--quiet",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_nodes_train_to_the_weights_of_one_process(parallel: str, tiny_collection: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml", training={"parallel": parallel, "learning_rate": 2e-4})
    alone = [sys.executable, "-m", *pretrain_arguments(recipe, tiny_collection, tmp_path / "one")]
    done = subprocess.run(alone, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    port, run = free_port(), tmp_path / "two"
    agents = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1",
                "--max-restarts=0", "-m", "--", *pretrain_arguments(recipe, tiny_collection, run),
            ],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        said = [agent.communicate(timeout=300)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    for agent, text in zip(agents, said, strict=True):
        assert agent.returncode == 0, text

    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            two[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    untrained = tiny.recipe(training={"parallel": parallel, "learning_rate": 2e-4})
    from foveate.pretrain.train import build_model

    start = build_model(untrained).state_dict()
    assert any(not torch.allclose(start[name], weight) for name, weight in one.items()), "nothing was trained"
