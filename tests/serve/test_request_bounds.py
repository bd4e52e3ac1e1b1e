"""Bounds of requests: bytes beside images, values, levels, calls of one client; no body holds up other requests."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import HTTP, Address, serving
from hypothesis import given
from hypothesis import strategies as st
from test_application import data_url, user

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.serve.bodies import MAX_DEPTH, MAX_TEXT_BYTES, check_bounds, cut_data_urls
from foveate.serve.calls import Refused
from foveate.serve.media import decode_base64
from foveate.serve.settings import ServeSettings
from naming import raises_naming

CHAT, EMBEDDINGS, LOCATE = "/v1/chat/completions", "/v1/embeddings", "/v1/locate"
SEARCH, CLASSIFY = "/v1/search", "/v1/classify"
MEGABYTE = 2**20
# A generous bound for a busy machine: 3.5 MB of empty lists took more than 3 s.
MAX_STALL_SECONDS = 0.5


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving() as address:
        yield address


def post(address: str, path: str, data: bytes) -> Any:
    return HTTP.post(f"{address}{path}", content=data, headers={"Content-Type": "application/json"})


def repeat(head: str, item: str | Callable[[int], str], tail: str, *, size: int) -> bytes:
    """Repeat an item until a body has nearly `size` bytes."""
    items, length = list[str](), len(head) + len(tail)
    while length < size:
        items.append(item if isinstance(item, str) else item(len(items)))
        length += len(items[-1]) + 1
    return (head + ",".join(items[:-1] or items) + tail).encode()


WORST: dict[str, tuple[str, tuple[str, str | Callable[[int], str], str]]] = {
    "unknown fields": (CHAT, ('{"model":"fake",', lambda number: f'"{number:x}":1', "}")),
    "a field many times": (CHAT, ("{", '"model":"fake"', "}")),
    "parts": (CHAT, ('{"messages":[{"role":"user","content":[', '{"type":"text","text":""}', "]}]}")),
    "messages": (CHAT, ('{"messages":[', '{"role":"user","content":[]}', "]}")),
    "annotations": (CHAT, ('{"messages":[{"role":"user","content":"a","annotations":[', "[]", "]}]}")),
    "boxes of a chat": (CHAT, ('{"foveate":{"boxes":[', "[0,0,1,1]", "]}}")),
    "texts": (EMBEDDINGS, ('{"model":"fake","input":[', '""', "]}")),
    "boxes": (EMBEDDINGS, ('{"model":"fake","images":["a"],"boxes":[', "[0,0,1,1]", "]}")),
    "phrases": (LOCATE, ('{"model":"fake","image":"a","phrases":[', '"a"', "]}")),
    "numbers of a box": (SEARCH, ('{"model":"fake","text":"a","box":[', "1", "]}")),
    "objects for a text": (SEARCH, ('{"model":"fake","text":[', '{"a":1}', "]}")),
    "lists for a number": (CLASSIFY, ('{"model":"fake","image":"a","count":[', "[]", "]}")),
}


@pytest.mark.parametrize("name", WORST)
def test_no_body_holds_up_the_server(address: Address, name: str) -> None:
    path, parts = WORST[name]
    # The largest that is read, and one that is refused unread.
    bodies = [repeat(*parts, size=int(1.1**power)) for power in range(90, 147)]
    largest = max((body for body in bodies if is_within(body)), key=len)
    for body in (largest, repeat(*parts, size=3_500_000)):
        stalls = []
        for _ in range(3):
            delays: list[float] = []
            watching = asyncio.run_coroutine_threadsafe(watch(delays), loop_of(address))
            reply = post(address, path, body)
            watching.cancel()
            stalls.append(max(delays, default=0.0))
            assert reply.status_code in (200, 400, 413)
        # The shortest: another process may take the core meanwhile, but not three times.
        assert min(stalls) < MAX_STALL_SECONDS, len(body)
    assert reply.status_code == 413


def is_within(body: bytes) -> bool:
    try:
        check_bounds(body)
    except Refused:
        return False
    return True


def loop_of(address: Address) -> asyncio.AbstractEventLoop:
    loop = address.server._loop
    assert loop is not None
    return loop


async def watch(stalls: list[float]) -> None:
    """Note how much later than asked for the event loop goes on."""
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(0.002)
        stalls.append(time.perf_counter() - begin - 0.002)


def test_a_body_without_images_has_at_most_a_megabyte(address: Address) -> None:
    long = {"model": "fake", "messages": user("a" * MEGABYTE)}
    reply = post(address, CHAT, json.dumps(long).encode())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    assert "beside the images" in reply.json()["error"]["message"]
    # It is refused before anything in it is read, so also where it is no JSON.
    assert post(address, CHAT, b"[" * (MEGABYTE + 1)).status_code == 413
    # A long address of an image does not count; it is refused for what it is.
    image = "data:image/png;base64," + base64.b64encode(bytes(3 * MEGABYTE)).decode()
    for url in (image, image.replace("base64", "BASE64"), image.replace("A/", "A\\/")):
        reply = post(address, LOCATE, json.dumps({"model": "fake", "image": url, "phrases": ["a"]}).encode())
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "image"
    # In a text it is no image.
    reply = post(address, CHAT, json.dumps({"model": "fake", "messages": user(image)}).encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages.0.content.0.text.text")
    assert len(reply.content) < 1000
    wide = {"model": "fake", "image": data_url((900, 900)), "phrases": ["a"]}
    assert post(address, LOCATE, json.dumps(wide).encode()).status_code == 200


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"[" + b'"",' * 80_000, "80,000 strings"),
        (b"[" + b"{}," * 9000, "9,000 objects"),
        (b"[" * 20_000, "20,000 lists"),
        (b"{" + b'"a":1,' * 20_000, "20,000 fields"),
        (b"[" + b"1," * 90_000, "90,000 values"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "32 levels"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "32 levels"),
        (b'"' + b"a" * MAX_TEXT_BYTES + b'"', "1,048,576 bytes"),
        (b'{"' + b'x;base64,":"' * 100_000, "1,048,576 bytes"),
        # A string without an end, each quote of which could begin another one.
        (b'"' + b'\\"' * 400_000, "strings"),
        (b'"x;base64,' + b"\\" * 2_000_000 + b'"', "1,048,576 bytes"),
    ],
)
def test_values_and_levels_have_bounds(data: bytes, text: str) -> None:
    begin = time.perf_counter()
    with raises_naming(Refused, text):
        check_bounds(data)
    assert time.perf_counter() - begin < MAX_STALL_SECONDS


def test_signs_in_texts_are_no_values() -> None:
    check_bounds(json.dumps({"a": "[{,:" * 50_000 + '"\\' * 1000}).encode())
    check_bounds(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    # What is no JSON is left for the parser, which says where.
    check_bounds(b"]]]" + b"[" * 100)


STRINGS = st.text(alphabet='ab;base64,"\\[]{}/\u00e4', max_size=30) | st.sampled_from(
    ["data:image/png;base64,AAAA", ';base64,AB"C', ";base64,A\\", ';base64,\\"', ";BASE64,/+"]
)
VALUES = st.recursive(
    STRINGS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


def shape_of(value: Any) -> Any:
    """Return a value with the beginning of its strings alone, up to the content of a data URL."""
    if isinstance(value, str):
        return "s"
    if isinstance(value, dict):
        return [(shape_of(key), shape_of(each)) for key, each in value.items()]
    return [shape_of(each) for each in value] if isinstance(value, list) else value


@given(VALUES, st.booleans())
def test_what_is_left_has_the_same_structure(value: Any, is_ascii: bool) -> None:
    data = json.dumps(value, ensure_ascii=is_ascii).encode()
    for body in (data, data.replace(b"/", b"\\/")):
        left = json.loads(cut_data_urls(body), object_pairs_hook=lambda pairs: [("s", shape_of(v)) for _, v in pairs])
        pairs = json.loads(body, object_pairs_hook=lambda pairs: [("s", shape_of(v)) for _, v in pairs])
        assert shape_of(left) == shape_of(pairs)


def test_base64_in_parts_is_base64_at_once() -> None:
    for length in (0, 1, 3, 3 * 2**18, 3 * 2**18 + 1, 2**20 + 5):
        data = bytes(range(256)) * (length // 256 + 1)
        letters = base64.b64encode(data[:length])
        assert decode_base64(memoryview(letters)) == data[:length]
        for wrong in (letters + b"A", b"=" + letters, letters + b"\n", b"AA==" + letters):
            if length or not wrong.endswith(b"="):
                with pytest.raises(ValueError, match="."):
                    decode_base64(memoryview(wrong))
    # Padding at the very end of a part that is not the last.
    with pytest.raises(ValueError, match="padding"):
        decode_base64(memoryview(b"A" * (2**20 - 2) + b"==" + b"AAAA"))


def test_a_client_with_as_many_calls_as_the_queue_is_refused_none() -> None:
    import openai

    async def ask(address: str, number: int) -> Counter[str]:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)

        async def call() -> str:
            try:
                await client.chat.completions.create(model="fake", messages=user("slow"), max_tokens=5)
            except openai.APIStatusError as error:
                return str(error.status_code)
            return "200"

        async with client:
            return Counter(await asyncio.gather(*(call() for _ in range(number))))

    with serving() as address:
        assert asyncio.run(ask(address, 64)) == {"200": 64}
    with serving(queue=4, max_connections=6) as address:
        # More calls than the queue has places get 503, and more connections 429.
        counts = asyncio.run(ask(address, 12))
        assert set(counts) == {"200", "503", "429"}
        assert counts["429"] == 6


def test_one_client_can_fill_the_queue() -> None:
    assert ServeSettings().max_connections > ServeSettings().queue
    with raises_naming(UserError, "--max-connections", "--queue 128", "at least 129"):
        validate(ServeSettings, {"queue": 128}, where="foveate serve")
    with raises_naming(UserError, "--max-connections", "--queue 64", "got 64"):
        validate(ServeSettings, {"max_connections": 64}, where="foveate serve")
    assert validate(ServeSettings, {"queue": 128, "max_connections": 129}, where="").queue == 128
