"""The chat client against a server that fails, hangs, limits its load or goes away."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Say, fails, good, image_of, says
from foveate.chat.client import ChatClient, ChatSettings, Endpoint, Endpoints, chat_url, parse_reply, parse_retry_after
from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ChatResponse, ResponseSchema
from foveate.core.errors import UserError
from naming import raises_naming

SCHEMA = ResponseSchema("ssc", {"type": "object", "required": ["caption"]})
IMAGE = ChatImage(b"bytes of an image", "image/jpeg")
REQUEST = ChatRequest((ChatMessage("Write.", (IMAGE,)),), 50, 0.2, 7, SCHEMA)
QUICK: dict[str, Any] = {"model": "m", "backoff_seconds": 0.01, "timeout_seconds": 1.0}


def once(server: ChatServer, **options: Any) -> ChatResponse:
    """One request to a server."""

    async def run() -> ChatResponse:
        client = ChatClient(ChatSettings(**{"endpoint": server.url, **QUICK, **options}))
        try:
            return await client.complete(REQUEST)
        finally:
            await client.close()

    return asyncio.run(run())


def after(count: int, first: Say) -> Any:
    """A server that does one thing `count` times and answers well from then on."""
    return lambda number, body: first if number < count else says(good(body))


def test_what_is_sent() -> None:
    with ChatServer() as server:
        answer = once(server, extra_body={"top_p": 0.5})
    assert json.loads(answer.text)["caption"].startswith("A ")
    assert (answer.attempts, answer.tokens_in, answer.tokens_out, answer.error) == (1, 100, 20, "")
    assert answer.latency_ms > 0
    (body,) = server.requests
    assert image_of(body).startswith("data:image/jpeg;base64,")
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["caption"]
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "seed", "top_p")} == {
        "model": "m",
        "max_tokens": 50,
        "temperature": 0.2,
        "seed": 7,
        "top_p": 0.5,
    }
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_passing_errors_are_tried_again(status: int) -> None:
    with ChatServer(after(2, fails(status))) as server:
        answer = once(server)
    assert not answer.error
    assert answer.attempts == 3


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 503, "message": "the model is loading"}},
        {"error": {"code": "503"}, "choices": []},
        {"id": "x", "choices": [{"error": {"code": 503}, "finish_reason": "error", "message": {"content": ""}}]},
    ],
)
def test_an_error_inside_a_response_is_that_error(body: dict[str, Any]) -> None:
    reply = parse_reply(200, {"retry-after": "7"}, json.dumps(body).encode())
    assert (reply.error, reply.wait) == ("http_503", 7)
    assert (reply.retry, reply.overload, reply.unreachable) == (True, True, True)
    with ChatServer(after(2, Say(body=json.dumps(body).encode()))) as server:
        answer = once(server)
    assert (answer.error, answer.attempts) == ("", 3)


@pytest.mark.parametrize("code", ["rate_limit_exceeded", 200, 50300, True, None, [503]])
def test_other_codes_inside_a_response_are_no_status(code: Any) -> None:
    reply = parse_reply(200, {}, json.dumps({"error": {"code": code}}).encode())
    assert (reply.error, reply.retry) == ("bad_response", True)


def test_a_response_with_text_beside_an_empty_error_is_one() -> None:
    body = {"error": None, "model": "other", "choices": [{"error": None, "message": {"content": "a fox"}}]}
    reply = parse_reply(200, {}, json.dumps(body).encode())
    assert (reply.text, reply.error, reply.model) == ("a fox", "", "other")


@pytest.mark.parametrize(
    ("name", "kept"), [("llama", "llama"), (5, ""), (None, ""), ("x" * 999, "x" * 200), ("\ud800", "?")]
)
def test_who_answered_is_kept(name: Any, kept: str) -> None:
    body = {"model": name, "choices": [{"message": {"content": "a fox"}}]}
    assert parse_reply(200, {}, json.dumps(body).encode()).model == kept


@pytest.mark.parametrize(
    ("first", "attempts"),
    [
        (Say(close=True), 3),
        (Say(body=says("x").body, cut=True), 3),
        (Say(body=b'{"choices": [{"mess'), 3),
        (Say(body=b"[]"), 3),
        (Say(body=b"<html>hello</html>"), 3),
        (Say(body=b'{"choices": []}'), 3),
    ],
    ids=["closed", "cut", "truncated", "a list", "html", "no choice"],
)
def test_broken_responses_are_tried_again(first: Say, attempts: int) -> None:
    with ChatServer(after(2, first)) as server:
        answer = once(server)
    assert (answer.error, answer.attempts) == ("", attempts)


def test_two_timeouts_of_a_server_that_hangs_are_an_error() -> None:
    with ChatServer(after(1, says("x", seconds=30))) as server:
        assert once(server, timeout_seconds=0.2).attempts == 2
        server.behave = after(10**6, says("x", seconds=30))
        answer = once(server, timeout_seconds=0.2)
    assert (answer.error, answer.final, answer.attempts) == ("timeout", False, 2)


@pytest.mark.parametrize(("status", "error"), [(500, "http_500"), (429, "http_429")])
def test_errors_that_stay_are_no_final_ones(status: int, error: str) -> None:
    with ChatServer(lambda number, body: fails(status)) as server:
        answer = once(server, attempts=3)
    assert (answer.error, answer.final, answer.attempts) == (error, False, 3)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_final(status: int) -> None:
    with ChatServer(lambda number, body: fails(status, "the image is bad")) as server:
        answer = once(server)
    assert (answer.error, answer.final) == (f"http_{status}", True)
    assert "the image is bad" in answer.text


def test_refusals_in_their_own_fields() -> None:
    with ChatServer(lambda number, body: says("", refusal="I won't.")) as server:
        assert once(server).error == "refused"
        server.behave = lambda number, body: says("x", finish="content_filter")
        assert (once(server).error, once(server).final) == ("refused", True)


def test_content_in_parts_and_absent() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert parse_reply(200, {}, json.dumps({"choices": [{"message": {"content": parts}}]}).encode()).text == "a b"
    assert parse_reply(200, {}, b'{"choices": [{"message": {"content": null}}], "usage": null}').text == ""
    mixed = [{"type": "text", "text": "a "}, {"type": "text", "text": 5}]
    reply = parse_reply(200, {}, json.dumps({"choices": [{"message": {"content": mixed}}]}).encode())
    assert (reply.error, reply.retry) == ("bad_response", True)
    odd = b'{"choices": [{"message": {"content": 5}}], "usage": {"prompt_tokens": "x", "completion_tokens": true}}'
    assert parse_reply(200, {}, odd).tokens_in == parse_reply(200, {}, odd).tokens_out == 0


def test_a_response_without_end_is_refused() -> None:
    with ChatServer(lambda number, body: says("x" * (2**20 + 10))) as server:
        answer = once(server)
    assert (answer.error, answer.final) == ("response_too_large", True)


def test_a_schema_is_left_out_for_servers_that_take_none() -> None:
    def behave(number: int, body: dict[str, Any]) -> Say:
        return fails(400, "unknown field response_format") if "response_format" in body else says(good(body))

    async def run(server: ChatServer) -> None:
        client = ChatClient(ChatSettings(endpoint=(server.url,), **QUICK))
        for _ in range(3):
            assert not (await client.complete(REQUEST)).error
        await client.close()

    with ChatServer(behave) as server:
        asyncio.run(run(server))
        assert ["response_format" in body for body in server.requests] == [True, False, False, False]
        server.requests.clear()
        once(server, structured="never")
        assert ["response_format" in body for body in server.requests] == [False]


def test_no_credentials_of_a_netrc_file_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ChatServer() as server:
        once(server)
    assert "authorization" not in server.headers[0]


def test_retry_after_is_respected() -> None:
    times: list[float] = []

    def behave(number: int, body: dict[str, Any]) -> Say:
        times.append(time.monotonic())
        return fails(429, retry_after="0.7") if number == 0 else says(good(body))

    with ChatServer(behave) as server:
        assert not once(server).error
    assert times[1] - times[0] >= 0.7


def test_retry_after_in_all_its_forms() -> None:
    assert parse_retry_after("7") == 7.0
    assert parse_retry_after(" 1.5 ") == 1.5
    assert parse_retry_after("999999") == 600.0
    assert 3 < parse_retry_after(formatdate(time.time() + 5, usegmt=True)) <= 5
    assert parse_retry_after(formatdate(time.time() + 5000, usegmt=True)) == 600.0
    assert parse_retry_after(formatdate(time.time() - 50, usegmt=True)) == 0.0
    for nonsense in ("", "soon", "-3", "Mon, 99 Foo", "1e9", "\u0663"):
        assert parse_retry_after(nonsense) == 0.0


def test_connections_are_used_again() -> None:
    """One client for each request in flight, and no more, however many requests there are."""
    with ChatServer(lambda number, body: says(good(body), seconds=0.005)) as server:

        async def run() -> tuple[int, int]:
            client = ChatClient(ChatSettings(endpoint=(server.url,), model="m", concurrency=4))
            responses = await asyncio.gather(*(client.complete(REQUEST) for _ in range(40)))
            assert not [response.error for response in responses if response.error]
            clients = len(client.pool.clients)
            await client.close()
            return clients, len(client.pool.clients)

        assert asyncio.run(run()) == (4, 0)
        assert server.connections == 4


def test_limits_rise_and_are_halved_once_per_round_trip() -> None:
    endpoint = Endpoint("http://x", 16)
    endpoint.record_response(1.0)
    assert endpoint.limit == 16
    endpoint.record_overload()
    endpoint.record_overload()
    assert endpoint.limit == 8
    for _ in range(8):
        endpoint.record_response(1.0)
    assert 8.9 < endpoint.limit < 9.1
    endpoint.halved_at = -1e9
    for _ in range(10):
        endpoint.record_overload()
        endpoint.halved_at = -1e9
    assert endpoint.limit == 1.0


def test_slots_go_to_the_endpoint_that_is_least_busy_and_to_all_who_wait() -> None:
    async def run() -> None:
        endpoints = Endpoints(["a", "b"], max_requests=2)
        taken = [await endpoints.acquire() for _ in range(4)]
        assert sorted(response.url for response in taken) == ["a", "a", "b", "b"]
        waiting = [asyncio.create_task(endpoints.acquire()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        waiting[1].cancel()
        for response in taken[:2]:
            endpoints.release(response)
        done, left = await asyncio.wait(waiting, timeout=1)
        assert not left
        assert len([task for task in done if not task.cancelled()]) == 2
        endpoints.endpoints[0].pause(0.1)
        endpoints.endpoints[1].pause(0.1)
        for response in taken[2:]:
            endpoints.release(response)
        began = time.monotonic()
        await endpoints.acquire()
        assert time.monotonic() - began >= 0.09

    asyncio.run(run())


def test_a_response_to_another_request_counts_as_one_failed_try() -> None:
    """Another request is answered while this one is refused, and then the server goes away for longer than the tries
    of one request: it is waited for."""

    async def run() -> ChatResponse:
        def behave(number: int, body: Any) -> Say:
            if number == 0:
                client.endpoints.record_success()
            return fails(502) if number < 7 else says(good(body))

        with ChatServer(behave) as server:
            client = ChatClient(ChatSettings(endpoint=(server.url,), attempts=3, **QUICK))
            try:
                return await client.complete(REQUEST)
            finally:
                await client.close()

    answer = asyncio.run(run())
    assert (answer.error, answer.attempts) == ("", 8)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/v1/", "http://host:8000/v1/chat/completions"),
        ("https://host/api/chat/completions", "https://host/api/chat/completions"),
        ("https://host/openai", "https://host/openai/chat/completions"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert chat_url(address) == url


@pytest.mark.parametrize(
    "address", ["host:8000", "ftp://host", "http://", "http://me:secret@host", "http://h/v1?key=secret"]
)
def test_addresses_that_are_none(address: str) -> None:
    with raises_naming(UserError, "--endpoint") as caught:
        chat_url(address)
    assert "secret" not in str(caught.value)


def test_a_key_that_a_server_repeats_is_hidden_even_where_its_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-123")
    # The message is cut to 300 characters, which falls into the key.
    with (
        ChatServer(lambda number, body: fails(401, "x" * 270 + " key sk-very-secret-123")) as server,
        pytest.raises(UserError) as caught,
    ):
        once(server, api_key_env="MY_KEY")
    assert "xxx" in str(caught.value)
    assert "sk-" not in str(caught.value)
