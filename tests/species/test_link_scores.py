"""DistMult and ComplEx against sums over complex and real numbers, and the head that each folds into."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.species.score import ComplEx, DistMult, Score
from naming import raises_naming

HEADS, RELATION, TAILS = (torch.from_numpy(np.random.default_rng(0).normal(size=(n, 6))) for n in (4, 1, 5))


def to_complex(vectors: Tensor) -> np.ndarray:
    array = vectors.numpy()
    return array[:, :3] + 1j * array[:, 3:]


def test_distmult_is_a_symmetric_three_way_product() -> None:
    score = DistMult(6)
    scores = score(HEADS, RELATION.expand_as(HEADS), TAILS)
    np.testing.assert_allclose(scores, np.einsum("hd,d,td->ht", HEADS, RELATION[0], TAILS))
    np.testing.assert_allclose(scores, score(TAILS, RELATION.expand_as(TAILS), HEADS).T)


def test_complex_is_the_real_part_of_a_three_way_product() -> None:
    score = ComplEx(6)
    scores = score(HEADS, RELATION.expand_as(HEADS), TAILS)
    heads, relation, tails = map(to_complex, (HEADS, RELATION, TAILS))
    np.testing.assert_allclose(scores, np.einsum("hd,d,td->ht", heads, relation[0], tails.conj()).real)
    assert not np.allclose(scores, score(TAILS, RELATION.expand_as(TAILS), HEADS).T), "a parent is no child"
    with raises_naming(UserError, "dim", "7"):
        ComplEx(7)


@pytest.mark.parametrize("score", [DistMult(6), ComplEx(6)])
def test_the_folded_head_scores_alike(score: Score) -> None:
    folded_ND = score.fold(RELATION[0], TAILS)
    np.testing.assert_allclose(HEADS @ folded_ND.T, score(HEADS, RELATION.expand_as(HEADS), TAILS))
