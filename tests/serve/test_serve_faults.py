"""What goes wrong behind the routes: models that fail, queues that are full, clients that go, ends of the server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fakes import HTTP, Address, FakeAdapter, serving
from prometheus_client.parser import text_string_to_metric_families
from test_application import WORDS, data_url, user

from foveate.core.errors import UserError
from foveate.serve import media
from foveate.serve.application import Application
from foveate.serve.settings import ServeSettings
from naming import raises_naming

if TYPE_CHECKING:
    import openai

CHAT = "/v1/chat/completions"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": user(text), **fields}


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def worker_of(address: Address) -> Any:
    return address.server.application.answerer.workers["fake"]


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving(timeout_seconds=2, queue=2, batch=1) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: Address) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_a_model_that_raises_tells_no_secret(address: Address, client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**chat("broken"))
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**chat("broken", stream=True))
    words: list[str] = []
    stream = client.chat.completions.create(**chat("breaks", stream=True))
    with pytest.raises(openai.APIError) as caught:
        words.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(words) == "word0 word1 "
    assert "secret" not in str(caught.value)
    assert client.chat.completions.create(**chat("hi")).choices[0].message.content == WORDS


class FailingAdapter(FakeAdapter):
    """Raises an error for texts "huge", and for more calls at once than `max_calls`; "wait" waits for the gate."""

    def __init__(self, error: Callable[[], Exception], *, max_calls: int = 100) -> None:
        super().__init__()
        self.error, self.max_calls, self.sizes = error, max_calls, list[int]()
        self.gate = threading.Event()

    def answer(self, calls: Sequence[Any]) -> list[Any]:
        self._check([text for call in calls for text in call.texts], len(calls))
        return super().answer(calls)

    def write(self, calls: Sequence[Any], listener: Any) -> None:
        self._check([call.turns[-1].text for call in calls], len(calls))
        super().write(calls, listener)

    def _check(self, texts: Sequence[str], num_calls: int) -> None:
        self.sizes.append(num_calls)
        assert "wait" not in texts or self.gate.wait(20)
        if num_calls > self.max_calls or "huge" in texts:
            raise self.error()


def raise_torch_error() -> Exception:
    torch = pytest.importorskip("torch")
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.19 GiB, process 4242")


OUT_OF_MEMORY = (
    MemoryError,
    raise_torch_error,
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 4242 bytes"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_call_without_memory_fails_alone_and_the_server_lives(error: Callable[[], Exception]) -> None:
    adapter = FailingAdapter(error)
    with serving(adapter) as address:
        texts = ["hi", "huge", "hi", "hi"]
        replies = post_together(address, adapter, [(CHAT, chat(text)) for text in texts])
        assert [reply.status_code for reply in replies] == [200, 503, 200, 200]
        assert max(adapter.sizes) > 1, "they shared a batch"
        refusal = replies[1].json()["error"]
        assert (refusal["code"], replies[1].headers["retry-after"]) == ("out_of_memory", "5")
        assert not any(word in refusal["message"] for word in ("4242", "\n", "Error"))
        stream = HTTP.post(f"{address}{CHAT}", json=chat("huge", stream=True))
        assert (stream.status_code, stream.json()["error"]) == (503, refusal)
        body = {"model": "fake", "input": ["a", "huge"]}
        assert HTTP.post(f"{address}/v1/embeddings", json=body).json()["error"] == refusal
        assert HTTP.post(f"{address}{CHAT}", json=chat("hi")).status_code == 200


def test_a_batch_without_memory_is_split() -> None:
    # "wait" goes alone, then each call of a batch fails with the others.
    adapter = FailingAdapter(MemoryError, max_calls=1)
    with serving(adapter) as address:
        chats = [(CHAT, chat("hi", stream=bool(number % 2))) for number in range(4)]
        embeddings = [("/v1/embeddings", {"model": "fake", "input": ["a"]})] * 4
        replies = post_together(address, adapter, [*chats, *embeddings])
        assert [reply.status_code for reply in replies] == [200] * 8
        assert max(adapter.sizes) > 1
        assert HTTP.get(f"{address}/ready").status_code == 200


def post_together(
    address: Address, adapter: FailingAdapter, requests: Sequence[tuple[str, dict[str, Any]]]
) -> list[httpx2.Response]:
    """Send requests while another one holds the model, so that they share a batch."""
    with ThreadPoolExecutor(len(requests) + 1) as pool:
        jobs = [pool.submit(HTTP.post, f"{address}{CHAT}", json=chat("wait"))]
        wait_until(lambda: adapter.sizes)
        jobs += [pool.submit(HTTP.post, f"{address}{path}", json=body) for path, body in requests]
        wait_until(lambda: worker_of(address).num_waiting == len(jobs))
        adapter.gate.set()
        return [job.result() for job in jobs[1:]]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("/srv/secret/config.json: field 'kind': unknown", 500),
        ("model:/srv/secret: no such folder", 500),
        ("the model is not at '~/secret'; give its folder", 500),
        ("C:\\secret\\index: damaged", 500),
        ("\\\\host\\secret: damaged", 500),
        ("box (1/2, 3 / 4): outside of the image; see https://secret.example/boxes </s>", 400),
    ],
)
def test_no_reply_names_a_path_of_the_server(text: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(FailingAdapter(lambda: UserError(text))) as address:
        requests = [(CHAT, chat("huge")), (CHAT, chat("huge", stream=True))]
        requests.append(("/v1/embeddings", {"model": "fake", "input": ["huge"]}))
        for path, body in requests:
            reply = HTTP.post(f"{address}{path}", json=body)
            assert reply.status_code == status
            assert (text in reply.json()["error"]["message"]) == (status == 400)
            assert ("secret" in reply.text) == (status == 400)
    # Who runs the server reads it in the log.
    assert (text in caplog.text) == (status == 500)


def test_openai_raises_its_error_classes(address: Address, client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat("hi", temperature=9))
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**(chat("hi") | {"model": "gpt"}))
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="fake", input="a", dimensions=8)
    with serving(key="secret") as guarded, pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{guarded}/v1", api_key="wrong").models.list()


def test_a_late_reply_ends(address: Address, client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**chat("slow", max_tokens=1000))
    assert caught.value.status_code == 504
    with pytest.raises(openai.APIError, match="timeout-seconds"):
        list(client.chat.completions.create(**chat("slow", max_tokens=1000, stream=True)))
    wait_until(lambda: worker_of(address).num_waiting == 0)


def test_images_that_take_too_long_to_decode_end(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, read = list[str](), media.read_data_url

    def read_slowly(url: str, **options: Any) -> Any:
        time.sleep(0.02)
        decoded.append(url)
        return read(url, **options)

    monkeypatch.setattr(media, "read_data_url", read_slowly)
    with serving(timeout_seconds=0.1) as address:
        body = {"model": "fake", "images": [data_url()] * 50}
        reply = HTTP.post(f"{address}/v1/embeddings", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert len(decoded) < 20


def test_a_full_queue_says_when_to_come_back(address: Address, client: openai.OpenAI) -> None:
    streams = [client.chat.completions.create(**chat("slow", max_tokens=60, stream=True)) for _ in range(1)]
    second = threading.Thread(target=lambda: HTTP.post(f"{address}{CHAT}", json=chat("hi")))
    second.start()
    wait_until(lambda: worker_of(address).num_waiting == 2)
    reply = HTTP.post(f"{address}{CHAT}", json=chat("hi"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert HTTP.get(f"{address}/ready").status_code == 503
    assert HTTP.get(f"{address}/health").status_code == 200
    streams[0].close()
    second.join(10)
    assert HTTP.get(f"{address}/ready").status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_stops_its_row(is_streamed: bool) -> None:
    adapter = FakeAdapter()
    with serving(adapter) as address:
        body = json.dumps(chat("slow", max_tokens=1000, stream=is_streamed)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection(address.removeprefix("http://").split(":"))
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: adapter.num_written > 3)
        connection.close()
        wait_until(lambda: worker_of(address).num_waiting == 0, 2)
        count = adapter.num_written
        time.sleep(0.1)
        assert adapter.num_written <= count + 2


def test_prometheus_reads_the_metrics(address: Address, client: openai.OpenAI) -> None:
    before = read_metrics(address)
    client.chat.completions.create(**chat("hi", max_tokens=3))
    list(client.chat.completions.create(**chat("hi", max_tokens=3, stream=True)))
    HTTP.get(f"{address}/nothing/here")
    after = read_metrics(address)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert grown("foveate_requests_total", path=CHAT, status="200") == 2
    assert grown("foveate_requests_total", path="other", status="404") == 1
    assert grown("foveate_tokens_total", model="fake", kind="completion") == 6
    assert grown("foveate_request_seconds_count", path=CHAT) == 2
    assert grown("foveate_request_seconds_bucket", path=CHAT, le="+Inf") == 2
    assert grown("foveate_first_piece_seconds_count", model="fake") == 1
    assert after["foveate_waiting", (("model", "fake"),)] == 0


def read_metrics(address: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(HTTP.get(f"{address}/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("log_content", [False, True])
def test_a_line_of_log_has_no_content(caplog: pytest.LogCaptureFixture, log_content: bool) -> None:
    caplog.set_level(logging.INFO, "foveate.serve")
    with serving(key="a-key", log_content=log_content) as address:
        image = {"type": "image_url", "image_url": {"url": data_url()}}
        headers = {"Authorization": "Bearer a-key"}
        body = chat("a prompt") | {"messages": user(image, "a prompt")}
        reply = HTTP.post(f"{address}{CHAT}?key=in-an-address", json=body, headers=headers)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "foveate.serve"]
    record = json.loads(line)
    assert record["id"] == reply.headers["x-request-id"]
    assert (record["path"], record["status"], record["completion_tokens"]) == (CHAT, 200, 5)
    for text in ("a-key", "in-an-address", data_url()[-40:]):
        assert text not in line
    assert ("a prompt" in line, "word1" in line) == (log_content, log_content)


def test_other_servers_may_run_it() -> None:
    """No lifespan, another transport, a body without a length that is too long."""
    application = Application([FakeAdapter()], ServeSettings(max_body_mb=0.2, allow_host=("testserver",)))

    async def main() -> list[int]:
        transport = httpx2.ASGITransport(application)
        async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
            # Parsed in a thread.
            replies = [await client.post(CHAT, json=chat("x" * 100_000)), await client.get("/ready")]
            replies.append(
                await client.post(CHAT, content=b"x" * 300_000, headers={"content-type": "application/json"})
            )
        await application.answerer.close()
        return [reply.status_code for reply in replies]

    assert asyncio.run(main()) == [200, 200, 413]


def test_a_second_event_loop_is_an_error_and_no_call_that_never_ends() -> None:
    application = Application([FakeAdapter()], ServeSettings())

    async def start() -> None:
        application.answerer.start()
        application.answerer.start()

    asyncio.run(start())
    with raises_naming(RuntimeError, "event loop"):
        asyncio.run(start())


def test_a_server_that_drains_ends_its_streams() -> None:
    import openai

    with serving() as address:
        words: list[list[str]] = []

        def read() -> None:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            stream = client.chat.completions.create(**chat("slow", max_tokens=30, stream=True))
            words.append([chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content])

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: worker_of(address).num_waiting == 3)
        address.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: HTTP.get(f"{address}/ready").status_code == 503)
        reply = HTTP.post(f"{address}{CHAT}", json=chat("hi"))
        assert reply.status_code == 503
        assert "retry-after" in reply.headers
        for thread in threads:
            thread.join(20)
        assert [len(row) for row in words] == [30] * 3
        wait_until(lambda: address.server.should_exit)


def start(**settings: Any) -> tuple[subprocess.Popen[str], int]:
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parents[1] / "src"), str(tests)])
    command = [sys.executable, str(tests / "fakes.py"), json.dumps(settings)]
    # A pipe that nobody reads would fill with lines of log, and stop the server.
    log = tempfile.NamedTemporaryFile("w+", encoding="utf-8", suffix=".log")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    process.stderr = log  # type: ignore[assignment]
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def read_log(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    process.stderr.seek(0)
    return process.stderr.read()


@pytest.mark.slow
def test_signals(tmp_path: Path) -> None:
    import openai

    port_file = tmp_path / "port"
    for signals, status in (([signal.SIGTERM], 0), ([signal.SIGINT], 0), ([signal.SIGTERM] * 2, 128 + signal.SIGTERM)):
        process, port = start(port_file=str(port_file))
        assert int(port_file.read_text()) == port
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        streams = [client.chat.completions.create(**chat("slow", max_tokens=20, stream=True)) for _ in range(8)]
        begin = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        if status == 0:
            assert all(sum(bool(chunk.choices[0].delta.content) for chunk in stream) == 20 for stream in streams)
        assert process.wait(20) == status
        assert status == 0 or time.monotonic() - begin < 2
        assert not port_file.exists()
        assert "Traceback" not in read_log(process)


@pytest.mark.slow
def test_killed_clients_leave_nothing_behind() -> None:
    process, port = start()
    code = (
        "import openai; client = openai.OpenAI(base_url='http://127.0.0.1:%d/v1', api_key='none')\n"
        "for chunk in client.chat.completions.create(model='fake', max_tokens=100000, stream=True,\n"
        "    messages=[{'role': 'user', 'content': 'slow'}]): print('.', flush=True)"
    )
    clients = [
        subprocess.Popen([sys.executable, "-c", code % port], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == ".\n", "a client that never got a token proves nothing"
        client.kill()
        client.wait()
    wait_until(lambda: 'foveate_waiting{model="fake"} 0\n' in HTTP.get(f"http://127.0.0.1:{port}/metrics").text)
    process.terminate()
    assert process.wait(20) == 0
