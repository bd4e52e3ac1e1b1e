"""Training at scale on gloo processes: shards of a part of the ranks, offload, recomputation, compiler, own shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import ContrastiveToy, toy_settings
from processes import run_processes
from safetensors import safe_open
from safetensors.torch import load_file

from foveate.training.distributed import recomputing
from foveate.training.price import Stage, memory_per_device

SCRIPT = Path(__file__).resolve().parent / "contrastive_toy.py"


def train(run: Path, *words: object, world_size: int = 1, **settings: Any) -> list[str]:
    return run_processes(SCRIPT, run, "--settings", json.dumps(settings), *words, world_size=world_size)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    train(run, "--steps", 8)
    return run


def assert_equal(run: Path, reference: Path, *, tolerance: float) -> None:
    for name in ("final.safetensors", "average.safetensors"):
        found, expected = load_file(run / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


def files(run: Path, step: int) -> list[str]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "offload": True},
        {"checkpoints": "sharded"},
    ],
    ids=str,
)
def test_two_processes_reach_the_weights_of_one(settings: dict[str, Any], single: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--steps", 8, "--parallel", "fsdp", world_size=2, **settings)
    assert_equal(tmp_path / "run", single, tolerance=1e-5)


@pytest.mark.slow
def test_four_processes_in_two_copies_reach_the_weights_of_one(single: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--steps", 8, "--parallel", "fsdp", world_size=4, shard_size=2, checkpoints="sharded")
    assert_equal(tmp_path / "run", single, tolerance=1e-5)
    # Of the two copies of each shard one is written.
    stored = tmp_path / "run" / "checkpoints" / "step-00000008" / "weights"
    count = 0
    for path in stored.iterdir():
        with safe_open(path, framework="pt") as file:
            count += sum(file.get_slice(name).get_shape()[0] for name in file.keys() if name == "image.0.weight")
    assert count == 16


def test_recomputation_keeps_dropout_and_leaves_the_modules_as_they_were(tmp_path: Path) -> None:
    train(tmp_path / "plain", "--steps", 4, "--dropout", 0.5)
    train(tmp_path / "again", "--steps", 4, "--dropout", 0.5, activation_checkpointing=True)
    assert_equal(tmp_path / "again", tmp_path / "plain", tolerance=0.0)
    task = ContrastiveToy()
    with recomputing(task):
        kept: list[tuple[int, ...]] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)) or tensor, id)
        with hooks:
            task.image(torch.zeros(5, 6))
        # The activations between its layers are not among what is kept.
        assert (5, 16) not in kept
        assert "forward" in vars(task.image)
    assert "forward" not in vars(task.image)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("fsdp", 2, "sharded"), ("ddp", 1, "gathered")),
        pytest.param(("fsdp", 2, "sharded"), ("fsdp", 4, "sharded"), marks=pytest.mark.slow),
        pytest.param(("fsdp", 2, "sharded"), ("fsdp", 2, "gathered"), marks=pytest.mark.slow),
        (("ddp", 1, "gathered"), ("fsdp", 2, "sharded")),
    ],
    ids=str,
)
def test_a_run_goes_on_with_other_ranks_and_other_checkpoints(
    before: tuple[str, int, str], after: tuple[str, int, str], single: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for (parallel, world_size, kind), words in ((before, ["--stop-in-step", 4]), (after, [])):
        said = train(run, "--steps", 8, "--parallel", parallel, *words, world_size=world_size, checkpoints=kind)
    assert "resumed from step 5/8" in said[0]
    assert_equal(run, single, tolerance=1e-5)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, 9))


def test_shards_are_read_bit_for_bit_by_one_two_and_four(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--steps", 4, "--parallel", "fsdp", world_size=2, checkpoints="sharded")
    assert [name for name in files(run, 4) if name.startswith("weights/")] == [
        "weights/shard-00001-model-00001-of-00001.safetensors",
        "weights/shard-00002-model-00001-of-00001.safetensors",
    ]
    assert not [name for name in files(run, 4) if not name.endswith((".safetensors", ".json"))]
    written = {name: load_file(run / name) for name in ("final.safetensors", "average.safetensors")}
    for world_size in (1, 2, 4):
        # The last step is done: the run opens its checkpoint, and writes what it read.
        for name in written:
            (run / name).unlink()
        train(run, "--steps", 4, "--parallel", "fsdp", world_size=world_size, checkpoints="sharded")
        for name, expected in written.items():
            found = load_file(run / name)
            assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), (world_size, name)


def test_a_damaged_shard_is_found_and_the_one_before_is_used(single: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    every = {"checkpoints": "sharded"}
    train(run, "--steps", 8, "--parallel", "fsdp", "--checkpoint-every", 4, world_size=2, **every)
    shard = run / "checkpoints" / "step-00000008" / "optimizer" / "shard-00002-model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    said = train(run, "--steps", 8, "--parallel", "fsdp", world_size=2, **every)
    assert f"optimizer/{shard.name} has changed" in said[0]
    assert "resumed from step 4/8" in said[0]
    assert_equal(run, single, tolerance=1e-5)


def test_weights_gathered_in_bfloat16_train_alike(tmp_path: Path) -> None:
    narrow = {"precision": "bf16", "frozen_precision": "fp32"}
    for name, more in (("wide", {}), ("narrow", {"gathered_precision": "bf16"})):
        train(tmp_path / name, "--steps", 8, "--parallel", "fsdp", world_size=2, **narrow, **more)
    found, expected = (load_file(tmp_path / name / "final.safetensors") for name in ("narrow", "wide"))
    for key, tensor in expected.items():
        # bfloat16 has 8 bits: the updates differ a little, the weights stay in float32.
        assert found[key].dtype == tensor.dtype
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0.02)
    assert not torch.equal(found["image.0.weight"], found["image.0.weight"].bfloat16().float())


@pytest.mark.slow
def test_compiled_blocks_train_alike(single: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--steps", 8, compile=True)
    assert_equal(tmp_path / "run", single, tolerance=1e-4)


def test_a_shard_size_must_divide_the_processes(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="shard_size"):
        train(tmp_path / "run", "--parallel", "fsdp", world_size=2, shard_size=3)


@pytest.mark.parametrize("name", ["shard_size", "offload", "gathered_precision"])
def test_settings_without_effect_warn(name: str) -> None:
    value = {"shard_size": 2, "offload": True, "gathered_precision": "bf16"}[name]
    with pytest.warns(UserWarning, match=f"{name} has no effect with parallel 'ddp'"):
        toy_settings(**{name: value, "precision": "bf16"})


def test_narrow_gathers_need_a_narrow_precision() -> None:
    with pytest.raises(ValueError, match="gathered_precision"):
        toy_settings(parallel="fsdp", gathered_precision="bf16")


def test_a_price_knows_copies_and_the_host() -> None:
    def priced(**settings: Any) -> dict[str, float]:
        training = toy_settings(parallel="fsdp", **settings)
        stage = Stage(
            training=training, parameters={"a": 1000}, trained=1000, largest_unit=100, forward={}, backward={}, saved={}
        )
        return memory_per_device(stage, 8)

    whole, copies, host = priced(), priced(shard_size=4), priced(offload=True)
    assert copies["optimizer"] == 2 * whole["optimizer"] == 8 * 1000 / 4
    assert (host["optimizer"], host["weights"]) == (0, 2 * 4 * 100)
