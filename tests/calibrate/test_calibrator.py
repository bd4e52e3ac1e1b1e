"""`Calibrator`, pseudo cross-validation from logits, diagnosis, files of logits: behavior and refusals."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import foveate
from foveate.calibrate import estimator
from foveate.calibrate.diagnosis import Outputs, curve_points, diagnose, find_better
from foveate.calibrate.estimator import Calibrator, choose_method
from foveate.calibrate.pseudo import PseudoRun, estimate, run_threshold, split_classes
from foveate.core.errors import UserError
from foveate.metrics.calibration import average_logit_gap, group_accuracies
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.tradeoff import best_intervals, su_curve
from foveate.training.logit_files import read_logits, write_logits
from naming import raises_naming

SEEN, ABSENT = [0, 2, 3, 5], [1, 4]


def made(*, samples: int = 400, level: float = 3.0, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of six classes whose absent columns are `level` too low."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, samples)
    logits = noise * random.standard_normal((samples, 6)) + 2.5 * np.eye(6)[labels]
    logits[:, ABSENT] -= level
    return logits, labels


def seen_only(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.isin(labels, SEEN)
    return logits[chosen], labels[chosen]


def pseudo_run(number: int, **changes: Any) -> PseudoRun:
    seen, absent = split_classes(SEEN, number=number)
    logits, labels = seen_only(*made(seed=10 + number))
    logits = logits.copy()
    logits[:, absent] -= 2.0
    source = logits + np.random.default_rng(number).standard_normal(logits.shape)
    source[:, absent] += 2.0
    given = {"logits": logits, "labels": labels, "seen": seen, "absent": absent, "source_logits": source}
    return PseudoRun(**{**given, **changes})


def test_the_docstring_runs() -> None:
    assert doctest.testmod(estimator).attempted >= 5
    assert doctest.testmod(estimator).failed == 0


def test_it_is_exported() -> None:
    assert foveate.Calibrator is Calibrator


def test_scikit_learn_conventions() -> None:
    calibrator = Calibrator("pcv", threshold="none", tie="official")
    assert calibrator.get_params() == {
        "method": "pcv", "threshold": "none", "tie": "official", "variant": "training",
    }  # fmt: skip
    copied = clone(calibrator.set_params(tie="smallest"))
    assert copied is not calibrator
    assert copied.get_params() == calibrator.get_params()
    assert not [name for name in vars(copied) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        Calibrator().predict(np.zeros((1, 6)))
    assert "pcv" in repr(calibrator)


def test_alg_finds_the_level_and_brings_classes_back() -> None:
    logits, labels = made()
    train = seen_only(*made(seed=1))
    calibrator = Calibrator().fit(*train, seen_classes=SEEN)
    assert calibrator.gamma_ == average_logit_gap(*train, ClassGroups.of(SEEN, classes=6))
    assert calibrator.gamma_ == pytest.approx(3.0, abs=0.2)
    assert (calibrator.feasible_.tolist(), calibrator.n_features_in_) == ([True], 6)
    assert np.isnan(calibrator.spread_)
    groups = ClassGroups.of(SEEN, classes=6)
    before = group_accuracies(logits, labels, groups)["U/Y"]
    assert before is not None
    assert (calibrator.predict(logits) == labels)[np.isin(labels, ABSENT)].mean() * 100 > before + 30
    assert calibrator.score(logits, labels) > 0.8
    untouched = logits.copy()
    shifted = calibrator.decision_function(logits)
    np.testing.assert_array_equal(logits, untouched)
    np.testing.assert_array_equal(shifted[:, SEEN], logits[:, SEEN])
    np.testing.assert_allclose(shifted[:, ABSENT], logits[:, ABSENT] + calibrator.gamma_)
    assert Calibrator().fit(*train).gamma_ == calibrator.gamma_, "seen classes are those of the labels by default"


def test_other_methods() -> None:
    train, test = seen_only(*made(seed=1)), made()
    assert Calibrator("best_gap").fit(*train, SEEN).gamma_ == pytest.approx(3.2, abs=0.5)
    peeking = Calibrator(estimator.PEEKING).fit(*test, SEEN)
    best, intervals = best_intervals(su_curve(*test, ClassGroups.of(SEEN, classes=6)))
    assert intervals[0][0] < peeking.gamma_ < intervals[0][1]
    assert peeking.score(*test) * 100 == pytest.approx(best)
    official = Calibrator(variant="official").fit(*test, SEEN)
    assert official.gamma_ == pytest.approx(Calibrator().fit(*train, SEEN).gamma_, abs=0.6)
    rest = Calibrator().fit(*train, SEEN, absent_classes=[1])
    assert rest.groups_.rest.tolist() == [4]
    np.testing.assert_array_equal(rest.decision_function(test[0])[:, 4], test[0][:, 4])


def test_pseudo_runs_give_the_mean_of_feasible_gammas() -> None:
    runs = [pseudo_run(number) for number in range(3)]
    calibrator = Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=runs)
    found = estimate(runs)
    assert calibrator.gamma_ == found.gamma == pytest.approx(np.mean([c.gamma for c in found.choices if c]))
    assert calibrator.gamma_ == pytest.approx(2.0, abs=0.8)
    assert calibrator.feasible_.tolist() == [True] * 3
    assert calibrator.spread_ == pytest.approx(np.std(calibrator.gammas_, ddof=1))
    # One run whose threshold no gamma keeps is skipped.
    labels = runs[1].labels
    perfect = 9.0 * np.eye(6)[labels]
    hopeless = pseudo_run(1, logits=np.random.default_rng(3).standard_normal((len(labels), 6)), source_logits=perfect)
    mixed = [runs[0], hopeless, runs[2]]
    calibrator = Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=mixed)
    assert calibrator.feasible_.tolist() == [True, False, True]
    assert np.isnan(calibrator.gammas_[1])
    assert calibrator.gamma_ == pytest.approx((calibrator.gammas_[0] + calibrator.gammas_[2]) / 2)
    with raises_naming(UserError, "1", "100.0"):
        Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=[hopeless])


@pytest.mark.parametrize("threshold", ["none", "all_columns", "seen_columns"])
def test_pcv_never_reads_what_is_truly_absent(threshold: Any) -> None:
    """Columns of U replaced by NaN change nothing; of the pre-trained model only "all_columns" reads them."""
    runs = [pseudo_run(number) for number in range(3)]
    blind = []
    for run in runs:
        logits, source = run.logits.copy(), run.source_logits.copy()  # type: ignore[union-attr]
        logits[:, ABSENT] = np.nan
        if threshold == "seen_columns":
            source[:, ABSENT] = np.nan
        blind.append(PseudoRun(logits, run.labels, run.seen, run.absent, None if threshold == "none" else source))
    assert estimate(blind, threshold=threshold) == estimate(runs, threshold=threshold)


def test_thresholds_over_all_and_over_seen_columns() -> None:
    run = pseudo_run(0)
    chosen = np.isin(run.labels, run.absent)
    source = run.source_logits
    assert source is not None
    right = (source.argmax(1) == run.labels)[chosen].mean() * 100
    assert run_threshold(run, "all_columns") == pytest.approx(right)
    inner = np.array(SEEN)[source[:, SEEN].argmax(1)]
    assert run_threshold(run, "seen_columns") == pytest.approx((inner == run.labels)[chosen].mean() * 100)
    assert run_threshold(run, "none") is None


def test_splits_are_halves_and_depend_on_number_and_seed() -> None:
    splits = {tuple(split_classes(range(9), number=n, seed=s)[0].tolist()) for n in range(3) for s in range(3)}
    assert len(splits) > 5
    for number in range(3):
        seen, absent = split_classes([8, 1, 3, 2, 7], number=number)
        assert (len(seen), len(absent)) == (2, 3)
        assert sorted([*seen, *absent]) == [1, 2, 3, 7, 8]
    with raises_naming(UserError, "1"):
        split_classes([4], number=0)


@pytest.mark.parametrize(
    ("arguments", "fitted", "words"),
    [
        ({"method": "alk"}, {}, "unknown method of Calibrator 'alk'.*Did you mean 'alg'"),
        ({}, {"seen_classes": range(6)}, "needs at least one absent class"),
        ({}, {"seen_classes": SEEN, "absent_classes": [1, 2]}, r"overlap in 1 \(2\)"),
        ({}, {"seen_classes": [0]}, "not seen classes|one seen class"),
        ({"variant": "other"}, {"seen_classes": SEEN}, "unknown variant 'other'"),
        ({"method": "pcv"}, {"seen_classes": SEEN}, "needs pseudo_runs"),
        ({}, {"seen_classes": SEEN, "pseudo_runs": []}, "pseudo_runs have no effect with the method 'alg'"),
        ({"method": "pcv", "threshold": "al"}, {"seen_classes": SEEN, "pseudo_runs": [0]}, "unknown threshold"),
        ({"method": "pcv", "tie": "biggest"}, {"seen_classes": SEEN, "pseudo_runs": [0]}, "unknown rule for ties"),
        ({"method": "pcv"}, {"seen_classes": [0, 2, 3], "pseudo_runs": [0]}, "class 5 is not a seen class"),
        (
            {"method": "pcv"},
            {"seen_classes": [0, 1, 2, 3, 5], "pseudo_runs": [0]},
            "pseudo run: seen class 1 is in neither half; pseudo runs split all seen classes",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], fitted: dict[str, Any], words: str) -> None:
    if fitted.get("pseudo_runs"):
        fitted = {**fitted, "pseudo_runs": [pseudo_run(number) for number in fitted["pseudo_runs"]]}
    data = seen_only(*made())
    with pytest.raises(UserError, match=words):
        Calibrator(**arguments).fit(*data, **fitted)


def test_pseudo_runs_of_another_model_are_refused() -> None:
    run = pseudo_run(0)
    assert run.source_logits is not None
    more = np.zeros((len(run.labels), 3))
    wide = pseudo_run(0, logits=np.hstack([run.logits, more]), source_logits=np.hstack([run.source_logits, more]))
    with raises_naming(UserError, "9", "6"):
        Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=[run, wide])
    chosen = np.isin(run.labels, SEEN[:2])
    part = PseudoRun(run.logits[chosen], run.labels[chosen], np.array([0]), np.array([2]), run.source_logits[chosen])
    with raises_naming(UserError, "3"):
        Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=[part])
    with pytest.raises(UserError, match=r"pseudo run: logits: wrong shape"):
        Calibrator("pcv").fit(*made(), SEEN, pseudo_runs=[pseudo_run(0, logits=np.zeros(4))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source_logits": None}, r"needs the pre-trained model's logits of the same images \(source_logits\)"),
        ({"source_logits": np.zeros((3, 6))}, "source_logits"),
        ({"labels": np.full(3, 1)}, "rows of logits, but labels of shape"),
        ({"seen": [0, 1], "absent": [1]}, "pseudo run: seen and absent classes overlap"),
        ({"seen": [0], "absent": [2]}, "labels are neither pseudo-seen nor pseudo-absent"),
        ({"absent": []}, "needs at least one absent class|neither pseudo-seen"),
        ({"logits": np.zeros(4)}, r"logits must be \[samples, classes\]"),
    ],
)
def test_bad_pseudo_runs_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        estimate([pseudo_run(0, **change)])


def test_a_pseudo_run_without_images_of_a_half_is_refused() -> None:
    run = pseudo_run(0)
    chosen = np.isin(run.labels, run.seen)
    source = run.source_logits
    assert source is not None
    with pytest.raises(UserError, match="no image has a pseudo-absent class"):
        estimate([PseudoRun(run.logits[chosen], run.labels[chosen], run.seen, run.absent, None)], threshold="none")
    with pytest.raises(UserError, match="at least one pseudo run"):
        estimate([])


def test_wrong_width_after_fitting() -> None:
    calibrator = Calibrator().fit(*seen_only(*made()), SEEN)
    with raises_naming(UserError, "5", "6"):
        calibrator.predict(np.zeros((2, 5)))
    with raises_naming(UserError, "1"):
        calibrator.predict([[0.0] * 6, [np.nan] * 6])


def test_the_diagnosis_names_a_level() -> None:
    logits, labels = made(samples=1500)
    groups = ClassGroups.of(SEEN, classes=6)
    level = np.zeros((1, 6))
    level[:, ABSENT] = 3.0
    found = diagnose(Outputs(logits), labels, groups, before=Outputs(logits + level), gammas={"ALG": 2.9})
    assert found.verdict == "level"
    assert [row.key for row in found.rows] == ["before", "after", "alg", "star"]
    assert "the level of the absent classes is" in found.sentence
    assert "% with gamma +2.90 (ALG); seen classes: " in found.sentence
    assert found.rows[-1].peeks
    assert found.rows[0].ausuc == pytest.approx(found.rows[1].ausuc)
    assert found.rows[2].accuracies == group_accuracies(logits, labels, groups, gamma=2.9)
    json.dumps([row.to_json() for row in found.rows], allow_nan=False)
    points = curve_points(found.curves["after"])
    assert len(points) <= 400
    assert points[0][0] < points[-1][0]


@pytest.mark.parametrize(
    ("gammas", "used", "words"),
    [
        ({"ALG": -2.0}, "ALG", ("ALG", "Y/Y", "-2.00")),
        ({"ALG": -1e-9}, "ALG", ("ALG", "-0.00", "too low")),
        ({"ALG": 0.0, "best gap": 3.0}, "ALG", ("ALG", "--method best_gap", "+3.00")),
        ({"ALG": 3.0, "PCV": 40.0}, "PCV", ("PCV", "Y/Y", "--method alg")),
        ({"ALG": 3.0, "PCV": 40.0}, "ALG", ()),
    ],
)
def test_the_diagnosis_names_harm(gammas: dict[str, float], used: str, words: tuple[str, ...]) -> None:
    logits, labels = made(samples=1500)
    result = diagnose(Outputs(logits), labels, ClassGroups.of(SEEN, classes=6), gammas=gammas, used=used)
    assert bool(result.harm) == bool(words)
    assert all(word in result.harm for word in words)


def test_without_absent_samples_no_harm_is_measured() -> None:
    logits, labels = seen_only(*made(samples=600))
    assert diagnose(Outputs(logits), labels, ClassGroups.of(SEEN, classes=6), gammas={"ALG": 9.0}).harm == ""


@pytest.mark.parametrize(
    ("seen", "absent", "available", "method"),
    [
        (5, 31, ("alg", "best_gap"), "alg"),
        (5, 31, ("alg", "best_gap", "pcv"), "pcv"),
        (5, 5, ("alg", "best_gap", "pcv"), "best_gap"),
        (12, 24, ("alg", "best_gap", "pcv"), "best_gap"),
        (18, 18, ("alg", "pcv"), "alg"),
        (18, 18, ("alg", "best_gap"), "best_gap"),
        (18, 18, ("pcv",), "pcv"),
        (18, 18, ("alg",), "alg"),
    ],
)
def test_the_default_method_follows_the_classes_and_the_data(
    seen: int, absent: int, available: tuple[str, ...], method: str
) -> None:
    chosen, reason = choose_method(seen, absent, available)
    assert chosen == method
    assert str(seen) in reason or len(available) == 1


def test_the_diagnosis_names_damage_and_health() -> None:
    logits, labels = made(samples=1500, level=0.0)
    groups = ClassGroups.of(SEEN, classes=6)
    broken = logits.copy()
    broken[:, ABSENT] = np.random.default_rng(5).standard_normal((1500, 2)) - 3
    found = diagnose(Outputs(broken), labels, groups, before=Outputs(logits))
    assert found.verdict == "damaged"
    assert "No gamma repairs that" in found.sentence
    # What a person reads comes before the names of columns.
    assert re.match(
        r"Absent classes: [\d.]+ % before fine-tuning, [\d.]+ % right after it; seen classes:", found.sentence
    )
    assert diagnose(Outputs(logits), labels, groups, before=Outputs(logits)).verdict == "nothing"
    alone = diagnose(Outputs(made()[0]), made()[1], groups)
    assert alone.verdict == "level"
    assert "needs --before): the level of the absent classes is" in alone.sentence
    chosen = np.isin(labels, SEEN)
    unknown = diagnose(Outputs(logits[chosen]), labels[chosen], groups, gammas={"ALG": 1.0})
    assert unknown.verdict == "unknown"
    assert "ALG estimates +1.00" in unknown.sentence


def test_labeled_samples_choose_the_better_estimate_beyond_chance() -> None:
    logits, labels = made(samples=1500)
    groups = ClassGroups.of(SEEN, classes=6)
    gammas = {"best gap": 30.0, "ALG": 2.9}
    better, reason = find_better(Outputs(logits), labels, groups, gammas=gammas, used="best gap")
    assert better == "ALG"
    rows = {gamma: group_accuracies(logits, labels, groups, gamma=gamma)["Y/Y"] or 0.0 for gamma in gammas.values()}
    assert f"{rows[2.9]:.1f} % of all right, best gap {rows[30.0]:.1f} %" in reason
    assert find_better(Outputs(logits), labels, groups, gammas=gammas, used="ALG") == ("ALG", "")
    # Of two that differ by chance alone, the one stays that the numbers of classes decide.
    near = {"best gap": 2.9, "ALG": 2.9001}
    assert find_better(Outputs(logits), labels, groups, gammas=near, used="best gap") == ("best gap", "")


def test_damage_is_also_read_from_nearest_means() -> None:
    random = np.random.default_rng(0)
    logits, labels = made(samples=1200)
    groups = ClassGroups.of(SEEN, classes=6)
    centers = 3 * random.standard_normal((6, 12))
    good = centers[labels] + random.standard_normal((1200, 12))
    bad = good.copy()
    bad[np.isin(labels, ABSENT)] = random.standard_normal((int(np.isin(labels, ABSENT).sum()), 12))
    found = diagnose(Outputs(logits, bad, (bad, labels)), labels, groups, before=Outputs(logits, good, (good, labels)))
    assert found.verdict == "damaged"
    assert "NCM U/U" in found.sentence


def test_files_of_logits(tmp_path: Path) -> None:
    logits, labels = made(samples=20)
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    npz = write_logits(tmp_path / "a.npz", logits=logits, labels=labels, class_names=names, features=None)
    table = pa.table({"logits": logits.tolist(), "label": [names[number] for number in labels]})
    pq.write_table(table.replace_schema_metadata({"class_names": json.dumps(names)}), tmp_path / "a.parquet")
    for path in (npz, tmp_path / "a.parquet"):
        found = read_logits(path)
        np.testing.assert_array_equal(found.logits, logits)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.class_names == names
        assert found.classes == 6
    with raises_naming(UserError, "seen", "absent"):
        PseudoRun.from_file(read_logits(npz))
    run = pseudo_run(0)
    arrays = {name: getattr(run, name) for name in ("logits", "labels", "seen", "absent", "source_logits")}
    write_logits(tmp_path / "run.npz", **arrays)
    assert estimate([PseudoRun.from_file(read_logits(tmp_path / "run.npz"))]) == estimate([run])


BAD_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"labels": [0, 1]}, "no array 'logits'"),
    ({"logits": np.zeros((2, 3))}, "no array 'labels'"),
    ({"logits": np.zeros((2, 3)), "lables": [0, 1]}, "unknown array 'lables'.*Did you mean 'labels'"),
    ({"logits": np.zeros((2, 3)), "labels": [0, 4]}, "first 4 in row 1"),
    ({"logits": np.zeros((2, 3)), "labels": ["0", "x"]}, "label 'x' is none of the 3 class names"),
    ({"logits": np.zeros((2, 3)), "labels": [0, 1], "class_names": ["a", "a", "b"]}, "3 different names"),
    ({"logits": np.zeros((2, 3)), "labels": [0, 1], "features": np.zeros((3, 4))}, r"features must be \[2, width\]"),
    ({"logits": np.zeros(3), "labels": [0, 1]}, r"\[samples, classes\]"),
]


@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS)
def test_bad_npz_files(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        read_logits(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    for name in ("a.npz", "a.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(UserError, match="not an npz|cannot be read as a Parquet"):
            read_logits(tmp_path / name)
    np.savez(tmp_path / "o.npz", logits=np.array([{}], dtype=object), labels=[0], allow_pickle=True)
    with pytest.raises(UserError, match="not an npz file of plain arrays|unknown array"):
        read_logits(tmp_path / "o.npz")
    with pytest.raises(UserError, match="no such file"):
        read_logits(tmp_path / "b.npz")
    with raises_naming(UserError, "b.mat", ".npz", ".parquet"):
        read_logits(tmp_path / "b.mat")
    pq.write_table(pa.table({"logits": [[1.0, 2.0], [1.0]], "label": [0, 1]}), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="same length in every row"):
        read_logits(tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"logits": [1.0, 2.0], "label": [0, 1]}), tmp_path / "flat.parquet")
    with pytest.raises(UserError, match="list of numbers"):
        read_logits(tmp_path / "flat.parquet")
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "x.parquet")
    with raises_naming(UserError, "x.parquet", "label"):
        read_logits(tmp_path / "x.parquet")


def test_the_example_of_the_docs_runs() -> None:
    """The block of docs/python.md, word for word, on logits whose unseen classes lie too low."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import Calibrator" in one]
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 400)
    logits = 3.0 * np.eye(6)[labels] + generator.normal(size=(400, 6)) - 4.0 * np.isin(np.arange(6), [1, 3, 4])
    seen = np.isin(labels, [0, 2, 5])
    names = {"train_logits": logits[seen], "train_labels": labels[seen], "test_logits": logits}
    exec(compile(block, "python.md", "exec"), names)
    assert (names["predicted"] == labels).mean() > (logits.argmax(1) == labels).mean() + 0.1
