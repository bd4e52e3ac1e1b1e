"""Goldens of the decision stages: sequence_pooling, prior_userlist, rollup, and the thresholds of calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.rows import ABSTAINED
from foveate.species.stages.pooling import pool_events
from foveate.species.stages.prior import weigh_by_prior
from foveate.species.stages.rollup import group_by_rank, roll_up
from foveate.species.stages.species_list import renormalize
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

FOLDER = Path(__file__).parents[1] / "goldens" / "cosmo"
TOLERANCE = 1e-9


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_pooling() -> None:
    cases = read("sequence_pooling")["cases"]
    assert len(cases) == 80
    for case in cases:
        frames = [(p, w) for p, w in zip(case["frames"], case["weights"] or [1.0] * 9, strict=False) if p is not None]
        if case["expected"] is None:
            assert not frames
            continue
        probabilities, weights = (np.array(column, dtype=np.float64) for column in zip(*frames, strict=True))
        # A second event beside it must not change the first.
        starts = np.array([0, len(frames)])
        pooled = pool_events(
            np.concatenate([probabilities, probabilities[::-1]]),
            starts,
            np.concatenate([weights, weights[::-1]]),
            method=case["method"],
            blank=case["blank_index"],
            blank_mode=case["blank_mode"],
        )
        np.testing.assert_allclose(pooled, [case["expected"]] * 2, rtol=0, atol=TOLERANCE, err_msg=str(case))


def test_failed_events_are_no_decisions() -> None:
    classes, taxa = Classes(("a", "b", "blank"), np.full(3, -1)), Taxa((), (), (), np.zeros(0))
    stages = prepare_stages(Stages(), classes, taxa)
    nan = [np.nan] * 3
    decisions = decide([nan, [0.3, 0.6, 0.1], nan, nan], classes, taxa, stages, events=[0, 0, 1, 1])
    assert decisions.names().to_pylist() == ["unknown", ""]
    assert decisions.decisions_N.tolist() == [0, 0, 1, 1]


def test_prior_and_list() -> None:
    cases = read("prior_userlist")
    assert len(cases) == 44
    for case in cases:
        names, kinds = case["names"], case["kinds"]
        animals = np.array([kind == "animal" for kind in kinds])
        result, applied = np.array([case["p"]], dtype=np.float64), []
        if case["prior"] is not None and (case["user_list"] is None or case["prior_within_list"]):
            prior = np.array([case["prior"]], dtype=np.float64)
            result = weigh_by_prior(result, prior, animals, strength=case["alpha"], floor=case["eps"])
            applied.append("prior")
        if case["user_list"] is not None:
            admitted = ~animals | np.isin(names, case["user_list"])
            result = renormalize(np.where(admitted, result, 0.0))
            applied.append("user_list")
        assert applied == case["applied"]
        expected = [np.nan] * len(names) if case["expected"] is None else case["expected"]
        np.testing.assert_allclose(result[0], expected, rtol=0, atol=TOLERANCE, err_msg=str(case))


@pytest.fixture(scope="module")
def tree() -> tuple[Classes, Taxa]:
    golden = read("rollup")
    rows = [
        {"id": name, "name": name, "rank": rank, "parent": golden["parent"].get(name, "")}
        for name, rank in golden["rank"].items()
    ]
    taxa = Taxa.from_rows(rows)
    indices = [taxa.index(leaf) if leaf in taxa else -1 for leaf in golden["leaves"]]
    return Classes(tuple(golden["leaves"]), np.array(indices)), taxa


def test_roll_up(tree: tuple[Classes, Taxa]) -> None:
    classes, taxa = tree
    golden = read("rollup")
    ranks = tuple(golden["ranks_in_order"])
    groups = group_by_rank(classes, taxa, ranks)
    assert [group.rank for group in groups] == list(ranks)
    for case in golden["cases"]:
        p = np.array([case["p"]], dtype=np.float64)
        answers, scores, positions = roll_up(p, groups, threshold=case["threshold"])
        decision = case["decision"]
        if decision is None:
            assert (answers[0], positions[0]) == (ABSTAINED, -1)
        else:
            assert (taxa.ids[answers[0]], ranks[positions[0]]) == (decision["node"], decision["rank"])
            assert scores[0] == pytest.approx(decision["probability"], abs=TOLERANCE)
        for group in groups:
            table = case["table"][group.rank]
            sums = group.sum(p)[0]
            assert [taxa.ids[i] for i in group.answers_M] == list(table["nodes"])
            np.testing.assert_allclose(sums, list(table["nodes"].values()), rtol=0, atol=TOLERANCE)
            assert 1 - sums.sum() == pytest.approx(table["no_taxon_at_rank"], abs=TOLERANCE)


def test_thresholds_of_calibration() -> None:
    for case in read("calibration"):
        p, truth = np.array(case["p"]), np.array(case["y_true"])
        labels = tuple(f"class {k}" for k in range(p.shape[1]))
        classes, taxa = Classes(labels, np.full(len(labels), -1)), Taxa((), (), (), np.zeros(0))
        for row in case["at_threshold"]:
            settings = {"pooling": {"method": "none"}, "rollup": {"enabled": False}}
            settings["threshold"] = {"threshold": row["threshold"]}
            decisions = decide(p, classes, taxa, prepare_stages(Stages.model_validate(settings), classes, taxa))
            check_threshold(decisions, truth, row)


def check_threshold(decisions: Decisions, truth: np.ndarray, row: dict[str, Any]) -> None:
    answers = np.array(decisions.answers_R)
    answered = answers >= 0
    assert answered.mean() == pytest.approx(row["coverage"], abs=TOLERANCE)
    if answered.any():
        assert (answers == truth)[answered].mean() == pytest.approx(row["accuracy_of_kept"], abs=TOLERANCE)
    for k, expected in enumerate(row["per_class"]):
        assert (answers == k).sum() == expected["n_predicted"]
        assert ((answers == k) & (truth == k)).sum() == expected["n_correct"]
