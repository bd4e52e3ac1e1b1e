"""Rules that refuse impossible runs, and rates that are measured on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.training import doctor
from foveate.training.doctor import PlannedRun, problems, remarks

GOOD: dict[str, Any] = {
    "batch_size": 64, "devices": 2, "local": 2, "workers": 2, "usable": 1000, "labeled": 500, "needs_regions": True,
    "shards": 8, "needed": 100.0, "memory_bytes": 1e9, "memory_there": 8e9, "disk_bytes": 1e9, "disk_there": 9e9,
}  # fmt: skip


def plan(**changes: Any) -> PlannedRun:
    return PlannedRun(**(GOOD | changes))


@pytest.mark.parametrize(("capable", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_fast_precision_of_the_machine_is_told(
    capable: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.machine(tmp_path)["auto_precision"] == precision


def test_a_good_plan_has_no_problem_and_no_remark() -> None:
    assert problems(plan(), cores=8) == []
    assert remarks(plan(), available=200.0, cores=8) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 65}, "cannot be split evenly over 2 processes; use 64"),
        ({"batch_size": 1, "devices": 1}, "no negative"),
        ({"usable": 50}, "larger than the 50 usable images"),
        ({"labeled": 0}, "no batch can hold a positive of the region loss"),
        ({"memory_bytes": 9e9}, "needs 9.0 GB of memory, 8.0 GB are available"),
        ({"disk_bytes": 10e9}, "need 10.0 GB of disk, 9.0 GB are free"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], sentence: str) -> None:
    (found,) = problems(plan(**changes), cores=8)
    assert sentence in found


def test_shards_bind_only_readers_that_take_whole_ones() -> None:
    few = plan(shards=3)
    assert problems(few, cores=8) == []
    (refused,) = problems(few, cores=8, reader="webdataset")
    assert "3 shards for 4 WebDataset readers" in refused
    assert "1 of them would have nothing" in refused
    (said,) = remarks(few, available=200.0, cores=8)
    assert "no limit here" in said
    assert problems(plan(shards=4), cores=8, reader="webdataset") == []


def test_boxes_may_be_missing_where_nobody_needs_them() -> None:
    assert problems(plan(labeled=0, needs_regions=False), cores=8) == []


def test_more_threads_than_cores_are_slow_and_no_reason_to_refuse() -> None:
    many = plan(workers=5, shards=10)
    assert problems(many, cores=8) == []
    (said,) = remarks(many, available=200.0, cores=8)
    assert "10 loader threads (2 processes x 5) on 8 cores: they only take turns; training.workers=4" in said


def test_a_slow_loader_is_said_with_how_long_the_devices_wait() -> None:
    (said,) = remarks(plan(), available=25.0, cores=8)
    assert "they will wait 75% of the time; there are more cores, raise --workers" in said
    (said,) = remarks(plan(workers=4), available=25.0, cores=8)
    assert "raise" not in said
    assert "opened for each image" in remarks(plan(shards=300), available=200.0, cores=8)[0]


def test_rates_of_a_collection_with_a_damaged_image(tmp_path: Path) -> None:
    path = tiny.make_collection(tmp_path / "shapes")
    tiny.damage(path, "train-03")
    with Collection.open(path) as opened:
        rates = doctor.measure(
            opened,
            np.arange(len(opened)),
            whole=decode,
            draft=lambda row: decode(opened.image_bytes(row)),
            threads=2,
            seed=0,
            seconds=0.2,
        )
    assert set(rates.unreadable) == {"train-03"}
    assert rates.images == 32
    assert min(rates.read_bytes_per_second, rates.decode_whole, rates.decode_draft, rates.loader) > 0
    assert rates.as_json()["threads"] == 2


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = doctor.machine(tmp_path / "not" / "there" / "yet")
    assert facts["cores"] >= 1
    assert 0 < facts["memory_free_bytes"] <= facts["memory_bytes"]
    assert facts["disk_free_bytes"] > 0
    assert facts["hub_offline"] is True
    assert "torch" in facts["versions"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert doctor.machine(tmp_path)["hub_offline"] is False


def test_extras_name_what_is_missing() -> None:
    found = doctor.extras("foveate")
    assert "pytest" in found["dev"]
    assert doctor.extras("no-such-package") == {}


def test_the_command_installs_the_versions_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "numpy>=1.26",
        "flwr<1.44,>=1.42; extra == 'flower'",
        "av>=15; extra == 'video'",
        "av>=15; extra == 'dev'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda package: requirements)
    assert doctor.install_command(["av"], "video").endswith("-m pip install 'av>=15'")
    assert "'flwr<1.44,>=1.42' in an environment of its own" in doctor.install_command(["flwr"], "flower")
