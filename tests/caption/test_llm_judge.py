"""Splitting and judging by a chat model: prompts, answers that cannot be read, and how many are asked at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from foveate.caption.audit import audit
from foveate.caption.judges import LlmJudge, llm_method
from foveate.caption.settings import AuditSettings
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatRequest, ChatResponse
from foveate.core.errors import UserError
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.collection import Collection
from naming import raises_naming


class Scripted(ChatClient):
    """Answers `split` with the words of the caption and `verify` by a rule; counts what is in flight."""

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        super().__init__(ChatSettings(model="judge-1"))
        self.concurrency = 3
        self.answers = answers or {}
        self.most = self.now = self.closed = 0
        self.requests: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> ChatResponse:
        assert request.schema is not None
        purpose, (message,) = request.schema.name, request.messages
        self.requests.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if purpose in self.answers:
            text = self.answers[purpose]
            return ChatResponse(text) if text else ChatResponse(error="timeout")
        if purpose == "split":
            said = json.loads('"' + message.text.split('as a JSON string: "', 1)[1].split('" Split', 1)[0] + '"')
            return ChatResponse(json.dumps({"assertions": said.split()}))
        listed = json.loads("[" + message.text.split("a JSON list: [", 1)[1].split("]", 1)[0] + "]")
        return ChatResponse(json.dumps({"verdicts": [SUPPORTED if "e" in one else CONTRADICTED for one in listed]}))

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


def test_captions_are_split_and_judged_with_their_image(collection: Collection) -> None:
    client = Scripted()
    judge = LlmJudge(client, collection)
    rows = list(range(8))
    assert judge.split(rows, ["red disc"] * 7 + [""]) == [["red", "disc"]] * 7 + [[]]
    assert judge.judge(rows[:2], [["red", "disc"], []]) == [[SUPPORTED, CONTRADICTED], []]
    assert client.most == client.concurrency
    assert client.closed == 2
    assert all(request.messages[0].images[0].media_type == "image/png" for request in client.requests)
    assert judge.failed == {"split": 0, "verify": 0}
    assert "judge-1" in judge.definition
    assert "split-" in judge.splitter_name


@pytest.mark.parametrize("answer", ["", "no JSON", '{"assertions": 3}', '{"verdicts": ["supported"]}'])
def test_answers_that_cannot_be_read_are_counted(collection: Collection, answer: str) -> None:
    judge = LlmJudge(Scripted({"split": answer, "verify": answer}), collection)
    assert judge.split([0], ["A red disc. A blue square."]) == [["A red disc", "A blue square"]]
    assert judge.judge([0], [["A red disc", "A blue square"]]) == [[UNVERIFIABLE, UNVERIFIABLE]]
    assert judge.failed == {"split": 1, "verify": 1}


def test_no_request_for_a_broken_image(tmp_path: Path) -> None:
    from tiny import damage, make_collection

    path = make_collection(tmp_path / "damaged")
    damage(path, "test-00")
    collection = Collection.open(path)
    client = Scripted()
    assert LlmJudge(client, collection).judge([collection.find_row("test-00")], [["x"]]) == [[UNVERIFIABLE]]
    assert not client.requests


def test_an_audit_with_a_chat_model(collection: Collection, tmp_path: Path) -> None:
    from foveate.caption.audit import AuditMethod

    judge = LlmJudge(Scripted(), collection)
    method = AuditMethod(judge.split, judge.splitter_name, judge=judge.judge, judge_definition=judge.definition)
    result = audit(collection, tmp_path, AuditSettings(formats=("alt",), sample=5), method).to_json()
    metrics = result["metrics"]["images"][0]
    assert metrics["assertions"]["n_assertions"] > 5
    assert "judge-1" in result["splitter"]
    assert "judge-1" in result["judges"]["images"]["definition"]


def test_a_wrong_endpoint_is_refused(collection: Collection) -> None:
    with raises_naming(UserError, "--judge-url"):
        llm_method(collection, "ftp://x", "m")
