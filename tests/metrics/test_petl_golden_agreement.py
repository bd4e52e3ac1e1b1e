"""Agreement, error consistency, regions of confidence and ensembles against stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.metrics.agreement import (
    agreement,
    compare_ensembles,
    confident_regions,
    ensemble,
    error_consistency,
    mean_disagreement,
    pairs,
)
from naming import raises_naming

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "petl"
CASES = json.loads((FOLDER / "agreement_ensemble.json").read_text(encoding="utf-8"))["cases"]


def arrays(number: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / "agreement_ensemble.npz") as file:
        return file[f"logits_{number}"], file[f"labels_{number}"]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_stored_numbers(number: int) -> None:
    case, (logits, labels) = CASES[number], arrays(number)
    assert agreement(logits) == pytest.approx(np.array(case["agreement"]), abs=1e-12)
    assert error_consistency(logits, labels) == pytest.approx(np.array(case["error_consistency_kappa"]), abs=1e-12)
    assert mean_disagreement(logits) == pytest.approx(case["mean_pairwise_disagreement"], abs=1e-12)
    for right, name in ((True, "venn_topK_then_correct"), (False, "venn_bottomK_then_wrong")):
        found = confident_regions(logits, labels, num_samples=case["K"], right=right)
        assert found == case[name]
    told = compare_ensembles(logits, labels)
    assert told["single"] == pytest.approx(case["accuracy"], abs=1e-12)
    wanted = case["ensemble"]
    assert told["ensemble"] == pytest.approx(
        {
            "logits": wanted["logit_mean"],
            "probabilities": wanted["prob_mean"],
            "log_probabilities": wanted["logprob_mean"],
            "votes": wanted["majority_vote_ties_lowest_class"],
        },
        abs=1e-12,
    )
    assert told["any_right"] == pytest.approx(wanted["oracle_any_correct"], abs=1e-12)
    assert told["gain"] == pytest.approx(case["gain_over"], abs=1e-12)


def test_models_that_are_always_right_are_consistent() -> None:
    logits = np.tile(np.eye(3), (2, 1, 1))
    assert error_consistency(logits, [0, 1, 2]).tolist() == [[1, 1], [1, 1]]
    assert pairs(["a", "b"], agreement(logits)) == [("a", "b", 1.0)]


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (np.zeros((2, 3)), [0, 0], "models, samples, classes"),
        (np.full((1, 2, 2), np.nan), [0, 0], "model 0 has NaN"),
        (np.zeros((1, 2, 2)), [0], r"labels: wrong shape \(got \[1\]\); expected \[2\]"),
        (np.zeros((1, 2, 2)), [0, 2], "0 to 1"),
    ],
)
def test_mistakes(logits: np.ndarray, labels: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compare_ensembles(logits, labels)


def test_mistakes_of_options() -> None:
    logits = np.zeros((1, 2, 2))
    with raises_naming(UserError, "votes"):
        ensemble(logits, rule="vote")
    with pytest.raises(UserError, match="at least two models"):
        mean_disagreement(logits)
    with raises_naming(UserError, "1", "2"):
        confident_regions(logits, [0, 0], num_samples=3, right=True)
