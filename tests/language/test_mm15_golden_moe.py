"""AXLearn's Top2Gating: choices, gates, losses and capacity; and the outputs of experts with stored weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveate.language.sparse import SparseMlp, balance_loss, cut_to_capacity, expert_capacity, route_top2, z_loss

GOLDENS = Path(__file__).parents[1] / "goldens" / "mm15"
ENTRIES = json.loads((GOLDENS / "moe.json").read_text())
STORED = np.load(GOLDENS / "moe.npz", allow_pickle=False)
ROUTERS = [entry for entry in ENTRIES if "weighted_total_f64" in entry]
CAPACITIES = [entry for entry in ENTRIES if "capacity_factor" in entry]
LAYERS = [entry for entry in ENTRIES if "activation" in entry]
OUTPUT_ATOL, GATE_ATOL, LOSS_RTOL = 1e-5, 1e-6, 1e-5


def stored(case: dict[str, Any], name: str) -> torch.Tensor:
    return torch.tensor(STORED[f"{case['case']}/{name}"])


@pytest.mark.parametrize("case", ROUTERS, ids=lambda case: case["case"])
def test_choices_gates_and_losses(case: dict[str, Any]) -> None:
    logits = stored(case, "logits")
    routing = route_top2(logits)
    if not case["tie"]:
        assert torch.equal(routing.experts_T2, stored(case, "top2_idx").long())
    gates = stored(case, "top2_gate_f64")
    torch.testing.assert_close(routing.gates_T2.double(), gates, atol=GATE_ATOL, rtol=0)
    balance, z = balance_loss(routing).item(), z_loss(logits).item()
    assert balance == pytest.approx(case["load_balance_f64"], rel=LOSS_RTOL)
    assert z == pytest.approx(case["z_f64"], rel=LOSS_RTOL)
    assert 0.01 * balance + 0.001 * z == pytest.approx(case["weighted_total_f64"], rel=LOSS_RTOL)


@pytest.mark.parametrize("case", CAPACITIES, ids=lambda case: f"{case['case']}-{case['capacity_factor']}")
def test_gates_behind_the_capacity(case: dict[str, Any]) -> None:
    routing = route_top2(stored(case, "logits"))
    tokens, experts = routing.probabilities_TE.shape
    capacity = expert_capacity(tokens, experts, case["capacity_factor"])
    assert capacity == case["capacity"]
    cut = cut_to_capacity(routing, capacity)
    # e64_zero as well: of equal logits AXLearn takes the lowest index, as we do.
    weights = torch.zeros(tokens, experts).scatter_add(1, cut.experts_T2, cut.gates_T2)
    expected = stored(case, f"axlearn_gate_cap{case['capacity_factor']:.0f}")
    torch.testing.assert_close(weights, expected, atol=GATE_ATOL, rtol=0)
    taken = cut.gates_T2 > 0
    assert (~taken[:, 0]).float().mean().item() == pytest.approx(case["over_capacity_1"], abs=1e-6)
    assert (~taken[:, 1]).float().mean().item() == pytest.approx(case["over_capacity_2"], abs=1e-6)
    assert torch.bincount(taken.sum(1), minlength=3).tolist() == case["dispatch_counts"]


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case["case"])
@pytest.mark.parametrize(("factor", "name"), [(None, "y_f64"), (1.0, "y_capacity1")])
def test_outputs_of_stored_experts(case: dict[str, Any], factor: float | None, name: str) -> None:
    gated = case["activation"] == "swiglu"
    up, down = stored(case, "w_in_Edh").transpose(1, 2), stored(case, "w_out_Ehd").transpose(1, 2)
    layer = SparseMlp(
        up.shape[2],
        up.shape[1],
        num_experts=case["E"],
        activation=nn.SiLU() if gated else nn.ReLU(),
        gated=gated,
        capacity_factor=factor,
    )
    name_up = "experts.gate_up_proj" if gated else "experts.up_proj"
    layer.load_state_dict(
        {
            "gate.weight": stored(case, "router_weight_dE").T,
            name_up: torch.cat([stored(case, "w_gate_Edh").transpose(1, 2), up], dim=1) if gated else up,
            "experts.down_proj": down,
        }
    )
    x = stored(case, "x")
    outputs = layer(x[None])[0]
    torch.testing.assert_close(outputs.double(), stored(case, name).double(), atol=OUTPUT_ATOL, rtol=0)
    assert layer.losses is not None
    balance, z = (loss.item() for loss in layer.losses)
    assert balance == pytest.approx(case["load_balance_f64"], rel=LOSS_RTOL)
    assert z == pytest.approx(case["z_f64"], rel=LOSS_RTOL)
    if factor is not None:
        cut = cut_to_capacity(route_top2(layer.gate(x)), expert_capacity(len(x), case["E"], factor))
        assert int((cut.gates_T2 == 0).sum()) == case["dropped_pairs_cap1"]
