"""The golden of the image-text loss in real processes: gathering with gradient, raw gradient = world x
single.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run_processes

SCRIPT = Path(__file__).resolve().parent / "multirank_loss.py"
FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "cloc"
ENTRY = next(
    entry
    for entry in json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["files"]
    if entry["file"] == "clip_loss_multirank.npz"
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", ENTRY["cases"], ids=lambda case: case["id"])
def test_two_processes(case: dict, dtype: str, tmp_path: Path) -> None:
    name, world_size = case["id"], case["world"]
    arguments = (FOLDER / ENTRY["file"], name, case["logit_scale"], dtype, tmp_path)
    run_processes(SCRIPT, *arguments, world_size=world_size)
    golden = np.load(FOLDER / ENTRY["file"], allow_pickle=False)
    tolerance = ENTRY["tolerance"][dtype]
    for gather in ("even", "ragged"):
        ranks = [np.load(tmp_path / f"{gather}-rank-{rank}.npz", allow_pickle=False) for rank in range(world_size)]
        for rank, found in enumerate(ranks):
            assert abs(found["loss"] - case["single_loss"]) < tolerance
            assert abs(found["loss"] - golden[f"{name}_local0_grad1_loss"][rank]) < tolerance
            assert abs(found["dscale"] - golden[f"{name}_local0_grad1_dscale"][rank]) < tolerance
        for side in ("dimg", "dtxt"):
            raw = np.concatenate([found[side] for found in ranks])
            np.testing.assert_allclose(raw, golden[f"{name}_local0_grad1_{side}"], rtol=0, atol=tolerance)
            averaged = raw / world_size
            np.testing.assert_allclose(averaged, golden[f"{name}_single_{side}"], rtol=0, atol=tolerance)
