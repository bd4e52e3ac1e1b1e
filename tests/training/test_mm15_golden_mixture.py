"""Shares of MM1.5's mixtures and counts of its batches against stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.training.mixture_groups import (
    MULTI_IMAGE,
    TEXT,
    GroupMixture,
    batch_counts,
    mixture_shares,
    normalize_weights,
    solve_weights,
)

MIXTURE = json.loads((Path(__file__).parents[1] / "goldens" / "mm15" / "mixture.json").read_text())
STAGES = json.loads((Path(__file__).parents[1] / "goldens" / "mm15" / "stages.json").read_text())["mm15"]


def named(values: dict[str, float]) -> dict[str, float]:
    """Name the golden's groups as conversations name them."""
    names = {"multi_image": MULTI_IMAGE, "text_only": TEXT}
    return {names.get(name, name.replace("_", "-")): value for name, value in values.items()}


@pytest.mark.parametrize("case", MIXTURE["sft"], ids=lambda case: case["case"])
def test_golden_shares_and_counts(case: dict) -> None:
    shares = mixture_shares(named(case["alpha"]), w=case["w_single_multi_text"])
    assert shares == pytest.approx(named(case["shares"]), abs=1e-9)
    assert list(shares) == list(named(case["shares"]))
    for batch_size in (256, 100):
        counts = named(case[f"batch_{batch_size}_largest_remainder"])
        assert batch_counts(shares, batch_size=batch_size) == counts
    alpha, w = solve_weights(shares)
    assert mixture_shares(alpha, w=w) == pytest.approx(shares, abs=1e-12)
    assert alpha == pytest.approx(named(case["alpha"]), abs=1e-9)


@pytest.mark.parametrize("case", MIXTURE["pretrain"], ids=lambda case: case["case"])
def test_golden_pretraining_shares(case: dict) -> None:
    ratio = dict(zip(("captions", "interleaved", "text"), case["ratio"], strict=True))
    assert list(normalize_weights(ratio).values()) == pytest.approx(case["shares"], abs=1e-9)


def test_golden_shares_of_the_ocr_stage() -> None:
    equal = normalize_weights(dict.fromkeys(MIXTURE["continual"]["datasets"], 1))
    assert list(equal.values()) == pytest.approx(MIXTURE["continual"]["probabilities"], abs=1e-9)


def test_defaults_are_the_final_recipe() -> None:
    stage = next(stage for stage in STAGES if stage["stage"] == "sft")
    mixture = GroupMixture()
    assert mixture.alpha == {"general": 1} | named(stage["alpha"])
    assert list(mixture.w) == stage["w_single_multi_text"]
    # The published shares, in percent.
    published = {"text-rich": 37.2, "refer-ground": 22.5, "general": 11.3, "math": 5.6, "code": 2.3, "science": 1.1}
    shares = {name: round(100 * share, 1) for name, share in mixture.shares().items()}
    assert shares == published | {MULTI_IMAGE: 10.0, TEXT: 10.0}
