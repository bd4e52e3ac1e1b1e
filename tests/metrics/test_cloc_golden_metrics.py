"""Retrieval with ties, mean class accuracy and grounding, against the stored numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.metrics.classification import accuracy, class_accuracies, mean_class_accuracy, nearest_class
from foveate.metrics.grounding import grounding_scores
from foveate.metrics.retrieval import rank_positives, rank_positives_from_embeddings

GOLDENS = Path(__file__).parents[1] / "goldens" / "cloc"
ENTRY = next(
    entry for entry in json.loads((GOLDENS / "index.json").read_text())["files"] if entry["file"] == "metrics.npz"
)
CASES = {case["id"]: case for case in ENTRY["cases"]}
CLOSE = {"rel": 0, "abs": ENTRY["tolerance"]}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    with np.load(GOLDENS / "metrics.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.get("kind") == "retrieval"])
def test_region_retrieval(name: str, arrays: dict[str, Any]) -> None:
    sim, regions, texts = (arrays[f"{name}_{what}"] for what in ("sim", "z", "t"))
    directions = {
        "r2t": (rank_positives(sim), rank_positives_from_embeddings(regions, texts)),
        "t2r": (rank_positives(sim.T), rank_positives_from_embeddings(texts, regions, rows_per_chunk=7)),
    }
    for key, expected in CASES[name]["results"].items():
        direction, k = key.split("@")
        for ranks in directions[direction]:
            for ties, value in expected.items():
                assert ranks.recall(int(k), ties=ties)[0] == pytest.approx(value, **CLOSE), (key, ties)


def test_region_classification(arrays: dict[str, Any]) -> None:
    case = CASES["k0"]
    predictions = nearest_class(arrays["k0_z"], arrays["k0_classes"])
    np.testing.assert_array_equal(predictions, arrays["k0_pred"])
    assert mean_class_accuracy(predictions, arrays["k0_y"]) == pytest.approx(case["mAcc"], **CLOSE)
    assert accuracy(predictions, arrays["k0_y"]) == pytest.approx(case["top1"], **CLOSE)
    assert len(class_accuracies(predictions, arrays["k0_y"]).classes_C) == case["classes_present"]


def test_grounding(arrays: dict[str, Any]) -> None:
    case = CASES["g"]
    scores, summary = grounding_scores(arrays["g_pred"], arrays["g_true"])
    np.testing.assert_allclose(scores["iou"], arrays["g_iou"], rtol=0, atol=ENTRY["tolerance"])
    for name in ("mIoU", "acc50", "mse"):
        assert summary[name] == pytest.approx(case[name], **CLOSE)
