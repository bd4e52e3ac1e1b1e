"""Accuracies, curves, AUSUC, gamma*, ALG, NCM and the official grid against stored numbers, degenerate cases too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.metrics.calibration import average_logit_gap, group_accuracies, label_ranks
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.nearest_mean import head_changes, nearest_mean_ranks
from foveate.metrics.tradeoff import (
    ausuc,
    best_intervals,
    official_grid,
    select_gamma,
    select_on_grid,
    su_curve,
)
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "calibration"
TOLERANCES = json.loads((GOLDENS / "index.json").read_text())["tolerances"]
PERCENT = {"rel": 0, "abs": TOLERANCES["accuracies_percent"]}
OFFICIAL_PERCENT = {"rel": 0, "abs": TOLERANCES["official_accuracies_percent"]}
CASES = {
    case["case"]: (name, case)
    for name in ("synthetic", "glyph")
    for case in json.loads((GOLDENS / f"{name}.json").read_text())["cases"]
}
SINGLE = [name for name in CASES if name != "shift_pair"]
OFFICIAL_KEYS = ("Y/Y", "S/Y", "U/Y", "R/Y", "S/S", "U/U", "R/R")


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("synthetic", "glyph"):
        with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
            found |= dict(file)
    return found


def problem(arrays: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray, ClassGroups]:
    logits = arrays[f"{name}/logits"].astype(np.float64)
    groups = ClassGroups.of(arrays[f"{name}/S"], absent=arrays[f"{name}/U"], classes=logits.shape[1])
    return logits, arrays[f"{name}/labels"], groups


def equal(found: dict[str, float | None], expected: dict[str, float | None], close: dict[str, float]) -> None:
    for key, value in expected.items():
        assert found[key] == (None if value is None else pytest.approx(value, **close)), key


def parse_official(expected: dict[str, dict[str, float | None]], top: str) -> dict[str, float | None]:
    return {key: expected[key][top] for key in OFFICIAL_KEYS}


def test_all_cases_are_here() -> None:
    assert len(CASES) == 15
    assert all(len(case) > 3 for _, case in CASES.values())


@pytest.mark.parametrize("name", SINGLE)
def test_accuracies(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    case = CASES[name][1]
    equal(group_accuracies(logits, labels, groups), case["accuracies"], PERCENT)
    for gamma, expected in case.get("accuracies_at_gamma", {}).items():
        equal(group_accuracies(logits, labels, groups, gamma=float(gamma)), expected, PERCENT)
    # float32 logits give the same: they are shifted in float64.
    equal(group_accuracies(arrays[f"{name}/logits"], labels, groups), case["accuracies"], PERCENT)


@pytest.mark.parametrize("name", [name for name in SINGLE if "official" in CASES[name][1]])
def test_official_accuracies(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    official = CASES[name][1]["official"]
    ranks = label_ranks(logits, labels, groups)
    for top in (1, 5):
        equal(ranks.accuracies(top), parse_official(official["accuracies"], f"Top-{top}"), OFFICIAL_PERCENT)
    if (gamma := official.get("alg_official_gamma")) is not None:
        shifted = label_ranks(logits, labels, groups, gamma=gamma)
        for top in (1, 5):
            expected = parse_official(official["alg_official_accuracies"], f"Top-{top}")
            equal(shifted.accuracies(top), expected, OFFICIAL_PERCENT)
    if "ncm_accuracies" in official:
        oracle = arrays[f"{name}/oracle_features"], arrays[f"{name}/oracle_labels"]
        nearest = nearest_mean_ranks(arrays[f"{name}/features"], labels, *oracle, groups)
        for top in (1, 5):
            equal(nearest.accuracies(top), parse_official(official["ncm_accuracies"], f"Top-{top}"), OFFICIAL_PERCENT)


@pytest.mark.parametrize("name", SINGLE)
def test_curve_and_best_gammas(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    case = CASES[name][1]
    if len(groups.absent) == 0:
        with pytest.raises(UserError, match="absent"):
            su_curve(logits, labels, groups)
        return
    curve = su_curve(logits, labels, groups)
    assert len(curve.gammas) == case["exact_curve_points"]
    if f"{name}/exact_curve" in arrays:
        expected = arrays[f"{name}/exact_curve"]
        np.testing.assert_allclose(curve.gammas, expected[:, 0], rtol=1e-12, atol=1e-12)
        if curve.seen_count:
            np.testing.assert_allclose(curve.seen(), expected[:, 1], rtol=0, atol=1e-9)
        np.testing.assert_allclose(curve.absent(), expected[:, 2], rtol=0, atol=1e-9)
        np.testing.assert_allclose(curve.overall(), expected[:, 3], rtol=0, atol=1e-9)
    best, intervals = best_intervals(curve)
    star = case["gamma_star"]
    assert best == pytest.approx(star["best_YY"], **PERCENT)
    assert len(intervals) == star["n_intervals_attaining"]
    ends = [None if not np.isfinite(end) else end for end in intervals[0]]
    assert ends == [None if end is None else pytest.approx(end, abs=1e-12) for end in star["first_interval"]]
    chosen = select_gamma(curve)
    assert chosen is not None
    assert intervals[0][0] < chosen.gamma < intervals[0][1]
    assert group_accuracies(logits, labels, groups, gamma=chosen.gamma)["Y/Y"] == pytest.approx(best, **PERCENT)


@pytest.mark.parametrize("name", SINGLE)
def test_area(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    expected = CASES[name][1].get("ausuc_exact")
    if expected is None:
        with pytest.raises(UserError):
            ausuc(logits, labels, groups)
    else:
        assert ausuc(logits, labels, groups) == pytest.approx(expected, rel=0, abs=TOLERANCES["ausuc_exact"])


@pytest.mark.parametrize("name", [name for name in SINGLE if "curve_points" in CASES[name][1].get("official", {})])
def test_official_grid_and_choice(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    official = CASES[name][1]["official"]
    grid = official_grid(logits, labels, groups)
    rows = arrays[f"{name}/official_curve"]
    rows = rows[np.argsort(rows[:, 3])]
    assert len(grid) == official["curve_points"] == len(rows)
    np.testing.assert_allclose(grid, rows[:, 3], rtol=1e-6, atol=1e-6)
    curve = su_curve(logits, labels, groups)
    at = curve.at(grid)
    for values, column in ((curve.overall(), 0), (curve.seen(), 1), (curve.absent(), 2)):
        np.testing.assert_allclose(values[at], rows[:, column], rtol=0, atol=OFFICIAL_PERCENT["abs"])
    expected = pytest.approx(
        official["ausuc_official_grid_ordered_by_gamma"], rel=0, abs=TOLERANCES["official_grid_auc"]
    )
    assert ausuc(logits, labels, groups, grid="official") == expected
    for word, chosen in official["selection_by_threshold"].items():
        found = select_on_grid(curve, grid, threshold=None if word == "None" else float(word))
        if chosen is None:
            assert found is None, word
            continue
        assert found is not None
        # Points of equal accuracy on S and U are in no defined order there (unstable sort): the largest gamma here.
        same = grid[(curve.all_hits[at] == curve.all_hits[found_at := curve.at(found.gamma)])]
        same = same[curve.seen_hits[curve.at(same)] == curve.seen_hits[found_at]]
        assert found.gamma == same.max()
        assert np.abs(same - chosen["gamma"]).min() <= 1e-6 * max(1.0, abs(chosen["gamma"]))
        for value, key in ((found.overall, "overall"), (found.seen, "S")):
            assert value == pytest.approx(chosen[key], **OFFICIAL_PERCENT)
        assert curve.absent()[curve.at(chosen["gamma"])] == pytest.approx(chosen["U"], **OFFICIAL_PERCENT)


@pytest.mark.parametrize("name", SINGLE)
def test_average_logit_gap(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    case = CASES[name][1]
    close = {"rel": 0, "abs": TOLERANCES["gamma_alg"]}
    if case.get("alg_on_this_split") is None:
        with pytest.raises(UserError, match="absent|one seen class"):
            average_logit_gap(logits, labels, groups, variant="official")
    else:
        found = average_logit_gap(logits, labels, groups, variant="official")
        assert found == pytest.approx(case["alg_on_this_split"], **close)
        shifted = logits.copy()
        shifted[:, groups.absent] += found
        assert average_logit_gap(shifted, labels, groups, variant="official") == pytest.approx(0, abs=1e-9)
    if "alg_training_data" in case:
        train = arrays[f"{name}/train_logits"].astype(np.float64), arrays[f"{name}/train_labels"]
        gamma = average_logit_gap(*train, groups)
        assert gamma == pytest.approx(case["alg_training_data"]["gamma"], **close)
        equal(group_accuracies(logits, labels, groups, gamma=gamma), case["alg_training_data"]["accuracies"], PERCENT)


def test_shift_pair(arrays: dict[str, Any]) -> None:
    case = CASES["shift_pair"][1]
    labels = arrays["shift_pair/labels"]
    for place, letter in enumerate("ab"):
        logits = arrays[f"shift_pair/logits_{letter}"].astype(np.float64)
        groups = ClassGroups.of(arrays["shift_pair/S"], absent=arrays["shift_pair/U"], classes=logits.shape[1])
        tolerance = TOLERANCES["ausuc_exact"]
        assert ausuc(logits, labels, groups) == pytest.approx(case["ausuc_exact"][place], rel=0, abs=tolerance)
        best, intervals = best_intervals(su_curve(logits, labels, groups))
        assert best == pytest.approx(case["gamma_star"][place]["best_YY"], **PERCENT)
        assert len(intervals) == case["gamma_star"][place]["n_intervals_attaining"]
        assert intervals[0] == pytest.approx(tuple(case["gamma_star"][place]["first_interval"]), abs=1e-12)
        alg = average_logit_gap(logits, labels, groups, variant="official")
        assert alg == pytest.approx(case["alg"][place], rel=0, abs=TOLERANCES["gamma_alg"])


@pytest.mark.parametrize("problem_number", [0, 1])
def test_pseudo_runs(problem_number: int, arrays: dict[str, Any]) -> None:
    pcv = json.loads((GOLDENS / "synthetic.json").read_text())["pcv"][problem_number]
    name = pcv["case"]
    gammas = []
    for number, run in enumerate(pcv["runs"]):
        own = {key: arrays[f"{name}/run{number}_{key}"] for key in ("logits", "labels", "S", "U")}
        logits = own["logits"].astype(np.float64)
        groups = ClassGroups.of(own["S"], absent=own["U"], classes=logits.shape[1])
        curve = su_curve(logits, own["labels"], groups)
        smallest = select_gamma(curve, threshold=run["threshold_unseen_acc"])
        largest = select_gamma(curve, threshold=run["threshold_unseen_acc"], tie="official")
        grid = official_grid(logits, own["labels"], groups)
        official = select_on_grid(curve, grid, threshold=run["threshold_unseen_acc"])
        if not run["feasible"]:
            assert smallest is largest is official is None
            continue
        assert smallest is not None
        assert largest is not None
        assert official is not None
        expected = run["exact_best"]
        assert smallest.overall == pytest.approx(expected["overall"], **PERCENT)
        assert smallest.tied == expected["n_tied"]
        assert smallest.interval == pytest.approx(tuple(expected["interval_smallest_gamma"]), abs=1e-12)
        assert largest.interval == pytest.approx(tuple(expected["interval_largest_gamma"]), abs=1e-12)
        assert official.gamma == pytest.approx(run["official_gamma"], abs=1e-6)
        assert official.overall == pytest.approx(run["official_overall"], **OFFICIAL_PERCENT)
        gammas.append(official.gamma)
    gamma = float(np.mean(gammas))
    assert gamma == pytest.approx(pcv["gamma"], abs=1e-6)
    target = arrays[f"{name}/target_logits"].astype(np.float64)
    groups = ClassGroups.of(arrays[f"{name}/target_S"], absent=arrays[f"{name}/target_U"], classes=target.shape[1])
    found = group_accuracies(target, arrays[f"{name}/target_labels"], groups, gamma=gamma)
    equal(found, pcv["target_accuracies_reference"], PERCENT)
    assert found["Y/Y"] == pytest.approx(pcv["target_YY_official"], **OFFICIAL_PERCENT)


def test_head_analysis(arrays: dict[str, Any]) -> None:
    expected = json.loads((GOLDENS / "glyph.json").read_text())["head_analysis"]
    groups = ClassGroups.of(arrays["glyph_ft/S"], absent=arrays["glyph_ft/U"], classes=36)
    found = head_changes(arrays["head_pre"], arrays["head_ft"], groups)
    for letter in "SU":
        change = found[letter]
        assert change is not None
        assert [change.norm_before, change.norm_after] == pytest.approx(expected[f"norm_{letter}"], abs=1e-6)
        assert change.update_norm == pytest.approx(expected["update_norm"][letter], abs=1e-6)
        assert change.update_cosine == pytest.approx(expected["mean_pairwise_cos_of_updates"][letter], abs=1e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_a_nan_in_any_case_raises(name: str, arrays: dict[str, Any]) -> None:
    logits, labels, groups = problem(arrays, name)
    row = len(logits) // 2
    for bad in (np.nan, np.inf, -np.inf):
        broken = logits.copy()
        broken[row, -1] = bad
        with raises_naming(UserError, "1", "NaN", row):
            group_accuracies(broken, labels, groups)
        if len(groups.absent):
            with raises_naming(UserError, "NaN"):
                ausuc(broken, labels, groups)
            with pytest.raises(UserError, match="NaN or infinite|one seen class"):
                average_logit_gap(broken, labels, groups, variant="official")


PAIRS = [
    ("shift_pair/logits_a", "shift_pair"),
    ("shift_pair/logits_b", "shift_pair"),
    *[(f"pcv{problem}/target_logits", f"pcv{problem}/target") for problem in (0, 1)],
    *[(f"pcv{problem}/run{run}_logits", f"pcv{problem}/run{run}") for problem in (0, 1) for run in (0, 1, 2)],
]


@pytest.mark.parametrize(("key", "name"), PAIRS)
def test_a_nan_in_pairs_and_runs_raises(key: str, name: str, arrays: dict[str, Any]) -> None:
    between = "_" if name.startswith("pcv") else "/"
    labels, seen, absent = (arrays[f"{name}{between}{one}"] for one in ("labels", "S", "U"))
    broken = arrays[key].astype(np.float64)
    groups = ClassGroups.of(seen, absent=absent, classes=broken.shape[1])
    su_curve(broken, labels, groups)
    broken[-1, 0] = np.nan
    for metric in (su_curve, group_accuracies, partial(average_logit_gap, variant="official")):
        with raises_naming(UserError, "1", "NaN", len(broken) - 1):
            metric(broken, labels, groups)


@pytest.mark.parametrize("name", [name for name in SINGLE if "alg_training_data" in CASES[name][1]])
def test_a_nan_in_training_logits_or_features_raises(name: str, arrays: dict[str, Any]) -> None:
    _, labels, groups = problem(arrays, name)
    training = arrays[f"{name}/train_logits"].astype(np.float64)
    training[3, -1] = np.nan
    with raises_naming(UserError, "1", "NaN", "3"):
        average_logit_gap(training, arrays[f"{name}/train_labels"], groups)
    if f"{name}/features" not in arrays:
        return
    for number, what in enumerate(("feature 2", "oracle feature 2")):
        both = [arrays[f"{name}/{key}"].astype(np.float64) for key in ("features", "oracle_features")]
        both[number][2, 0] = np.nan
        with raises_naming(UserError, what):
            nearest_mean_ranks(both[0], labels, both[1], arrays[f"{name}/oracle_labels"], groups)
