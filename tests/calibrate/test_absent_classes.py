"""`AbsentClassCalibrator` around scikit-learn's classifiers: conventions, and absent classes that come back."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import foveate
from foveate.calibrate import estimator as absent_classes
from foveate.calibrate.estimator import AbsentClassCalibrator
from foveate.core.errors import UserError
from foveate.metrics.calibration import average_best_gap, average_logit_gap
from foveate.metrics.class_groups import ClassGroups
from naming import raises_naming

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


@parametrize_with_checks(
    [
        AbsentClassCalibrator(LogisticRegression()),
        AbsentClassCalibrator(LinearSVC(), method="alg"),
        AbsentClassCalibrator(RidgeClassifier()),
        AbsentClassCalibrator(RandomForestClassifier(n_estimators=5, random_state=0)),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits with names as labels: training and test halves."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = pixels[order] / 16, NAMES[labels[order]]
    return pixels[:900], labels[:900], pixels[900:], labels[900:]


@pytest.fixture(scope="module")
def tuned(digits: Any) -> tuple[SGDClassifier, np.ndarray, np.ndarray]:
    """A classifier of ten digits, trained on with six of them; and the data of these six."""
    train_x, train_y, *_ = digits
    classifier = SGDClassifier(loss="log_loss", random_state=0).fit(train_x[:300], train_y[:300])
    seen = np.isin(train_y, NAMES[:6])
    for _ in range(20):
        classifier.partial_fit(train_x[seen], train_y[seen])
    return classifier, train_x[seen], train_y[seen]


def test_it_is_exported_and_its_docstring_runs() -> None:
    assert foveate.AbsentClassCalibrator is foveate.adapt.AbsentClassCalibrator is AbsentClassCalibrator
    result = doctest.testmod(absent_classes)
    assert (result.attempted > 5, result.failed) == (True, 0)


def test_absent_classes_come_back(digits: Any, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    _, _, test_x, test_y = digits
    calibrator = AbsentClassCalibrator(classifier).fit(seen_x, seen_y)
    assert calibrator.estimator_ is classifier, "a fitted classifier is used as it is"
    assert calibrator.classes_.tolist() == classifier.classes_.tolist()
    assert sorted(calibrator.absent_classes_) == sorted(NAMES[6:])
    assert calibrator.gamma_ > 0
    absent = np.isin(test_y, NAMES[6:])
    before, after = (model.predict(test_x) == test_y for model in (classifier, calibrator))
    assert after[absent].mean() > before[absent].mean() + 0.2
    assert calibrator.score(test_x, test_y) > classifier.score(test_x, test_y) + 0.05


def test_probabilities_are_the_softmax_of_the_shifted_logits(digits: Any, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    test_x = digits[2]
    calibrator = AbsentClassCalibrator(classifier).fit(seen_x, seen_y)
    probabilities = calibrator.predict_proba(test_x)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(calibrator.classes_[probabilities.argmax(1)], calibrator.predict(test_x))
    odds = np.maximum(classifier.predict_proba(test_x), np.finfo(float).tiny)
    odds[:, np.isin(classifier.classes_, NAMES[6:])] *= np.exp(calibrator.gamma_)
    np.testing.assert_allclose(probabilities, odds / odds.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_array_equal(calibrator.decision_function(test_x).argmax(1), probabilities.argmax(1))


@pytest.mark.parametrize("method", ["alg", "best_gap"])
def test_gamma_is_that_of_the_function_on_arrays(method: str, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    calibrator = AbsentClassCalibrator(classifier, method=method).fit(seen_x, seen_y)
    logits = np.log(np.maximum(classifier.predict_proba(seen_x), np.finfo(float).tiny))
    numbers = np.searchsorted(classifier.classes_, seen_y)
    groups = ClassGroups.of(np.unique(numbers), classes=10)
    function = average_logit_gap if method == "alg" else average_best_gap
    assert calibrator.gamma_ == function(logits, numbers, groups)


def test_the_method_follows_the_number_of_seen_classes(tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    assert AbsentClassCalibrator(classifier).fit(seen_x, seen_y).method_ == "best_gap"
    few = np.isin(seen_y, NAMES[:3])
    assert AbsentClassCalibrator(classifier).fit(seen_x[few], seen_y[few]).method_ == "alg"


def test_a_classifier_without_probabilities(digits: Any) -> None:
    train_x, train_y, *_ = digits
    classifier = LinearSVC().fit(train_x, train_y)
    seen = np.isin(train_y, NAMES[:6])
    calibrator = AbsentClassCalibrator(classifier).fit(train_x[seen], train_y[seen])
    assert not hasattr(calibrator, "predict_proba")
    shifted = classifier.decision_function(train_x)
    shifted[:, np.isin(classifier.classes_, NAMES[6:])] += calibrator.gamma_
    np.testing.assert_array_equal(calibrator.predict(train_x), classifier.classes_[shifted.argmax(1)])
    assert hasattr(AbsentClassCalibrator(MLPClassifier()), "predict_proba")


def test_clone_forgets_the_fit_unless_it_is_frozen(digits: Any, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    frozen = clone(AbsentClassCalibrator(FrozenEstimator(classifier))).fit(seen_x, seen_y)
    assert sorted(frozen.absent_classes_) == sorted(NAMES[6:])
    assert frozen.gamma_ == AbsentClassCalibrator(classifier).fit(seen_x, seen_y).gamma_
    plain = clone(AbsentClassCalibrator(classifier)).fit(seen_x, seen_y)
    assert (plain.absent_classes_.tolist(), plain.gamma_, plain.method_) == ([], 0.0, "")


def test_what_is_refused(digits: Any, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    with raises_naming(UserError, "best_gab", "best_gap"):
        AbsentClassCalibrator(classifier, method="best_gab").fit(seen_x, seen_y)
    wrong = np.where(seen_y == "one", "onne", seen_y)
    with raises_naming(UserError, "onne", "one"):
        AbsentClassCalibrator(classifier).fit(seen_x, wrong)
    single = seen_y == "one"
    with raises_naming(UserError, "one seen class"):
        AbsentClassCalibrator(classifier).fit(seen_x[single], seen_y[single])


def test_the_example_of_the_docs_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "AbsentClass" in block]
    names: dict[str, Any] = {}
    exec(compile(block, "python.md", "exec"), names)
    test = names["X"][1200:] / 16, names["y"][1200:]
    assert names["calibrated"].score(*test) > names["classifier"].score(*test) + 0.03


def test_rows_far_apart_keep_their_probabilities(digits: Any, tuned: Any) -> None:
    classifier, seen_x, seen_y = tuned
    calibrator = AbsentClassCalibrator(classifier).fit(seen_x, seen_y)
    # One row's largest logit is 2,000 below the other's: subtracted from both, it would leave 0 / 0.
    calibrator._shifted = lambda X: np.array([[2000.0, 0.0], [0.0, np.log(3)]])  # type: ignore[method-assign]
    np.testing.assert_allclose(calibrator.predict_proba(digits[2][:2]), [[1, 0], [0.25, 0.75]])
