"""OpenAI's other ways to ask for an answer, `/v1/completions` and `/v1/responses`, as requests and replies of a chat.

A prompt is one message of the user. What a chat cannot answer is refused as it is there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field

from foveate.serve import bodies
from foveate.serve.bodies import (
    Effort,
    Label,
    Metadata,
    Name,
    NoBias,
    One,
    Stop,
    StreamOptions,
    Text,
    Tier,
    Tools,
    Zero,
    neutral,
)
from foveate.serve.calls import ChatReply, Refused
from foveate.serve.replies import ChatWriter, error_body, finish_reason, token_bodies, usage_body

# As in OpenAI's own API.
_COMPLETION_TOKENS = 16


class CompletionsBody(bodies.RequestBody):
    """`POST /v1/completions`."""

    model: Name
    prompt: bodies.Texts = Field(min_length=1, max_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop] | None, BeforeValidator(bodies.as_list)] = Field(None, max_length=16)
    logprobs: int | None = Field(None, ge=0, le=5)
    user: Label | None = None
    n: One = None
    best_of: One = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: NoBias = None
    echo: Annotated[bool | None, neutral(False, expected="false")] = None
    suffix: Annotated[str | None, neutral("", expected="null")] = None

    def to_chat(self) -> bodies.ChatBody:
        """Return the chat with the prompt as its only message."""
        names = ("model", "stream", "stream_options", "temperature", "top_p", "seed", "stop")
        return bodies.ChatBody.model_construct(
            **{name: getattr(self, name) for name in names},
            messages=[_message("user", [_text_part(self.prompt[0])])],
            max_tokens=self.max_tokens or _COMPLETION_TOKENS,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs,
            foveate=bodies.Extras(),
        )


class InputText(bodies.RequestBody):
    type: Literal["input_text", "output_text"]
    text: Text
    # Clients send an answer back as they got it.
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = None


class InputImage(bodies.RequestBody):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: None = None


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]


def _as_input_parts(content: object) -> object:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


class InputMessage(bodies.RequestBody):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[InputPart], FailFast(), BeforeValidator(_as_input_parts)] = Field(max_length=4096)
    type: Literal["message"] = "message"
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Label | None = None


def _as_messages(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class TextFormat(bodies.RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    content: dict[str, Any] | None = Field(None, alias="schema")
    description: Text | None = None
    strict: bool | None = None


class TextSettings(bodies.RequestBody):
    format: TextFormat | None = None
    verbosity: Annotated[str | None, neutral("medium", expected='"medium"')] = None


class Reasoning(bodies.RequestBody):
    effort: Effort | None = None
    summary: None = None
    generate_summary: None = None


class ResponsesBody(bodies.RequestBody):
    """`POST /v1/responses`."""

    model: Name
    input: Annotated[list[InputMessage], FailFast(), BeforeValidator(_as_messages)] = Field(
        min_length=1, max_length=1024
    )
    instructions: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextSettings | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, max_length=1)
    foveate: bodies.Extras = Field(default_factory=bodies.Extras)
    user: Label | None = None
    metadata: Metadata | None = None
    reasoning: Reasoning | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Tier = None
    # Left out, OpenAI stores; here a client that asks for it would never find its response again.
    store: Annotated[bool | None, neutral(False, expected="false: nothing is stored")] = None
    background: Annotated[bool | None, neutral(False, expected="false")] = None
    truncation: Annotated[str | None, neutral("disabled", expected='"disabled": nothing is cut')] = None
    tools: Tools | None = None
    tool_choice: Any = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None

    @property
    def has_logprobs(self) -> bool:
        """Whether the client asks for probabilities of tokens."""
        return self.top_logprobs is not None or bool(self.include)

    def to_chat(self) -> bodies.ChatBody:
        """Return the chat with the instructions as its first message."""
        head = [] if self.instructions is None else [_message("system", [_text_part(self.instructions)])]
        names = ("model", "stream", "temperature", "top_p", "foveate", "tools", "tool_choice", "top_logprobs")
        return bodies.ChatBody.model_construct(
            **{name: getattr(self, name) for name in names},
            messages=[*head, *(_message(each.role, [_part(part) for part in each.content]) for each in self.input)],
            max_tokens=self.max_output_tokens,
            logprobs=self.has_logprobs,
            response_format=self._read_format(),
        )

    def _read_format(self) -> bodies.ResponseFormat | None:
        if self.text is None or self.text.format is None:
            return None
        given = self.text.format
        schema = None
        if given.content is not None:
            schema = bodies.JsonSchema(name=given.name or "schema", schema=given.content)
        return bodies.ResponseFormat(type=given.type, json_schema=schema)


def _text_part(text: str) -> bodies.TextPart:
    return bodies.TextPart(type="text", text=text)


def _part(part: InputText | InputImage) -> bodies.Part:
    if isinstance(part, InputText):
        return _text_part(part.text)
    return bodies.ImagePart(type="image_url", image_url=bodies.ImageAddress(url=part.image_url))


def _message(role: Any, content: Sequence[bodies.Part]) -> bodies.Message:
    return bodies.Message.model_construct(role=role, content=list(content))


class CompletionWriter(ChatWriter):
    """Write an answer as a text completion; see `ChatWriter`."""

    def __init__(self, model: str, images: Any, *, request_id: str, include_usage: bool = False) -> None:
        super().__init__(model, images, request_id=request_id, include_usage=include_usage)
        self.id = f"cmpl-{request_id}"

    def completion(self, reply: ChatReply) -> dict[str, Any]:
        """Return a whole answer."""
        return self._completion(reply.text, reply, usage=usage_body(reply), foveate=self.extras(reply))

    def start(self) -> list[dict[str, Any]]:
        """Return no chunk: the first one has text."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with text."""
        return self._completion(text, None)

    def end(self, reply: ChatReply) -> list[dict[str, Any]]:
        """Return the last chunks; see `ChatWriter.end`."""
        chunks = [self._completion("", reply, foveate=self.extras(reply))]
        usage = self._object("text_completion", [], usage=usage_body(reply))
        return [*chunks, usage] if self.include_usage else chunks

    def _completion(self, text: str, reply: ChatReply | None, **fields: Any) -> dict[str, Any]:
        reason, logprobs = (None, None) if reply is None else (finish_reason(reply), _list_logprobs(reply))
        choice = {"index": 0, "logprobs": logprobs, "finish_reason": reason, "text": text}
        return self._object("text_completion", [choice], **fields)


def _list_logprobs(reply: ChatReply) -> dict[str, Any] | None:
    """Return probabilities in the columns of the older API."""
    if reply.logprobs is None:
        return None
    offsets = [0]
    for token in reply.logprobs:
        offsets.append(offsets[-1] + len(token.text))
    return {
        "tokens": [token.text for token in reply.logprobs],
        "token_logprobs": [token.logprob for token in reply.logprobs],
        "top_logprobs": [dict(token.likeliest) for token in reply.logprobs],
        "text_offset": offsets[:-1],
    }


class ResponseWriter(ChatWriter):
    """Write an answer as a response of OpenAI's newest API, or as the events of its stream; see `ChatWriter`.

    Args:
        body: of the request, which a response repeats.
    """

    is_named = True

    def __init__(self, model: str, images: Any, *, request_id: str, body: ResponsesBody) -> None:
        super().__init__(model, images, request_id=request_id)
        self.id, self.item_id, self.body = f"resp_{request_id}", f"msg_{request_id}", body
        self._number = -1

    def completion(self, reply: ChatReply) -> dict[str, Any]:
        """Return a whole response."""
        status = "completed" if reply.finished else "incomplete"
        reason = None if reply.finished else {"reason": "max_output_tokens"}
        counts = usage_body(reply)
        usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        output = [self._item(status, [self._part(reply.text, reply)])]
        fields = {"incomplete_details": reason, "usage": usage, "foveate": self.extras(reply)}
        return self._response(status, output) | fields

    def start(self) -> list[dict[str, Any]]:
        """Return the events before the text."""
        response = self._response("in_progress", [])
        item, part = self._item("in_progress", []), self._part("")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=item),
            self._text_event("response.content_part.added", part=part),
        ]

    def piece(self, text: str) -> dict[str, Any]:
        """Return an event with text."""
        return self._text_event("response.output_text.delta", delta=text, logprobs=[])

    def end(self, reply: ChatReply) -> list[dict[str, Any]]:
        """Return the events behind the text: the text, its part, its item and the response, each whole."""
        response = self.completion(reply)
        (item,) = response["output"]
        (part,) = item["content"]
        return [
            self._text_event("response.output_text.done", text=reply.text, logprobs=part["logprobs"]),
            self._text_event("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{response['status']}", response=response),
        ]

    def fail(self, refusal: Refused) -> dict[str, Any]:
        """Return the event of an error in the middle of a stream."""
        error = error_body(refusal)["error"]
        fields = {name: error[name] for name in ("message", "param", "code")}
        return self._event("error", **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _text_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self.item_id, output_index=0, content_index=0, **fields)

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"type": "message", "id": self.item_id, "status": status, "role": "assistant"}
        return {**head, "content": content}

    def _part(self, text: str, reply: ChatReply | None = None) -> dict[str, Any]:
        logprobs = token_bodies(reply.logprobs or ()) if reply is not None else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self.body
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": self._format},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    @functools.cached_property
    def _format(self) -> dict[str, Any]:
        given = None if self.body.text is None else self.body.text.format
        return {"type": "text"} if given is None else given.model_dump(by_alias=True, exclude_none=True)


OtherBody = CompletionsBody | ResponsesBody
# What a field of the chat is called where it was asked in another way.
_NAMES: dict[str, dict[str, str]] = {
    "/v1/completions": {"messages": "prompt"},
    "/v1/responses": {"messages": "input", "response_format": "text.format", "max_tokens": "max_output_tokens"},
}
_FIELD = re.compile(r"(messages|response_format|max_tokens)(?:\.\d+\.content)?(?=:|$)")


def rename_field(refusal: Refused, path: str) -> Refused:
    """Return a refusal whose field has the name that it has at the endpoint of a path."""
    names = _NAMES.get(path, {})
    message, param = (
        _FIELD.sub(lambda match: names.get(match[1], match[0]), text, count=1) if _FIELD.match(text) else text
        for text in (str(refusal), refusal.param or "")
    )
    fields = {"status": refusal.status, "code": refusal.code, "retry_after": refusal.retry_after}
    return Refused(message, param=param or None, **fields)


def make_writer(body: object, chat: bodies.ChatBody, images: Any, *, request_id: str) -> ChatWriter:
    """Return what writes the answer in the form of its endpoint."""
    if isinstance(body, ResponsesBody):
        return ResponseWriter(body.model, images, request_id=request_id, body=body)
    kind = CompletionWriter if isinstance(body, CompletionsBody) else ChatWriter
    return kind(chat.model, images, request_id=request_id, include_usage=chat.includes_usage)
