"""Batches that arrive in a fixed order from threads; samples that cannot be read are counted and replaced."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from foveate.settings import seeds
from foveate.settings.errors import UserError
from foveate.training.order import batch_rows

_SUBSTITUTES = 32
_DRAWS_BEFORE_JUDGING = 100


class BadSample(Exception):
    """A sample that cannot be used. A dataset raises it; the loader counts it and takes another row."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class Dataset(Protocol):
    """What a loader needs. Both methods are called from several threads and use explicit generators only."""

    def sample(self, row: int, visit: int, seed: int) -> dict[str, Any]:
        """The sample of a row at its `visit`-th epoch: a pure function of the three. May raise BadSample."""
        ...

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the samples, in the same order."""
        ...


class BatchSource(Protocol):
    """What the training loop needs of a loader."""

    batch_size: int
    world_size: int
    bad_samples: dict[str, str]
    bad_draws: int

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Any], None, None]:
        """The batches number `start_step` up to, not including, `stop_step`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the order, as JSON values; a run goes on only when they are the same."""
        ...


@dataclass(frozen=True)
class _Made:
    batch: dict[str, Any]
    failures: list[BadSample]


class Loader:
    """Loads the batches of `foveate.training.order.batch_rows` ahead of time with `workers` threads.

    Each thread makes whole batches; at most `workers + prefetch` of them are in memory beside the one in use.
    The batches and their order do not depend on the number of workers. A row whose sample raises BadSample is
    replaced by another row, drawn from (seed, row, visit): the batch keeps its size and a resumed run meets
    the same one.

    Attributes:
        bad_samples: key -> reason, of every sample that could not be used so far.
        bad_draws: how often such a sample was drawn.
        drawn: how many samples were asked for.
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
        self._draws(0)  # refuses an empty split and an uneven batch before anything is started

    def describe(self) -> dict[str, Any]:
        """Number and hash of the rows, batch size and seed."""
        return {
            "rows": len(self.rows),
            "rows_hash": hashlib.blake2b(self.rows.tobytes(), digest_size=16).hexdigest(),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Any], None, None]:
        """Yields batches number `start_step` up to, not including, `stop_step`.

        Closing the iterator, or an exception, ends the threads.

        Raises:
            UserError: when more than `max_bad_fraction` of the drawn samples cannot be used.
        """
        if self.workers == 0:
            for step in range(start_step, stop_step):
                yield self._receive(self._make(step))
            return
        executor = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            waiting: deque[Future[_Made]] = deque()
            steps = iter(range(start_step, stop_step))
            for step in steps:
                waiting.append(executor.submit(self._make, step))
                if len(waiting) >= self.workers + self.prefetch:
                    break
            while waiting:
                made = waiting.popleft().result()
                for step in steps:
                    waiting.append(executor.submit(self._make, step))
                    break
                yield self._receive(made)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _draws(self, step: int) -> np.ndarray:
        return batch_rows(
            step,
            rows=self.rows,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _make(self, step: int) -> _Made:
        failures: list[BadSample] = []
        samples = [self._sample(int(row), int(visit), failures) for row, visit in self._draws(step)]
        return _Made(self.dataset.collate(samples), failures)

    def _sample(self, row: int, visit: int, failures: list[BadSample]) -> dict[str, Any]:
        candidate = row
        for attempt in range(_SUBSTITUTES):
            try:
                return self.dataset.sample(candidate, visit, self.seed)
            except BadSample as failure:
                failures.append(failure)
                index = seeds.integer("substitute", self.seed, row, visit, attempt) % len(self.rows)
                candidate = int(self.rows[index])
        raise UserError(
            f"row {row} and {_SUBSTITUTES - 1} rows drawn in its place cannot be used; the last one is "
            f"'{failures[-1].key}': {failures[-1].reason}"
        )

    def _receive(self, made: _Made) -> dict[str, Any]:
        """Counts in the order of the steps, so that the verdict does not depend on the threads."""
        self.drawn += self.batch_size // self.world_size
        self.bad_draws += len(made.failures)
        for failure in made.failures:
            self.bad_samples[failure.key] = failure.reason
        if self.bad_draws > self.max_bad_fraction * max(self.drawn, _DRAWS_BEFORE_JUDGING):
            key, reason = next(iter(self.bad_samples.items()))
            raise UserError(
                f"{self.bad_draws} of {self.drawn} drawn samples cannot be used "
                f"(allowed are {self.max_bad_fraction:.0%}), for example '{key}': {reason}"
            )
        return made.batch
