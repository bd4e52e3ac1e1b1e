"""Batches of up to so many tokens, from samples of similar length: less padding, and no batch that overflows memory."""

from __future__ import annotations

import bisect
import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.recipes import Settings

Draws = NDArray[np.int64]
"""Rows of one order: the columns of `order.batch_rows` or of `order.MixtureOrder.batch`."""


class TokenBatching(Settings):
    """Size of token batches; the training's `batch_size` is the most samples that a batch has."""

    max_tokens: int = Field(ge=1, description="tokens of a batch over all processes, padding included")
    multiple: int = Field(
        default=1, ge=1, description="samples of a batch are a multiple of this: processes times training.accumulate"
    )
    pool: int = Field(
        default=4096, ge=1, description="samples that are sorted by length together; more = less padding, less chance"
    )


class TokenBatches:
    """The order of token batches: a pure function of seed, step and rank.

    The endless sequence of samples is cut into pools of one size. A pool is sorted by length, cut into batches as large
    as `max_tokens` allows, and its batches are put in random order, as are the samples of a batch. So each sample comes
    as often as in the sequence, and samples meet others of similar length. A step is found by the numbers of batches of
    the pools before it; a resumed run counts them again, in some milliseconds a pool.

    Args:
        draw: pool number, size -> the samples of this slice of the sequence, one row each.
        length_of: such rows -> tokens of each, shape [N].
        num_rows: samples of an epoch: a pool is an equal part of an epoch, up to a rest smaller than `multiple` and
            the number of parts.
        max_samples: of a batch.

    Raises:
        UserError: when a pool would be empty.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Draws],
        length_of: Callable[[Draws], np.ndarray],
        settings: TokenBatching,
        *,
        num_rows: int,
        max_samples: int,
        seed: int,
    ) -> None:
        self._draw, self._length_of, self.settings, self.seed = draw, length_of, settings, seed
        self.num_rows = num_rows
        unit = settings.multiple
        if max_samples < unit:
            raise UserError(f"batch_size {max_samples} is less than the multiple of samples of a batch (got {unit})")
        # Equal parts of an epoch: pools that end with it keep epochs apart.
        self.pool_size = max(unit, num_rows // -(-num_rows // settings.pool) // unit * unit)
        self.max_samples = max_samples
        self._ends = [0]  # batches in all pools up to and including each, behind a zero
        self._lock = threading.Lock()
        # Two: the threads of a loader work on neighboring steps.
        self._pool = functools.lru_cache(maxsize=2)(self._build_pool)

    def _build_pool(self, pool: int) -> list[Draws]:
        drawn = self._draw(pool, self.pool_size)
        length_N = np.asarray(self._length_of(drawn))
        random = seeds.generator("token-batches", self.seed, pool).bit_generator
        # Raw words, as in `order`: a shuffle's algorithm may change with NumPy.
        # They also break ties, so that samples of equal length share a batch with different ones in every epoch.
        order = np.lexsort((random.random_raw(len(drawn)), length_N))
        bounds = cut_batches(
            length_N[order],
            max_tokens=self.settings.max_tokens,
            max_samples=self.max_samples,
            multiple=self.settings.multiple,
        )
        batches = [order[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        mixed = [drawn[batch[np.argsort(random.random_raw(len(batch)), kind="stable")]] for batch in batches]
        return [mixed[index] for index in np.argsort(random.random_raw(len(mixed)), kind="stable").tolist()]

    def _find(self, step: int) -> tuple[int, int]:
        """Return the pool of a step, and the number of its batch in there."""
        # Without a lock, two loader threads could append the same pool twice and shift all later steps.
        with self._lock:
            while self._ends[-1] <= step:
                self._ends.append(self._ends[-1] + len(self._pool(len(self._ends) - 1)))
            pool = bisect.bisect_right(self._ends, step) - 1
            return pool, step - self._ends[pool]

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> Draws:
        """Return the samples of batch number `step` that `rank` loads: an equal part, in the order of ranks.

        Raises:
            UserError: when the batches cannot be split evenly, or a sample is longer than a batch.
        """
        if self.settings.multiple % world_size:
            raise UserError(
                f"multiple {self.settings.multiple}: batches cannot be split evenly over {world_size} processes; "
                f"expected a multiple of {world_size}"
            )
        pool, index = self._find(step)
        drawn = self._pool(pool)[index]
        share = len(drawn) // world_size
        return drawn[rank * share : (rank + 1) * share]

    def mean_samples(self) -> float:
        """Return the mean number of samples of a batch, in the first pool."""
        return self.pool_size / len(self._pool(0))

    def count_steps(self, epochs: int = 1) -> int:
        """Count the steps of `epochs` times the rows, for `training.steps`; of one data set, each came so often."""
        pools = -(-epochs * self.num_rows // self.pool_size)
        while len(self._ends) <= pools:
            self._find(self._ends[-1])
        return self._ends[pools]


def cut_batches(lengths_N: np.ndarray, *, max_tokens: int, max_samples: int, multiple: int = 1) -> list[int]:
    """Cut samples that are sorted by length into batches as large as can be.

    Args:
        lengths_N: tokens of each sample, ascending; N is a multiple of `multiple`.
        max_tokens: of a batch: its samples times its longest, as padding makes them.

    Returns:
        Bounds of the batches, from 0 to N.

    Raises:
        UserError: when `multiple` samples of some length are more than `max_tokens`.
    """
    bounds, start = [0], 0
    lengths = lengths_N.tolist()
    limit = max_samples // multiple * multiple
    if lengths and lengths[-1] * multiple > max_tokens:
        raise UserError(
            f"max_tokens {max_tokens:,}: the longest of {len(lengths):,} samples has {lengths[-1]:,} tokens, and a "
            f"batch at least {multiple}; expected {lengths[-1] * multiple:,} or more, or shorter samples"
        )
    for stop in range(multiple, len(lengths) + 1, multiple):
        size = stop - start
        # Lengths ascend, so all samples are padded to the newest one.
        if size > limit or size * lengths[stop - 1] > max_tokens:
            start = stop - multiple
            bounds.append(start)
    return [*bounds, len(lengths)] if lengths else bounds


def padding_waste(batches: Sequence[np.ndarray]) -> float:
    """Return the share of padding in batches, each given by the lengths of its samples."""
    padded = sum(len(lengths) * int(max(lengths)) for lengths in batches)
    return 1 - sum(int(np.sum(lengths)) for lengths in batches) / padded
