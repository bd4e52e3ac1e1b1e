"""Split images for a comparison: to learn from, to select by, and to test on; the last take no part before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.training.classification import LabeledImages, Rows


@dataclass(frozen=True)
class RowSplit:
    """Rows of one task.

    Attributes:
        folds: pairs of rows to learn from and rows to select by; one pair, or one a fold.
        whole: all of both together: the selected candidate learns from these.
        test: measured once.
        selection: how the rows to select by were drawn, for tables.
    """

    folds: list[tuple[Rows, Rows]]
    whole: Rows
    test: Rows
    selection: str


def split_rows(
    images: LabeledImages,
    *,
    train: Sequence[str],
    validation: str,
    test: str,
    shots: int | None = None,
    share: float = 0.2,
    folds: int = 0,
    seed: int = 0,
) -> RowSplit:
    """Split the rows of a task.

    With `shots`, so many images of each class are drawn from training and validation splits together, and are all
    there is. With `folds`, the mean over folds selects. Else a validation split selects where there is one, else a
    share of each class that the seed draws.

    Args:
        train, validation, test: names of splits.
        shots: images of each class to learn and to select from.
        share: of each class that selects, where nothing else does; a fifth leaves most images to learn from.
        folds: 0 for none.
        seed: of what is drawn.

    Raises:
        UserError: a split is missing, a class has no image to learn from or to be tested on, or so few images that
            nothing is left to select by.
    """
    test_rows = images.rows(test)
    _check_classes(images, test_rows, "test")
    has_validation = images.has_split(validation) and validation not in train
    learn = images.rows(*train)
    # The selected candidate learns from both parts again; only the test images stay apart.
    pool = np.sort(np.concatenate([learn, images.rows(validation)])) if has_validation else learn
    if not (shots or folds) and has_validation:
        images.draw_shots(learn, None, seed=seed)  # raises where a class has no image
        held_out = images.rows(validation)
        return RowSplit([(learn, held_out)], pool, test_rows, f"the split {validation}, {len(held_out)} images")
    pool = images.draw_shots(pool, shots, seed=seed)
    if folds:
        pairs = _split_folds(images, pool, folds, seed)
        return RowSplit(pairs, pool, test_rows, f"{folds} folds of {len(pool)} images")
    held_out = _draw_share(images, pool, share, seed)
    selection = f"{len(held_out)} of {len(pool)} images, drawn by class"
    return RowSplit([(np.setdiff1d(pool, held_out), held_out)], pool, test_rows, selection)


def _check_classes(images: LabeledImages, rows: Rows, what: str) -> None:
    missing = images.missing_classes(rows)
    if missing:
        more = f" ({len(missing)} such classes)" if len(missing) > 1 else ""
        raise UserError(
            f"{images.name}: class '{missing[0]}' has no {what} image{more}; add some, or leave the class out of the "
            "data"
        )


def _shuffle_by_class(images: LabeledImages, rows: Rows, seed: int) -> list[Rows]:
    return [
        seeds.generator("choosing", seed, number).permutation(rows[images.labels_N[rows] == number])
        for number in range(len(images.classes))
    ]


def _draw_share(images: LabeledImages, pool: Rows, share: float, seed: int) -> Rows:
    """Draw a share of each class, at least one image and at most all but one."""
    parts = [
        rows[: max(1, round(share * len(rows)))][: len(rows) - 1] for rows in _shuffle_by_class(images, pool, seed)
    ]
    # Ascending, whatever order the classes were drawn in: batches depend on the order of rows.
    drawn = np.sort(np.concatenate(parts))
    if not len(drawn):
        raise UserError(f"{images.name}: one image of each class leaves none to select by; give at least two")
    return drawn


def _split_folds(images: LabeledImages, pool: Rows, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    smallest = min(int((images.labels_N[pool] == number).sum()) for number in range(len(images.classes)))
    if smallest < 2 or folds > len(pool):
        raise UserError(
            f"{images.name}: {folds} folds need at least two images of each class and as many as folds; the smallest "
            f"class has {smallest} of {len(pool)}"
        )
    # Dealt out class after class, so that folds are equally large and each class spreads as evenly as it can.
    dealt = np.concatenate(_shuffle_by_class(images, pool, seed))
    pairs = []
    for number in range(folds):
        held_out = np.sort(dealt[number::folds])
        learn = np.setdiff1d(pool, held_out)
        missing = images.missing_classes(learn)
        if missing:
            raise UserError(f"{images.name}: class '{missing[0]}' would be missing from a fold; use fewer folds")
        pairs.append((learn, held_out))
    return pairs
