"""Splitting and judging by a captioner: prompts, answers that cannot be read, and how many are asked at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from foveate.caption.assertions.served import Served, served_method
from foveate.caption.audit import Question, audit
from foveate.caption.audit_numbers import Units
from foveate.caption.captioner import CaptionAnswer, CaptionRequest
from foveate.core.errors import UserError
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.collection import Collection
from naming import raises_naming


class Scripted:
    """Answers `split` with the words of the caption and `verify` by a rule; counts what is in flight."""

    name, model, revision, concurrency = "scripted", "judge-1", "", 3

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.answers = answers or {}
        self.most = self.now = self.closed = 0
        self.requests: list[CaptionRequest] = []

    async def caption(self, request: CaptionRequest) -> CaptionAnswer:
        self.requests.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if request.kind in self.answers:
            text = self.answers[request.kind]
            return CaptionAnswer(text) if text else CaptionAnswer(error="timeout")
        if request.kind == "split":
            said = json.loads('"' + request.prompt.split('as a JSON string: "', 1)[1].split('" Split', 1)[0] + '"')
            return CaptionAnswer(json.dumps({"assertions": said.split()}))
        listed = json.loads("[" + request.prompt.split("a JSON list: [", 1)[1].split("]", 1)[0] + "]")
        return CaptionAnswer(json.dumps({"verdicts": [SUPPORTED if "e" in one else CONTRADICTED for one in listed]}))

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


def test_captions_are_split_and_judged_with_their_image(collection: Collection) -> None:
    captioner = Scripted()
    served = Served(captioner, collection)
    rows = list(range(8))
    assert served.split(rows, ["red disc"] * 7 + [""]) == [["red", "disc"]] * 7 + [[]]
    assert served.judge(rows[:2], [["red", "disc"], []]) == [[SUPPORTED, CONTRADICTED], []]
    assert captioner.most == captioner.concurrency
    assert captioner.closed == 2
    assert all(request.image and request.media_type == "image/png" for request in captioner.requests)
    assert served.failed == {"split": 0, "verify": 0}
    assert "judge-1" in served.definition
    assert "split-" in served.splitter_name


@pytest.mark.parametrize("answer", ["", "no JSON", '{"assertions": 3}', '{"verdicts": ["supported"]}'])
def test_answers_that_cannot_be_read_are_counted(collection: Collection, answer: str) -> None:
    served = Served(Scripted({"split": answer, "verify": answer}), collection)
    assert served.split([0], ["A red disc. A blue square."]) == [["A red disc", "A blue square"]]
    assert served.judge([0], [["A red disc", "A blue square"]]) == [[UNVERIFIABLE, UNVERIFIABLE]]
    assert served.failed == {"split": 1, "verify": 1}


def test_a_broken_image_is_not_asked_about(tmp_path: Path) -> None:
    from tiny import damage, make_collection

    path = make_collection(tmp_path / "damaged")
    damage(path, "test-00")
    collection = Collection.open(path)
    captioner = Scripted()
    assert Served(captioner, collection).judge([collection.row_of("test-00")], [["x"]]) == [[UNVERIFIABLE]]
    assert not captioner.requests


def test_an_audit_with_it(collection: Collection, tmp_path: Path) -> None:
    from foveate.caption.audit import Method

    served = Served(Scripted(), collection)
    method = Method(served.split, served.splitter_name, judge=served.judge, judge_definition=served.definition)
    result = audit(collection, tmp_path, Question(("alt",), sample=5), Units(77), method)
    found = result["numbers"]["images"][0]
    assert found["assertions"]["n_assertions"] > 5
    assert "judge-1" in result["splitter"]
    assert "judge-1" in result["judges"]["images"]["definition"]


def test_a_wrong_address_is_one_sentence(collection: Collection) -> None:
    with raises_naming(UserError, "--endpoint"):
        served_method(collection, "ftp://x", "m")
