"""Tokens of a video against stored outputs of the official aggregation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.video.aggregate import aggregate_frames
from foveate.video.strategies import parse_aggregation
from foveate.vision.video.sampling import slow_positions

GOLDENS = Path(__file__).parents[1] / "goldens" / "slowfast"
ARRAYS = json.loads((GOLDENS / "aggregate.json").read_text())["cases"]
HASHES = json.loads((GOLDENS / "aggregate_hash.json").read_text())
SLOW = json.loads((GOLDENS / "slow_indices.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:slow", "ignore:fast")


def load(array: np.ndarray, dtype: str) -> Tensor:
    """Read an array; bfloat16 is stored as its bits."""
    return torch.from_numpy(array).view(torch.bfloat16) if dtype.startswith("bfloat16") else torch.from_numpy(array)


@pytest.mark.parametrize("one_by_one", [False, True], ids=["whole", "one by one"])
@pytest.mark.parametrize("case", ARRAYS, ids=lambda case: case["key"])
def test_golden_arrays(case: dict[str, Any], one_by_one: bool) -> None:
    arrays = np.load(GOLDENS / "aggregate.npz")
    frames_TND, expected_LD = (load(arrays[f"{case['key']}_{name}"], case["dtype"]) for name in "xy")
    how = parse_aggregation(case["aggregation"], compat=True)
    before = frames_TND.clone()
    result_LD = aggregate_frames(iter(frames_TND) if one_by_one else frames_TND, how, num_frames=case["T"])
    assert torch.equal(frames_TND, before)
    counts = how.count_tokens(case["T"], case["N"])
    assert (len(result_LD), sum(counts.values())) == (case["rows"], case["rows"])
    slow = case["rows"] - counts.get("fast", 0)
    assert slow == case["slow_rows"]
    assert result_LD.dtype == expected_LD.dtype
    if case["slow_part_exact"]:
        assert torch.equal(result_LD[:slow], expected_LD[:slow])
    torch.testing.assert_close(result_LD.float(), expected_LD.float(), rtol=0, atol=case["atol"])


@pytest.mark.parametrize("case", HASHES["cases"], ids=lambda case: f"{case['T']}-{case['N']}-{case['aggregation']}")
def test_golden_hashes(case: dict[str, Any]) -> None:
    grid = np.ix_(*(np.arange(case[axis]) * factor for axis, factor in zip("TND", HASHES["a"], strict=True)))
    frames_TND = torch.from_numpy((sum(grid) % HASHES["m"] / HASHES["den"]).astype(np.float32))
    result_LD = aggregate_frames(frames_TND, parse_aggregation(case["aggregation"])).numpy()
    slow_LD = result_LD[: case["slow_rows"]]
    assert len(result_LD) == case["rows"]
    if case["slow_sha_is_portable"]:
        assert hashlib.sha256(slow_LD.astype("<f4").tobytes()).hexdigest() == case["slow_sha256"]
    assert result_LD.sum(dtype=np.float64) == pytest.approx(case["sum_float64"], abs=1e-3)
    assert slow_LD.sum(dtype=np.float64) == pytest.approx(case["slow_sum_float64"], abs=1e-3)
    rows = {"first_row": 0, "last_slow_row": case["slow_rows"] - 1, "first_fast_row": case["slow_rows"], "last_row": -1}
    for name, row in rows.items():
        np.testing.assert_allclose(result_LD[row], case[name], rtol=0, atol=1e-6, err_msg=name)


def test_golden_slow_indices() -> None:
    for case in SLOW["cases"]:
        indices = list(slow_positions(case["T"], case["S"]))
        assert indices == case["idx"], case
        floor = [position * case["T"] // case["S"] for position in range(case["S"])]
        assert (indices == floor) == case["equals_integer_floor"]
    for case in SLOW["range_hashes"]:
        lists = [slow_positions(total, case["S"]) for total in range(case["first_T"], case["last_T"] + 1)]
        assert hashlib.sha256(np.concatenate(lists).astype("<i4").tobytes()).hexdigest() == case["sha256"]


def test_golden_slow_indices_where_float_and_integer_differ() -> None:
    expected = SLOW["float_vs_integer"]
    differing = [
        [total, slow]
        for total in range(1, 301)
        for slow in range(1, 129)
        if slow_positions(total, slow) != tuple(position * total // slow for position in range(slow))
    ]
    assert len(differing) == expected["differing"]
    assert differing[: len(expected["first_differing"])] == expected["first_differing"]
    assert sorted({slow for _, slow in differing}) == expected["S_values_with_any_difference"]
