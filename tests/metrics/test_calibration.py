"""Seen and absent classes: invariants of the metrics, agreement with brute force, and input that is refused."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.metrics.calibration import average_best_gap, average_logit_gap, group_accuracies, logit_gaps
from foveate.metrics.class_groups import ClassGroups, parse_classes
from foveate.metrics.nearest_mean import head_changes, nearest_mean_ranks, nearest_mean_scores
from foveate.metrics.tradeoff import ausuc, best_intervals, build_curve, select_gamma, su_curve
from naming import raises_naming

Problem = tuple[np.ndarray, np.ndarray, ClassGroups]


@st.composite
def problems(draw: st.DrawFn, *, rest: bool = True, most: int = 50, tied: bool = True) -> Problem:
    """Up to 50 samples with few distinct logits (many ties), at least one seen and one absent class."""
    classes = draw(st.integers(2, 8))
    samples = draw(st.integers(2, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.integers(-3, 4, (samples, classes)).astype(float)
    logits = values if tied else values + random.standard_normal(values.shape)
    order = random.permutation(classes)
    seen = draw(st.integers(1, classes - 1))
    absent = draw(st.integers(1, classes - seen)) if rest else classes - seen
    groups = ClassGroups.of(order[:seen], absent=order[seen : seen + absent], classes=classes)
    labels = random.integers(0, classes, samples)
    labels[0], labels[1] = groups.seen[0], groups.absent[0]
    return logits, labels, groups


def brute_force(logits: np.ndarray, labels: np.ndarray, groups: ClassGroups, gamma: float) -> dict[str, float | None]:
    """The definition itself: shift, argmax, count."""
    shifted = logits.astype(float).copy()
    shifted[:, groups.absent] += gamma
    found: dict[str, float | None] = {"Y/Y": float((shifted.argmax(1) == labels).mean() * 100)}
    for letter, columns in (("S", groups.seen), ("U", groups.absent), ("R", groups.rest)):
        chosen = np.isin(labels, columns)
        if not chosen.any():
            found[f"{letter}/Y"] = found[f"{letter}/{letter}"] = None
            continue
        found[f"{letter}/Y"] = float((shifted.argmax(1) == labels)[chosen].mean() * 100)
        own = columns[shifted[chosen][:, columns].argmax(1)]
        found[f"{letter}/{letter}"] = float((own == labels[chosen]).mean() * 100)
    return found


@given(problems(), st.floats(-5, 5))
def test_accuracies_equal_brute_force(problem: Problem, gamma: float) -> None:
    for value in (gamma, float(round(gamma)), 0.0):
        found = group_accuracies(*problem, gamma=value)
        expected = brute_force(*problem, value)
        assert found.keys() == expected.keys()
        for key, wanted in expected.items():
            assert found[key] == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), key


def test_a_huge_gamma_leaves_ranks_within_groups() -> None:
    """2 + 1e20 is 1 + 1e20: ranks among the absent columns must not come from rounded sums."""
    groups = ClassGroups.of([0], classes=3)
    logits, labels = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]), np.array([2, 1])
    accuracies = group_accuracies(logits, labels, groups, gamma=1e20)
    assert accuracies["U/U"] == 100
    assert accuracies["Y/Y"] == 50  # as such sums are: a tie goes to the lower class


@given(problems())
def test_the_fast_curve_equals_brute_force(problem: Problem) -> None:
    curve = su_curve(*problem)
    found = np.stack([curve.seen(), curve.absent(), curve.overall()], 1)
    expected = [
        [accuracies[key] for key in ("S/Y", "U/Y", "Y/Y")]
        for accuracies in (brute_force(*problem, gamma) for gamma in curve.gammas)
    ]
    np.testing.assert_allclose(found, np.array(expected, dtype=float), rtol=0, atol=1e-9)
    for number, gamma in enumerate(curve.gammas):
        low, high = curve.interval(number)
        assert low < gamma < high
        assert curve.at(gamma) == number


@given(problems())
def test_more_gamma_helps_absent_classes_and_hurts_seen_ones(problem: Problem) -> None:
    logits, labels, groups = problem
    accuracies = [group_accuracies(logits, labels, groups, gamma=gamma) for gamma in (-9.0, -1.0, 0.0, 0.5, 1.0, 9.0)]
    for before, after in zip(accuracies[:-1], accuracies[1:], strict=True):
        assert (after["U/Y"] or 0) >= (before["U/Y"] or 0)
        assert (after["S/Y"] or 0) <= (before["S/Y"] or 0)
        assert (after["S/S"], after["U/U"]) == (before["S/S"], before["U/U"])


@given(problems(rest=False))
def test_the_limits_of_gamma_without_rest(problem: Problem) -> None:
    high, low = (group_accuracies(*problem, gamma=gamma) for gamma in (1e6, -1e6))
    assert (high["U/Y"], high["S/Y"]) == (high["U/U"], 0)
    assert (low["S/Y"], low["U/Y"]) == (low["S/S"], 0)
    assert 0 <= ausuc(*problem) <= high["S/S"] * high["U/U"] / 1e4 + 1e-12  # type: ignore[operator]


@given(problems())
def test_the_limits_of_gamma_with_rest(problem: Problem) -> None:
    high, low = (group_accuracies(*problem, gamma=gamma) for gamma in (1e6, -1e6))
    assert (high["U/Y"], high["S/Y"]) == (high["U/U"], 0)
    assert low["S/Y"] <= low["S/S"]  # type: ignore[operator]
    assert low["U/Y"] == 0


@given(problems(tied=False), st.integers(0, 2**32 - 1), st.floats(-20, 20), st.floats(0.01, 100))
def test_the_area_does_not_depend_on_level_scale_or_order(
    problem: Problem, seed: int, shift: float, scale: float
) -> None:
    logits, labels, groups = problem
    value = ausuc(*problem)
    shifted = logits.copy()
    shifted[:, groups.absent] += shift
    assert ausuc(shifted, labels, groups) == pytest.approx(value, abs=1e-12)
    assert ausuc(logits * scale, labels, groups) == pytest.approx(value, abs=1e-12)
    random = np.random.default_rng(seed)
    rows, columns = random.permutation(len(logits)), random.permutation(groups.classes)
    place = np.argsort(columns)
    moved = ClassGroups.of(place[groups.seen], absent=place[groups.absent], classes=groups.classes)
    assert ausuc(logits[rows][:, columns], place[labels[rows]], moved) == pytest.approx(value, abs=1e-12)


@given(problems(tied=False), st.floats(-20, 20))
def test_the_average_logit_gap(problem: Problem, shift: float) -> None:
    logits, _, groups = problem
    if len(groups.seen) == 1:
        return
    labels = groups.seen[np.arange(len(logits)) % len(groups.seen)]
    gamma = average_logit_gap(logits, labels, groups)
    raised = logits.copy()
    raised[:, groups.absent] += gamma
    assert average_logit_gap(raised, labels, groups) == pytest.approx(0, abs=1e-9)
    raised[:, groups.absent] += shift
    assert average_logit_gap(raised, labels, groups) == pytest.approx(-shift, abs=1e-9)
    constant = np.linspace(-50, 50, len(logits))[:, None]
    assert average_logit_gap(logits + constant, labels, groups) == pytest.approx(gamma, abs=1e-9)
    expected = [
        np.delete(row[groups.seen], np.flatnonzero(groups.seen == label)).mean() - row[groups.absent].mean()
        for row, label in zip(logits, labels, strict=True)
    ]
    assert gamma == pytest.approx(np.mean(expected), abs=1e-9)
    largest = [
        np.delete(row[groups.seen], np.flatnonzero(groups.seen == label)).max() - row[groups.absent].max()
        for row, label in zip(logits, labels, strict=True)
    ]
    assert average_best_gap(logits, labels, groups) == pytest.approx(np.mean(largest), abs=1e-9)


@given(problems(), st.floats(-12, 12))
def test_the_best_gamma_is_not_beaten(problem: Problem, other: float) -> None:
    best, intervals = best_intervals(su_curve(*problem))
    chosen = select_gamma(su_curve(*problem))
    assert chosen is not None
    assert chosen.interval == intervals[0]
    value = brute_force(*problem, chosen.gamma)["Y/Y"]
    assert value == pytest.approx(best)
    # On a break ties are open, and so near it that a logit of 2 swallows the difference; elsewhere nothing is better.
    if np.abs(su_curve(*problem).breaks_K - other).min(initial=np.inf) > 1e-12:
        assert value >= brute_force(*problem, other)["Y/Y"] - 1e-9  # type: ignore[operator]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 3)), min_size=2, max_size=8),
    st.floats(-1e3, 1e3),
    st.sampled_from([None, 25.0, 60.0]),
)  # fmt: skip
def test_a_selected_gamma_keeps_its_promise_between_gaps_that_are_ulps_apart(
    samples: list[tuple[int, int, int]], level: float, threshold: float | None
) -> None:
    groups = ClassGroups.of([0, 1], classes=4)
    logits, labels = np.empty((len(samples), 4)), np.array([label for *_, label in samples])
    for row, (whole, ulps, label) in enumerate(samples):
        top = level + whole
        logits[row] = [top - 9, top - 9, -20, -21]
        logits[row, label % 2] = top + ulps * np.spacing(top)
        logits[row, 2 + label % 2] = 0.0
    curve = su_curve(logits, labels, groups)
    if threshold is not None and curve.absent_count == 0:
        return
    for tie in ("smallest", "official"):
        choice = select_gamma(curve, threshold=threshold, tie=tie)  # type: ignore[arg-type]
        if choice is not None:
            accuracies = group_accuracies(logits, labels, groups, gamma=choice.gamma)
            promised = {"Y/Y": choice.overall, "S/Y": choice.seen, "U/Y": choice.absent}
            assert {name: accuracies[name] for name in promised} == pytest.approx(promised)


def test_two_gaps_one_ulp_apart_are_one_gap() -> None:
    """The interval between them holds no float: a gamma on either gap leaves one of both samples wrong."""
    gap = 1.0
    above = np.nextafter(gap, 2)
    # A seen sample that is right up to the larger gap, an absent one that is right above the smaller one.
    logits, labels = np.array([[above, 0.0], [gap, 0.0]]), np.array([0, 1])
    groups = ClassGroups.of([0], classes=2)
    curve = su_curve(logits, labels, groups)
    choice = select_gamma(curve)
    assert choice is not None
    assert choice.overall == group_accuracies(logits, labels, groups, gamma=choice.gamma)["Y/Y"] == 50
    assert best_intervals(curve)[0] == 50
    assert curve.overall().max() == 100
    assert curve.attainable.tolist() == [True, False, True]


@given(problems(), st.floats(0, 100))
def test_a_threshold_is_kept(problem: Problem, threshold: float) -> None:
    curve = su_curve(*problem)
    smallest = select_gamma(curve, threshold=threshold)
    largest = select_gamma(curve, threshold=threshold, tie="official")
    feasible = curve.absent() >= threshold
    assert (smallest is None) == (largest is None) == (not feasible.any())
    if smallest is not None and largest is not None:
        assert smallest.absent >= threshold  # type: ignore[operator]
        assert smallest.overall == largest.overall == pytest.approx(curve.overall()[feasible].max())
        assert smallest.gamma <= largest.gamma


@given(st.integers(0, 1000))
def test_nearest_means_do_not_depend_on_lengths(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, oracle = random.standard_normal((12, 5)), random.standard_normal((20, 5))
    labels, oracle_labels = random.integers(0, 4, 12), random.integers(0, 4, 20)
    groups = ClassGroups.of([0, 1], classes=4)
    plain = nearest_mean_ranks(features, labels, oracle, oracle_labels, groups).accuracies()
    stretched = nearest_mean_ranks(
        features * random.uniform(0.1, 9, (12, 1)),
        labels,
        oracle * random.uniform(0.1, 9, (20, 1)),
        oracle_labels,
        groups,
    ).accuracies()
    assert plain == stretched


def test_a_class_without_oracle_sample_loses() -> None:
    scores = nearest_mean_scores([[1.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]], [0, 2], classes=3)
    assert scores.argmin() == 1
    assert scores[0, 0] == pytest.approx(-1)


def test_gap_statistics() -> None:
    gaps = logit_gaps([[3.0, 1.0], [1.0, 2.5], [0.0, 4.0]], [0, 1, 1], ClassGroups.of([0], classes=2))
    found = gaps.statistics()
    assert found["S"] == {"mean": 2.0, "lower_quartile": 2.0, "median": 2.0, "upper_quartile": 2.0}
    assert found["U"] is not None
    assert found["U"]["mean"] == -2.75
    assert build_curve(gaps).overall().max() == 100


def test_top_is_clipped_to_the_columns() -> None:
    logits, groups = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.2]]), ClassGroups.of([0, 1], classes=3)
    found = group_accuracies(logits, [0, 2], groups, top=5)
    assert found == {"Y/Y": 100, "S/Y": 100, "U/Y": 100, "R/Y": None, "S/S": 100, "U/U": 100, "R/R": None}


def test_head_changes_need_changes() -> None:
    before = np.eye(4)
    groups = ClassGroups.of([0, 1, 2], classes=4)
    found = head_changes(before, before, groups)
    assert found["S"] is not None
    assert found["U"] is not None
    assert (found["S"].update_norm, found["S"].update_cosine, found["U"].update_cosine) == (0, None, None)
    with raises_naming(UserError, "[4"):
        head_changes(before, before[:3], groups)


def test_a_large_curve_is_quick() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((10_000, 1000), dtype=np.float32)
    gaps = logit_gaps(logits, random.integers(0, 1000, 10_000), ClassGroups.of(np.arange(500), classes=1000))
    began = time.process_time()
    curve = build_curve(gaps)
    curve.gammas, curve.seen(), curve.absent(), best_intervals(curve)
    assert time.process_time() - began < 1


GOOD: dict[str, Any] = {"logits": np.zeros((4, 3)), "labels": np.array([0, 1, 2, 0])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": np.zeros(4)}, r"logits: wrong shape \(got \[4\]\); expected \[samples, classes\]"),
        ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, dtype=int)}, "at least one of each"),
        ({"logits": np.zeros((4, 3), dtype=complex)}, "real numbers"),
        ({"logits": np.full((4, 3), "a")}, "real numbers"),
        ({"logits": np.zeros((4, 2))}, "2 columns, but the class groups are of 3"),
        ({"labels": np.zeros(3, dtype=int)}, r"4 rows of logits, but labels of shape \[3\]"),
        ({"labels": np.array([0, 1, 3, 7])}, "2 lie outside the 3 columns of the logits, first 3 in row 2"),
        ({"labels": np.array([0, 1, -1, 0])}, "first -1 in row 2"),
        ({"labels": np.array([0.0, 1, 2, 0])}, "not class numbers .got float64"),
        ({"logits": np.array([[0, 0, 0], [0, np.nan, 0], [np.inf, np.nan, 0], [0, 0, 0]])}, "3 values.*first in row 1"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], words: str) -> None:
    given = {**GOOD, **change}
    groups = ClassGroups.of([0, 1], classes=3)
    for function in (group_accuracies, logit_gaps, partial(average_logit_gap, variant="official")):
        with pytest.raises(UserError, match=words):
            function(given["logits"], given["labels"], groups)


@pytest.mark.parametrize(
    ("seen", "absent", "words"),
    [
        ([0, 1], [1, 2], r"overlap in 1 \(1\)"),
        ([0, 5], None, "5 lie outside the 3 columns, 0 to 2"),
        ([0, -1], None, "-1 lie outside"),
        ([0, 0], None, "class 0 is named twice"),
        ([], None, "none was given"),
        ([0.5], None, "list of class numbers"),
        ([[0]], None, "list of class numbers"),
    ],
)
def test_bad_groups_are_refused(seen: Any, absent: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClassGroups.of(seen, absent=absent, classes=3)


def test_what_needs_absent_classes_or_samples_says_so() -> None:
    logits, labels = GOOD["logits"], GOOD["labels"]
    everything = ClassGroups.of([0, 1, 2], classes=3)
    assert group_accuracies(logits, labels, everything)["U/Y"] is None
    for call in (ausuc, average_logit_gap, average_best_gap):
        with pytest.raises(UserError, match="needs at least one absent class"):
            call(logits, labels, everything)
    with pytest.raises(UserError, match="needs at least one absent class"):
        group_accuracies(logits, labels, everything, gamma=1.0)
    with pytest.raises(UserError, match="finite"):
        group_accuracies(logits, labels, everything, gamma=float("nan"))
    one = ClassGroups.of([0], classes=3)
    for call in (average_logit_gap, average_best_gap):
        with pytest.raises(UserError, match="one seen class"):
            call(logits, [0, 0, 0, 0], one)
    with raises_naming(UserError, "1", "2"):
        average_logit_gap(logits, labels, ClassGroups.of([0, 1], classes=3))
    with pytest.raises(UserError, match="no sample has an absent class"):
        ausuc(logits, [0, 1, 0, 0], ClassGroups.of([0, 1], classes=3))
    with pytest.raises(UserError, match="no sample has a seen class"):
        ausuc(logits, [2, 2, 2, 2], ClassGroups.of([0, 1], classes=3))
    with raises_naming(UserError, "0"):
        group_accuracies(logits, labels, one, top=0)


def test_classes_as_people_write_them() -> None:
    names = ["cat", "dog", "7", "t-shirt"]
    assert parse_classes(["dog", "0", "7", "t-shirt", "1-2"], names, what="--classes-seen").tolist() == [
        1,
        0,
        2,
        3,
        1,
        2,
    ]
    with raises_naming(UserError, "dig", "dog"):
        parse_classes(["dig"], names, what="--classes-seen")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("3-1", "--classes-seen: '3-1' runs backwards; write 1-3"),
        ("1-4", "--classes-seen: 4 lies outside the 4 classes, 0 to 3"),
        ("0-1000000000000", "--classes-seen: 1000000000000 lies outside the 4 classes, 0 to 3"),
        ("9-8", "--classes-seen: 9 lies outside the 4 classes, 0 to 3"),
        ("4", "--classes-seen: 4 lies outside the 4 classes, 0 to 3"),
        ("9" * 5000, r"--classes-seen: 99999999\.\.\. lies outside the 4 classes, 0 to 3"),
    ],
    ids=["backwards", "one_more", "far_more", "both", "number", "digits"],
)
def test_numbers_and_ranges_that_are_no_classes(written: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_classes(["0", written], ["cat", "dog", "7", "t-shirt"], what="--classes-seen")
