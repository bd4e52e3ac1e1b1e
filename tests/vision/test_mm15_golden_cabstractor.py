"""Honeybee's C-Abstractor: stored weights and tokens in, tokens out; and resized position embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.vision.connectors import Connector, build_connector, resize_positions

GOLDENS = Path(__file__).parents[1] / "goldens" / "mm15"
CASES = json.loads((GOLDENS / "cabstractor.json").read_text())
STORED = np.load(GOLDENS / "cabstractor.npz", allow_pickle=False)
ATOL = 1e-5


def build(case: dict[str, Any]) -> Connector:
    side = round(case["L"] ** 0.5)
    options = {
        "num_tokens": case["q"],
        "depth": case["depth"],
        "mlp_depth": case["mlp"],
        "hidden_width": case["hid"],
    }
    return build_connector("cabstractor", options, in_width=case["enc"], out_width=case["out"], grid=(side, side))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_stored_weights_give_the_stored_tokens(case: dict[str, Any]) -> None:
    connector, name = build(case), case["name"]
    shapes = {key: list(value.shape) for key, value in connector.state_dict().items()}
    assert shapes == dict(case["keys"])
    connector.load_state_dict({key: torch.tensor(STORED[f"{name}/w/{key}"]) for key in shapes})
    tokens = torch.tensor(STORED[f"{name}/x"])
    before = tokens.clone()
    with torch.no_grad():
        outputs = connector(tokens)
    torch.testing.assert_close(outputs, torch.tensor(STORED[f"{name}/y"]), atol=ATOL, rtol=0)
    # Honeybee adds its position embedding to the caller's tensor in place.
    assert torch.equal(tokens, before)


@pytest.mark.parametrize(("case", "old", "new"), [("9to16", 9, 16), ("27to48", 27, 48)])
def test_resized_positions(case: str, old: int, new: int) -> None:
    stored = np.load(GOLDENS / "pos_interp.npz", allow_pickle=False)
    resized = resize_positions(torch.tensor(stored[f"{case}/x"]), grid=(old, old), new_grid=(new, new))
    torch.testing.assert_close(resized.double(), torch.tensor(stored[f"{case}/y_f64"]), atol=ATOL, rtol=0)
