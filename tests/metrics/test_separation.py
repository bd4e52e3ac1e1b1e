"""The threshold between scores of what is there and of what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from foveate.core.errors import UserError
from foveate.metrics.confidence import separate
from naming import raises_naming

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_the_auc_is_that_of_scikit_learn_and_the_errors_are_as_equal_as_they_can_be(
    present: list[int], absent: list[int]
) -> None:
    separation = separate(present, absent)
    truth = [1] * len(present) + [0] * len(absent)
    assert separation.auc == pytest.approx(roc_auc_score(truth, present + absent))
    assert separation.hit_rate == np.mean(np.array(present) >= separation.threshold)
    assert separation.false_alarm_rate == np.mean(np.array(absent) >= separation.threshold)
    for threshold in np.arange(-4.5, 4):
        miss, alarm = np.mean(np.array(present) < threshold), np.mean(np.array(absent) >= threshold)
        assert abs(1 - separation.hit_rate - separation.false_alarm_rate) <= abs(miss - alarm) + 1e-12


@pytest.mark.parametrize(("present", "absent", "name"), [([], [1.0], "present"), ([1.0], [float("nan")], "absent")])
def test_no_scores_and_no_numbers_are_refused(present: list[float], absent: list[float], name: str) -> None:
    with raises_naming(UserError, name):
        separate(present, absent)
