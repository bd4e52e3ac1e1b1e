"""Metrics of species models against reference numbers: WILDS, scikit-learn, PyKEEN, COSMO's code, our definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.metrics.classification import bhattacharyya_distance, count_classes
from foveate.metrics.confidence import (
    brier_score,
    coverage_at,
    expected_calibration_error,
    negative_log_likelihood,
)
from foveate.metrics.intervals import wilson_interval
from foveate.metrics.retrieval import LinkRanks, link_ranks
from foveate.metrics.taxonomy import NO_HEIGHT, ClassTree

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def null(value: float | None) -> float:
    return float("nan") if value is None else value


@pytest.mark.parametrize("case", load("metrics"))
def test_macro_f1_in_three_definitions(case: dict[str, Any]) -> None:
    counts = count_classes(case["y_pred"], case["y_true"], case["n_classes"])
    assert counts.macro_f1("present") == pytest.approx(case["wilds_f1_macro"], abs=1e-6)
    assert counts.mean_recall() == pytest.approx(case["wilds_recall_macro"], abs=1e-6)
    assert counts.macro_f1("union") == pytest.approx(case["sklearn_f1_macro_union"], abs=1e-9)
    assert counts.macro_f1("all") == pytest.approx(case["sklearn_f1_macro_all_classes_zero_division_0"], abs=1e-9)
    assert counts.correct_K.sum() / counts.support_K.sum() == pytest.approx(case["accuracy"], abs=1e-9)
    for row in case["per_class_precision_recall_f1_support"]:
        c = row["c"]
        # scikit-learn writes 0 where we have no value.
        values = np.nan_to_num([counts.precision_K[c], counts.recall_K[c], counts.f1_K[c]])
        np.testing.assert_allclose(values, [row["precision"], row["recall"], row["f1"]], atol=1e-9)
        assert counts.support_K[c] == row["support"]


@pytest.mark.parametrize("case", load("bhattacharyya"))
def test_bhattacharyya_distance(case: dict[str, Any]) -> None:
    distance = bhattacharyya_distance(case["train_counts"], case["val_counts"])
    assert distance == pytest.approx(float(case["distance"]), abs=1e-12)


@pytest.mark.parametrize("case", load("calibration"))
def test_calibration_and_coverage(case: dict[str, Any]) -> None:
    probabilities, truth = np.array(case["p"]), np.array(case["y_true"])
    predictions, confidences = probabilities.argmax(1), probabilities.max(1)
    correct = predictions == truth
    for num_bins, ece in case["ece"].items():
        assert expected_calibration_error(confidences, correct, num_bins=int(num_bins)) == pytest.approx(ece, abs=1e-9)
    assert negative_log_likelihood(probabilities, truth) == pytest.approx(case["nll"], abs=1e-9)
    assert brier_score(probabilities, truth) == pytest.approx(case["brier"], abs=1e-9)
    for point in case["at_threshold"]:
        ours = coverage_at(
            confidences, predictions, truth, threshold=point["threshold"], num_classes=probabilities.shape[1]
        )
        assert ours.coverage == pytest.approx(point["coverage"], abs=1e-9)
        assert ours.accuracy == pytest.approx(null(point["accuracy_of_kept"]), abs=1e-9, nan_ok=True)
        for k, row in enumerate(point["per_class"]):
            correct_k, predicted = int(ours.counts.correct_K[k]), int(ours.counts.predicted_K[k])
            assert (predicted, correct_k) == (row["n_predicted"], row["n_correct"])
            assert ours.counts.precision_K[k] == pytest.approx(null(row["precision"]), abs=1e-9, nan_ok=True)
            assert ours.counts.recall_K[k] == pytest.approx(null(row["recall"]), abs=1e-9, nan_ok=True)
            interval = wilson_interval(correct_k, predicted)
            assert (interval is None) == (row["wilson95"] is None)
            if interval is not None:
                assert [interval.low, interval.high] == pytest.approx(row["wilson95"], abs=1e-9)


def rank_all(case: dict[str, Any]) -> dict[str, LinkRanks]:
    """Filtered ranks of heads and tails of all test triples of Nations, scored in float64."""
    arrays = np.load(FOLDER / "nations_distmult.npz")
    entities, relations = (arrays[case["prefix"] + name].astype(np.float64) for name in ("E", "R"))
    known = {tuple(triple) for part in ("train", "valid", "test") for triple in arrays[part].tolist()}
    heads, middles, tails = arrays["test"].T.astype(np.int64)
    count = len(entities)
    ranks = {}
    for side, fixed, targets in (("head", tails, heads), ("tail", heads, tails)):
        scores = (entities[fixed] * relations[middles]) @ entities.T
        triples = [
            [(e, r, f) if side == "head" else (f, r, e) for e in range(count)]
            for f, r in zip(fixed.tolist(), middles.tolist(), strict=True)
        ]
        ranks[side] = link_ranks(scores, targets, [[t in known for t in row] for row in triples], tie=1e-6)
    return ranks


@pytest.mark.parametrize("case", load("nations_distmult"), ids=lambda case: case["weights"])
def test_filtered_ranks_of_nations(case: dict[str, Any]) -> None:
    arrays, ranks = np.load(FOLDER / "nations_distmult.npz"), rank_all(case)
    for side, ours in ranks.items():
        columns = (ours.optimistic_N, ours.pessimistic_N, ours.ranks(), ours.num_candidates_N)
        np.testing.assert_array_equal(np.stack(columns, 1), arrays[f"{case['prefix']}{side}_opt_pess_real_ncand"])
    both = LinkRanks(*(np.concatenate(parts) for parts in zip(ranks["head"], ranks["tail"], strict=True)))
    for name, value in case["metrics"].items():
        side, kind, metric = name.split(".")
        ours = both if side == "both" else ranks[side]
        measure = {
            "inverse_harmonic_mean_rank": ours.mean_reciprocal_rank,
            "arithmetic_mean_rank": ours.mean_rank,
        }
        result = ours.hits_at(int(metric[8:]), kind) if metric.startswith("hits") else measure[metric](kind)
        assert result == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("case", load("taxonomy"), ids=lambda case: case["name"])
def test_lca_heights(case: dict[str, Any]) -> None:
    edges = case["pruned_edges_iwildcam_script"]
    ids = list(dict.fromkeys(node for edge in edges for node in edge))
    parents = np.full(len(ids), -1)
    for child, parent in edges:
        parents[ids.index(child)] = ids.index(parent)
    taxa = [ids.index(label) if label in ids else -1 for label in case["label_ids"]]
    tree = ClassTree(taxa, parents)
    heights = {str(node): int(tree.heights_T[i]) for i, node in enumerate(ids)}
    assert heights == case["heights_on_iwildcam_pruned_tree"]
    for pair in case["lca"]:
        a, b = (ids.index(pair[name]) if pair[name] in ids else -1 for name in "ab")
        assert (tree.level(a), tree.level(b)) == (pair["level_a"], pair["level_b"])
        ancestor = tree.common_ancestor(a, b)
        # Where the official code returns the root as a string, its height is 0; we have none.
        assert (ancestor < 0) == pair["lca_is_string"]
        assert tree.lca_height(a, b) == (NO_HEIGHT if pair["lca_is_string"] else pair["lca_height"])
        assert ancestor < 0 or ids[ancestor] == pair["lca"]
        if a != b:
            errors = ClassTree([a, b], parents)
            errors.heights_T = tree.heights_T
            assert errors.lca_heights_of_errors([0], [1]).official == pair["lca_height"]
