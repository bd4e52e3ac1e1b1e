"""Concurrent calls in batches: what shares one, errors of one call or of all, and the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from foveate.chat.batching import DynamicBatcher, run_in_halves


def test_calls_are_batched_by_what_they_have_in_common() -> None:
    batches: list[list[int]] = []

    def times_ten(batch: Sequence[int]) -> list[int]:
        batches.append(list(batch))
        if 13 in batch:
            raise ValueError("thirteen")
        return [10 * number for number in batch]

    async def run() -> None:
        batcher: DynamicBatcher[int, int] = DynamicBatcher(
            times_ten, max_batch=3, group_by=lambda number: number % 2, max_wait_seconds=0.01
        )
        results = await asyncio.gather(*(batcher.submit(number) for number in range(8)))
        assert results == [10 * number for number in range(8)]
        assert batches == [[0, 2, 4], [1, 3, 5], [6], [7]]
        results = await asyncio.gather(batcher.submit(13), batcher.submit(2), return_exceptions=True)
        assert isinstance(results[0], ValueError)
        assert results[1] == 20
        await batcher.close()

    asyncio.run(run())


def test_a_canceled_call_leaves_the_queue_at_once() -> None:
    async def run() -> None:
        batcher: DynamicBatcher[int, int] = DynamicBatcher(
            lambda batch: [10 * number for number in batch], max_batch=3, max_wait_seconds=0.2
        )
        calls = [asyncio.create_task(batcher.submit(7)) for _ in range(2)]
        for call in calls:
            await asyncio.sleep(0.01)
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert not batcher._waiting
        assert await batcher.submit(7) == 70
        # Nothing waits behind calls that were canceled while a batch was gathered.
        last = asyncio.create_task(batcher.submit(8))
        await asyncio.sleep(0.01)
        last.cancel()
        assert await batcher.submit(9) == 90
        await batcher.close()

    asyncio.run(run())


def test_an_exception_among_the_results_is_raised_by_its_own_call() -> None:
    async def run() -> None:
        batcher: DynamicBatcher[int, int] = DynamicBatcher(
            lambda batch: [KeyError(number) if number == 1 else number for number in batch], max_batch=3
        )
        results = await asyncio.gather(*(batcher.submit(number) for number in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [int, KeyError, int]
        await batcher.close()

    asyncio.run(run())


def test_a_batch_waits_for_others_from_its_first_request_on() -> None:
    """Requests that came while a batch ran have waited already; a full batch does not wait at all."""

    def slow(batch: Sequence[int]) -> list[int]:
        time.sleep(0.3)
        return list(batch)

    async def run() -> float:
        batcher: DynamicBatcher[int, int] = DynamicBatcher(slow, max_batch=2, max_wait_seconds=0.25)
        began = time.monotonic()
        await asyncio.gather(*(batcher.submit(number) for number in range(3)))
        await batcher.close()
        return time.monotonic() - began

    assert 0.6 <= asyncio.run(run()) < 0.8


def test_closing_runs_waiting_calls_and_skips_canceled_ones() -> None:
    batches: list[list[int]] = []

    def same(batch: Sequence[int]) -> list[int]:
        batches.append(list(batch))
        return list(batch)

    async def run() -> None:
        batcher: DynamicBatcher[int, int] = DynamicBatcher(same, max_batch=10, max_wait_seconds=60.0)
        calls = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        calls[1].cancel()
        await asyncio.sleep(0)
        began = time.monotonic()
        await batcher.close()
        assert time.monotonic() - began < 5
        assert [await call for call in (calls[0], calls[2])] == [0, 2]
        with pytest.raises(AssertionError):
            await batcher.submit(4)

    asyncio.run(run())
    assert batches == [[0, 2]]


def test_a_failing_request_fails_no_other() -> None:
    sizes: list[int] = []

    def run_batch(requests: Sequence[int]) -> list[int]:
        sizes.append(len(requests))
        if 5 in requests or len(requests) > 4:
            raise ValueError(f"{len(requests)} requests")
        return [10 * request for request in requests]

    results = run_in_halves(run_batch, range(8), errors=ValueError)
    assert [result for result in results if not isinstance(result, ValueError)] == [0, 10, 20, 30, 40, 60, 70]
    assert str(results[5]) == "1 requests"
    assert sizes == [8, 4, 4, 2, 1, 1, 2]
    assert run_in_halves(run_batch, [], errors=ValueError) == []
    with pytest.raises(ValueError, match="8 requests"):
        run_in_halves(run_batch, range(8), errors=KeyError)


def test_the_time_to_wait_may_depend_on_who_is_expected() -> None:
    batches: list[int] = []

    def count(batch: Sequence[int]) -> list[int]:
        batches.append(len(batch))
        return list(batch)

    async def run() -> None:
        is_expected = False
        batcher: DynamicBatcher[int, int] = DynamicBatcher(
            count, max_batch=3, max_wait_seconds=lambda: 60.0 if is_expected else 0.0
        )
        await asyncio.wait_for(batcher.submit(1), 10)
        is_expected = True
        first = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.05)
        # Asked once for a batch: at times nobody is expected, and the next one comes all the same.
        is_expected = False
        second = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.05)
        assert not first.done()
        await asyncio.wait_for(asyncio.gather(first, second, batcher.submit(4)), 10)
        await batcher.close()

    asyncio.run(run())
    assert batches == [1, 3]
