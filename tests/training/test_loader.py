from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.writer import CollectionWriter
from foveate.training.loader import BadSample, Loader
from foveate.training.order import batch_rows
from naming import raises_naming


class Numbers:
    """Sample = (row, epoch); rows in `bad` cannot be read; uneven pauses mix the threads up."""

    def __init__(self, bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.bad = bad
        self.pause = pause
        self.asked = 0
        self.lock = threading.Lock()

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        with self.lock:
            self.asked += 1
        if self.pause:
            time.sleep(self.pause * (row % 5))
        if row in self.bad:
            raise BadSample(f"image-{row}", "cut off")
        return {"row": row, "epoch": epoch}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": [(sample["row"], sample["epoch"]) for sample in samples]}


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
    assert loader.bad_samples == {"image-3": "cut off", "image-17": "cut off"}
    assert loader.bad_draws == reference.bad_draws >= 4
    assert loader.drawn == 72
    good = rows_of(make(Numbers()))
    kept = [a == b for x, y in zip(batches, good, strict=True) for a, b in zip(x, y, strict=True)]
    assert kept.count(False) == sum(row in (3, 17) for batch in good for row, _ in batch)
    assert rows_of(make(Numbers(bad=(3, 17))), 7, 9) == batches[7:9]


def test_too_many_bad_samples_are_an_error() -> None:
    loader = make(Numbers(bad=tuple(range(10))), max_bad_fraction=0.1)
    with raises_naming(UserError, "10%"):
        rows_of(loader, 0, 100)


def test_only_bad_samples_are_an_error_and_no_endless_search() -> None:
    with raises_naming(UserError, "cut off"):
        rows_of(make(Numbers(bad=tuple(range(30)))))


def test_other_exceptions_are_not_swallowed() -> None:
    class Broken(Numbers):
        def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
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


def test_all_threads_work_at_the_next_batch() -> None:
    """Three threads make the first batch in two pauses; one thread alone would take six."""
    iterator = make(Numbers(pause=0.2), rows=[1], batch_size=6, workers=3).batches(0, 1)
    began = time.perf_counter()
    next(iterator)
    assert time.perf_counter() - began < 1.0
    iterator.close()


def test_an_exception_of_the_consumer_ends_the_threads() -> None:
    def consume() -> None:
        for _ in make(Numbers(), workers=3).batches(0, 10_000):
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        consume()
    assert not loader_threads()


def test_empty_split_and_uneven_batch_are_refused_before_anything_starts() -> None:
    with raises_naming(UserError, "rows"):
        make(Numbers(), rows=[])
    with raises_naming(UserError, "batch_size"):
        make(Numbers(), world_size=4)


def test_description_tells_other_rows_apart() -> None:
    assert make(Numbers()).describe() == make(Numbers()).describe()
    assert make(Numbers()).describe() != make(Numbers(), rows=np.arange(30)[::-1]).describe()


class OnDisk:
    """The images of a collection, read for each sample."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        try:
            return {"size": len(self.collection.image_bytes(row)), "row": row}
        except BadImage as problem:
            raise BadSample(self.collection.keys[row], str(problem)) from problem

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": [sample["row"] for sample in samples]}


@pytest.fixture
def shards(tmp_path: Path) -> Collection:
    """60 images in 12 shards of 5."""
    with CollectionWriter(tmp_path / "c", name="c", license="CC0-1.0", source="test", images_per_shard=5) as writer:
        for number in range(60):
            image = Image.fromarray(np.full((8, 8, 3), 4 * number, np.uint8))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.add(f"{number:02d}", buffer.getvalue())
    return Collection.open(tmp_path / "c")


def test_a_shard_that_vanishes_in_mid_run_is_counted_and_replaced_up_to_the_limit(shards: Collection) -> None:
    """One shard of twelve is 8 % of the draws: below the limit. Its images are named, others take their places."""
    loader = make(OnDisk(shards), rows=np.arange(60), batch_size=6, workers=2, max_bad_fraction=0.2)
    batches = loader.batches(0, 40)
    before = [next(batches) for _ in range(2)]
    time.sleep(0.3)  # until the threads have made what they may: none reads while the files are closed
    shards.close()  # as on a file system that does not keep the files of open descriptors
    (shards.path / "images" / "00003.tar").unlink()
    after = list(batches)
    assert all(len(batch["rows"]) == 6 for batch in before + after)
    assert set(loader.bad_samples) <= {f"{number:02d}" for number in range(15, 20)}
    assert loader.bad_samples
    assert all("00003.tar is missing" in reason for reason in loader.bad_samples.values())
    assert not {row for batch in after[-10:] for row in batch["rows"]} & set(range(15, 20))


def test_too_many_vanished_shards_stop_the_run_and_say_which(shards: Collection) -> None:
    loader = make(OnDisk(shards), rows=np.arange(60), batch_size=6, workers=2)
    batches = loader.batches(0, 1000)
    next(batches)
    time.sleep(0.3)
    shards.close()
    for number in (2, 3, 4, 5):
        (shards.path / "images" / f"{number:05d}.tar").unlink()
    with pytest.raises(UserError, match=r"10%.*\d{5}\.tar"):
        list(batches)
    assert not loader_threads()
