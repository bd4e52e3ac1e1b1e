"""Ferret's data multipliers against stored lengths: whole copies first, then rows drawn with replacement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.training.mixture_groups import multiply_rows

CASES = json.loads((Path(__file__).parents[1] / "goldens/ferret/data_multipliers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['n']} x {case['multiplier']}")
def test_lists_have_the_published_length_and_copies(case: dict) -> None:
    rows = np.arange(case["n"]) * 3 + 1
    multiplied = multiply_rows(rows, case["multiplier"], seed=0)
    assert len(multiplied) == case["length"]
    num_copied = case["whole_copies"] * case["n"]
    assert case["prefix_is_copies"]
    assert multiplied[:num_copied].tolist() == rows.tolist() * case["whole_copies"]
    assert set(multiplied[num_copied:]) <= set(rows)


def test_the_fraction_is_drawn_by_seed_and_group_with_replacement() -> None:
    def draw(seed: int, name: str) -> list[int]:
        return multiply_rows(range(100), 0.9, seed=seed, name=name).tolist()

    assert draw(0, "general") == draw(0, "general")
    assert draw(0, "general") != draw(1, "general")
    assert draw(0, "general") != draw(0, "math")
    # 90 draws with replacement from 100 rows give about 60 distinct ones.
    assert 45 <= len(set(draw(0, "general"))) <= 75
