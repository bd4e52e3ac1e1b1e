"""The price of a stage by arithmetic: time, memory, what would make it fit, and the lines that say so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from processes import environment

from foveate.core.errors import UserError
from foveate.training.price import (
    Price,
    PricedStage,
    PriceSettings,
    Stage,
    format_price,
    memory_per_device,
    price,
    resolve_training,
)
from foveate.training.settings import TrainingSettings

GB = 10**9


def make_stage(**fields: Any) -> Stage:
    """A part of a million trained parameters and one that is frozen; a sample in memory takes a gigabyte."""
    training = TrainingSettings(steps=10, batch_size=64, learning_rate=1e-3)
    defaults: dict[str, Any] = {
        "training": training,
        "parameters": {"frozen": 3_000_000, "head": 1_000_000},
        "trained": 1_000_000,
        "largest_unit": 1_000_000,
        "forward": {"frozen": 4e9, "head": 1e9},
        "backward": {"frozen": 0.0, "head": 2e9},
        "saved": {"activations": float(GB)},
    }
    return Stage(**defaults | fields)


def test_time_is_flops_over_the_rate_that_is_reached() -> None:
    stage = make_stage(repeated=7e9, loss_flops=64e9)
    result = price([stage], PriceSettings(devices=2, hardware="mine=4,100,1", mfu=0.5))
    (priced,) = result.stages
    # In float32: 1 TFLOP/s on each of two devices, half of it reached.
    assert priced.flops_per_step == 64 * 7e9 * 2 + 64e9
    assert priced.seconds_per_step == pytest.approx(priced.flops_per_step / 1e12)
    assert priced.loss_share == pytest.approx(1 / 15)
    assert priced.flops_per_sample == {"frozen": 4e9, "head": 3e9, "total": 7e9}
    assert result.totals["flops"] == 10 * priced.flops_per_step
    assert result.totals["device_days"] == 2 * result.totals["days"]
    longer = price([stage], PriceSettings(devices=2, hardware="mine=4,100,1", mfu=0.5, samples=1280))
    assert longer.totals["seconds"] == pytest.approx(2 * result.totals["seconds"])


def test_memory_is_state_and_the_samples_of_one_part() -> None:
    memory = memory_per_device(make_stage(loss_bytes=lambda devices: {"losses": 8.0 / devices}), 2)
    assert memory == {
        "weights": 16e6,
        "gradients": 4e6,
        "optimizer": 8e6,
        "average": 0.0,
        "ddp_buckets": 4e6,
        "narrow_weights": 0.0,
        "activations": 32 * GB,
        "losses": 4.0,
        "total": 32 * GB + 32e6 + 4,
    }
    assert memory_per_device(make_stage().change(accumulate=4), 2)["activations"] == 8 * GB


@pytest.mark.parametrize(
    ("gigabytes", "fields", "advice"),
    [
        (20, {}, "it fits with training.accumulate=4 (16 samples at a time)"),
        (0.5, {}, "no number of devices helps: a smaller model, sample or training.batch_size does"),
        (0.5, {"saved": {"activations": 10.0}, "loss_bytes": lambda devices: {"losses": 1e9 / devices}},
         "it fits with --devices 4 and training.parallel=ddp"),
        (0.5, {"loss_bytes": lambda devices: {"losses": 1e9}}, "the embeddings and matrices of the losses alone"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_smallest_change(gigabytes: float, fields: dict[str, Any], advice: str) -> None:
    result = price([make_stage(name="first", **fields)], PriceSettings(hardware=f"mine=1,{gigabytes}"))
    (stage,) = result.stages
    assert not stage.fits
    assert advice in stage.warnings[0]
    assert f"  warning: {stage.warnings[0]}" in format_price(result)


def test_options_that_save_memory_are_listed() -> None:
    stage = make_stage(options={"tower.checkpointing=true": {"activations": 1.0}})
    (priced,) = price([stage], PriceSettings(hardware="mine=1,100")).stages
    assert priced.memory_with["tower.checkpointing=true"] < priced.memory_with["training.parallel=ddp"]
    assert any("tower.checkpointing=true 0.028" in line for line in format_price(price([stage], PriceSettings())))


def test_devices_that_do_not_divide_a_batch_are_refused_with_a_number_that_does() -> None:
    training = make_stage().training
    with pytest.raises(UserError, match="devices: 24 do not divide batch_size 64; expected a divisor, for example 16"):
        resolve_training(training, PriceSettings(devices=24))
    with pytest.raises(UserError, match="stage 'first': 3 devices do not divide"):
        resolve_training(training, PriceSettings(devices=3), name="first")


def test_what_was_timed_is_printed_by_the_same_function() -> None:
    stages = [PricedStage(name="lora", trainings=3, steps=30, samples=90, seconds=7200, flops=1e12)]
    timed = Price(
        parameters_by_part={"backbone": 1000, "head": 10},
        stages=stages,
        facts={"bytes_read": 1_500_000, "seconds_elsewhere": 90.0, "table": [{"a": 1}], "cached": True},
        notes=["from timed passes"],
    )
    assert format_price(timed) == [
        "parameters: 1,010 (backbone 1,000, head 10)",
        "bytes read: 1.5 MB",
        "seconds elsewhere: 1 min 30 s",
        "cached: yes",
        "stage lora: 3 trainings, 30 steps, 90 samples in all, 2 h 00 min",
        "in all: about 2 h 00 min on this machine, 1e+12 FLOPs",
        "note: from timed passes",
    ]
    assert timed.to_json()["table"] == [{"a": 1}]
    assert str(timed.to_json()["totals"]["steps"]) == "30"
    assert "facts" not in timed.to_json()


def test_prices_need_no_torch() -> None:
    code = "import sys, foveate.training.price, foveate.core.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0
