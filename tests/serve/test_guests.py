"""Bad input and bad guests: each gets one sentence and its status, from both parsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import HTTP, FakeAdapter, serving
from test_application import data_url, user

from foveate.serve import framing
from foveate.serve.guard import Guard
from foveate.serve.settings import ServeSettings

KEY = "k\u00e9y"
IMAGE = {"type": "image_url", "image_url": {"url": data_url()}}


@pytest.fixture(scope="module", params=["h11", "httptools"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "httptools":
        pytest.importorskip("httptools")
    settings = {"parser": request.param, "allow_host": ("foveate.example",), "allow_origin": ("https://a.example",)}
    with serving(FakeAdapter(), **settings, max_body_mb=0.01) as address:
        yield address


def send(address: str, data: bytes, *, seconds: float = 5) -> bytes:
    """Send bytes and read until the server closes the connection, or for some seconds."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except TimeoutError:
            parts.append(b"<open>")
    return b"".join(parts)


def post(path: str, body: bytes = b"{}", *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def error_of(reply: bytes) -> dict[str, Any]:
    return json.loads(reply.partition(b"\r\n\r\n")[2])["error"]


HIDDEN = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHUNK = b"0\r\n\r\n" + HIDDEN


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/v1/locate", CHUNK, "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (post("/v1/locate", CHUNK, "Transfer-Encoding: chunked"), 411),
        (post("/v1/locate", CHUNK, "Transfer-Encoding: xchunked"), 411),
        (post("/v1/locate", HIDDEN, "Content-Length: 2", "Content-Length: 0"), 400),
        (post("/v1/locate", HIDDEN, "Content-Length: 0", "Content-Length: 0"), 400),
        (post("/v1/locate", HIDDEN, "Content-Length: 2, 0"), 400),
        (post("/v1/locate", HIDDEN, "Content-Length: +2"), 400),
        (post("/v1/locate", HIDDEN, "Content-Length: 0x2"), 400),
        (post("/v1/locate", HIDDEN, "Content-Length : 2"), 400),
        (post("/v1/locate", HIDDEN, "X: a", " Content-Length: 2"), 400),
        (post("/v1/locate", HIDDEN, "X: a\nContent-Length: 2"), 400),
        (post("/v1/locate", HIDDEN, "X: a\rContent-Length: 2"), 400),
        (post("/v1/locate", HIDDEN, "X: a\0"), 400),
        (post("/v1/locate", HIDDEN, "Host: 127.0.0.1", "Content-Length: 0"), 400),
        (post("/v1/locate", b"x" * 20_000, "Content-Length: 20000"), 413),
        (post("/v1/locate", b"", "Content-Length: " + "9" * 5000), 413),
        (b"GET /health HTTP/1.1\r\n\r\n" + HIDDEN, 400),
        (b"GET /health HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 9000 + b"\r\n", 431),
    ],
)
def test_a_hidden_request_is_never_answered(address: str, request_bytes: bytes, status: int) -> None:
    reply = send(address, request_bytes)
    assert status_of(reply) == status, reply
    assert reply.count(b"HTTP/1.1 ") == 1
    assert not reply.endswith(b"<open>")
    assert error_of(reply)["message"]


@pytest.mark.parametrize("length", [10_486, 20_000, 2**40, 10**17])
def test_a_body_that_is_too_large_is_refused_by_its_true_size(address: str, length: int) -> None:
    error = error_of(send(address, post("/v1/locate", b"x", f"Content-Length: {length}")))
    assert f"got {length:,}" in error["message"]
    assert "10,485 bytes" in error["message"]
    # Of a number that no parser reads, its length is what can be said.
    error = error_of(send(address, post("/v1/locate", b"x", f"Content-Length: {'9' * 5000}")))
    assert "a number of 5000 digits" in error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 421),
        ({"Host": "127.0.0.1.attacker.example"}, 421),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "LOCALHOST.:1234"}, 200),
        ({"Host": "foveate.example"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Origin": "https://a.example"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_pages_of_strangers_reach_no_model(address: str, headers: dict[str, str], status: int) -> None:
    content = json.dumps({"model": "fake", "messages": user("hi")})
    headers = {"Content-Type": "application/json", **headers}
    reply = HTTP.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    allowed = reply.headers.get("access-control-allow-origin")
    assert allowed == ("https://a.example" if "a.example" in headers.get("Origin", "") else None) or status != 200


def test_a_page_that_is_allowed_may_ask_first(address: str) -> None:
    ask = {"Access-Control-Request-Method": "POST"}
    reply = HTTP.options(f"{address}/v1/locate", headers={**ask, "Origin": "https://a.example"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, "https://a.example")
    assert HTTP.options(f"{address}/v1/locate", headers={**ask, "Origin": "https://b.example"}).status_code == 403


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"{", ("JSON",)),
        (b"[" * 9_000, ("JSON", "recursion")),
        (b'"\\ud800"', ("JSON",)),
        (b"[]", ("object",)),
        (b'{"model": NaN}', ("model",)),
        ({}, ("model", "messages")),
        ({"messages": []}, ("messages",)),
        ({"messages": user(7)}, ("messages.0.content.0",)),
        ({"messages": [{"role": "usr", "content": "hi"}]}, ("messages.0.role", "usr", "Did you mean 'user'")),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, ("messages", "assistant")),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, ("messages.0.content", "system")),
        ({"temprature": 1}, ("temprature", "Did you mean 'temperature'")),
        ({"temperature": 3}, ("temperature", "3")),
        ({"temperature": "1"}, ("temperature",)),
        ({"max_tokens": 0}, ("max_tokens",)),
        ({"seed": 2**63}, ("seed",)),
        ({"n": 2}, ("n", "2", "expected 1")),
        ({"frequency_penalty": 0.5}, ("frequency_penalty", "expected 0")),
        ({"tools": [{"type": "function"}]}, ("tools", "tool_choice 'none'")),
        ({"tool_choice": "required"}, ("tool_choice", "expected 'none'")),
        ({"functions": [{"name": "f"}]}, ("functions", "calls functions")),
        ({"store": True}, ("store", "nothing is stored")),
        ({"service_tier": "flex"}, ("service_tier", "auto")),
        ({"logit_bias": {"1": 5}}, ("logit_bias", "expected {}")),
        ({"reasoning_effort": "much"}, ("reasoning_effort", "much")),
        ({"metadata": {"a": 1}}, ("metadata.a",)),
        ({"top_logprobs": 2}, ("top_logprobs", "'logprobs' true")),
        ({"logprobs": True, "top_logprobs": 21}, ("top_logprobs", "20")),
        ({"response_format": {"type": "json_schema"}}, ("response_format", "json_schema")),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "refused"}}}},
         ("response_format", "cannot be followed")),
        ({"stop": ""}, ("stop",)),
        ({"model": "fakes"}, ("fakes", "Did you mean 'fake'")),
        ({"messages": user("see <image>")}, ("messages.0.content", "<image>")),
        ({"foveate": {"boxes": [[0, 0, 1, 1]]}}, ("foveate.boxes",)),
        ({"foveate": {"boxes": [[0, 0, 1, 2]]}}, ("foveate.boxes", "[0, 1]")),
        ({"foveate": {"boxes": [[0, 0, 1]]}}, ("foveate.boxes",)),
        ({"messages": user(*[IMAGE] * 5)}, ("4 images",)),
    ],
)  # fmt: skip
def test_wrong_requests_are_named(address: str, body: Any, names: tuple[str, ...]) -> None:
    if isinstance(body, dict):
        full = {"model": "fake", "messages": user("hi")}
        body = json.dumps((full | body) if body else {}).encode()
    reply = HTTP.post(f"{address}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == (404 if "fakes" in names else 400), reply.text
    assert error["type"] in ("invalid_request_error", "not_found_error")
    for name in names:
        assert name in error["message"]
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("path", "body", "param", "name"),
    [
        ("completions", {"prompt": "see <image>"}, "prompt", "prompt: '<image>'"),
        ("completions", {"prompt": ["a", "b"]}, "prompt", "'prompt'"),
        ("responses", {"input": "see <image>", "instructions": "a"}, "input", "input: '<image>'"),
        ("responses", {"input": [{"role": "assistant", "content": "a"}]}, "input", "input: the last one"),
        ("responses", {"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format", "text.format: "),
        ("responses", {"input": "a", "previous_response_id": "b"}, "previous_response_id", "previous_response_id"),
        ("responses", {"input": "a", "store": True}, "store", "nothing is stored"),
    ],
)
def test_fields_have_the_names_of_their_endpoint(
    address: str, path: str, body: dict[str, Any], param: str, name: str
) -> None:
    error = HTTP.post(f"{address}/v1/{path}", json={"model": "fake", **body}).json()["error"]
    assert error["param"] == param
    assert name in error["message"]


def cut(url: str) -> str:
    return url[: len(url) // 2 // 4 * 4]


@pytest.mark.parametrize(
    "image",
    [
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "blob:null/1",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,A",
        "data:image/png;base64,AAAA AAAA",
        "data:image/png;base64,\u00e9AAA",
        "data:image/png;base64,",
        "data:image/svg+xml;base64,PHN2Zy8+",
        cut(data_url()),
        data_url((6000, 5000)),
    ],
)
def test_images_that_are_none(address: str, image: str) -> None:
    if len(image) > 10_000:
        # The header alone decides: the pixels are not even there.
        image = image[:1000]
    reply = HTTP.post(f"{address}/v1/classify", json={"model": "fake", "image": image})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == "image"
    assert error["code"].startswith("invalid_")
    if "6000" in error["message"]:
        assert "25,000,000" in error["message"]


def test_other_paths_and_methods(address: str) -> None:
    for path, method, status, name in (
        ("/v1/model", "GET", 404, "Did you mean '/v1/models'"),
        ("/health/", "GET", 404, "/health"),
        ("/v1/locate", "GET", 405, "POST"),
        ("/v1/models", "DELETE", 405, "GET"),
        ("/v1/models/nobody", "GET", 404, "nobody"),
        ("/page/..%2fapplication.py", "GET", 404, "/page"),
        ("/images/x?model=fake", "GET", 404, "x"),
    ):
        reply = HTTP.request(method, f"{address}{path}")
        assert reply.status_code == status, (path, reply.text)
        assert name in reply.json()["error"]["message"]
    assert HTTP.get(f"{address}/v1/locate").headers["allow"] == "POST"


def test_the_key_guards_all_but_health_and_the_page() -> None:
    with serving(key=KEY) as address:
        for path, status in (("/health", 200), ("/page/none.js", 404), ("/v1/models", 401), ("/metrics", 401)):
            assert HTTP.get(f"{address}{path}").status_code == status
        for value, status in ((KEY, 401), (f"Basic {KEY}", 401), (f"Bearer {KEY}x", 401), (f"bearer {KEY}", 200)):
            reply = HTTP.get(f"{address}/ready", headers={b"authorization": value.encode()})
            assert reply.status_code == status
            assert KEY not in reply.text
            assert reply.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        # Refused before the body has come.
        assert status_of(send(address, post("/v1/locate", b"", "Content-Length: 1000"))) == 401


def test_slow_guests_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(framing, "_SLOW_START_SECONDS", 0.3)
    with serving(max_connections=40, queue=8) as address:
        host, port = address.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(30)]
        half = send(address, b"GET /health HTTP/1.1\r\nHost: ")
        body = send(address, post("/v1/locate", b"{", "Content-Length: 100"))
        assert (status_of(half), status_of(body)) == (408, 408)
        assert b"408" in silent[0].recv(1000)
        for connection in silent:
            connection.close()
        assert HTTP.get(f"{address}/health").status_code == 200


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_empty_lines_keep_no_connection_open(parser: str) -> None:
    pytest.importorskip(parser)
    with serving(parser=parser) as address:
        address.server.config.timeout_keep_alive = 0.3
        reply = send(address, HIDDEN + b"\r\n", seconds=2)
        assert status_of(reply) == 200
        assert reply.endswith(b'"ok"}')


def test_a_client_has_a_number_of_connections() -> None:
    with serving(max_connections=3, queue=2) as address:
        host, port = address.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port))) for _ in range(3)]
        reply = send(address, HIDDEN)
        assert status_of(reply) == 429
        assert b"retry-after" in reply
        for connection in connections:
            connection.close()
        deadline = time.monotonic() + 5
        while status_of(send(address, HIDDEN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) != 200:
            assert time.monotonic() < deadline


def test_all_clients_together_have_a_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(max_all_connections=3) as address:
        host, port = address.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port))) for _ in range(3)]
        reply = send(address, HIDDEN)
        assert (status_of(reply), error_of(reply)["code"]) == (503, "too_many_connections")
        assert b"retry-after" in reply
        assert not reply.endswith(b"<open>")
        monkeypatch.setattr(framing, "_MAX_REFUSED", 0)  # a flood gets no answer
        # The end is a reset only if the request arrives before it; in either case nothing is answered.
        with contextlib.suppress(ConnectionError):
            assert send(address, HIDDEN) == b""
        for connection in connections:
            connection.close()
        deadline = time.monotonic() + 5
        while HTTP.get(f"{address}/health", headers={"Connection": "close"}).status_code != 200:
            assert time.monotonic() < deadline


def test_requests_in_one_packet_are_answered_in_order(address: str) -> None:
    body = json.dumps({"model": "fake", "messages": user("hi"), "max_tokens": 3}).encode()
    chat = post("/v1/chat/completions", body, f"Content-Length: {len(body)}")
    last = HIDDEN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    reply = send(address, chat + b"\r\n" + HIDDEN + chat + last)
    assert reply.count(b"HTTP/1.1 200 OK") == 4
    assert reply.index(b"word2") < reply.index(b'"ok"') < reply.rindex(b"word2") < reply.rindex(b'"ok"')
    assert (
        status_of(
            send(address, post("/v1/locate", b"{}", "Content-Length: 2", "Upgrade: h2c", "Connection: close, upgrade"))
        )
        == 400
    )
    assert send(address, post("/v1/locate", b"", "Content-Length: 9", "Expect: 100-continue"), seconds=0.5).startswith(
        b"HTTP/1.1 100"
    )


def test_no_piece_waits_for_the_last_one_to_be_acknowledged() -> None:
    with serving() as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))):
            while not (connections := list(address.server.server_state.connections)):
                time.sleep(0.01)
            served = connections[0].transport.get_extra_info("socket")
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_is_written_in_one_turn_is_sent_together() -> None:
    class Recorder(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.sent: list[object] = []
            self.is_closed = False

        def write(self, data: Any) -> None:
            self.sent.append(data if len(data) < 10 else len(data))

        def is_closing(self) -> bool:
            return self.is_closed

        def close(self) -> None:
            self.is_closed = True

    async def write() -> list[object]:
        recorder = Recorder()
        protocol: Any = SimpleNamespace(loop=asyncio.get_running_loop(), has_rest=False, is_ending=False)
        transport = framing.GatheringTransport(recorder, protocol)
        transport.write(b"head ")
        transport.write(b"body")
        assert recorder.sent == []
        await asyncio.sleep(0)
        transport.write(b"x" * 40_000)  # what holds so much does not wait
        transport.write(b"last")
        transport.close()
        transport.write(b"late")
        await asyncio.sleep(0)
        return recorder.sent

    assert asyncio.run(write()) == [b"head body", 40_000, b"last"]


class FakeLoop:
    """Timers that a test fires; it also stands for the transport and the parser."""

    def __init__(self) -> None:
        self.timers = list[Any]()
        self.num_unsent, self.is_aborted = 100_000, False

    def call_later(self, seconds: float, callback: Any) -> Any:
        timer = SimpleNamespace(seconds=seconds, callback=callback)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def fire(self, num_unsent: int) -> None:
        self.num_unsent = num_unsent
        self.timers.pop().callback()

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def get_extra_info(self, name: str) -> Any:
        raise OSError("no socket: the kernel holds nothing")

    def abort(self) -> None:
        self.is_aborted = True


def test_a_client_that_does_not_read_is_cut_off() -> None:
    class Parser:
        def pause_writing(self) -> None: ...

        def resume_writing(self) -> None: ...

    fake = FakeLoop()
    connection: Any = type("Connection", (framing.FramingProtocol, Parser), {})()
    connection.loop = connection.transport = fake
    connection._send_timer = None
    connection.pause_writing()
    assert [timer.seconds for timer in fake.timers] == [framing.SEND_SECONDS]
    connection.resume_writing()
    assert fake.timers == []
    connection.pause_writing()
    fake.fire(100_000 - 1000 * 30)
    assert not fake.is_aborted, "1 kB/s is enough"
    fake.fire(70_000 - 1000 * 30 + 1)
    assert fake.is_aborted
    assert fake.timers == []


def test_where_the_kernel_does_not_tell_a_client_has_the_time_of_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parser:
        def pause_writing(self) -> None: ...

        def resume_writing(self) -> None: ...

    monkeypatch.setattr(framing, "_KERNEL_TELLS", False)
    with socket.socket() as kernel:
        room = kernel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        fake = FakeLoop()
        monkeypatch.setattr(fake, "get_extra_info", lambda name: kernel)
        connection: Any = type("Connection", (framing.FramingProtocol, Parser), {})()
        connection.loop = connection.transport = fake
        connection._send_timer = None
        connection.pause_writing()
        (timer,) = fake.timers
        assert timer.seconds == framing.SEND_SECONDS + (100_000 + room) / framing.MIN_BYTES_PER_SECOND
        connection.resume_writing()
        assert fake.timers == [], "the client made room in time"
        connection.pause_writing()
        fake.fire(99_999)
        assert fake.is_aborted


def test_a_client_that_reads_steadily_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # asyncio's own buffer stands still meanwhile: the kernel holds megabytes, which go first.
    monkeypatch.setattr(framing, "SEND_SECONDS", 1.0)
    buffered: list[int] = []

    class Parser:
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            asyncio.get_running_loop().call_soon(transport.write, bytes(8_000_000))

        def connection_lost(self, exc: Any) -> None: ...

        def pause_writing(self) -> None: ...

        def resume_writing(self) -> None: ...

    class Connection(framing.FramingProtocol, Parser):  # type: ignore[misc]
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

    async def read() -> tuple[bool, bool]:
        loop, made = asyncio.get_running_loop(), list[Any]()
        server = await loop.create_server(lambda: made.append(Connection()) or made[-1], "127.0.0.1", 0)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        with client:
            for _ in range(60):
                await asyncio.sleep(0.05)
                await loop.sock_recv(client, 10_000)
                buffered.append(made[0].transport.get_write_buffer_size())
            steady = made[0].transport.is_closing()
            for _ in range(100):
                await asyncio.sleep(0.1)
                if silent := made[0].transport.is_closing():
                    break
        server.close()
        return steady, silent

    assert asyncio.run(read()) == (False, True)
    assert buffered[2] == buffered[-1] > 0, "the kernel took nothing meanwhile"


@pytest.mark.parametrize(("headers", "num_held"), [([(b"content-length", b"2")], 0), ([], 7)])
def test_a_whole_reply_holds_no_body(headers: list[tuple[bytes, bytes]], num_held: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        held.append(guard._num_bytes)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        held.append(guard._num_bytes)

    async def send(message: Any) -> None: ...

    held = list[int]()
    guard = Guard(app, ServeSettings(), key="", finished=lambda record: None)
    names = {"host": "localhost", "content-type": "application/json", "content-length": "7"}
    lines = [(name.encode(), value.encode()) for name, value in names.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/locate", "headers": lines}
    asyncio.run(guard(scope, send, send))  # type: ignore[arg-type]
    assert [*held, guard._num_bytes] == [7, num_held, 0]
