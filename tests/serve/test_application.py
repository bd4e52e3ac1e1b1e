"""The routes, as the `openai` package and plain requests see them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes import HTTP, FakeAdapter, serving
from PIL import Image

if TYPE_CHECKING:
    import openai

WORDS = "word0 word1 word2 word3 word4 "


def data_url(size: tuple[int, int] = (10, 5)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(FakeAdapter(), FakeAdapter("only-locate", endpoints=["locate"])) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def user(*content: Any) -> list[dict[str, Any]]:
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
    return [{"role": "user", "content": parts}]


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "only-locate"]
    assert client.models.retrieve("fake").foveate["endpoints"] == ["chat", "classify", "embeddings", "locate", "search"]


def test_openai_reads_an_answer_and_its_stream(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url()}}
    messages = [{"role": "system", "content": "Be brief."}, *user(image, "where?")]
    reply = client.chat.completions.create(model="fake", messages=messages)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == (WORDS, "stop")
    assert reply.usage.prompt_tokens == len("<image>\nwhere?")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 5
    box = {"box": [0.2, 0.0, 1.0, 1.0], "pixels": [2, 0, 10, 5], "image": 0, "phrase": "disc", "score": 0.5}
    assert reply.foveate["boxes"] == [box]

    stream = client.chat.completions.create(
        model="fake", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == WORDS
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == reply.usage
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].foveate["boxes"] == [box]


# Chunks with text and at the end as servers send them, recorded by their users; without the values.
# vLLM 0.15: https://github.com/vllm-project/vllm/issues/35705
# llama.cpp b9554: https://github.com/openai-php/client/issues/780
PEERS = {
    "vllm": ({"id", "object", "created", "model", "choices"}, {"index", "delta", "logprobs", "finish_reason"}),
    "llama.cpp": (
        {"choices", "created", "id", "model", "system_fingerprint", "object", "timings"},
        {"finish_reason", "index", "delta"},
    ),
}


def test_chunks_have_the_fields_that_other_servers_share(address: str) -> None:
    body = {"model": "fake", "messages": user("hi"), "stream": True}
    lines = HTTP.post(f"{address}/v1/chat/completions", json=body).text.split("\n\n")
    assert (lines[-2:], lines[0][:6]) == (["data: [DONE]", ""], "data: ")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    heads, choices = (set.intersection(*fields) for fields in zip(*PEERS.values(), strict=True))
    for chunk in chunks:
        assert chunk.keys() >= heads
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["choices"][0].keys() >= choices
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].keys() for chunk in chunks[1:-1]] == [{"content"}] * 5
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_openai_reads_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="fake", input=["a", "b"])  # openai asks for base64 by itself
    plain = client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float")
    rows = [np.array([item.embedding for item in reply.data], dtype=np.float32) for reply in (packed, plain)]
    assert rows[0].shape == (2, 4)
    assert np.array_equal(rows[0], rows[1])
    assert np.allclose(np.linalg.norm(rows[0], axis=1), 1)
    body = {"images": [data_url()], "boxes": [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]}
    assert len(client.embeddings.create(model="fake", input=[], extra_body=body).data) == 3


def test_the_other_endpoints(address: str) -> None:
    def post(path: str, **body: Any) -> Any:
        reply = HTTP.post(f"{address}{path}", json={"model": "fake", **body})
        assert reply.status_code == 200, reply.text
        return reply.json()

    located = post("/v1/locate", image=data_url(), phrases="disc")
    verdict = {"has_match": False, "reason": "too low", "floor": 0.7, "unknown_words": []}
    score = {"score": 0.5, "scores": {}}
    assert located["data"] == [
        {"phrase": "disc", "box": [0.1, 0.2, 0.5, 0.6], "pixels": [1.0, 1.0, 5.0, 3.0], **score, **verdict}
    ]
    assert (located["width"], located["height"]) == (10, 5)
    classes = post("/v1/classify", image=data_url(), count=1)
    assert classes["data"] == [{"name": "cat", "probability": 0.75, "calibrated": 0.5}]
    searched = post("/v1/search", text="red", negative="blue")
    verdict |= {"unknown_words": ["wug"], "floor": {"score": 0.7}}
    assert verdict.items() <= searched.items()
    hit = searched["data"][0]
    assert "secret" not in str(hit)
    assert hit["box"] == [0.1, 0.2, 0.5, 0.6]
    thumbnail = HTTP.get(f"{address}{hit['image']}")
    assert (thumbnail.content, thumbnail.headers["content-type"]) == (b"RIFF", "image/webp")
    assert HTTP.get(f"{address}/images/..%2f..%2fetc%2fpasswd").status_code == 404
    assert HTTP.get(f"{address}/health").json() == {"status": "ok"}
    assert HTTP.get(f"{address}/ready").json()["status"] == "ready"
