"""Order of samples: a pure function of integers, so that resuming needs only the number of the step."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError

# Samples after which the sources of a mixture repeat their shares exactly: weights are rounded to 1/65536. Longer
# blocks would round less and sort more; this one takes milliseconds every 65,536 samples.
BLOCK = 2**16

Draw = Literal["even", "multinomial", "fixed"]


def _permutation(count: int, *parts: object) -> NDArray[np.int64]:
    """Return the order of `count` positions for these seeds, (count,) int64, read-only.

    Sorting raw 64-bit words keeps the order the same over NumPy versions: the words of a bit generator are
    guaranteed to stay, the algorithm behind `Generator.permutation` is not.
    """
    draws = seeds.generator("order", *parts).bit_generator.random_raw(count)
    permutation = np.argsort(draws, kind="stable")
    permutation.setflags(write=False)
    return permutation


# Two, because a batch may reach into the next epoch; more would keep old epochs of large data sets in memory.
_epoch_permutation = functools.lru_cache(maxsize=2)(_permutation)


def epoch_rows(rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Return all of `rows` in the order of an epoch."""
    return rows[_epoch_permutation(len(rows), seed, epoch)]


def batch_rows(
    step: int, *, rows: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """Return the samples of batch number `step` (counted from 0) that `rank` loads.

    All epochs, each a permutation of `rows` of its own, are laid end to end; batch s is the slice
    [s * batch_size, (s + 1) * batch_size) of that endless sequence, and rank r takes the r-th part of it. So
    every epoch has every row exactly once, the global batch does not depend on the number of ranks, and
    gathering in rank order restores it.

    Args:
        rows: (n,) row numbers to draw from.
        batch_size: size of the global batch.

    Returns:
        (batch_size / world_size, 2) int64 with columns row and epoch, counted from 0.

    Raises:
        UserError: when there are no rows, or the batch cannot be split evenly.
    """
    _check_rows(rows)
    draws = _share(step, batch_size=batch_size, rank=rank, world_size=world_size)
    return _rows_of_draws(draws, rows, lambda epoch: _epoch_permutation(len(rows), seed, epoch))


def _check_rows(rows: np.ndarray) -> None:
    if len(rows) == 0:
        raise UserError("no rows to train on: the split or filter is empty")


def _share(step: int, *, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the positions in the endless sequence of samples that `rank` loads in a step."""
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} cannot be split evenly over {world_size} processes; "
            f"use {max(1, batch_size // world_size) * world_size} or another multiple of {world_size}"
        )
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return np.arange(first, first + share, dtype=np.int64)


def _rows_of_draws(
    draws: NDArray[np.int64], rows: np.ndarray, permutation: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return row and epoch [n, 2] of the draws with these numbers; epochs of the source are laid end to end."""
    epochs, positions = np.divmod(draws, len(rows))
    drawn = np.empty(len(draws), dtype=np.int64)
    # One or two epochs unless the batch is larger than the data, so the loop is short.
    for epoch in np.unique(epochs).tolist():
        inside = epochs == epoch
        drawn[inside] = rows[permutation(epoch)[positions[inside]]]
    return np.stack([drawn, epochs], axis=1)


class MixtureOrder:
    """The order of samples from several sources with fixed shares, a pure function of seed and step.

    Within a source all epochs are laid end to end, as in `batch_rows`: each pass has every row once, whatever the other
    sources do. A small source with a large weight is passed over more often.

    Args:
        rows: row numbers of each source.
        weights: of each source, share of the samples up to a common factor, whatever its number of rows.
        names: of the sources; a source's order depends on its name, not on its index.
        draw: "even": in each block of 65,536 samples a source has its share exactly, and its samples are spread evenly
            with a random offset each, so that every stretch has the shares up to a sample or two a source.
            "multinomial": the source of each sample is drawn on its own. "fixed": every batch has the same counts,
            rounded by largest remainders; a source whose share is less than half a sample may never come.
        batch_size: of all batches, for "fixed".

    Raises:
        UserError: for a source without rows, or a weight that is not positive or too small to be met.
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        *,
        weights: Sequence[float],
        names: Sequence[str],
        seed: int,
        draw: Draw = "even",
        batch_size: int = 0,
    ) -> None:
        assert len(rows) == len(weights) == len(set(names)), "a source needs rows, a weight and a name of its own"
        assert draw != "fixed" or batch_size, "fixed counts need the size of a batch"
        for name, of_source, weight in zip(names, rows, weights, strict=True):
            if len(of_source) == 0:
                raise UserError(f"source '{name}': no rows to train on: the split or filter is empty")
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"source '{name}': weight must be a positive number (got {weight})")
        self.rows, self.seed, self.names, self.draw = list(rows), seed, list(names), draw
        self.block_size = batch_size if draw == "fixed" else BLOCK
        # The same in every block of even and fixed draws, so block x count is how often a source came before it.
        self.counts = largest_remainders(weights, self.block_size)
        if 0 in self.counts:
            name, weight = next((n, w) for n, w, c in zip(names, weights, self.counts, strict=True) if c == 0)
            raise UserError(
                f"source '{name}': weight {weight:g} is too small to be met: less than 1/{self.block_size} of the sum "
                f"{sum(weights):g}" + (" or rounded to no sample of a batch" if draw == "fixed" else "")
            )
        self._edges_S = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))
        # Drawn counts of all blocks so far; a resumed run redoes them in some milliseconds a block.
        self._drawn_before = [np.zeros(len(rows), dtype=np.int64)]
        self._lock = threading.Lock()
        self._block = functools.lru_cache(maxsize=2)(self._build_block)
        # One cache a source: passes of large sources would push out those of the others.
        self._permutations = [
            functools.lru_cache(maxsize=2)(functools.partial(_permutation, len(of_source), name, seed))
            for name, of_source in zip(names, rows, strict=True)
        ]

    def _build_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each sample of a block, and how many of that source come before it in the order."""
        if self.draw == "multinomial":
            source_N = self._draw_sources(block)
            occurrence_N = np.empty_like(source_N)
            for source in range(len(self.rows)):
                occurrence_N[source_N == source] = np.arange(np.count_nonzero(source_N == source))
            return source_N, occurrence_N + self._counts_before(block)[source_N]
        source_N = np.repeat(np.arange(len(self.counts)), self.counts)
        occurrence_N = np.concatenate([np.arange(count) for count in self.counts])
        # Occurrence m of c lies somewhere in [m/c, (m+1)/c): even spacing with a random offset.
        time_N = (occurrence_N + self._uniform(block)) / np.repeat(self.counts, self.counts)
        order = np.argsort(time_N, kind="stable")
        return source_N[order], (occurrence_N + block * np.asarray(self.counts)[source_N])[order]

    def _uniform(self, block: int) -> NDArray[np.floating]:
        """Draw a number in [0, 1) for each sample of a block."""
        draws = seeds.generator("mixture", self.seed, block).bit_generator.random_raw(self.block_size)
        # The upper 53 bits of a word make a float64 uniform in [0, 1).
        return (draws >> 11) * 2.0**-53

    def _draw_sources(self, block: int) -> NDArray[np.int64]:
        # The last edge is 1 only within rounding.
        return np.minimum(np.searchsorted(self._edges_S, self._uniform(block), side="right"), len(self.rows) - 1)

    def _counts_before(self, block: int) -> NDArray[np.int64]:
        """Count how many samples of each source come before a block of independent draws."""
        with self._lock:
            while len(self._drawn_before) <= block:
                drawn = np.bincount(self._draw_sources(len(self._drawn_before) - 1), minlength=len(self.rows))
                self._drawn_before.append(self._drawn_before[-1] + drawn)
            return self._drawn_before[block]

    def batch(self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """Return the samples of batch number `step` that `rank` loads: [share, 3] of source, row, and its epoch."""
        assert self.draw != "fixed" or batch_size == self.block_size, "fixed counts are those of one batch size"
        positions = _share(step, batch_size=batch_size, rank=rank, world_size=world_size)
        sources, draws = np.empty_like(positions), np.empty_like(positions)
        blocks, within = np.divmod(positions, self.block_size)
        for block in np.unique(blocks).tolist():
            inside = blocks == block
            source_N, draw_N = self._block(block)
            sources[inside], draws[inside] = source_N[within[inside]], draw_N[within[inside]]
        drawn = np.empty((len(positions), 2), dtype=np.int64)
        for source in np.unique(sources).tolist():
            mine = sources == source
            drawn[mine] = _rows_of_draws(draws[mine], self.rows[source], self._permutations[source])
        return np.concatenate([sources[:, None], drawn], axis=1)


def largest_remainders(weights: Sequence[float], total: int) -> list[int]:
    """Round `weights` to whole numbers in their proportion that add up to `total` (Hamilton's method).

    Equal remainders are rounded up in the order of the list.
    """
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
