"""SIGKILL at random moments of `adapt train`, then the same call again: the same adapter, log and logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adapt.killed_adapt import METHODS
from adapt.test_adapt_train import stripes
from adapt.towers import tower
from killing import Server, kill_at_random


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("killed_adapt") as found:
        yield found


def log(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in ("step", "loss", "learning_rate")} for row in rows]


def same(one: Path, other: Path) -> bool:
    adapter = "adapter/adapter.safetensors"
    logits = [dict(np.load(run / "logits-test.npz")) for run in (one, other)]
    return (
        (one / adapter).read_bytes() == (other / adapter).read_bytes()
        and log(one) == log(other)
        and all(np.array_equal(logits[0][name], logits[1][name]) for name in logits[0])
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [(one, 12) for one in METHODS])
def test_a_killed_training_ends_with_the_same_adapter(method: str, kills: int, server: Server, tmp_path: Path) -> None:
    from timm.models._hub import save_for_hf

    backbone, data = tmp_path / "vit", stripes(tmp_path / "stripes.npz")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    save_for_hf(tower("timm"), str(backbone), model_args=arguments, safe_serialization=True)
    took = server.seconds("adapt_train", backbone, data, tmp_path / "whole", method)
    assert len(log(tmp_path / "whole")) == 30
    run, attempt = tmp_path / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal run, attempt
        attempt += 1
        if not dead:  # the next kills fall into a new run
            assert same(run, tmp_path / "whole")
            run = tmp_path / f"killed-{attempt}"

    kill_at_random(
        lambda: server.start("adapt_train", backbone, data, run, method), kills=kills, longest=took, seed=7, after=check
    )
    server.start("adapt_train", backbone, data, run, method).finish()
    assert same(run, tmp_path / "whole")
