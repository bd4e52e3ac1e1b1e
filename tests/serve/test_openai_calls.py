"""What `openai` gets for each of its calls: an answer, or an exception of its own classes that names the field.

`python tests/serve/test_openai_calls.py` writes the table of docs/verbs/serve.md from the same calls.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes import Address, serving
from pydantic import BaseModel
from test_application import WORDS, data_url, user

if TYPE_CHECKING:
    import openai

PAGE = Path(__file__).parents[2] / "docs" / "verbs" / "serve.md"
START, END = "<!-- openai calls -->\n", "<!-- /openai calls -->"
CHAT, COMPLETION, RESPONSE = "chat.completions.create", "completions.create", "responses.create"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
REFUSED = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "refused"}}}
IMAGE = {"type": "image_url", "image_url": {"url": data_url()}}
INPUT = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url()}]}]
ANSWER = [{"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]}]
TURNS = [*user("a"), {"role": "assistant", "content": "b", "refusal": None, "annotations": []}, *user("c")]


class Model(BaseModel):
    a: int


# Method, how it stands in the table, its arguments.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("models.list", "", {}),
    ("models.retrieve", "", {"model": "fake"}),
    ("models.retrieve", "another model", {"model": "gpt"}),
    ("models.delete", "", {"model": "fake"}),
    (CHAT, "one message", {}),
    (CHAT, "several turns", {"messages": TURNS}),
    (CHAT, "roles system, developer", {"messages": [{"role": "developer", "content": "a"}, *user("a")]}),
    (CHAT, "image", {"messages": user(IMAGE, "a")}),
    (CHAT, "image by address", {"messages": user({"type": "image_url", "image_url": {"url": "https://a.b/c"}})}),
    (CHAT, "audio part", {"messages": user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})}),
    (CHAT, "role tool", {"messages": [*user("a"), {"role": "tool", "content": "a", "tool_call_id": "1"}]}),
    (CHAT, "stream", {"stream": True}),
    (CHAT, "stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, "max_tokens", {"max_tokens": 5}),
    (CHAT, "max_completion_tokens", {"max_completion_tokens": 5}),
    (CHAT, "temperature, top_p, seed", {"temperature": 0.5, "top_p": 0.9, "seed": 1}),
    (CHAT, "temperature=3", {"temperature": 3}),
    (CHAT, "stop", {"stop": ["x"]}),
    (CHAT, "n=1", {"n": 1}),
    (CHAT, "n=2", {"n": 2}),
    (CHAT, "logprobs, top_logprobs", {"logprobs": True, "top_logprobs": 2}),
    (CHAT, "response_format json_object", {"response_format": {"type": "json_object"}}),
    (CHAT, "response_format json_schema", {"response_format": FORMAT}),
    (CHAT, "a schema that cannot be followed", {"response_format": REFUSED}),
    (CHAT, "metadata", {"metadata": {"a": "b"}}),
    (CHAT, "store=False", {"store": False}),
    (CHAT, "store=True", {"store": True}),
    (CHAT, 'service_tier="auto"', {"service_tier": "auto"}),
    (CHAT, 'service_tier="flex"', {"service_tier": "flex"}),
    (CHAT, "parallel_tool_calls", {"parallel_tool_calls": True}),
    (CHAT, "reasoning_effort", {"reasoning_effort": "low"}),
    (CHAT, "logit_bias={}", {"logit_bias": {}}),
    (CHAT, "logit_bias", {"logit_bias": {"5": 10}}),
    (CHAT, 'tools, tool_choice="none"', {"tools": [TOOL], "tool_choice": "none"}),
    (CHAT, "tools", {"tools": [TOOL]}),
    (CHAT, "functions", {"functions": [{"name": "f", "parameters": {}}]}),
    (CHAT, "frequency_penalty", {"frequency_penalty": 0.5}),
    (CHAT, "presence_penalty", {"presence_penalty": 0.5}),
    (CHAT, 'modalities=["text"]', {"modalities": ["text"]}),
    (CHAT, "audio", {"modalities": ["text", "audio"]}),
    (CHAT, "prediction", {"prediction": {"type": "content", "content": "a"}}),
    (CHAT, "web_search_options", {"web_search_options": {}}),
    (CHAT, "user", {"user": "a"}),
    (CHAT, "safety_identifier, prompt_cache_key", {"safety_identifier": "a", "prompt_cache_key": "a"}),
    (CHAT, "an unknown field", {"extra_body": {"top_k": 5}}),
    ("chat.completions.parse", "", {"response_format": Model}),
    ("chat.completions.list", "", {}),
    ("chat.completions.retrieve", "", {"completion_id": "a"}),
    (COMPLETION, "", {}),
    (COMPLETION, "stream", {"stream": True}),
    (COMPLETION, "logprobs", {"logprobs": 2}),
    (COMPLETION, "several prompts", {"prompt": ["a", "b"]}),
    (COMPLETION, "echo", {"echo": True}),
    (COMPLETION, "suffix", {"suffix": "a"}),
    (COMPLETION, "best_of", {"best_of": 2}),
    (RESPONSE, "", {}),
    (RESPONSE, "stream", {"stream": True}),
    (RESPONSE, "messages, image, instructions", {"input": [*ANSWER, *INPUT], "instructions": "a"}),
    (RESPONSE, "text.format json_schema", {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}),
    (RESPONSE, "include logprobs", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    (RESPONSE, "reasoning.effort", {"reasoning": {"effort": "low"}}),
    (RESPONSE, "previous_response_id", {"previous_response_id": "a"}),
    (RESPONSE, "background", {"background": True}),
    (RESPONSE, "tools", {"tools": [{"type": "web_search"}]}),
    ("responses.parse", "", {"text_format": Model}),
    ("responses.retrieve", "", {"response_id": "a"}),
    ("embeddings.create", "", {"input": ["a", "b"]}),
    ("embeddings.create", "dimensions", {"input": "a", "dimensions": 8}),
    ("moderations.create", "", {"input": "a"}),
    ("images.generate", "", {"prompt": "a"}),
    ("audio.speech.create", "", {"input": "a", "voice": "a", "model": "fake"}),
    ("audio.transcriptions.create", "", {"file": ("a.wav", b"a"), "model": "fake"}),
    ("files.list", "", {}),
    ("files.create", "", {"file": ("a.jsonl", b"a"), "purpose": "batch"}),
    ("batches.list", "", {}),
    ("fine_tuning.jobs.list", "", {}),
    ("vector_stores.list", "", {}),
]  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "chat.completions.create": {"model": "fake", "messages": user("a")},
    "chat.completions.parse": {"model": "fake", "messages": user("a")},
    "completions.create": {"model": "fake", "prompt": "a", "max_tokens": 5},
    "responses.create": {"model": "fake", "input": "a"},
    "responses.parse": {"model": "fake", "input": "a"},
    "embeddings.create": {"model": "fake"},
}


def run_calls(address: str) -> list[tuple[str, str]]:
    """Return each call as the table has it, and "works" or the class of its exception."""
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    return [
        (f"{method}({note})" if note else method, run_call(client, method, fields)) for method, note, fields in CALLS
    ]


def run_call(client: openai.OpenAI, method: str, fields: dict[str, Any]) -> str:
    import openai

    function: Any = client
    for name in method.split("."):
        function = getattr(function, name)
    try:
        reply = function(**DEFAULTS.get(method, {}) | fields)
        check_reply(method, fields, reply)
    except openai.APIStatusError as error:
        return check_error(error)
    except ValueError:
        # The words of the fake are no JSON: `parse` got its answer and cannot read it.
        assert method.endswith(".parse")
    return "works"


def check_error(error: openai.APIStatusError) -> str:
    """Assert that an error begins with what is wrong; return its class and status."""
    assert error.status_code < 500
    assert isinstance(error.body, dict)
    assert re.match(r"((field )?\S+: |unknown field '|'/v1/)", error.body["message"]), error.body
    return f"{type(error).__name__} {error.status_code}"


def check_reply(method: str, fields: dict[str, Any], reply: Any) -> None:
    """Assert that an answer holds what was asked for."""
    is_stream = fields.get("stream")
    if method == CHAT and is_stream:
        chunks = list(reply)
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == WORDS
        assert (chunks[-1].usage is not None) == ("stream_options" in fields)
    elif method == CHAT:
        (choice,) = reply.choices
        assert choice.message.content == WORDS
        assert (choice.logprobs is not None) == bool(fields.get("logprobs"))
        if choice.logprobs is not None:
            assert "".join(token.token for token in choice.logprobs.content) == WORDS
    elif method == COMPLETION and is_stream:
        assert "".join(choice.text for chunk in reply for choice in chunk.choices) == WORDS
    elif method == COMPLETION:
        assert (reply.object, reply.choices[0].text, reply.usage.completion_tokens) == ("text_completion", WORDS, 5)
        assert (reply.choices[0].logprobs is not None) == ("logprobs" in fields)
    elif method == RESPONSE and is_stream:
        events = list(reply)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
        assert (events[-1].type, events[-1].response.output_text) == ("response.completed", WORDS)
    elif method == RESPONSE:
        assert (reply.status, reply.output_text, reply.usage.output_tokens) == ("completed", WORDS, 5)
        assert bool(reply.output[0].content[0].logprobs) == ("include" in fields)


def write_table(results: list[tuple[str, str]]) -> str:
    """Return the table: a row for each result, with its calls by method."""
    lines = ["| result | calls |", "|---|---|"]
    kinds = ["works", *sorted({kind for _, kind in results} - {"works"})]
    for kind in kinds:
        methods: dict[str, list[str]] = {}
        for name, result in results:
            method, _, note = name.partition("(")
            if result == kind:
                methods.setdefault(method, []).append(f"`{note[:-1]}`" if note else "plain")
        calls = [
            f"`{method}`" + ("" if notes == ["plain"] else f": {', '.join(notes)}") for method, notes in methods.items()
        ]
        number = sum(result == kind for _, result in results)
        lines.append(f"| {kind} ({number}) | {'; '.join(calls)} |")
    return "\n".join([*lines, ""])


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving() as address:
        yield address


def test_every_call_works_or_fails_with_a_class_as_the_page_says(address: Address) -> None:
    results = run_calls(address)
    assert len(results) >= 60
    table = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert table.strip() == write_table(results).strip(), "run python tests/serve/test_openai_calls.py"


if __name__ == "__main__":
    with serving() as running:
        written = write_table(run_calls(running))
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{head}{START}{written}{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.stdout.write(written)
