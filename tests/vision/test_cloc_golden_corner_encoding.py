"""The stored sinusoids of box corners and patch centers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.vision.layers import encode_points, patch_centers

GOLDENS = Path(__file__).parents[1] / "goldens" / "cloc"
ENTRY = next(
    entry
    for entry in json.loads((GOLDENS / "index.json").read_text())["files"]
    if entry["file"] == "corner_encoding.npz"
)
STORED = np.load(GOLDENS / "corner_encoding.npz", allow_pickle=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in ENTRY["cases"]])
def test_corners(case: dict[str, Any], dtype: torch.dtype) -> None:
    boxes_R4 = torch.tensor(STORED["boxes"], dtype=dtype)
    for corner, columns in (("tl", slice(0, 2)), ("br", slice(2, 4))):
        found = encode_points(
            boxes_R4[:, columns],
            width=case["dim"],
            coordinate_scale=case["coordinate_scale"],
            temperature=case["temperature"],
            layout=case["layout"],
        )
        expected = torch.tensor(STORED[f"{case['id']}_{corner}"], dtype=dtype)
        atol = ENTRY["tolerance"][str(dtype).removeprefix("torch.")]
        torch.testing.assert_close(found, expected, atol=atol, rtol=0.0)


@pytest.mark.parametrize("grid", [(3, 3), (4, 6)])
def test_patch_centers(grid: tuple[int, int]) -> None:
    centers = patch_centers(grid, dtype=torch.float64)
    name = f"grid_{grid[0]}x{grid[1]}"
    atol = ENTRY["tolerance"]["float64"]
    torch.testing.assert_close(centers, torch.tensor(STORED[f"{name}_centres"]), atol=atol, rtol=0.0)
    encoded = encode_points(centers, width=32)
    torch.testing.assert_close(encoded, torch.tensor(STORED[f"{name}_enc_d32"]), atol=atol, rtol=0.0)


def test_timm_table_is_a_permutation_of_ours() -> None:
    rows, columns = 4, 6
    integers = torch.stack(
        (torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)), dim=-1
    ).double()
    sin_x, cos_x, sin_y, cos_y = encode_points(integers, width=32, coordinate_scale=1.0).chunk(4, dim=-1)
    found = torch.cat((sin_y, sin_x, cos_y, cos_x), dim=-1)
    torch.testing.assert_close(found, torch.tensor(STORED["timm_grid_4x6_d32"]), atol=1e-7, rtol=0.0)
