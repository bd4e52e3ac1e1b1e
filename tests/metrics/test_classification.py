"""Mean class accuracy against scikit-learn, nearest class names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from foveate.core.errors import UserError
from foveate.metrics.classification import accuracy, class_accuracies, mean_class_accuracy, nearest_class
from naming import raises_naming


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predictions, truth = (np.array(side) for side in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # predicted classes that are absent from the truth
        expected = balanced_accuracy_score(truth, predictions)
    assert mean_class_accuracy(predictions, truth) == pytest.approx(expected, abs=1e-12)
    assert accuracy(predictions, truth) == pytest.approx(accuracy_score(truth, predictions))


def test_names_work_as_classes_and_absent_classes_have_no_say() -> None:
    per_class = class_accuracies(["cat", "dog", "fox", "cat"], ["cat", "dog", "dog", "dog"])
    assert per_class.classes_C.tolist() == ["cat", "dog"]
    np.testing.assert_allclose(per_class.accuracy_C, [1, 1 / 3])
    assert per_class.count_C.tolist() == [1, 3]


def test_nearest_class_ignores_length() -> None:
    classes = np.array([[100.0, 0], [0, 0.01]])
    assert nearest_class([[1.0, 0.9], [0.1, 5]], classes).tolist() == [0, 1]


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="same length"):
        mean_class_accuracy([0, 1], [0])
    with pytest.raises(UserError, match="at least one"):
        mean_class_accuracy([], [])
    with raises_naming(UserError, "1"):
        nearest_class(np.eye(2), [[1.0, 0], [0, 0]])
    with raises_naming(UserError, "0"):
        nearest_class([[np.nan, 1]], np.eye(2))
    with pytest.raises(UserError, match="same E"):
        nearest_class(np.eye(3), np.eye(2))
