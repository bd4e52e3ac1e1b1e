"""Answers that follow a JSON schema, and probabilities of tokens: of shipped models and of those of transformers."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from test_adapters_multimodal import IMAGES, ask, write

from caption.tiny_vlm import save_llava_next
from foveate.core.errors import UserError
from foveate.language import grammar
from foveate.multimodal.opening import open_mllm
from foveate.serve.adapters import open_served
from foveate.serve.adapters.multimodal import MultimodalAdapter
from foveate.serve.calls import ChatReply, Refused
from multimodal.foreign_models import save
from naming import raises_naming

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["keyboard", "deer"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2} | {
            "maxItems": 3
        },
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}  # fmt: skip
TEXT = json.dumps(SCHEMA)
QUESTION = "<image>\nWhat is in the image?"


@pytest.fixture(scope="module", params=["mini", "llava_next"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MultimodalAdapter:
    folder: Any = request.param
    if folder == "llava_next":
        folder = save_llava_next(tmp_path_factory.mktemp("served") / "llava")
    opened = open_served(folder, device="cpu", max_tokens=120, name="a model")
    assert isinstance(opened, MultimodalAdapter)
    return opened


def follows(reply: Any) -> bool:
    assert isinstance(reply, ChatReply), reply
    value = json.loads(reply.text)
    assert reply.finished
    assert list(value) == ["name", "sizes"]
    assert value["name"] in ("keyboard", "deer")
    return 2 <= len(value["sizes"]) <= 3 and all(size in range(10) for size in value["sizes"])


def call(**changes: Any) -> Any:
    return ask(QUESTION, IMAGES[0], **{"max_tokens": 120, **changes})


def test_a_schema_is_followed_alone_in_a_batch_and_streamed(adapter: MultimodalAdapter) -> None:
    pytest.importorskip("llguidance")
    calls = [call(json_schema=TEXT), call(), call(json_schema=TEXT, temperature=1.5, seed=4), call(json_schema=TEXT)]
    for each in calls:
        adapter.compile(each)
    recorder = write(adapter, *calls)
    for row in (0, 2, 3):
        assert follows(recorder.replies[row])
        assert "".join(recorder.pieces[row]) == recorder.replies[row].text
        assert len(recorder.pieces[row]) > 5
    # A row does not depend on those beside it: neither the free one nor those with a schema.
    assert recorder.replies[0].text == recorder.replies[3].text == write(adapter, calls[0]).replies[0].text
    assert recorder.replies[1].text == write(adapter, call()).replies[0].text
    assert recorder.replies[2].text == write(adapter, calls[2], is_streamed=False).replies[0].text
    # Draws differ, or the mask would choose alone.
    drawn = {write(adapter, call(json_schema=TEXT, temperature=1.5, seed=seed)).replies[0].text for seed in range(6)}
    assert len(drawn) > 1


def test_any_object_is_one_as_far_as_it_goes(adapter: MultimodalAdapter) -> None:
    pytest.importorskip("llguidance")
    texts = [write(adapter, call(is_json=True, temperature=1.0, seed=seed)).replies[0] for seed in range(3)]
    for reply in texts:
        assert reply.text.startswith("{")
        if reply.finished:
            assert isinstance(json.loads(reply.text), dict)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "objct"}, "objct"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "not present"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"not": {"type": "string"}}, "not"),
        ({"enum": ["x" * 70_000]}, "65,536"),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ({"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrst"]}, "patterns"),
        ({"allOf": [{"oneOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(8)]} for i in range(8)]},
         "large"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_refused(adapter: MultimodalAdapter, schema: Any, text: str) -> None:
    pytest.importorskip("llguidance")
    begin = time.monotonic()
    with raises_naming(Refused, "response_format", text):
        adapter.compile(call(json_schema=json.dumps(schema)))
    assert time.monotonic() - begin < 5, "two of them took 37 and 92 s"


def test_without_the_library_the_extra_is_named(adapter: MultimodalAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "find_spec", lambda name: None)
    for cached in (adapter, adapter.model, getattr(adapter.model, "loaded", None)):
        for name in ("_grammars", "grammars"):
            getattr(cached, "__dict__", {}).pop(name, None)
    with raises_naming(Refused, "response_format", "foveate[structured]"):
        adapter.compile(call(json_schema=TEXT))
    # What needs no schema needs no library.
    adapter.compile(call())


def test_a_tokenizer_of_whole_words_follows_no_schema(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    with raises_naming(UserError, "tokenizer", "schema"):
        open_mllm(save("llava", tmp_path / "words"), device="cpu").grammars  # noqa: B018


def test_probabilities_are_those_of_the_tokens(adapter: MultimodalAdapter) -> None:
    recorder = write(
        adapter, call(top_logprobs=3, max_tokens=6), call(max_tokens=6), call(top_logprobs=0, max_tokens=6)
    )
    first, free, alone = (recorder.replies[row] for row in range(3))
    assert free.logprobs is None
    assert first.logprobs is not None
    # transformers counts the token that ends an answer, which has no text.
    assert first.num_tokens - len(first.logprobs) in (0, int(first.finished))
    for token in first.logprobs:
        # A greedy answer has the likeliest token, and the likeliest stand first.
        assert token.likeliest[0] == (token.text, token.logprob)
        logs = [logprob for _, logprob in token.likeliest]
        assert logs == sorted(logs, reverse=True)
        assert len(logs) == 3
        assert sum(map(math.exp, logs)) <= 1 + 1e-5
    assert [token.text for token in first.logprobs] == [token.text for token in alone.logprobs]
    assert all(token.likeliest == () for token in alone.logprobs)


def test_probabilities_are_among_what_the_schema_lets_come(adapter: MultimodalAdapter) -> None:
    pytest.importorskip("llguidance")
    reply = write(adapter, call(json_schema=json.dumps({"const": {"a": 1}}), top_logprobs=20)).replies[0]
    assert json.loads(reply.text) == {"a": 1}
    assert "".join(token.text for token in reply.logprobs) == reply.text
    for token in reply.logprobs:
        assert token.likeliest
        assert all(math.isfinite(logprob) for _, logprob in token.likeliest)
    assert max(token.logprob for token in reply.logprobs) <= 1e-6
