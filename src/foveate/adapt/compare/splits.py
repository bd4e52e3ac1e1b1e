"""Which images a method learns from, is chosen by, and is tested on; the last take no part in anything before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.data import Labeled
from foveate.core import seeds
from foveate.core.errors import UserError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Rows of one task.

    Attributes:
        folds: pairs of rows to learn from and rows to choose by; one pair, or one a fold.
        whole: all of both together: the chosen candidate learns from these.
        test: measured once. how: in words, how rows to choose by were found.
    """

    folds: list[tuple[Rows, Rows]]
    whole: Rows
    test: Rows
    how: str


def parts_of(
    data: Labeled,
    *,
    train: Sequence[str],
    validation: str,
    test: str,
    shots: int | None = None,
    share: float = 0.2,
    folds: int = 0,
    seed: int = 0,
) -> Parts:
    """The rows of a task.

    With `shots`, so many images of each class are drawn from training and validation splits together, and are all
    there is. With `folds`, the mean over folds chooses. Else a validation split chooses where there is one, else a
    share of each class that the seed draws.

    Raises:
        UserError: a split that is missing, a class without an image to learn from or to be tested on, or so few
            images that nothing is left to choose by.
    """
    test_rows = data.rows(test)
    _complete(data, test_rows, "test")
    given = data.has(validation) and validation not in train
    learn = data.rows(*train)
    pool = np.sort(np.concatenate([learn, data.rows(validation)])) if given else learn
    if not (shots or folds) and given:
        data.few(learn, None, seed=seed)
        chosen_by = data.rows(validation)
        return Parts([(learn, chosen_by)], pool, test_rows, f"the split {validation}, {len(chosen_by)} images")
    pool = data.few(pool, shots, seed=seed)
    if folds:
        return Parts(_folds(data, pool, folds, seed), pool, test_rows, f"{folds} folds of {len(pool)} images")
    held = _share(data, pool, share, seed)
    return Parts(
        [(np.setdiff1d(pool, held), held)], pool, test_rows, f"{len(held)} of {len(pool)} images, drawn by class"
    )


def _complete(data: Labeled, rows: Rows, what: str) -> None:
    missing = sorted(set(range(len(data.classes))) - set(data.labels_N[rows].tolist()))
    if missing:
        more = f" ({len(missing)} such classes)" if len(missing) > 1 else ""
        raise UserError(
            f"{data.name}: class '{data.classes[missing[0]]}' has no {what} image{more}; add some, or leave the "
            "class out of the data"
        )


def _by_class(data: Labeled, rows: Rows, seed: int) -> list[Rows]:
    return [
        seeds.generator("choosing", seed, number).permutation(rows[data.labels_N[rows] == number])
        for number in range(len(data.classes))
    ]


def _share(data: Labeled, pool: Rows, share: float, seed: int) -> Rows:
    """A share of each class, at least one image and at most all but one."""
    held = [rows[: max(1, round(share * len(rows)))][: len(rows) - 1] for rows in _by_class(data, pool, seed)]
    found = np.sort(np.concatenate(held))
    if not len(found):
        raise UserError(f"{data.name}: one image of each class leaves nothing to choose by; give at least two")
    return found


def _folds(data: Labeled, pool: Rows, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    least = min(int((data.labels_N[pool] == number).sum()) for number in range(len(data.classes)))
    if least < 2 or folds > len(pool):
        raise UserError(
            f"{data.name}: {folds} folds need at least two images of each class and as many as folds; the smallest "
            f"class has {least} of {len(pool)}"
        )
    # Dealt out class after class, so that folds are equally large and each class spreads as evenly as it can.
    dealt = np.concatenate(_by_class(data, pool, seed))
    held = [np.sort(dealt[number::folds]) for number in range(folds)]
    found = []
    for rows in held:
        left = np.setdiff1d(pool, rows)
        gone = sorted(set(range(len(data.classes))) - set(data.labels_N[left].tolist()))
        if gone:
            raise UserError(
                f"{data.name}: class '{data.classes[gone[0]]}' would be missing from a fold; use fewer folds"
            )
        found.append((left, rows))
    return found
