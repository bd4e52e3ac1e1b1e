"""Requests as JSON: OpenAI's where it has them, and their checks.

Unknown fields are refused, so that no client believes that an option had an effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field


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
# Millions of wrong items would else become millions of errors, of some hundred bytes each.
Boxes = Annotated[list[Corners], FailFast()]
Name = Annotated[str, Field(min_length=1, max_length=512)]
# A client's own name for a user: OpenAI allows 64 letters.
Label = Annotated[str, Field(max_length=512)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
# A data URL in a text is no image: it may not be longer than a text.
Text = Annotated[str, Field(max_length=2**20)]
Texts = Annotated[list[Text], FailFast(), BeforeValidator(_as_list)]


class ImageAddress(_Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(_Body):
    type: Literal["text"]
    text: Text


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: ImageAddress


class ClipAddress(_Body):
    url: str


class ClipPart(_Body):
    type: Literal["video_url"]
    video_url: ClipAddress


Part = Annotated[TextPart | ImagePart | ClipPart, Field(discriminator="type")]


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], FailFast(), BeforeValidator(_as_parts)] = Field(max_length=4096)
    name: Label | None = None
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


class ChatBody(_Body):
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
    stop: Annotated[list[Stop] | None, BeforeValidator(_as_list)] = Field(None, max_length=16)
    response_format: ResponseFormat | None = None
    foveate: Extras = Field(default_factory=Extras)  # pydantic would copy a default deeply for each request
    user: Label | None = None
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
    boxes: Boxes = Field([], max_length=16384)
    encoding_format: Literal["float", "base64"] = "float"
    user: Label | None = None


class LocateBody(_Body):
    """`POST /v1/locate`."""

    model: Name
    image: str
    phrases: Annotated[Texts, Field(min_length=1, max_length=256)]


class SearchBody(_Body):
    """`POST /v1/search`."""

    model: Name
    text: Text | None = Field(None, min_length=1)
    image: str | None = None
    box: Corners | None = None
    negative: Text | None = Field(None, min_length=1)
    count: int = Field(20, ge=1, le=1000)
    kind: Literal["both", "images", "regions"] = "both"


class ClassifyBody(_Body):
    """`POST /v1/classify`."""

    model: Name
    image: str
    count: int = Field(5, ge=1, le=10_000)


Body = ChatBody | EmbeddingsBody | LocateBody | SearchBody | ClassifyBody
