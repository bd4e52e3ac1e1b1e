"""Requests as JSON, OpenAI's where it has them: their checks, and the call that a model answers.

Unknown fields are refused, so that no client believes that an option had an effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from foveate.core.recipes import describe_problem
from foveate.records.boxes import Box, find_box_problem
from foveate.serve.calls import (
    Call,
    ChatCall,
    ChatTurn,
    ClassifyCall,
    EmbeddingsCall,
    LocateCall,
    Refused,
    SearchCall,
    ServedImage,
)
from foveate.vision.video.sources import Source


class RequestBody(BaseModel):
    # Strict: "5" is no number and true no 1. JSON may still write a float's 1 without a point.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def neutral(*values: object, expected: str) -> BeforeValidator:
    """Accept a field of OpenAI's that has no effect here only with a value that asks for none."""

    def check(value: object) -> object:
        # The type is compared too, because True equals 1 and False equals 0 in Python.
        if not any(value == neutral and type(value) is type(neutral) for neutral in (None, *values)):
            raise ValueError(f"not supported; expected {expected}")
        return value

    return BeforeValidator(check)


Corners = Annotated[list[float], Field(min_length=4, max_length=4)]
# Millions of wrong items would else become millions of errors, of some hundred bytes each.
Boxes = Annotated[list[Corners], FailFast()]
Name = Annotated[str, Field(min_length=1, max_length=512)]
# A client's own name for a user: OpenAI allows 64 letters.
Label = Annotated[str, Field(max_length=512)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
# A data URL in a text is no image: it may not be longer than a text.
Text = Annotated[str, Field(max_length=2**20)]
Texts = Annotated[list[Text], FailFast(), BeforeValidator(as_list)]


One = Annotated[int | None, neutral(1, expected="1")]
Zero = Annotated[float | None, neutral(0, 0.0, expected="0")]
NoBias = Annotated[dict[str, float] | None, neutral({}, expected="{}")]
Tier = Annotated[str | None, neutral("auto", "default", expected='"auto"')]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
# With the limits of OpenAI.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Tools = Annotated[list[dict[str, Any]], Field(max_length=128)]


class ImageAddress(RequestBody):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(RequestBody):
    type: Literal["text"]
    text: Text


class ImagePart(RequestBody):
    type: Literal["image_url"]
    image_url: ImageAddress


class ClipAddress(RequestBody):
    url: str


class ClipPart(RequestBody):
    type: Literal["video_url"]
    video_url: ClipAddress


Part = Annotated[TextPart | ImagePart | ClipPart, Field(discriminator="type")]


class Message(RequestBody):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], FailFast(), BeforeValidator(_as_parts)] = Field(max_length=4096)
    name: Label | None = None
    # Clients send an answer back as they got it.
    refusal: None = None
    annotations: Annotated[list[Any] | None, neutral([], expected="null or []")] = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(RequestBody):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(RequestBody):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    content: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    # It is followed in either case.
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Extras(RequestBody):
    """The request's field `foveate`: boxes of `<1>`, `<2>` in the last message, and how a captioner writes.

    Attributes:
        frame_images: return thumbnails of the frames that were seen of a clip.
    """

    # More have no name in a question.
    boxes: Boxes = Field([], max_length=9999)
    frame_images: bool = False
    format: str | None = None
    alt: str | None = None
    length: int | None = None

    def caption(self) -> dict[str, Any] | None:
        """Return the fields for captions that the client gave."""
        return self.model_dump(include={"format", "alt", "length"}, exclude_none=True) or None


class ChatBody(RequestBody):
    """`POST /v1/chat/completions`."""

    model: Name
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop] | None, BeforeValidator(as_list)] = Field(None, max_length=16)
    response_format: ResponseFormat | None = None
    foveate: Extras = Field(default_factory=Extras)  # pydantic would copy a default deeply for each request
    user: Label | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: One = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    # What frameworks send unasked: these change no answer here.
    metadata: Metadata | None = None
    reasoning_effort: Effort | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Tier = None
    store: Annotated[bool | None, neutral(False, expected="false: nothing is stored")] = None
    logit_bias: NoBias = None
    modalities: Annotated[list[str] | None, neutral(["text"], expected='["text"]')] = None
    verbosity: Annotated[str | None, neutral("medium", expected='"medium"')] = None
    tools: Tools | None = None
    tool_choice: Any = None
    functions: Annotated[list[Any] | None, neutral([], expected="[]: no model here calls functions")] = None
    function_call: Annotated[str | None, neutral("none", "auto", expected='"none"')] = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class EmbeddingsBody(RequestBody):
    """`POST /v1/embeddings`: texts in `input`, or data URLs in `images`, or `boxes` of one image."""

    model: Name
    input: Annotated[Texts, Field(max_length=65536)] = []
    images: list[str] = Field([], max_length=4096)
    boxes: Boxes = Field([], max_length=16384)
    encoding_format: Literal["float", "base64"] = "float"
    user: Label | None = None


class LocateBody(RequestBody):
    """`POST /v1/locate`."""

    model: Name
    image: str
    phrases: Annotated[Texts, Field(min_length=1, max_length=256)]


class SearchBody(RequestBody):
    """`POST /v1/search`."""

    model: Name
    text: Text | None = Field(None, min_length=1)
    image: str | None = None
    box: Corners | None = None
    negative: Text | None = Field(None, min_length=1)
    count: int = Field(20, ge=1, le=1000)
    kind: Literal["both", "images", "regions"] = "both"


class ClassifyBody(RequestBody):
    """`POST /v1/classify`."""

    model: Name
    image: str
    count: int = Field(5, ge=1, le=10_000)


def check_tools(tools: Sequence[Any] | None, choice: object) -> None:
    """Raise `Refused` for tools that a model may be asked to call."""
    if choice not in (None, "none", "auto"):
        raise Refused("tool_choice: no model here calls tools; expected 'none'", param="tool_choice")
    if tools and choice != "none":
        raise Refused("tools: no model here calls tools; expected tool_choice 'none' with them", param="tools")


Body = ChatBody | EmbeddingsBody | LocateBody | SearchBody | ClassifyBody


# From a request's JSON to the call that a model answers.


IMAGE_MARK = "<image>"
_MAX_PROBLEMS = 3
# More take longer to read than their body: for seconds no other thread would run.
_MAX_READ_PROBLEMS = 1000
_MAX_PARAM_LETTERS = 100
# The name of an unknown field may be as long as the body.
_MAX_SENTENCE_LETTERS = 1000
# All but images and clips. More JSON than this takes so long to read that other requests notice.
MAX_TEXT_BYTES = 2**20
# A schema of ten levels, as OpenAI takes it, has two for each, within four of the request.
MAX_DEPTH = 32
# By the sign that each costs: above what the limits of fields let pass together, below what takes 0.1 s.
_MAX_SIGNS = {b"{": (8192, "objects"), b"[": (17_000, "lists"), b":": (17_000, "fields"), b",": (85_000, "values")}
_MAX_STRINGS = 70_000
_BASE64 = re.compile(rb";base64,", re.IGNORECASE)
# A string without an end is read to the end of the body: to try again at each of its quotes would take quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
B = TypeVar("B", bound=BaseModel)


def check_bounds(data: bytes) -> None:
    """Refuse a body that would take long to read, by its bytes alone and in linear time.

    pydantic holds the interpreter's lock while it reads and checks a body, so even in a thread it would stop the event
    loop: 3.5 MB of `[[],[],...]` did for more than 3 s.

    Raises:
        Refused: more than `MAX_TEXT_BYTES` beside what data URLs hold, or too many values, fields or levels.
    """
    outside = cut_data_urls(data)
    # Counted first: of many short strings, cutting them out takes longest.
    num_strings = outside.count(b'"') // 2
    structure = b"" if num_strings > _MAX_STRINGS else _STRING.sub(b"", outside)
    counts = [("strings", num_strings, _MAX_STRINGS)]
    counts += [(name, structure.count(sign), limit) for sign, (limit, name) in _MAX_SIGNS.items()]
    for name, number, limit in counts:
        if number > limit:
            raise Refused(f"body: {number:,} {name}; expected at most {limit:,}", status=413, code="too_large")
    brackets = structure.translate(None, _ALL_BUT_BRACKETS)
    # Each turn takes away the innermost level. Brackets that do not match are left for the parser, which names them.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets and brackets.count(b"[") + brackets.count(b"{") == brackets.count(b"]") + brackets.count(b"}"):
        raise Refused(f"body: expected at most {MAX_DEPTH} levels of lists and objects", code="invalid_json")


def cut_data_urls(data: bytes) -> bytes:
    """Return a body without what its data URLs hold, as which it is JSON if and only if the body is.

    Raises:
        Refused: more than `MAX_TEXT_BYTES` are left.
    """
    parts, length, start = list[bytes](), 0, 0
    while start < len(data):
        match = _BASE64.search(data, start, start + MAX_TEXT_BYTES - length + 1)
        end = len(data) if match is None else match.end()
        length += end - start
        if length > MAX_TEXT_BYTES:
            raise Refused(
                f"body: more than {MAX_TEXT_BYTES:,} bytes beside the images; send it in several requests",
                status=413,
                code="too_large",
            )
        parts.append(data[start:end])
        if match is None:
            break
        # Outside a string the semicolon would be no JSON, and what follows would never be read; inside it, everything
        # up to the next quote belongs to the string. A backslash before the quote is kept: the string goes on then.
        quote = data.find(b'"', end)
        quote = len(data) if quote < 0 else quote
        start = end + len(data[end:quote].rstrip(b"\\"))
    return b"".join(parts)


def parse_body(model: type[B], data: bytes) -> B:
    """Read a request's JSON.

    Raises:
        Refused: it is too large, no JSON, or a field is wrong or unknown; `param` is the first of them.
    """
    check_bounds(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        if (count := error.error_count()) > _MAX_READ_PROBLEMS:
            raise Refused(f"body: {count:,} fields are wrong or unknown", code="invalid_value") from None
        problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        raise Refused(f"body: expected JSON (got {first['ctx']['error']})", code="invalid_json") from None
    sentences = [describe_problem(model, dict(problem))[:_MAX_SENTENCE_LETTERS] for problem in problems[:_MAX_PROBLEMS]]
    # A body of a thousand wrong parts must not be answered with a thousand sentences.
    more = [f"{len(problems) - _MAX_PROBLEMS} more problems"] if len(problems) > _MAX_PROBLEMS else []
    # The path may hold a key of the request, which is as long as its sender likes.
    param = ".".join(str(part) for part in first["loc"])[:_MAX_PARAM_LETTERS] or None
    raise Refused("; and ".join([*sentences, *more]), param=param, code="invalid_value")


def image_urls(body: Body) -> list[str]:
    """List the data URLs of a request, in its order."""
    if isinstance(body, ChatBody):
        parts = [part for message in body.messages for part in message.content]
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if isinstance(body, EmbeddingsBody):
        return body.images
    return [body.image] if body.image is not None else []


def clip_urls(body: Body) -> list[str]:
    """List the data URLs of the clips of a request, in its order."""
    parts = [part for message in body.messages for part in message.content] if isinstance(body, ChatBody) else []
    return [part.video_url.url for part in parts if isinstance(part, ClipPart)]


def without_images(body: Body) -> dict[str, Any]:
    """Return a request for the log, without the images in it."""
    content = body.model_dump(exclude={"image", "images"}, exclude_defaults=True)
    for message in content.get("messages", ()):
        # Keeps only text, so that a new kind of part stays out of the log by default.
        message["content"] = [part for part in message["content"] if part["type"] == "text"]
    return content


def make_call(body: Body, images: Sequence[ServedImage], clips: Sequence[Source] = ()) -> Call:
    """Turn a request, its decoded images and its clips into a call.

    Raises:
        Refused: fields that contradict each other, or a box that is none.
    """
    if isinstance(body, ChatBody):
        return _make_chat_call(body, images, clips)
    if isinstance(body, LocateBody):
        return LocateCall(images[0], tuple(body.phrases))
    if isinstance(body, ClassifyBody):
        return ClassifyCall(images[0], body.count)
    if isinstance(body, EmbeddingsBody):
        if bool(body.input) == bool(images):
            raise Refused("input: expected texts here, or data URLs in 'images', and not both", param="input")
        if body.boxes and len(images) != 1:
            raise Refused(f"boxes: expected one image (got {len(images)})", param="boxes")
        return EmbeddingsCall(tuple(body.input), tuple(images), _read_boxes(body.boxes, "boxes"))
    if body.text is None and not images:
        raise Refused("text: expected 'text', 'image' or both", param="text")
    if body.box is not None and not images:
        raise Refused("box: expected the 'image' that it is a part of", param="box")
    box = _read_boxes([body.box], "box")[0] if body.box is not None else None
    return SearchCall(body.text, next(iter(images), None), box, body.negative, body.count, body.kind)


def _make_chat_call(body: ChatBody, images: Sequence[ServedImage], clips: Sequence[Source]) -> ChatCall:
    check_tools(body.tools, body.tool_choice)
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused("top_logprobs: expected 'logprobs' true with it", param="top_logprobs")
    iterator, clip_iterator, turns = iter(images), iter(clips), []
    for number, message in enumerate(body.messages):
        param, parts, turn_images, turn_clips = f"messages.{number}.content", [], [], []
        for part in message.content:
            # A mark in a text would count as an image that nobody sent.
            if isinstance(part, TextPart):
                if IMAGE_MARK in part.text:
                    raise Refused(f"{param}: '{IMAGE_MARK}' stands for an image; send it as a part", param=param)
                parts.append(part.text)
            elif message.role != "user":
                raise Refused(f"{param}: only messages of the user have images (got {message.role})", param=param)
            elif isinstance(part, ClipPart):
                turn_clips.append(next(clip_iterator))
            else:
                parts.append(IMAGE_MARK)
                turn_images.append(next(iterator))
        # OpenAI renamed the role; both mean the same to a chat template.
        role = "system" if message.role == "developer" else message.role
        turns.append(ChatTurn(role, "\n".join(parts), tuple(turn_images), tuple(turn_clips)))
    if turns[-1].role != "user":
        raise Refused(f"messages: the last one must be the user's (got {turns[-1].role})", param="messages")
    boxes, last = _read_boxes(body.foveate.boxes, "foveate.boxes"), next(reversed(images), None)
    if boxes and last is None:
        raise Refused("foveate.boxes: there is no image that they are parts of", param="foveate.boxes")
    return ChatCall(
        tuple(turns),
        # OpenAI's newer name goes before the older one, which clients still send.
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed or 0,
        stop=tuple(body.stop or ()),
        regions=tuple(box.to_pixels(last.width, last.height) for box in boxes) if last else (),
        caption=body.foveate.caption(),
        is_json=body.response_format is not None and body.response_format.type == "json_object",
        json_schema=_write_schema(body.response_format),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        frame_images=body.foveate.frame_images,
    )


def _write_schema(response_format: ResponseFormat | None) -> str:
    """Return the JSON schema of a request as text, "" without one."""
    if response_format is None:
        return ""
    if (response_format.type == "json_schema") != (response_format.json_schema is not None):
        text = "response_format: expected the field json_schema with type 'json_schema', and with no other type"
        raise Refused(text, param="response_format", code="invalid_value")
    return "" if response_format.json_schema is None else json.dumps(response_format.json_schema.content)


def _read_boxes(boxes: Sequence[Sequence[float]], param: str) -> tuple[Box, ...]:
    for number, corners in enumerate(boxes):
        if (problem := find_box_problem(*corners)) is not None:
            raise Refused(f"{param}: box {number} {corners}: {problem}", param=param, code="invalid_box")
    return tuple(Box(*corners) for corners in boxes)
