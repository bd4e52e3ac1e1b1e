from __future__ import annotations

from pathlib import Path

import adafactor_cases
import pytest
import torch
from processes import run_processes
from torch import nn

from foveate.core.errors import UserError
from foveate.training import checkpoint
from foveate.training.optimizer import (
    ParameterRule,
    build_optimizer,
    format_table,
    freeze,
    parameter_table,
    set_learning_rate,
)
from foveate.training.settings import TrainingSettings
from naming import raises_naming

SETTINGS = TrainingSettings(steps=10, batch_size=8, learning_rate=0.01, weight_decay=0.2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((2, 2)), nn.Linear(4, 2))
        self.head = nn.Linear(2, 2)
        self.second_head = nn.Linear(2, 2, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.second_head.weight.requires_grad_(False)


def rows(*rules: ParameterRule) -> dict[str, object]:
    return {row.name: row for row in parameter_table(Model(), rules=rules, settings=SETTINGS)}


def test_biases_norms_and_scales_do_not_decay_by_default() -> None:
    decays = {name: row.weight_decay for name, row in rows().items()}
    assert {name for name, decay in decays.items() if decay} == {
        "tower.0.weight",
        "tower.2.weight",
        "head.weight",
        "second_head.weight",
    }


def test_the_first_matching_rule_holds_and_the_whole_name_must_match() -> None:
    table = rows(
        ParameterRule(r"tower\.0\..*", frozen=True),
        ParameterRule(r"tower\..*", learning_rate_scale=0.1, weight_decay=0.0),
        ParameterRule(r"head\..*", learning_rate_scale=2.0),
    )
    assert table["tower.0.weight"].frozen
    assert not table["tower.2.weight"].frozen
    assert table["tower.2.weight"].learning_rate_scale == 0.1
    assert table["tower.2.weight"].weight_decay == 0
    assert table["head.weight"].learning_rate_scale == 2
    assert table["second_head.weight"].rule == ""
    assert table["second_head.weight"].frozen


def test_rules_without_effect_are_refused() -> None:
    with raises_naming(UserError, "hed\\.weight", "head.weight"):
        rows(ParameterRule(r"hed\.weight"))
    with raises_naming(UserError, "head"):
        rows(ParameterRule("head"))
    with raises_naming(UserError, "head\\.bias"):
        rows(ParameterRule(r"head\..*"), ParameterRule(r"head\.bias"))
    with raises_naming(UserError, "'('"):
        rows(ParameterRule("("))


def test_nothing_to_train_is_refused() -> None:
    model = Model()
    with raises_naming(UserError, "parameter rules"):
        freeze(model, table=parameter_table(model, rules=[ParameterRule(".*", frozen=True)], settings=SETTINGS))


def test_groups_follow_the_table_and_the_step_equals_plain_adamw() -> None:
    model, oracle = Model(), Model()
    oracle.load_state_dict(model.state_dict())
    table = parameter_table(model, rules=[ParameterRule(r"head\..*", learning_rate_scale=0.5)], settings=SETTINGS)
    freeze(model, table=table)
    optimizer = build_optimizer(model, table=table, settings=SETTINGS)
    set_learning_rate(optimizer, learning_rate=0.004)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(not row.frozen for row in table)
    reference = torch.optim.AdamW(
        [
            {"params": [oracle.head.weight], "lr": 0.002, "weight_decay": 0.2},
            {"params": [oracle.head.bias], "lr": 0.002, "weight_decay": 0.0},
            {"params": [oracle.log_scale], "lr": 0.004, "weight_decay": 0.0},
        ],
        betas=SETTINGS.betas,
        eps=SETTINGS.eps,
    )
    for chosen in (model, oracle):
        (chosen.head(torch.ones(1, 2)).square().sum() * chosen.log_scale.exp().sum()).backward()
    optimizer.step()
    reference.step()
    for name in ("head.weight", "head.bias", "log_scale", "second_head.weight"):
        torch.testing.assert_close(model.get_parameter(name), oracle.get_parameter(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_the_plain_rule_with_nesterovs_momentum(momentum: float) -> None:
    settings = TrainingSettings(
        steps=9, batch_size=8, learning_rate=0.1, weight_decay=0.2, optimizer="sgd", momentum=momentum
    )
    model = Model()
    table = parameter_table(model, rules=[ParameterRule(r"tower\..*", learning_rate_scale=0.5)], settings=settings)
    freeze(model, table=table)
    optimizer = build_optimizer(model, table=table, settings=settings)
    set_learning_rate(optimizer, learning_rate=0.1)
    expected = {name: model.get_parameter(name).detach().clone() for name in ("head.weight", "head.bias")}
    velocity = {name: torch.zeros_like(value) for name, value in expected.items()}
    for _ in range(3):
        optimizer.zero_grad()
        model.head(torch.ones(1, 2)).square().sum().backward()
        for name, value in expected.items():
            gradient = model.get_parameter(name).grad + (0.2 * value if name == "head.weight" else 0)
            velocity[name] = momentum * velocity[name] + gradient
            value -= 0.1 * (gradient + momentum * velocity[name])
        optimizer.step()
        for name, value in expected.items():
            torch.testing.assert_close(model.get_parameter(name).detach(), value)


def test_options_of_the_other_optimizer_warn() -> None:
    plain = {"steps": 9, "batch_size": 8, "learning_rate": 0.1}
    with pytest.warns(UserWarning, match="betas.*sgd"):
        TrainingSettings(**plain, optimizer="sgd", betas=(0.8, 0.9))
    with pytest.warns(UserWarning, match="momentum.*adamw"):
        TrainingSettings(**plain, momentum=0.5)


def test_the_table_can_be_read() -> None:
    text = format_table(list(rows(ParameterRule(r"tower\..*", frozen=True)).values()))
    assert "parameter" in text.splitlines()[0]
    assert any("tower.0.weight" in line and "4x3" in line and "frozen" in line for line in text.splitlines())
    assert any("log_scale" in line and "(default)" in line for line in text.splitlines())


def test_adafactor_steps_by_the_rate_itself_and_is_pytorchs() -> None:
    torch.manual_seed(0)
    model = Model()
    chosen = SETTINGS.model_copy(update={"optimizer": "adafactor", "weight_decay": 0.0})
    table = parameter_table(model, rules=[], settings=chosen)
    optimizer = build_optimizer(model, table=table, settings=chosen)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    set_learning_rate(optimizer, learning_rate=1e-3)
    optimizer.step()
    weight, gradient = before["head.weight"], gradients["head.weight"]
    # Shazeer and Stern 2018, algorithm 4, first step: the estimate is the product of the means, clipped at RMS 1.
    squares = gradient.square()
    estimate = squares.mean(1, keepdim=True) @ squares.mean(0, keepdim=True) / squares.mean()
    update = gradient / estimate.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(model.head.weight, weight - 1e-3 * update)


def test_options_without_effect_on_adafactor_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="betas.*adafactor"):
        TrainingSettings(steps=2, batch_size=2, learning_rate=1, optimizer="adafactor", betas=(0.9, 0.99))


def test_adafactor_on_shards_is_pytorchs_and_resumes(tmp_path: Path) -> None:
    run_processes(Path(__file__).with_name("adafactor_cases.py"), tmp_path, world_size=2)
    assert len(list(tmp_path.glob("rank-*-passed"))) == 2
    # One process goes on from what two wrote.
    module = adafactor_cases.build()
    table = parameter_table(module, rules=(), settings=adafactor_cases.SETTINGS)
    optimizer = build_optimizer(module, table=table, settings=adafactor_cases.SETTINGS)
    checkpoint.load(tmp_path / "step-00000003", module=module, optimizer=optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
