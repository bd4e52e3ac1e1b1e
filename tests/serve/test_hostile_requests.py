"""Thousands of hostile requests to every endpoint: no crash, no hang, no trace in a reply, bounded memory."""

from __future__ import annotations

import base64
import copy
import json
import random
import socket
import time
from typing import Any

import psutil
import pytest
from fakes import HTTP
from test_application import data_url, user
from test_serve_faults import read_log, start

from foveate.serve import bodies
from foveate.serve.bodies import parse_body
from foveate.serve.calls import Refused
from naming import raises_naming

IMAGE = data_url()
# Two frames of one pixel, as small as a GIF can be: letters of the base64 are changed below.
_FRAME = b"\x2c" + bytes(4) + b"\1\0\1\0\0" + b"\2\2\x44\1\0"
CLIP = "data:image/gif;base64," + base64.b64encode(b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + 2 * _FRAME + b"\x3b").decode()
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *user(
                {"type": "image_url", "image_url": {"url": IMAGE}},
                {"type": "video_url", "video_url": {"url": CLIP}},
                "what is <1>?",
            ),
        ],
        "foveate": {"boxes": [[0, 0, 1, 1]]},
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["x"],
        "temperature": 0.5,
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "a"}}],
        "tool_choice": "none",
    },
    "/v1/completions": {"prompt": "a", "max_tokens": 3, "logprobs": 2, "stream": True, "echo": False},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_image", "image_url": IMAGE}]},
            {"role": "user", "content": "a"},
        ],
        "instructions": "a",
        "max_output_tokens": 3,
        "stream": True,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        "include": ["message.output_text.logprobs"],
        "reasoning": {"effort": "low"},
    },
    "/v1/embeddings": {"images": [IMAGE], "boxes": [[0, 0, 1, 1]], "encoding_format": "base64"},
    "/v1/locate": {"image": IMAGE, "phrases": ["a", "b"]},
    "/v1/search": {"text": "a", "image": IMAGE, "box": [0, 0, 1, 1], "negative": "b", "count": 3},
    "/v1/classify": {"image": IMAGE, "count": 2},
}
GETS = (
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/v1/models",
    "/v1/models/x",
    "/images/a",
    "/page/play.js",
    "/%00",
    "/a b",
)
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
VALUES = [None, True, -1, 0, 7, 2**70, 1e308, -0.5, "", "x" * 3000, "\0", "\u202e<script>", "<image>", "slow", "broken"]
VALUES += [[], {}, DEEP, [[]] * 50, "http://169.254.169.254/", "file:///etc/passwd"]
VALUES += [IMAGE[:-9], "data:image/png;base64,", data_url((40, 7))]
HEADERS = [b"Host: evil", b"Origin: null", b"Content-Type: text/plain", b"Content-Length: 3", b"Content-Encoding: gzip"]
HEADERS += [b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: upgrade"]
HEADERS += [b" folded", b"X: \xff", b":", b"X", b"\0: a", b"Range: bytes=0-", b"Cookie: " + b"b" * 9000]
HEADERS += [b"Authorization: Bearer " + b"a" * 5000]
STATUSES = (100, 200, 204, 400, 403, 404, 405, 408, 411, 413, 415, 421, 431, 500, 503)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in paths_in(child, (*path, key)))]


def make_body(draw: random.Random, path: str) -> bytes:
    body = {"model": "fake", **copy.deepcopy(REQUESTS[path])}
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        *parents, last = draw.choice(paths_in(body)[1:] or [("model",)])
        parent: Any = body
        for key in parents:
            parent = parent[key]
        action = draw.random()
        if action < 0.15:
            parent.pop(last, None) if isinstance(parent, dict) else parent.pop(last)
        elif action < 0.25 and isinstance(parent, dict):
            parent[str(last) + draw.choice("sx_ ")] = parent.pop(last, None)
        else:
            # A copy: later changes go into it.
            parent[last] = copy.deepcopy(draw.choice(VALUES))
    data = bytearray(json.dumps(body).encode())
    if draw.random() < 0.2:
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.05 else data)


def make_request(draw: random.Random) -> bytes:
    path = draw.choice((*REQUESTS, *GETS))
    body = make_body(draw, path) if path in REQUESTS else b""
    method = draw.choice(("POST", "PUT", "OPTIONS", "x")) if draw.random() < 0.1 else "POST" if body else "GET"
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Connection: close"]
    if body:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        lines.insert(draw.randint(1, len(lines)), draw.choice(HEADERS))
    data = bytearray(b"\r\n".join([*lines, b"", b""]) + body)
    if draw.random() < 0.1:
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
    return bytes(data)


def exchange(port: int, data: bytes, draw: random.Random) -> bytes:
    parts = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(data)
            if draw.random() < 0.03:  # a client that goes at once
                return b""
            # What is cut off waits for its rest longer than this test does.
            connection.settimeout(0.5)
            while part := connection.recv(65536):
                parts.append(part)
        except (ConnectionError, TimeoutError):
            pass
    return b"".join(parts)


USER = user("a")
BOX = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("model", "fields", "text"),
    [
        (bodies.ChatBody, {"messages": [{"role": "user", "content": [1] * 2000}]}, "messages.0.content.0"),
        (bodies.ChatBody, {"messages": USER, "foveate": {"boxes": [[]] * 2000}}, "foveate.boxes.0"),
        (bodies.ChatBody, {"messages": USER, "foveate": {"boxes": [BOX] * 10_000}}, "9999"),
        (bodies.ChatBody, {"messages": USER, **{f"x{number}": 1 for number in range(2000)}}, "2,000 fields"),
        (bodies.EmbeddingsBody, {"input": [1] * 2000}, "input.0"),
        (bodies.EmbeddingsBody, {"boxes": [[]] * 2000}, "boxes.0"),
        (bodies.LocateBody, {"image": "", "phrases": [1] * 2000}, "phrases.0"),
    ],
)
def test_wrong_fields_are_not_all_listed(model: Any, fields: dict[str, Any], text: str) -> None:
    """Millions of them would fill the memory."""
    with raises_naming(Refused, text) as refused:
        parse_body(model, json.dumps({"model": "fake", **fields}).encode())
    assert "more problems" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "parser"), list(enumerate(["h11", "httptools"] * 2)))
def test_hostile_requests(seed: int, parser: str) -> None:
    process, port = start(parser=parser, max_body_mb=1, timeout_seconds=5)
    try:
        draw, statuses, server = random.Random(seed), set[int](), psutil.Process(process.pid)
        memory = 0
        for number in range(5000):
            data = make_request(draw)
            reply = exchange(port, data, draw)
            assert b"Traceback" not in reply, data
            assert b"a secret" not in reply, data
            if reply:
                status = int(reply.split(b" ", 2)[1])
                statuses.add(status)
                assert status in STATUSES, (status, data)
                assert status != 500 or b"broken" in data or b"model failed" in reply, data
            if number == 500:
                memory = server.memory_info().rss
        assert {200, 400, 403, 404, 405, 411, 415, 421} <= statuses
        assert server.memory_info().rss < memory + 100e6
        deadline = time.monotonic() + 20
        while 'foveate_waiting{model="fake"} 0\n' not in HTTP.get(f"http://127.0.0.1:{port}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.num_threads() < 20
    finally:
        process.terminate()
    assert process.wait(40) == 0
    errors = read_log(process)
    assert "Traceback" not in errors, errors[errors.index("Traceback") :][:3000]


@pytest.mark.slow
def test_half_open_connections() -> None:
    process, port = start(max_connections=1000)
    try:
        connections = []
        for number in range(500):
            connections.append(socket.create_connection(("127.0.0.1", port)))
            connections[-1].sendall(b"" if number % 2 else b"POST /v1/locate HTTP/1.1\r\nHost: a\r\nContent-Le")
        begin = time.monotonic()
        assert HTTP.get(f"http://127.0.0.1:{port}/health").status_code == 200
        assert time.monotonic() - begin < 2
        for connection in connections:
            connection.settimeout(30)
            assert b"408" in connection.recv(1000)
            connection.close()
        deadline = time.monotonic() + 10
        while len(psutil.Process(process.pid).net_connections()) > 5:
            assert time.monotonic() < deadline
    finally:
        process.terminate()
    assert process.wait(20) == 0
