from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from foveate.training.optimizer import constant, cosine, learning_rate_factor, warmup, wsd
from foveate.training.settings import TrainingSettings


def settings(**fields: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": 100, "batch_size": 8, "learning_rate": 1e-3} | fields)


def test_warmup_is_linear_and_ends_at_one() -> None:
    assert [warmup(step, warmup_steps=4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(0, warmup_steps=0) == 1


def test_cosine_equals_pytorch() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.1)
    for step in range(20, 100):
        assert cosine(step, steps=100, warmup_steps=20, final=0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()


def test_wsd_is_stable_then_linear_to_the_end() -> None:
    factors = [wsd(step, steps=100, warmup_steps=10, decay_fraction=0.2, final=0.1) for step in range(101)]
    assert factors[10:81] == [1] * 71
    assert factors[90] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert constant(99, warmup_steps=10) == 1


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_every_schedule_stays_within_zero_and_one(schedule: str) -> None:
    chosen = settings(schedule=schedule, warmup_steps=7)
    factors = [learning_rate_factor(step, settings=chosen) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[6] == 1


def test_settings_refuse_what_cannot_be_meant() -> None:
    for fields in (
        {"stepz": 3},
        {"betas": [0.9, 1.0]},
        {"warmup_steps": 100},
        {"steps": 0},
        {"ema_decay": 1.0},
    ):
        with pytest.raises(ValidationError):
            settings(**fields)


def test_settings_without_effect_warn() -> None:
    with pytest.warns(UserWarning, match="decay_fraction.*cosine"):
        settings(decay_fraction=0.3)
    with pytest.warns(UserWarning, match="constant"):
        settings(schedule="constant", final_learning_rate_fraction=0.1)
