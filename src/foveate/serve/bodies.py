"""Requests as JSON: OpenAI's where it has them, and their checks.

Unknown fields are refused, so that no client believes that an option had an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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

IMAGE_MARK = "<image>"
_MAX_PROBLEMS = 3
_MAX_PARAM_LETTERS = 100


class _Body(BaseModel):
    # Strict: "5" is no number and true no 1. JSON may still write a float's 1 without a point.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _neutral(*values: object, expected: str) -> BeforeValidator:
    """Accept a field of OpenAI's that has no effect here only with a value that asks for none."""

    def check(value: object) -> object:
        if not any(value == neutral and type(value) is type(neutral) for neutral in (None, *values)):
            raise ValueError(f"not supported; expected {expected}")
        return value

    return BeforeValidator(check)


Corners = Annotated[list[float], Field(min_length=4, max_length=4)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]


class ImageAddress(_Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]
    name: str | None = None
    # Clients send an answer back as they got it.
    refusal: None = None
    annotations: Annotated[list[Any] | None, _neutral([], expected="null or []")] = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Body):
    type: Literal["text", "json_object"]


class Extras(_Body):
    """The request's field `foveate`: boxes of `<1>`, `<2>` in the last message, and how a captioner writes."""

    boxes: list[Corners] = []
    format: str | None = None
    alt: str | None = None
    length: int | None = None

    def caption(self) -> dict[str, Any] | None:
        """Return the fields for captions that the client gave."""
        return self.model_dump(include={"format", "alt", "length"}, exclude_none=True) or None


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    model: Name
    messages: list[Message] = Field(min_length=1, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop] | None, BeforeValidator(_as_list)] = Field(None, max_length=16)
    response_format: ResponseFormat | None = None
    foveate: Extras = Extras()
    user: str | None = None
    n: Annotated[int | None, _neutral(1, expected="1")] = None
    logprobs: Annotated[bool | None, _neutral(False, expected="false")] = None
    frequency_penalty: Annotated[float | None, _neutral(0, 0.0, expected="0")] = None
    presence_penalty: Annotated[float | None, _neutral(0, 0.0, expected="0")] = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class EmbeddingsBody(_Body):
    """`POST /v1/embeddings`: texts in `input`, or data URLs in `images`, or `boxes` of one image."""

    model: Name
    input: Annotated[Texts, Field(max_length=65536)] = []
    images: list[str] = Field([], max_length=4096)
    boxes: list[Corners] = Field([], max_length=65536)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class LocateBody(_Body):
    """`POST /v1/locate`."""

    model: Name
    image: str
    phrases: Annotated[Texts, Field(min_length=1, max_length=256)]


class SearchBody(_Body):
    """`POST /v1/search`."""

    model: Name
    text: str | None = Field(None, min_length=1)
    image: str | None = None
    box: Corners | None = None
    negative: str | None = Field(None, min_length=1)
    count: int = Field(20, ge=1, le=1000)
    kind: Literal["both", "images", "regions"] = "both"


class ClassifyBody(_Body):
    """`POST /v1/classify`."""

    model: Name
    image: str
    count: int = Field(5, ge=1, le=10_000)


Body = ChatBody | EmbeddingsBody | LocateBody | SearchBody | ClassifyBody
B = TypeVar("B", bound=Body)


def parse_body(model: type[B], data: bytes) -> B:
    """Read a request's JSON.

    Raises:
        Refused: it is no JSON, or a field is wrong or unknown; `param` is the first of them.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        raise Refused(f"body: expected JSON (got {first['ctx']['error']})", code="invalid_json") from None
    sentences = [describe_problem(model, dict(problem)) for problem in problems[:_MAX_PROBLEMS]]
    more = [f"{len(problems) - _MAX_PROBLEMS} more problems"] if len(problems) > _MAX_PROBLEMS else []
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


def without_images(body: Body) -> dict[str, Any]:
    """Return a request for the log, without the images in it."""
    content = body.model_dump(exclude={"image", "images"}, exclude_defaults=True)
    for message in content.get("messages", ()):
        message["content"] = [part for part in message["content"] if part["type"] == "text"]
    return content


def make_call(body: Body, images: Sequence[ServedImage]) -> Call:
    """Turn a request and its decoded images into a call.

    Raises:
        Refused: fields that contradict each other, or a box that is none.
    """
    if isinstance(body, ChatBody):
        return _make_chat_call(body, images)
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


def _make_chat_call(body: ChatBody, images: Sequence[ServedImage]) -> ChatCall:
    iterator, turns = iter(images), []
    for number, message in enumerate(body.messages):
        param, parts, turn_images = f"messages.{number}.content", [], []
        for part in message.content:
            if isinstance(part, TextPart):
                if IMAGE_MARK in part.text:
                    raise Refused(f"{param}: '{IMAGE_MARK}' stands for an image; send it as a part", param=param)
                parts.append(part.text)
            elif message.role != "user":
                raise Refused(f"{param}: only messages of the user have images (got {message.role})", param=param)
            else:
                parts.append(IMAGE_MARK)
                turn_images.append(next(iterator))
        role = "system" if message.role == "developer" else message.role
        turns.append(ChatTurn(role, "\n".join(parts), tuple(turn_images)))
    if turns[-1].role != "user":
        raise Refused(f"messages: the last one must be the user's (got {turns[-1].role})", param="messages")
    boxes, last = _read_boxes(body.foveate.boxes, "foveate.boxes"), next(reversed(images), None)
    if boxes and last is None:
        raise Refused("foveate.boxes: there is no image that they are parts of", param="foveate.boxes")
    return ChatCall(
        tuple(turns),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed or 0,
        stop=tuple(body.stop or ()),
        regions=tuple(box.to_pixels(last.width, last.height) for box in boxes) if last else (),
        caption=body.foveate.caption(),
        is_json=body.response_format is not None and body.response_format.type == "json_object",
    )


def _read_boxes(boxes: Sequence[Corners], param: str) -> tuple[Box, ...]:
    for number, corners in enumerate(boxes):
        if (problem := find_box_problem(*corners)) is not None:
            raise Refused(f"{param}: box {number} {corners}: {problem}", param=param, code="invalid_box")
    return tuple(Box(*corners) for corners in boxes)
