"""Loader: batches in a fixed order from threads; samples that cannot be read are counted and replaced."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.training.order import Draw, MixtureOrder, batch_rows
from foveate.training.token_batches import TokenBatches, TokenBatching

# Rows tried in place of one that cannot be read, itself included. At the allowed share of one bad row in ten, as many
# in a row happen by chance once in 10^32 draws: then the data set is gone, not unlucky.
_SUBSTITUTES = 32
# The share of bad samples is judged as if there were at least so many draws: one bad image in the first batch is none
# in ten.
_DRAWS_BEFORE_JUDGING = 100
# Parts of a batch for each thread: small enough that none waits long for another, few enough that tasks cost little.
_PARTS = 4


class BadSample(Exception):
    """Raised by a dataset for a sample that cannot be used; the loader counts it and takes another row.

    Args:
        replaced: False for a part of a sample that is used without it, in the entry `left_out` of the sample: it is
            listed, and does not count as a bad draw.
    """

    def __init__(self, key: str, reason: str, *, replaced: bool = True) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason, self.replaced = key, reason, replaced


class Dataset(Protocol):
    """Dataset protocol. Both methods are called from several threads and use explicit generators only."""

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return the sample of a row in an epoch: a pure function of the three. May raise BadSample.

        Its entry `left_out`, if there is one, lists the parts that could not be used, as BadSample.
        """
        ...

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Combine samples, in the same order, into a batch."""
        ...


class BatchSource(Protocol):
    """Loader protocol of the training loop."""

    batch_size: int
    world_size: int
    bad_samples: dict[str, str]
    bad_draws: int
    drawn: int

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Any], None, None]:
        """Yield batches number `start_step` up to, not including, `stop_step`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the values that decide the order of rows, as JSON; a run with other values is not resumed.

        Rows are identified by number; the argument `content` of `foveate.training.loop.train` identifies their content.
        """
        ...


@dataclass(frozen=True)
class Source:
    """One of several data sets that batches are mixed from.

    Attributes:
        name: of the source, in messages and in the seed of its order.
        rows: row numbers of the data set to draw from.
        weight: share of the samples up to a common factor, whatever the number of rows.
        lengths: tokens of the data set's row of each number; for token batches.
    """

    name: str
    dataset: Dataset
    rows: Sequence[int] | np.ndarray
    weight: float = 1.0
    lengths: np.ndarray | None = None


class _Batch:
    """A batch that several threads load together; the one that loads the last part collates it."""

    def __init__(self, step: int, share: int, parts: int) -> None:
        self.step, self.share = step, share
        # Cut no more parts than samples: an empty part would still cost a task.
        edges = np.linspace(0, share, min(parts, share) + 1).astype(int).tolist()
        self.bounds = list(zip(edges[:-1], edges[1:], strict=True))
        self.samples: list[dict[str, Any]] = [{}] * share
        self.failures: list[list[BadSample]] = [[] for _ in range(share)]
        self.tasks: list[Future[None]] = []
        self.collated: dict[str, Any] = {}
        self._left, self._lock = len(self.bounds), threading.Lock()

    def is_last(self) -> bool:
        """Count one more part as loaded; return whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


class Loader:
    """Load the batches of `foveate.training.order.batch_rows` ahead of time with `workers` threads.

    The threads share each batch, so that the next one is ready as soon as can be; at most `workers + prefetch` are in
    memory beside the one in use. The batches and their order do not depend on the number of workers. A row whose sample
    raises BadSample is replaced by another row, drawn from (seed, row, epoch): the batch keeps its size and a resumed
    run meets the same one.

    Args:
        batch_size: samples of a batch; the most of them with token batches.
        tokens: fill batches up to a number of tokens, with samples of similar length; needs `lengths`.
        lengths: tokens of the data set's row of each number. A sample is then replaced by one that is no longer.

    Attributes:
        bad_samples: key -> reason, of every sample that could not be used so far.
        bad_draws: how often such a sample was drawn.
        drawn: how many samples were requested.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        max_bad_fraction: float = 0.1,
        tokens: TokenBatching | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.dataset = dataset
        self.rows = np.asarray(rows, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self.max_bad_fraction = max_bad_fraction
        self.bad_samples: dict[str, str] = {}
        self.bad_draws = 0
        self.drawn = 0
        self.lengths = lengths
        self._order_draws(0, batch_size, 0, 1)  # refuses an empty split
        self.token_batches: TokenBatches | None = None
        if tokens is not None:
            self.token_batches = TokenBatches(
                lambda pool, size: self._order_draws(pool, size, 0, 1),
                self._lengths_of,
                tokens,
                num_rows=len(self.rows),
                max_samples=batch_size,
                seed=seed,
            )
        self.draws(0)  # refuses an uneven batch before anything is started

    def describe(self) -> dict[str, Any]:
        """Number and hash of the rows, batch size and seed."""
        return {
            "rows": len(self.rows),
            "rows_hash": _hash_rows(self.rows),
            "batch_size": self.batch_size,
            "seed": self.seed,
        } | self._describe_tokens()

    def _describe_tokens(self) -> dict[str, Any]:
        if not self.token_batches:
            return {}
        # Other lengths make other batches of the same rows.
        return {"tokens": self.token_batches.settings.model_dump(), "lengths_hash": _hash_rows(self._all_lengths())}

    def _all_lengths(self) -> np.ndarray:
        return self._lengths_of(np.stack([self.rows, np.zeros_like(self.rows)], axis=1))

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Any], None, None]:
        """Yield batches number `start_step` up to, not including, `stop_step`.

        Closing the iterator, or an exception, ends the threads.

        Raises:
            UserError: when more than `max_bad_fraction` of the drawn samples cannot be used.
        """
        if self.workers == 0:
            for step in range(start_step, stop_step):
                batch = self._batch(step)
                for bounds in batch.bounds:
                    self._make(batch, *bounds)
                yield self._receive(batch)
            return
        # Threads and not processes: Pillow releases the interpreter lock while it decodes and resizes, and batches need
        # neither pickling nor a copy to reach the training.
        executor = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            waiting: deque[_Batch] = deque()
            for step in range(start_step, stop_step):
                batch = self._batch(step)
                batch.tasks = [executor.submit(self._make, batch, *bounds) for bounds in batch.bounds]
                waiting.append(batch)
                # Bounded: threads that are faster than the training must not fill the memory with batches.
                if len(waiting) > self.workers + self.prefetch:
                    yield self._receive(waiting.popleft())
            while waiting:
                yield self._receive(waiting.popleft())
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def mean_batch_size(self) -> float:
        """Return the mean number of samples of a batch over all processes; less than `batch_size` with `tokens`."""
        return self.token_batches.mean_samples() if self.token_batches else self.batch_size

    def draws(self, step: int) -> np.ndarray:
        """Return the draws of this rank in a step (from 0), [N, 2] row and epoch, or [N, 3] behind a source's index."""
        if self.token_batches:
            return self.token_batches.batch(step, rank=self.rank, world_size=self.world_size)
        return self._order_draws(step, self.batch_size, self.rank, self.world_size)

    def _order_draws(self, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
        return batch_rows(step, rows=self.rows, batch_size=batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _lengths_of(self, draws: np.ndarray) -> np.ndarray:
        assert self.lengths is not None, "token batches need the lengths of the rows"
        return self.lengths[draws[:, 0]]

    def _sample(self, draw: Sequence[int], failures: list[BadSample]) -> dict[str, Any]:
        row, epoch = draw
        return self._load(self.dataset, self.rows, self.lengths, row, epoch, failures)

    def _batch(self, step: int) -> _Batch:
        return _Batch(step, self.count_share(step), _PARTS * max(self.workers, 1))

    def count_share(self, step: int) -> int:
        """Return how many samples this rank loads in a step; a subclass may have batches of other sizes."""
        return len(self.draws(step)) if self.token_batches else self.batch_size // self.world_size

    def _make(self, batch: _Batch, start: int, stop: int) -> None:
        for index, draw in enumerate(self.draws(batch.step)[start:stop].tolist(), start):
            batch.samples[index] = self._sample(draw, batch.failures[index])
        # Collated by the thread that is last, not by the main one, which is busy with the training step.
        if batch.is_last():
            samples, batch.samples = batch.samples, []
            batch.collated = self.dataset.collate(samples)

    def _load(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        lengths: np.ndarray | None,
        row: int,
        epoch: int,
        failures: list[BadSample],
    ) -> dict[str, Any]:
        candidate = row
        for attempt in range(_SUBSTITUTES):
            try:
                sample = dataset.sample(candidate, epoch, self.seed)
                failures += sample.pop("left_out", ())
                return sample
            except BadSample as failure:
                failures.append(failure)
                if attempt == 0 and lengths is not None:
                    # No longer than the row: the batch was made to fit in memory. At least some, if it is the shortest.
                    by_length = rows[np.argsort(lengths[rows], kind="stable")]
                    rows = by_length[: max(_SUBSTITUTES, np.count_nonzero(lengths[rows] <= lengths[row]))]
                index = seeds.integer("substitute", self.seed, row, epoch, attempt) % len(rows)
                # Draw from (row, epoch, attempt), not from a running generator: threads and resuming do not change it.
                candidate = int(rows[index])
        raise UserError(
            f"row {row}: neither it nor {_SUBSTITUTES - 1} rows drawn in its place can be used; the last is "
            f"'{failures[-1].key}': {failures[-1].reason}"
        )

    def _receive(self, batch: _Batch) -> dict[str, Any]:
        """Wait for a batch and count its bad samples in the order of steps, independent of the threads."""
        for task in batch.tasks:
            task.result()  # raises what a thread raised
        failures = [failure for of_sample in batch.failures for failure in of_sample]
        self.drawn += batch.share
        self.bad_draws += sum(failure.replaced for failure in failures)
        for failure in failures:
            self.bad_samples[failure.key] = failure.reason
        if self.bad_draws > self.max_bad_fraction * max(self.drawn, _DRAWS_BEFORE_JUDGING):
            key, reason = next(iter(self.bad_samples.items()))
            raise UserError(
                f"{self.bad_draws} of {self.drawn} drawn samples cannot be used "
                f"(at most {self.max_bad_fraction:.0%} are allowed), for example '{key}': {reason}"
            )
        return batch.collated


class MixtureLoader(Loader):
    """Batches mixed from several data sets by weight; see `foveate.training.order.MixtureOrder`.

    Samples of all sources are collated together, by the first one's `collate`: they have the same entries. A sample
    that cannot be used is replaced by one of its own source, so that the shares hold.

    Args:
        sources: data sets with their rows and weights; names differ.
        draw: see `MixtureOrder`.
        others: see `Loader`.
    """

    def __init__(
        self, sources: Sequence[Source], *, batch_size: int, seed: int, draw: Draw = "even", **options: Any
    ) -> None:
        assert sources, "a mixture needs a source"
        self.sources = list(sources)
        self._source_rows = [np.asarray(source.rows, dtype=np.int64) for source in sources]
        # Set this before `super().__init__`, which draws a batch at once to refuse empty data.
        self.order = MixtureOrder(
            self._source_rows,
            weights=[source.weight for source in sources],
            names=[source.name for source in sources],
            seed=seed,
            draw=draw,
            batch_size=batch_size,
        )
        if draw == "fixed" and options.get("tokens"):
            raise UserError(
                "draw 'fixed' is the same counts in every batch; token batches need 'even' or 'multinomial'"
            )
        super().__init__(
            sources[0].dataset, rows=np.concatenate(self._source_rows), batch_size=batch_size, seed=seed, **options
        )

    def describe(self) -> dict[str, Any]:
        """Number and hash of each source's rows, the weights, batch size, seed and way to draw."""
        sources = {
            source.name: {"rows": len(rows), "rows_hash": _hash_rows(rows), "weight": source.weight}
            for source, rows in zip(self.sources, self._source_rows, strict=True)
        }
        # The default is left out, so that trainings from before there were others resume.
        draw = {} if self.order.draw == "even" else {"draw": self.order.draw}
        return {"sources": sources, "batch_size": self.batch_size, "seed": self.seed} | draw | self._describe_tokens()

    def _order_draws(self, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
        return self.order.batch(step, batch_size=batch_size, rank=rank, world_size=world_size)

    def _lengths_of(self, draws: np.ndarray) -> np.ndarray:
        lengths = np.empty(len(draws), dtype=np.int64)
        for index in np.unique(draws[:, 0]).tolist():
            mine, source = draws[:, 0] == index, self.sources[index]
            assert source.lengths is not None, f"token batches need the lengths of source '{source.name}'"
            lengths[mine] = source.lengths[draws[mine, 1]]
        return lengths

    def _all_lengths(self) -> np.ndarray:
        draws = [np.stack([np.full_like(rows, index), rows], 1) for index, rows in enumerate(self._source_rows)]
        return self._lengths_of(np.concatenate(draws))

    def _sample(self, draw: Sequence[int], failures: list[BadSample]) -> dict[str, Any]:
        index, row, epoch = draw
        source, of_source = self.sources[index], list[BadSample]()
        try:
            return self._load(source.dataset, self._source_rows[index], source.lengths, row, epoch, of_source)
        finally:  # keys of two collections may be equal
            failures += [
                BadSample(f"{source.name}/{failure.key}", failure.reason, replaced=failure.replaced)
                for failure in of_source
            ]


def _hash_rows(rows: np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(rows, dtype=np.int64).tobytes(), digest_size=16).hexdigest()
