"""The queue of a model: who gets what and when, what fails with whom, and who is let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from foveate.core.errors import UserError
from foveate.serve.calls import ChatCall, ChatReply, ChatTurn, ClassifyCall, Listener, Refused, ServedImage
from foveate.serve.work import ModelWorker

IMAGE = ServedImage(b"", 1, 1)


class FakeAdapter:
    """Writes the digits up to a call's `max_tokens`; texts of calls say what goes wrong."""

    name, kind, endpoints = "fake", "multimodal", frozenset({"chat", "classify"})
    num_bytes = 0
    decode_side: int | None = None
    answers_clips = False

    def __init__(self, *, max_rows: int = 100) -> None:
        self.max_rows, self.batches, self.num_steps = max_rows, list[list[str]](), 0
        self.lengths: list[int] = []
        self.step = threading.Semaphore(1000)

    def check(self, call: Any) -> None:
        if isinstance(call, ChatCall) and call.turns[0].text == "refused":
            raise Refused("never")

    def compile(self, call: Any) -> None: ...

    def group(self, call: Any) -> Any:
        return call.temperature if isinstance(call, ChatCall) else None

    def answer(self, calls: Sequence[Any]) -> list[Any]:
        if any(call.count == 13 for call in calls):
            raise UserError("count: 13")
        return [call.count for call in calls]

    def write(self, calls: Sequence[ChatCall], listener: Listener) -> None:
        names = [call.turns[0].text for call in calls]
        self.batches.append(names)
        left = dict.fromkeys(range(len(calls)), "")
        while left:
            self.step.acquire()
            self.num_steps += 1
            for row in list(left):
                if len(calls) > self.max_rows and len(left[row]) == 2:
                    raise MemoryError
                if names[row] == "broken" and len(left[row]) == 2:
                    raise LookupError("secret")
                piece = str(len(left[row]))
                left[row] += piece
                listener.push(row, piece)
                if listener.is_gone(row) or len(left[row]) == calls[row].max_tokens:
                    self.lengths.append(len(left[row]))
                    listener.end(row, ChatReply(left.pop(row), True, 1, 1))


def make_call(length: int, text: str = "", **changes: Any) -> ChatCall:
    return ChatCall((ChatTurn("user", text),), max_tokens=length, **changes)


def run(adapter: FakeAdapter, scenario: Callable[[ModelWorker], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        worker = ModelWorker(adapter, **options)
        try:
            return await asyncio.wait_for(scenario(worker), 20)
        finally:
            adapter.step.release(1000)
            await worker.close()

    return asyncio.run(main())


async def join(pieces: AsyncIterator[str | ChatReply]) -> str:
    return "".join([piece async for piece in pieces if isinstance(piece, str)])


async def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_row_ends_before_its_batch_and_streams_what_it_says() -> None:
    adapter = FakeAdapter()
    adapter.step = threading.Semaphore(3)

    async def scenario(worker: ModelWorker) -> None:
        long = asyncio.create_task(join(worker.write(make_call(6))))
        pieces = [piece async for piece in worker.write(make_call(3))]
        assert pieces == ["0", "1", "2", ChatReply("012", True, 1, 1)]
        assert (adapter.num_steps, worker.num_waiting, long.done()) == (3, 2, False)
        adapter.step.release(10)
        assert await long == "012345"
        await wait_until(lambda: worker.num_waiting == 0)

    run(adapter, scenario)
    assert adapter.batches == [["", ""]]


def test_what_shares_a_batch() -> None:
    adapter = FakeAdapter()

    async def scenario(worker: ModelWorker) -> None:
        calls = [make_call(1, "a"), make_call(1, "b", temperature=1.0), make_call(1, "c"), make_call(1, "d")]
        numbers = [ClassifyCall(IMAGE, count) for count in (1, 13, 2)]
        answers = await asyncio.gather(*map(worker.answer, [*calls, *numbers]), return_exceptions=True)
        assert [answer.text for answer in answers[:4]] == ["0"] * 4
        one, refusal, two = answers[4:]
        assert (one, refusal.status, two) == (1, 400, 2)
        assert "13" in str(refusal)

    run(adapter, scenario, max_batch=2)
    assert adapter.batches == [["a", "c"], ["b"], ["d"]]


def test_a_full_queue_refuses() -> None:
    adapter = FakeAdapter()
    adapter.step = threading.Semaphore(0)

    async def scenario(worker: ModelWorker) -> None:
        first = asyncio.create_task(worker.answer(make_call(1)))
        await wait_until(lambda: adapter.batches)
        waiting = [asyncio.create_task(worker.answer(make_call(1))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refusal:
            await worker.answer(make_call(1))
        assert (refusal.value.status, refusal.value.retry_after) == (503, 1)
        waiting[0].cancel()
        await wait_until(lambda: worker.num_waiting == 2)
        adapter.step.release(10)
        await asyncio.gather(first, waiting[1])
        with pytest.raises(Refused, match="never"):
            await worker.answer(make_call(1, "refused"))

    run(adapter, scenario, max_waiting=3)
    assert len(adapter.batches) == 2


@pytest.mark.parametrize("adapter", [FakeAdapter(max_rows=1), FakeAdapter(max_rows=2), FakeAdapter()])
def test_a_failing_batch_is_halved_and_no_piece_is_sent_twice(
    adapter: FakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(worker: ModelWorker) -> None:
        async def collect(row: int, name: str) -> list[Any]:
            pieces: list[Any] = []
            try:
                async for piece in worker.write(make_call(5 - row, name)):
                    pieces.append(piece)
            except Refused as refusal:
                pieces.append((refusal.status, "secret" in str(refusal)))
            return pieces

        pieces = await asyncio.gather(*(collect(row, name) for row, name in enumerate(["a", "broken", "c", "d"])))
        assert ["".join(row[:-1]) for row in pieces] == ["01234", "01", "012", "01"]
        assert pieces[0][-1].text == "01234"
        assert pieces[1][-1] == (500, False)

    run(adapter, scenario)
    assert len(adapter.batches) > 1
    assert "LookupError" in caplog.text


def test_too_little_memory_for_a_single_row_is_an_error_to_try_again() -> None:
    async def scenario(worker: ModelWorker) -> None:
        with pytest.raises(Refused) as refusal:
            await worker.answer(make_call(3))
        assert (refusal.value.status, refusal.value.code) == (503, "out_of_memory")

    run(FakeAdapter(max_rows=0), scenario)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_row_whose_client_is_gone_stops_at_the_next_token(is_streamed: bool) -> None:
    adapter = FakeAdapter()
    adapter.step = threading.Semaphore(2)

    async def scenario(worker: ModelWorker) -> None:
        call = make_call(1000)
        gone = asyncio.create_task(join(worker.write(call)) if is_streamed else worker.answer(call))
        stays = asyncio.create_task(worker.answer(make_call(4)))
        await wait_until(lambda: adapter.num_steps == 2)
        gone.cancel()
        await wait_until(lambda: worker.num_waiting == 1)
        adapter.step.release(20)
        assert (await stays).text == "0123"
        await wait_until(lambda: worker.num_waiting == 0)

    run(adapter, scenario)
    assert adapter.num_steps == 4
    assert adapter.lengths == [3, 4]


def test_draining_ends_what_is_there_and_gives_up_what_takes_too_long() -> None:
    adapter = FakeAdapter()
    adapter.step = threading.Semaphore(0)

    async def scenario(worker: ModelWorker) -> None:
        running = asyncio.create_task(worker.answer(make_call(3)))
        await wait_until(lambda: adapter.batches)
        endless = asyncio.create_task(worker.answer(make_call(10**6, temperature=1.0)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(worker.close(grace_seconds=0.2))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refusal:
            await worker.answer(make_call(1))
        assert refusal.value.status == 503
        adapter.step.release(100)
        assert (await running).text == "012"
        with pytest.raises(Refused) as refusal:
            await endless
        assert refusal.value.code == "stopping"
        # The thread waits for a step, and ends at the next one.
        adapter.step.release(1000)
        await closing

    run(adapter, scenario)
