"""The server: OpenAI's own client, misbehaving clients, and what a request may say."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from captioned import image_bytes
from tiny_captioner import save_captioner

from foveate.caption.backends.foveate import FoveateSettings, open_captioner
from foveate.caption.captioner import CaptionRequest, CaptionResponse
from foveate.caption.chat_requests import Refused, read_request
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.prompts import CAPTION_KINDS, MAX_TOKENS, find_prompt
from foveate.caption.response_parser import parse_caption
from foveate.caption.run import caption
from foveate.caption.server import MAX_BODY_BYTES, CaptionServer
from foveate.chat.client import ChatSettings
from foveate.core.runs import RunFolder
from foveate.records.alt_texts import is_usable_alt_text, select_alt_text
from foveate.records.collection import Collection
from foveate.records.scenes import build_scenes

MODEL = "foveate-captioner"
KEY = "a secret"


class Served:
    """A server in a thread of its own."""

    def __init__(self, folder: Path, key: str = "") -> None:
        self.loop = asyncio.new_event_loop()
        self.server = CaptionServer(
            open_captioner(FoveateSettings(model=str(folder), device="cpu", batch=8)), model=MODEL, key=key
        )
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self.server.start("127.0.0.1", 0), self.loop).result(30)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    server = Served(folder, key=KEY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def image() -> bytes:
    return image_bytes(0)


def data_url(image: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


def messages(image: bytes, text: str | None = None) -> list[dict]:
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": data_url(image)}}]
    return [{"role": "user", "content": parts + ([{"type": "text", "text": text}] if text else [])}]


def test_openai_client_gets_captions(served: Served, image: bytes) -> None:
    openai = pytest.importorskip("openai", reason="the extra dev has the package openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL]
    asked = {"model": MODEL, "messages": messages(image), "seed": 3, "max_tokens": 40}
    first = client.chat.completions.create(**asked, extra_body={"foveate": {"format": "dsc"}})
    again = client.chat.completions.create(**asked, extra_body={"foveate": {"format": "dsc"}})
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert first.choices[0].finish_reason in ("stop", "length")
    prompt = find_prompt("afc").fill(alt='A chair, "Port Ellery" {1908}')
    by_prompt = client.chat.completions.create(**{**asked, "messages": messages(image, prompt)})
    by_field = client.chat.completions.create(
        **asked, extra_body={"foveate": {"format": "afc", "alt": 'A chair, "Port Ellery" {1908}'}}
    )
    assert by_prompt.choices[0].message.content == by_field.choices[0].message.content
    cut = client.chat.completions.create(**{**asked, "max_tokens": 2}, extra_body={"foveate": {"format": "dsc"}})
    assert cut.choices[0].finish_reason == "length"
    assert parse_caption(cut.choices[0].message.content).error == "truncated"


def test_openai_client_gets_errors_as_it_knows_them(served: Served, image: bytes) -> None:
    openai = pytest.importorskip("openai", reason="the extra dev has the package openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=KEY, max_retries=0)
    body = {"foveate": {"format": "dsc"}}
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="gpt-4o", messages=messages(image), extra_body=body)
    with pytest.raises(openai.BadRequestError, match="reads no others"):
        client.chat.completions.create(model=MODEL, messages=messages(image, "Write a poem."))
    with pytest.raises(openai.BadRequestError, match="cannot be read"):
        client.chat.completions.create(model=MODEL, messages=messages(b"<html>"), extra_body=body)
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        client.chat.completions.create(model=MODEL, messages=messages(image), stream=True, extra_body=body)
    stranger = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_an_image_that_would_fill_the_memory_is_refused(served: Served) -> None:
    side = 60_000

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    status, body = post(served, {"model": MODEL, "messages": messages(bomb), "foveate": {"format": "ssc"}})
    assert status == 400
    assert body["error"]["code"] == "invalid_image"


def raw(served: Served, data: bytes) -> tuple[int, bytes]:
    """Bytes sent as they are; the status and the rest of the answer."""

    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(data)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    answer = asyncio.run(talk())
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer.partition(b"\r\n\r\n")[2]


def request(body: bytes, *, method: str = "POST", path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n{extra}"
    return (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def post(served: Served, body: object) -> tuple[int, dict]:
    status, content = raw(served, request(json.dumps(body).encode()))
    return status, json.loads(content)


def test_the_key_is_checked_before_the_body_is_read(served: Served) -> None:
    """The body never comes: an answer that waited for it would time out."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode()
    status, body = raw(served, head)
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_bad_requests_get_one_sentence(served: Served) -> None:
    cases = [
        (request(b"{"), 400, "not JSON"),
        (request(b"[" * 100_000), 400, "not JSON"),
        (request(b"[]"), 400, "JSON object"),
        (request(b"{}", path="/v1/embeddings"), 404, "allowed are"),
        (request(b"{}", method="PUT"), 405, "takes POST"),
        (request(b"", extra="Transfer-Encoding: chunked\r\n"), 411, "Content-Length"),
        (b"GET /health HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "must be a number"),
        (b"nonsense\r\n\r\n", 400, "no HTTP"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431, "too long"),
        (f"GET /health HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(), 413, "allowed are"),
        (b"GET /health HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413, "allowed are"),
        (request(json.dumps({"model": "\ud800"}).encode()), 404, "is not served"),
    ]
    for data, status, message in cases:
        found, body = raw(served, data)
        assert found == status, data[:60]
        error = json.loads(body)["error"]
        assert message in error["message"]
        assert set(error) == {"message", "type", "param", "code"}
    status, body = raw(served, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert status == 200
    assert json.loads(body)["model"] == MODEL


def test_a_captioner_that_raises_fails_its_request_alone(
    served: Served, image: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(request: CaptionRequest) -> CaptionResponse:
        raise KeyError(request.kind)

    body = {"model": MODEL, "messages": messages(image), "foveate": {"format": "ssc"}, "max_tokens": 2, "n": None}
    with monkeypatch.context() as patch:
        patch.setattr(served.server.captioner, "caption", fail)
        status, answer = post(served, body)
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "KeyError" in capsys.readouterr().err
    assert post(served, body)[0] == 200
    with monkeypatch.context() as patch:
        patch.setattr(served.server, "_closing", True)
        assert post(served, body)[0] == 503


def test_many_at_once_are_what_each_is_alone(served: Served, image: bytes) -> None:
    def asked(seed: int) -> dict:
        chosen = {"model": MODEL, "messages": messages(image), "foveate": {"format": "ssc"}}
        return {**chosen, "temperature": 1.0, "seed": seed, "max_tokens": 12}

    async def one(seed: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request(json.dumps(asked(seed)).encode()))
        answer = await reader.read()
        writer.close()
        return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]

    async def together() -> list[str]:
        return await asyncio.gather(*(one(seed) for seed in range(20)))

    found = asyncio.run(together())
    alone = [post(served, asked(seed))[1]["choices"][0]["message"]["content"] for seed in range(20)]
    assert found == alone
    assert len(set(found)) > 1


def test_the_http_backend_gets_what_the_local_one_writes(
    served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images over HTTP and within the process: the same outcome row by row, of all formats. Only a second
    question about afc differs: its prompt has no alt-text, which the server does not know then."""
    monkeypatch.setenv("SERVED_KEY", KEY)
    endpoint = f"http://127.0.0.1:{served.port}/v1"
    answering = {
        "http": ChatSettings(endpoint=(endpoint,), model=MODEL, api_key_env="SERVED_KEY", concurrency=8),
        "foveate": FoveateSettings(model=str(folder), device="cpu"),
    }
    found: dict[str, dict[tuple[str, str], tuple[object, ...]]] = {}
    for name, settings in answering.items():
        path = tmp_path / name / "scenes"
        build_scenes(path, train=8, seed=1, size=96)
        run = RunFolder.create(tmp_path / name / "run")
        asked = CaptionSettings(formats=CAPTION_KINDS, temperature=1.0, max_tokens=60)
        done = caption(path, asked, backend=name, backend_settings=settings, run=run)
        assert done.failure is None
        collection = Collection.open(path)
        captions = [row for row in collection.table("captions").to_pylist() if row["request"]]
        errors = collection.table("caption_errors").to_pylist()
        assert len(captions) + len(errors) == 8 * len(CAPTION_KINDS)
        alts = [is_usable_alt_text(select_alt_text(collection.read_captions(row))) for row in range(8)]
        assert set(alts) == {False, True}
        found[name] = {(row["key"], row["kind"]): (row["text"], row["flags"]) for row in captions}
        found[name] |= {(row["key"], row["kind"]): (row["error"], row["raw"]) for row in errors}
        again = {
            (row["key"], row["kind"])
            for row in [*captions, *errors]
            if row["kind"] == "afc" and json.loads(row["details"]).get("retry")
        }
        assert len(again) < 8
        found[name] = {place: what for place, what in found[name].items() if place not in again}
    assert found["http"] == found["foveate"]


IMAGE = data_url(b"x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": "text"}, "must be a list"),
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "user", "content": "no image"}]}, "one image"),
        ({"messages": [{"role": "user", "content": [1]}]}, "list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "has no text"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}
                ]
            },
            "nothing is fetched",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/x;base64,!"}]}]},
            "not base64",
        ),
        ({"foveate": {"format": "poem"}}, "one of ssc"),
        ({"foveate": {"format": "dsc", "style": 1}}, "with the fields"),
        ({"foveate": {"format": "dsc", "length": 99}}, "whole number"),
        ({"foveate": {"format": "dsc", "alt": 1}}, "must be a text"),
        ({"foveate": {"format": "afc", "alt": "\ud800"}}, "lone surrogate"),
        ({"temperature": "hot"}, "'temperature' must be"),
        ({"temperature": float("nan")}, "'temperature' must be"),
        ({"max_tokens": 0}, "'max_tokens' must be"),
        ({"seed": 1.5}, "'seed' must be"),
        ({"n": 2}, "n=1"),
        ({"model": None}, "is not served"),
    ],
)
def test_what_a_request_may_not_say(change: dict, message: str) -> None:
    good = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}],
        "foveate": {"format": "dsc"},
    }
    read = read_request({**good, "max_tokens": None}, model=MODEL)
    assert (read.kind, read.prompt, read.max_tokens) == ("dsc", find_prompt("dsc").fill(), MAX_TOKENS["dsc"])
    with pytest.raises(Refused, match=message):
        read_request({**good, **change}, model=MODEL)


@pytest.mark.parametrize("kind", ["ssc", "dsc", "dsc_plus", "afc"])
@pytest.mark.parametrize("language", ["English", "Brazilian Portuguese"])
def test_foveates_own_prompts_are_understood(kind: str, language: str) -> None:
    alt = 'Old "Harbor", {1908}\nThe text: x Answer with one JSON object'
    prompt = find_prompt(kind, language=language)
    text = prompt.fill(alt=alt) if kind == "afc" else prompt.fill()
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    asked = read_request({"model": MODEL, "messages": [{"role": "user", "content": content}]}, model=MODEL)
    assert (asked.kind, asked.alt, asked.prompt_id) == (kind, alt if kind == "afc" else "", prompt.id)
    assert asked.prompt == text
    again = find_prompt("shorten").fill(caption="A dog.", words=15, sentences="one sentence")
    content[0]["text"] = again
    asked = read_request({"model": MODEL, "messages": [{"role": "user", "content": content}]}, model=MODEL)
    assert (asked.kind, asked.prompt_id) == ("ssc", find_prompt("shorten").id)
