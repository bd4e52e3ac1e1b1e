"""Classes of a species model and their taxa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest

NON_ANIMALS = ("blank", "human", "vehicle", "unknown")
"""Labels that are no animal class: no species list, prior or roll-up touches them."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Labels in the order of a model's columns, with the index of each label's taxon.

    Args:
        labels: Unique labels; "blank", "human", "vehicle" and "unknown" are no animals.
        taxa_K: Index into `Taxa` of each label, -1 where it has no taxon.

    Raises:
        UserError: A label is empty or repeated.
    """

    labels: tuple[str, ...]
    taxa_K: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "taxa_K", np.asarray(self.taxa_K, dtype=np.int64))
        assert len(self.labels) == len(self.taxa_K), "a label has no taxon index"
        wrong = sorted({label for label in self.labels if not label or self.labels.count(label) > 1})
        if wrong:
            raise UserError(f"classes: labels are empty or repeated (got {', '.join(map(repr, wrong[:10]))})")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def animals_K(self) -> NDArray[np.bool_]:
        """Whether each class is an animal; one without a taxon is, too."""
        return np.array([label not in NON_ANIMALS for label in self.labels], dtype=bool)

    def index(self, label: str) -> int:
        """Return the column of a label.

        Raises:
            UserError: No class has it.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise UserError(f"class {label!r}: the model has no such class{nearest(label, self.labels)}") from None


def add_labels(classes: Classes, labels: Sequence[str]) -> Classes:
    """Return the classes and, behind them, the labels that they lack, without a taxon."""
    missing = [label for label in labels if label not in classes.labels]
    return Classes((*classes.labels, *missing), np.append(classes.taxa_K, np.full(len(missing), -1, dtype=np.int64)))
