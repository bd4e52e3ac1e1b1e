"""The HTTP backend against a server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from captioned import ask, image_bytes, make, rows, texts
from chat_server import ChatServer, Say, fails, good, image_of, says

from foveate.caption.backends._endpoints import Endpoint, Endpoints
from foveate.caption.backends._replies import read_reply, retry_after
from foveate.caption.backends.http import HttpCaptioner, HttpSettings, chat_url
from foveate.caption.captioner import CaptionAnswer, CaptionRequest
from foveate.core.errors import UserError
from naming import raises_naming

REQUEST = CaptionRequest("p", "ssc", "ssc-1", "Write.", image_bytes(1), "image/jpeg", "", 50, 0.2, 7)
QUICK: dict[str, Any] = {"model": "m", "backoff_seconds": 0.01, "timeout_seconds": 1.0}


def once(server: ChatServer, **given: Any) -> CaptionAnswer:
    """One request to a server."""

    async def run() -> CaptionAnswer:
        captioner = HttpCaptioner(HttpSettings(**{"endpoint": server.url, **QUICK, **given}))
        try:
            return await captioner.caption(REQUEST)
        finally:
            await captioner.close()

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


def test_a_server_that_hangs_is_given_up_after_two_timeouts() -> None:
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
    assert read_reply(200, {}, json.dumps({"choices": [{"message": {"content": parts}}]}).encode()).text == "a b"
    assert read_reply(200, {}, b'{"choices": [{"message": {"content": null}}], "usage": null}').text == ""
    odd = b'{"choices": [{"message": {"content": 5}}], "usage": {"prompt_tokens": "x", "completion_tokens": true}}'
    assert read_reply(200, {}, odd).tokens_in == read_reply(200, {}, odd).tokens_out == 0


def test_a_response_without_end_is_refused() -> None:
    with ChatServer(lambda number, body: says("x" * (2**20 + 10))) as server:
        answer = once(server)
    assert (answer.error, answer.final) == ("response_too_large", True)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run_in_one_sentence(tmp_path: Path, status: int) -> None:
    collection = make(tmp_path / "c", 8)

    def behave(number: int, body: dict[str, Any]) -> Say:
        return says(good(body)) if number < 3 else fails(status, "no such model")

    with ChatServer(behave) as server:
        done = ask(collection, server.url, formats=("ssc",), http_concurrency=1)
    assert f"HTTP {status} for the model 'm'" in str(done.failure)
    assert "no such model" in str(done.failure)
    assert len(rows(collection)) == 3
    tally = done.result["formats"]["ssc"]
    assert (tally["ok"], tally["skipped"]) == (3, {"stopped before": 5})


def test_a_schema_is_left_out_for_servers_that_take_none() -> None:
    def behave(number: int, body: dict[str, Any]) -> Say:
        return fails(400, "unknown field response_format") if "response_format" in body else says(good(body))

    async def run(server: ChatServer) -> None:
        captioner = HttpCaptioner(HttpSettings(endpoint=(server.url,), **QUICK))
        for _ in range(3):
            assert not (await captioner.caption(REQUEST)).error
        await captioner.close()

    with ChatServer(behave) as server:
        asyncio.run(run(server))
        assert ["response_format" in body for body in server.requests] == [True, False, False, False]
        server.requests.clear()
        once(server, structured="never")
        assert ["response_format" in body for body in server.requests] == [False]


def test_a_key_comes_from_the_environment_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-123"
    collection = make(tmp_path / "c", 2)
    with ChatServer() as server:
        with raises_naming(UserError, "MY_KEY"):
            ask(collection, server.url, http_api_key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", secret)
        ask(collection, server.url, http_api_key_env="MY_KEY")
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {secret}".lower()}
        server.behave = lambda number, body: fails(401, f"wrong key {secret}")
        done = ask(collection, server.url, http_api_key_env="MY_KEY", http_model="n")
        assert "wrong key ***" in str(done.failure)
    out = "".join(capfd.readouterr())
    assert secret not in out + json.dumps(done.result)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


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
    assert retry_after("7") == 7.0
    assert retry_after(" 1.5 ") == 1.5
    assert retry_after("999999") == 600.0
    assert 3 < retry_after(formatdate(time.time() + 5, usegmt=True)) <= 5
    assert retry_after(formatdate(time.time() - 50, usegmt=True)) == 0.0
    for nonsense in ("", "soon", "-3", "Mon, 99 Foo", "1e9", "\u0663"):
        assert retry_after(nonsense) == 0.0


def test_no_more_requests_are_in_flight_than_allowed(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 40)
    with ChatServer(lambda number, body: says(good(body), seconds=0.02)) as server:
        ask(collection, server.url, formats=("ssc",), http_concurrency=5)
    assert server.most_in_flight == 5


def test_connections_are_used_again() -> None:
    """One client for each request in flight, and no more, however many requests there are."""
    with ChatServer(lambda number, body: says(good(body), seconds=0.005)) as server:

        async def run() -> tuple[int, int]:
            captioner = HttpCaptioner(HttpSettings(endpoint=(server.url,), model="m", concurrency=4))
            found = await asyncio.gather(*(captioner.caption(REQUEST) for _ in range(40)))
            assert not [one.error for one in found if one.error]
            clients = len(captioner._clients.all)
            await captioner.close()
            return clients, len(captioner._clients.all)

        assert asyncio.run(run()) == (4, 0)
        assert server.connections == 4


def test_a_server_that_takes_few_at_a_time_gets_few(tmp_path: Path) -> None:
    """It refuses more than four at once; the limit settles near that, and all rows arrive.

    With 32 in flight all the time, each answer would cost about seven refusals, 1,050 in all.
    """
    collection = make(tmp_path / "c", 150)
    refused = 0

    def behave(number: int, body: dict[str, Any]) -> Say:
        nonlocal refused
        if server.in_flight > 4:
            refused += 1
            return fails(429)
        return says(good(body), seconds=0.01)

    with ChatServer(behave) as server:
        done = ask(collection, server.url, formats=("ssc",), http_concurrency=32, http_attempts=12)
    assert done.result["formats"]["ssc"]["ok"] == 150
    assert refused < 400


def test_limits_rise_and_are_halved_once_per_round_trip() -> None:
    endpoint = Endpoint("http://x", 16)
    endpoint.answered(1.0)
    assert endpoint.limit == 16
    endpoint.overloaded()
    endpoint.overloaded()
    assert endpoint.limit == 8
    for _ in range(8):
        endpoint.answered(1.0)
    assert 8.9 < endpoint.limit < 9.1
    endpoint.cut_at = -1e9
    for _ in range(10):
        endpoint.overloaded()
        endpoint.cut_at = -1e9
    assert endpoint.limit == 1.0


def test_places_are_given_to_the_endpoint_that_is_least_busy_and_to_all_who_wait() -> None:
    async def run() -> None:
        places = Endpoints(["a", "b"], most=2)
        taken = [await places.take() for _ in range(4)]
        assert sorted(one.url for one in taken) == ["a", "a", "b", "b"]
        waiting = [asyncio.create_task(places.take()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        waiting[1].cancel()
        for one in taken[:2]:
            places.give_back(one)
        done, left = await asyncio.wait(waiting, timeout=1)
        assert not left
        assert len([task for task in done if not task.cancelled()]) == 2
        places.all[0].close_for(0.1)
        places.all[1].close_for(0.1)
        for one in taken[2:]:
            places.give_back(one)
        began = time.monotonic()
        await places.take()
        assert time.monotonic() - began >= 0.09

    asyncio.run(run())


def test_several_endpoints_share_the_work_and_one_may_be_away(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 60)
    with ChatServer(lambda n, body: says(good(body), seconds=0.01)) as one, ChatServer() as other:
        ask(collection, [one.url, other.url], formats=("ssc",))
        assert len(one.requests) > 5
        assert len(other.requests) > 5
        dead = "http://127.0.0.1:9/v1"
        done = ask(collection, [dead, other.url], formats=("dsc",))
    assert done.result["formats"]["dsc"]["ok"] == 60


def test_an_answer_to_somebody_else_is_held_against_a_request_once() -> None:
    """Another request is answered while this one is refused, and then the server goes away for longer than the tries
    of one request: it is waited for."""

    async def run() -> CaptionAnswer:
        def behave(number: int, body: Any) -> Say:
            if number == 0:
                captioner.endpoints.succeeded()
            return fails(502) if number < 12 else says(good(body))

        with ChatServer(behave) as server:
            captioner = HttpCaptioner(HttpSettings(endpoint=(server.url,), attempts=3, **QUICK))
            try:
                return await captioner.caption(REQUEST)
            finally:
                await captioner.close()

    answer = asyncio.run(run())
    assert (answer.error, answer.attempts) == ("", 13)


def test_a_server_that_is_away_for_seconds_costs_nothing(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 60)
    with ChatServer(lambda n, body: says(good(body), seconds=0.05)) as server:
        port = server.port
        asking: list[Any] = []
        thread = threading.Thread(target=lambda: asking.append(ask(collection, server.url)))
        thread.start()
        while len(server.requests) < 30:
            time.sleep(0.01)
    time.sleep(2.0)
    with ChatServer(port=port):
        thread.join(60)
    tally = asking[0].result["formats"]
    assert {kind: one["ok"] for kind, one in tally.items()} == dict.fromkeys(tally, 60)
    assert len(texts(collection)) == 240


def test_a_server_that_stays_away_ends_the_run_after_some_patience(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 4)
    began = time.monotonic()
    done = ask(collection, "http://127.0.0.1:9", http_patience_seconds=0.3)
    assert time.monotonic() - began < 10
    assert "http://127.0.0.1:9/v1/chat/completions cannot be reached for" in str(done.failure)
    assert not rows(collection)
    assert not rows(collection, "caption_errors")
    assert done.result["formats"]["ssc"]["skipped"] == {"stopped before": 4}


def test_all_at_once(tmp_path: Path) -> None:
    """429s, 500s, hangs, cuts, closed connections, refusals and prose: each row is accounted for, and a second run with
    a good server mends what can be mended."""
    collection = make(tmp_path / "c", 60)

    def behave(number: int, body: dict[str, Any]) -> Say:
        chance = (number * 2654435761 % 2**32) // 2**20 % 12
        choices = {
            0: fails(429, retry_after="0.05"),
            1: fails(500),
            2: says("x", seconds=1.0),
            3: Say(body=says(good(body)).body, cut=True),
            4: Say(close=True),
            5: says("I'm sorry, I cannot."),
            6: says(f"Here you go:\n{good(body)}"),
            7: Say(body=b'{"choices'),
        }
        return choices.get(chance, says(good(body)))

    with ChatServer(behave) as server:
        done = ask(collection, server.url, http_timeout_seconds=0.4, http_attempts=2)
        for tally in done.result["formats"].values():
            assert tally["in"] == tally["ok"] + tally["repaired"] + sum(tally["errors"].values()) == 60
        kinds = {kind for tally in done.result["formats"].values() for kind in tally["errors"]}
        assert "refused" in kinds
        assert len(kinds) > 2
        assert sum(tally["repaired"] for tally in done.result["formats"].values()) > 5
        assert len(rows(collection)) + len(rows(collection, "caption_errors")) == 240
        server.behave = lambda number, body: says(good(body))
        again = ask(collection, server.url)
        assert all(not tally["errors"] for tally in again.result["formats"].values())
        ask(collection, server.url, retry_errors=True)
    assert len(texts(collection)) == 240


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/v1/", "http://host:8000/v1/chat/completions"),
        ("https://host/api/chat/completions", "https://host/api/chat/completions"),
        ("https://host/openai", "https://host/openai/chat/completions"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert chat_url(given) == url


@pytest.mark.parametrize(
    "given", ["host:8000", "ftp://host", "http://", "http://me:secret@host", "http://h/v1?key=secret"]
)
def test_addresses_that_are_none(given: str) -> None:
    with raises_naming(UserError, "--endpoint") as caught:
        chat_url(given)
    assert "secret" not in str(caught.value)
