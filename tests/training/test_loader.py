from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from foveate.settings.errors import UserError
from foveate.training.loader import BadSample, Loader
from foveate.training.order import batch_rows


class Numbers:
    """Sample = (row, visit); rows in `bad` cannot be read; uneven pauses mix the threads up."""

    def __init__(self, bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.bad = bad
        self.pause = pause
        self.asked = 0
        self.lock = threading.Lock()

    def sample(self, row: int, visit: int, seed: int) -> dict[str, Any]:
        with self.lock:
            self.asked += 1
        if self.pause:
            time.sleep(self.pause * (row % 5))
        if row in self.bad:
            raise BadSample(f"picture-{row}", "cut off")
        return {"row": row, "visit": visit}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": [(sample["row"], sample["visit"]) for sample in samples]}


def make(dataset: Any, **options: Any) -> Loader:
    return Loader(dataset, **({"rows": np.arange(30), "batch_size": 6, "seed": 4} | options))


def rows_of(loader: Loader, start: int = 0, stop: int = 12) -> list[list[tuple[int, int]]]:
    return [batch["rows"] for batch in loader.batches(start, stop)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_follow_the_order_whatever_the_number_of_workers(workers: int) -> None:
    expected = [
        [tuple(pair) for pair in batch_rows(step, rows=np.arange(30), batch_size=6, seed=4).tolist()]
        for step in range(12)
    ]
    assert rows_of(make(Numbers(pause=0.0005), workers=workers)) == expected


def test_starting_later_gives_the_later_batches() -> None:
    assert rows_of(make(Numbers()), 5, 9) == rows_of(make(Numbers()))[5:9]


def test_ranks_together_give_the_global_batch() -> None:
    ranks = [rows_of(make(Numbers(), rank=rank, world_size=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == rows_of(make(Numbers()))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_bad_samples_are_counted_and_replaced_the_same_way_every_time(workers: int) -> None:
    loader = make(Numbers(bad=(3, 17)), workers=workers)
    batches = rows_of(loader)
    reference = make(Numbers(bad=(3, 17)), workers=0)
    assert batches == rows_of(reference)
    assert all(len(batch) == 6 for batch in batches)
    assert loader.bad_samples == {"picture-3": "cut off", "picture-17": "cut off"}
    assert loader.bad_draws == reference.bad_draws >= 4
    assert loader.drawn == 72
    good = rows_of(make(Numbers()))
    kept = [a == b for x, y in zip(batches, good, strict=True) for a, b in zip(x, y, strict=True)]
    assert kept.count(False) == sum(row in (3, 17) for batch in good for row, _ in batch)
    assert rows_of(make(Numbers(bad=(3, 17))), 7, 9) == batches[7:9]


def test_too_many_bad_samples_are_an_error() -> None:
    loader = make(Numbers(bad=tuple(range(10))), max_bad_fraction=0.1)
    with pytest.raises(UserError, match=r"drawn samples cannot be used \(allowed are 10%\), for example 'picture-"):
        rows_of(loader, 0, 100)


def test_only_bad_samples_are_an_error_and_no_endless_search() -> None:
    with pytest.raises(UserError, match="drawn in its place cannot be used"):
        rows_of(make(Numbers(bad=tuple(range(30)))))


def test_other_exceptions_are_not_swallowed() -> None:
    class Broken(Numbers):
        def sample(self, row: int, visit: int, seed: int) -> dict[str, Any]:
            raise ZeroDivisionError("a fault of the program")

    with pytest.raises(ZeroDivisionError):
        rows_of(make(Broken(), workers=2))


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_closing_ends_the_threads_and_memory_is_bounded() -> None:
    dataset = Numbers(pause=0.0005)
    iterator = make(dataset, workers=2, prefetch=1).batches(0, 10_000)
    next(iterator)
    time.sleep(0.2)
    assert dataset.asked <= (1 + 2 + 1) * 6
    iterator.close()
    assert not loader_threads()


def test_an_exception_of_the_consumer_ends_the_threads() -> None:
    def consume() -> None:
        for _ in make(Numbers(), workers=3).batches(0, 10_000):
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        consume()
    assert not loader_threads()


def test_empty_split_and_uneven_batch_are_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="no rows"):
        make(Numbers(), rows=[])
    with pytest.raises(UserError, match="cannot be split evenly"):
        make(Numbers(), world_size=4)


def test_description_tells_other_rows_apart() -> None:
    assert make(Numbers()).describe() == make(Numbers()).describe()
    assert make(Numbers()).describe() != make(Numbers(), rows=np.arange(30)[::-1]).describe()
