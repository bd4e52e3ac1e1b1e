"""Which samples a step sees: a pure function of integers, so that resuming needs only the step's number."""

from __future__ import annotations

import functools

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError


@functools.lru_cache(maxsize=2)
def _epoch_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` positions in one epoch, (count,) int64, read-only.

    Sorting raw 64-bit words keeps the order the same over NumPy versions: the words of a bit generator are
    guaranteed to stay, the algorithm behind `Generator.permutation` is not.
    """
    words = seeds.generator("order", seed, epoch).bit_generator.random_raw(count)
    permutation = np.argsort(words, kind="stable")
    permutation.setflags(write=False)
    return permutation


def epoch_rows(rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """All of `rows` in the order in which an epoch visits them."""
    return rows[_epoch_permutation(len(rows), seed, epoch)]


def batch_rows(
    step: int, *, rows: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """The samples of batch number `step` (counted from 0) that `rank` loads.

    All epochs, each a permutation of `rows` of its own, are laid end to end; batch s is the slice
    [s * batch_size, (s + 1) * batch_size) of that endless sequence, and rank r takes the r-th part of it. So
    every epoch visits every row exactly once, the global batch does not depend on the number of ranks, and
    gathering in rank order restores it.

    Args:
        rows: (n,) row numbers to draw from.
        batch_size: size of the global batch.

    Returns:
        (batch_size / world_size, 2) int64 with columns row and epoch; epoch is the epoch, counted from 0.

    Raises:
        UserError: when there are no rows, or the batch cannot be split evenly.
    """
    count = len(rows)
    if count == 0:
        raise UserError("there are no rows to train on: the chosen split or filter is empty")
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} cannot be split evenly over {world_size} processes; "
            f"use {max(1, batch_size // world_size) * world_size} or another multiple of {world_size}"
        )
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    share = batch_size // world_size
    first = step * batch_size + rank * share
    positions = np.arange(first, first + share, dtype=np.int64)
    visits = positions // count
    chosen = np.empty(share, dtype=np.int64)
    for epoch in range(int(visits[0]), int(visits[-1]) + 1):
        within = visits == epoch
        chosen[within] = rows[_epoch_permutation(count, seed, epoch)[positions[within] % count]]
    return np.stack([chosen, visits], axis=1)
