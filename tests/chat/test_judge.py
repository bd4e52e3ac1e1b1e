"""A judge behind a server: its replies bear its name and date, and a request that fails is an error, not a reply."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from chat_server import ChatServer, Say, fails, says
from foveate.chat.judge import ServerJudge
from foveate.chat.protocol import ChatMessage, ChatRequest
from foveate.core.errors import UserError
from naming import raises_naming

REQUESTS = [ChatRequest((ChatMessage(f"number {number}"),), max_tokens=8) for number in range(4)]


def test_replies_bear_the_name_and_the_date_in_the_order_of_requests() -> None:
    with ChatServer(lambda number, body: says(str(body["messages"][0]["content"][0]["text"]))) as server:
        replies = ServerJudge(server.url, "judge-7").ask(REQUESTS)
    assert [reply.text for reply in replies] == [f"number {number}" for number in range(4)]
    assert {reply.judge for reply in replies} == {"judge-7"}
    now = datetime.datetime.now(datetime.UTC).date()
    assert {now - datetime.date.fromisoformat(reply.date) for reply in replies} <= {datetime.timedelta(0)}


@pytest.mark.parametrize(
    ("say", "error"),
    [
        (says("", finish="content_filter"), "refused"),
        (says("late", seconds=60), "timeout"),
        (fails(400), "http_400"),
        (Say(body=b"garbage"), "bad_response"),
    ],
)
def test_a_request_that_fails_is_an_error_of_its_own(say: Say, error: str) -> None:
    def behave(number: int, body: dict[str, Any]) -> Say:
        return say if "number 2" in str(body) else says("fine")

    with ChatServer(behave) as server:
        judge = ServerJudge(server.url, "judge-7", timeout_seconds=2 if say.seconds else 60, attempts=1)
        replies = judge.ask(REQUESTS)
    assert [reply.error for reply in replies] == ["", "", error, ""]


def test_a_judge_without_address_name_or_key_is_refused() -> None:
    with raises_naming(UserError, "--judge-url", "--judge-model"):
        ServerJudge("http://127.0.0.1:1/v1", "")
    with ChatServer(lambda number, body: fails(401)) as server, raises_naming(UserError, "401", "judge-7"):
        ServerJudge(server.url, "judge-7").ask(REQUESTS)
