"""Ten thousand requests of all kinds, clients that go, and SIGTERM: nothing grows, nothing is half answered."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from typing import Any

import httpx2
import psutil
import pytest
from test_application import WORDS, data_url, user
from test_serve_faults import read_log, start

IMAGE = {"type": "image_url", "image_url": {"url": data_url((200, 100))}}
NUM_REQUESTS, NUM_WARM, NUM_CLIENTS = 10_000, 1500, 16
MAX_GROWTH = 1.02
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
STREAM = {"stream": True, "model": "fake"}
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
KINDS: list[tuple[str, dict[str, Any], int]] = [
    (CHAT, {"messages": user("a")}, 200),
    (CHAT, {"messages": user(IMAGE, "a"), "logprobs": True, "top_logprobs": 3}, 200),
    (CHAT, {"messages": user("a"), "response_format": SCHEMA, "metadata": {"a": "b"}}, 200),
    (CHAT, {"messages": user("a"), "stream": True}, 200),
    (CHAT, {"messages": user("a"), "n": 2}, 400),
    (CHAT, {"messages": user("broken")}, 500),
    (CHAT, {"messages": user("a"), **{f"x{number}": 1 for number in range(500)}}, 400),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 5}, 200),
    (RESPONSES, {"input": "a"}, 200),
    (RESPONSES, {"input": "a", "stream": True}, 200),
    ("/v1/embeddings", {"input": ["a"] * 20}, 200),
    ("/v1/locate", {"image": data_url((60, 60)), "phrases": ["a", "b"]}, 200),
    ("/v1/search", {"text": "a"}, 200),
    ("/v1/classify", {"image": data_url()}, 200),
    ("/v1/classify", {"image": "data:image/png;base64,AAAA"}, 400),
    ("/v1/classify", {"image": "a" * 2_000_000}, 413),
]


def is_whole(path: str, body: dict[str, Any], reply: httpx2.Response) -> bool:
    """Return whether a streamed reply ended as its endpoint ends, and with the whole answer or an error in it."""
    text = reply.text
    if not body.get("stream") or reply.status_code != 200:
        return isinstance(json.loads(text), dict)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if "error" in events[-1] or events[-1].get("type") == "error":
        return True
    if path == RESPONSES:
        return events[-1]["type"] == "response.completed" and events[-1]["response"]["status"] == "completed"
    pieces = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    return text.endswith("data: [DONE]\n\n") and "".join(pieces) == WORDS


async def ask(client: httpx2.AsyncClient, draw: random.Random, counts: Counter[str]) -> None:
    path, fields, status = draw.choice(KINDS)
    body = {"model": "fake", **fields}
    if draw.random() < 0.1:
        # The client goes: before the reply, or after its first piece.
        slow = {"model": "fake", "messages": user("slow"), "max_tokens": 50, "stream": draw.random() < 0.5}
        try:
            async with client.stream("POST", CHAT, json=slow, timeout=draw.choice((0.01, 0.05, 0.1))) as reply:
                await anext(reply.aiter_bytes())
        except httpx2.TimeoutException:
            pass
        counts["gone"] += 1
        return
    reply = await client.post(path, json=body)
    counts[str(reply.status_code)] += 1
    assert reply.status_code == status, (path, list(fields), reply.text[:300])
    assert is_whole(path, body, reply), reply.text[-500:]


async def soak(address: str, *, number: int, seed: int) -> Counter[str]:
    counts, left = Counter[str](), iter(range(number))

    async def work(worker: int) -> None:
        draw = random.Random(f"{seed} {worker}")
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            for _ in left:
                await ask(client, draw, counts)

    await asyncio.gather(*(work(worker) for worker in range(NUM_CLIENTS)))
    return counts


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_requests_leave_the_memory_as_it_was() -> None:
    process, port = start()
    server, address = psutil.Process(process.pid), f"http://127.0.0.1:{port}"
    try:
        begin = time.monotonic()
        asyncio.run(soak(address, number=NUM_WARM, seed=0))
        memory, num_files = settle(server, address), server.num_fds()
        counts = asyncio.run(soak(address, number=NUM_REQUESTS, seed=1))
        after = settle(server, address)
        print(dict(counts), f"{memory / 1e6:.1f} -> {after / 1e6:.1f} MB, {time.monotonic() - begin:.0f} s")
        assert sum(counts.values()) == NUM_REQUESTS
        assert counts["gone"] > NUM_REQUESTS / 20
        assert after <= memory * MAX_GROWTH
        assert server.num_fds() <= num_files
        assert server.num_threads() < 20
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in read_log(process).splitlines()]
    assert len(lines) > NUM_REQUESTS
    assert not [line for line in lines if "trace" in line]


def settle(server: psutil.Process, address: str) -> int:
    """Wait until no call is left, and return the memory."""
    deadline = time.monotonic() + 30
    while 'foveate_waiting{model="fake"} 0\n' not in httpx2.get(f"{address}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return server.memory_info().rss


@pytest.mark.slow
def test_sigterm_in_the_middle_leaves_nothing_half_answered() -> None:
    process, port = start()
    address = f"http://127.0.0.1:{port}"
    outcomes = Counter[str]()

    async def work(worker: int) -> None:
        draw = random.Random(worker)
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            while True:
                path, fields, _ = draw.choice(KINDS)
                body = {"model": "fake", **fields}
                request = client.build_request("POST", path, json=body)
                try:
                    reply = await client.send(request, stream=True)
                except httpx2.ConnectError:
                    return  # the server no longer listens
                except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                    # The connection was idle when the server ended, or the body had not been read.
                    outcomes["closed"] += 1
                    return
                # Outside of the block above: a reply that has begun must not break off.
                await reply.aread()
                outcomes[str(reply.status_code)] += 1
                assert is_whole(path, body, reply), reply.text[-500:]

    async def main() -> None:
        workers = [asyncio.create_task(work(worker)) for worker in range(NUM_CLIENTS)]
        await asyncio.sleep(2)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*workers)

    asyncio.run(main())
    assert process.wait(60) == 0
    print(dict(outcomes))
    assert outcomes["200"] > 20
    # What was at work is answered; what came later is refused, or finds a connection that was closed before its reply.
    assert outcomes["closed"] <= NUM_CLIENTS
    lines = [json.loads(line) for line in read_log(process).splitlines()]
    assert not [line for line in lines if line.get("status") == 0 or "trace" in line]
