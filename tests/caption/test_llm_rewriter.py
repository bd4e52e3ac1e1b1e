"""The rewriter `llm` against a local server that answers, refuses, breaks off and makes things up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foveate.caption.settings import TargetSettings
from foveate.caption.targets.material import Material
from foveate.caption.targets.rewriting import Llm, open_rewriter
from foveate.caption.targets.rows import TargetRows, write_rows
from foveate.core.errors import UserError
from naming import raises_naming

SHORT = ("a gray dog on a lawn", "a dog looks at a red ball")
LONG = "A photograph of a gray dog on a lawn. The dog looks at a red ball. A fence stands behind the lawn."
DSC = "A photograph of a gray dog on a lawn. The dog looks at a red ball."
DENSE = " ".join([LONG] * 4)


class Answering(BaseHTTPRequestHandler):
    """Answers by what the prompt holds; counts what it was asked."""

    asked: list[str] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        parts = body["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["text"], "no image is sent"
        prompt = parts[0]["text"]
        type(self).asked.append(prompt)
        answer = self.answer(prompt)
        content: dict[str, Any] = {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
        data = json.dumps({**content, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, prompt: str) -> str:
        if "Merge them" not in prompt:
            return json.dumps({"captions": {"ssc": "A gray dog on a lawn.", "dsc": DSC, "dsc_plus": DENSE}})
        if "one sentence" in prompt:
            return '```json\n{"caption": "A gray dog on a lawn."}\n```'
        if "2 to 4" in prompt:
            return json.dumps({"caption": "A photograph of a gray dog and a unicorn on a lawn with a red ball in it."})
        return json.dumps({"caption": DENSE})[:-30]

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Answering.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def rows(endpoint: str, folder: Path) -> TargetRows:
    settings = TargetSettings(rewriter="llm", llm={"endpoint": endpoint, "model": "rewriter-1"})
    materials = [
        Material(row=0, key="a", source="texts", short=SHORT, alt="dog"),
        Material(row=1, key="b", source="texts", descriptions=(LONG,), alt="a dog in Brennau, 1967"),
    ]
    return write_rows(materials, settings, open_rewriter(settings, folder=folder), seed=3)


def test_answers_are_read_checked_and_counted(endpoint: str, tmp_path: Path) -> None:
    found = rows(endpoint, tmp_path)
    first = {row.kind: row for row in found.of_stage(1)}
    assert first["ssc"].target == "A gray dog on a lawn."
    assert set(first) == {"ssc"}
    assert found.dropped[1, "dsc", "new word"] == 1
    assert found.dropped[1, "dsc_plus", "parser: truncated"] == 1
    second = {row.kind: row for row in found.of_stage(2)}
    assert second["dsc"].target == DSC
    assert second["dsc_plus"].target == DENSE
    assert second["dsc"].rewrite.startswith("llm rewriter-1")
    assert "rewrite_long-1" in second["dsc"].rewrite


def test_a_second_run_asks_nothing(endpoint: str, tmp_path: Path) -> None:
    first = rows(endpoint, tmp_path)
    count = len(Answering.asked)
    assert count == 4
    with (tmp_path / "rewrites.jsonl").open("a") as handle:
        handle.write('{"question": "cut o')
    again = rows(endpoint, tmp_path)
    assert again.rows == first.rows
    assert len(Answering.asked) == count


def test_it_needs_a_model() -> None:
    assert isinstance(open_rewriter(TargetSettings(rewriter="llm", llm={"model": "m"})), Llm)
    with raises_naming(UserError, "llm.model"):
        open_rewriter(TargetSettings(rewriter="llm"))
    with raises_naming(UserError, "endpoint"):
        open_rewriter(TargetSettings(rewriter="llm", llm={"model": "m", "endpont": "x"}))
