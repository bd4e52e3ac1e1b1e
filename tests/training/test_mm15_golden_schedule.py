"""Learning rates of MM1.5's stages against stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.training.optimizer import learning_rate_factor
from foveate.training.settings import TrainingSettings

GOLDENS = Path(__file__).parents[1] / "goldens" / "mm15"
CASES = json.loads((GOLDENS / "lr_schedule.json").read_text())
STAGES = {stage["stage"]: stage for stage in json.loads((GOLDENS / "stages.json").read_text())["mm15"]}


def learning_rates(case: dict) -> TrainingSettings:
    return TrainingSettings(
        steps=case["total_steps"],
        batch_size=256,
        learning_rate=case["peak"],
        warmup_steps=case["warmup_steps"],
        final_learning_rate_fraction=case["final_fraction"],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_golden_learning_rates(case: dict) -> None:
    settings = learning_rates(case)
    for step, expected in case["points"]:
        # The warm-up here begins at 1 / warmup_steps and not at 0, which would be a step for nothing: it is one step
        # ahead of the reference until both reach the peak.
        ours = step - 1 if step < case["warmup_steps"] else step
        if ours < 0:
            assert expected == 0
            continue
        rate = settings.learning_rate * learning_rate_factor(ours, settings=settings)
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-24)


@pytest.mark.parametrize(("stage", "case"), [("continual_pretrain", "continual"), ("sft", "sft")])
def test_stages_have_the_golden_schedules(stage: str, case: str) -> None:
    golden = next(item for item in CASES if item["case"] == case)
    listed = STAGES[stage]
    assert listed["peak_lr"] == golden["peak"]
    assert listed.get("steps", listed.get("max_steps")) == golden["total_steps"]
    settings = learning_rates(golden)
    assert learning_rate_factor(golden["total_steps"], settings=settings) == 0
    assert (
        TrainingSettings(**settings.model_dump() | {"optimizer": listed["optimizer"].lower()}).optimizer == "adafactor"
    )
