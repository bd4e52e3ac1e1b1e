"""Agreement of a judge of assertions with the truth, repetition, and shares of long captions."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE, agreement, share_above, style
from naming import raises_naming

S, C, U = SUPPORTED, CONTRADICTED, UNVERIFIABLE


def test_shares_by_hand() -> None:
    found = agreement([[S, C, U], [], [S, C]], [[S, U, S], [], [C, S]])
    assert found["supports_true"] == ([1.0, 0.0], [0, 2])
    assert found["denies_true"] == ([0.0, 1.0], [0, 2])
    assert found["supports_false"] == ([0.0, 1.0], [0, 2])
    assert found["denies_false"] == ([0.0, 0.0], [0, 2])
    assert found["right"] == ([1.0, 0.0, 0.0], [0, 2, 2]), "what the judge leaves open is not wrong"


def test_a_judge_that_draws_lots_supports_true_and_false_alike() -> None:
    rng = np.random.default_rng(0)
    verdicts = np.array([S, C, U], dtype=object)
    truth = [list(verdicts[rng.integers(0, 3, 5)]) for _ in range(2000)]
    found = agreement(truth, [list(verdicts[rng.integers(0, 3, 5)]) for _ in truth])
    shares = {name: np.mean(hits) for name, (hits, _) in found.items()}
    assert shares["supports_true"] == pytest.approx(shares["supports_false"], abs=0.03)
    assert shares["right"] == pytest.approx(0.5, abs=0.03)


def test_assertions_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="zip"):
        agreement([[S]], [[S, C]])


def test_only_exact_copies_are_duplicates() -> None:
    assert style(["A dog.", "a dog.", "A dog.", "A  dog."])["duplicate_share"] == 0.25


def test_no_captions_have_no_share_of_long_ones() -> None:
    with raises_naming(UserError, "at least one caption"):
        share_above([], 77)
