"""Captioning runs against a server that fails, hangs, limits its load or goes away."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from captioned import ask, image_bytes, make, rows, texts
from PIL import Image

from chat_server import ChatServer, Say, fails, good, image_of, prompt_of, says
from foveate.caption.backends.http import HttpCaptioner
from foveate.caption.captioner import CaptionRequest, CaptionResponse
from foveate.chat.client import ChatSettings
from foveate.core.errors import UserError
from naming import raises_naming


def test_requests_have_the_image_and_the_schema_of_the_format() -> None:
    request = CaptionRequest("p", "ssc", "shorten-1", "Write.", image_bytes(1), "image/jpeg", "", 50, 0.2, 7)

    async def run(server: ChatServer) -> CaptionResponse:
        captioner = HttpCaptioner(ChatSettings(endpoint=(server.url,), model="m", revision="r1"))
        assert (captioner.model, captioner.revision) == ("m", "r1")
        try:
            return await captioner.caption(request)
        finally:
            await captioner.close()

    with ChatServer() as server:
        response = asyncio.run(run(server))
    assert json.loads(response.text)["caption"].startswith("A ")
    assert (response.attempts, response.tokens_in, response.tokens_out, response.error) == (1, 100, 20, "")
    (body,) = server.requests
    assert image_of(body).startswith("data:image/jpeg;base64,")
    assert prompt_of(body) == "Write."
    assert body["response_format"]["json_schema"]["name"] == "shorten"
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["caption"]


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
def test_an_image_that_a_server_refuses_is_sent_once_more_as_a_jpeg(media_type: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, media_type.partition("/")[2])
    request = CaptionRequest("p", "ssc", "ssc-1", "Write.", buffer.getvalue(), media_type, "", 50, 0.2, 7)

    async def run(server: ChatServer) -> CaptionResponse:
        captioner = HttpCaptioner(ChatSettings(endpoint=(server.url,), model="m"))
        try:
            return await captioner.caption(request)
        finally:
            await captioner.close()

    def behave(number: int, body: dict[str, Any]) -> Say:
        refused = media_type == "image/jpeg" or "image/png" in image_of(body)
        return fails(400, "unsupported image format") if refused else says(good(body))

    with ChatServer(behave) as server:
        response = asyncio.run(run(server))
    sent = [image_of(body).partition(";")[0] for body in server.requests]
    assert sent[-1] == "data:image/jpeg"
    assert sent.count("data:image/jpeg") == (len(sent) if media_type == "image/jpeg" else 1)
    assert response.error == ("http_400" if media_type == "image/jpeg" else "")


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
    tally = done.result.to_json()["formats"]["ssc"]
    assert (tally["ok"], tally["skipped"]) == (3, {"stopped before": 5})


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
    assert secret not in out + done.result.model_dump_json()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_no_more_requests_are_in_flight_than_allowed(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 40)
    with ChatServer(lambda number, body: says(good(body), seconds=0.02)) as server:
        ask(collection, server.url, formats=("ssc",), http_concurrency=5)
    assert server.most_in_flight == 5


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
    assert done.result.to_json()["formats"]["ssc"]["ok"] == 150
    assert refused < 400


def test_several_endpoints_share_the_work_and_one_may_be_away(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 60)
    with ChatServer(lambda n, body: says(good(body), seconds=0.01)) as one, ChatServer() as other:
        ask(collection, [one.url, other.url], formats=("ssc",))
        assert len(one.requests) > 5
        assert len(other.requests) > 5
        dead = "http://127.0.0.1:9/v1"
        done = ask(collection, [dead, other.url], formats=("dsc",))
    assert done.result.to_json()["formats"]["dsc"]["ok"] == 60


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
    tally = asking[0].result.to_json()["formats"]
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
    assert done.result.to_json()["formats"]["ssc"]["skipped"] == {"stopped before": 4}


@pytest.mark.slow
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
        for tally in done.result.to_json()["formats"].values():
            assert tally["in"] == tally["ok"] + tally["repaired"] + sum(tally["errors"].values()) == 60
        kinds = {kind for tally in done.result.to_json()["formats"].values() for kind in tally["errors"]}
        assert "refused" in kinds
        assert len(kinds) > 2
        assert sum(tally["repaired"] for tally in done.result.to_json()["formats"].values()) > 5
        assert len(rows(collection)) + len(rows(collection, "caption_errors")) == 240
        server.behave = lambda number, body: says(good(body))
        again = ask(collection, server.url)
        assert all(not tally["errors"] for tally in again.result.to_json()["formats"].values())
        ask(collection, server.url, retry_errors=True)
    assert len(texts(collection)) == 240
