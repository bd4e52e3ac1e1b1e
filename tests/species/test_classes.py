"""Classes of a species model."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.species.taxonomy import Classes
from naming import raises_naming


def test_animals_are_all_but_the_labels_without_one() -> None:
    classes = Classes(("blank", "Puma concolor", "odd beast", "human"), np.array([-1, 3, -1, -1]))
    assert classes.animals_K.tolist() == [False, True, True, False]
    assert classes.index("odd beast") == 2
    with raises_naming(UserError, "Puma concolour", "'Puma concolor'"):
        classes.index("Puma concolour")


@pytest.mark.parametrize("labels", [("puma", "puma"), ("puma", "")])
def test_labels_are_unique(labels: tuple[str, ...]) -> None:
    with raises_naming(UserError, repr(labels[1])):
        Classes(labels, np.array([0, 1]))
