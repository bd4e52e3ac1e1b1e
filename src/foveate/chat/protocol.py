"""Typed requests and responses of OpenAI-compatible chat completions.

Only the fields that all servers share (vLLM, SGLang, llama.cpp, vendors) are here; anything else goes into `extra_body`
of `foveate.chat.client.ChatSettings`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ChatImage:
    """Encoded bytes of an image, and their media type ("image/jpeg")."""

    data: bytes
    media_type: str

    def content(self) -> dict[str, Any]:
        """Return the image as a content part: a data URL, so that the server fetches nothing."""
        encoded = base64.b64encode(self.data).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:{self.media_type};base64,{encoded}"}}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """Text with images in front of it."""

    text: str
    images: tuple[ChatImage, ...] = ()
    role: Literal["system", "user", "assistant"] = "user"

    def content(self) -> dict[str, Any]:
        """Return the message as the protocol writes it."""
        # Images come first: servers that cache prefixes then share an image between the prompts about it.
        parts = [*(image.content() for image in self.images), {"type": "text", "text": self.text}]
        return {"role": self.role, "content": parts}


@dataclass(frozen=True, slots=True)
class ResponseSchema:
    """A JSON schema that the response should follow, for servers that can hold a model to one."""

    name: str
    schema: Mapping[str, Any]

    def content(self) -> dict[str, Any]:
        """Return the schema as the field `response_format`."""
        return {
            "type": "json_schema",
            "json_schema": {"name": self.name, "schema": dict(self.schema), "strict": True},
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request: messages and sampling options.

    `temperature` 0 is greedy; `seed` is for servers that sample. `schema` is sent where the server takes one.
    """

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    schema: ResponseSchema | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Return the JSON body of the request, without its schema."""
        return {
            "model": model,
            "messages": [message.content() for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """The text of the first choice, or an error.

    `error` is "" for a response, else a short code: "timeout", "http_429", "connection", ... (`text` then is what the
    server said). `final` says that another attempt cannot help. `attempts` counts the tries of this request;
    `latency_ms` is the time of the last one. `tokens_in` and `tokens_out` are 0 where the server does not count.
    `model` is who answered, as the server says ("" where it does not): a gateway may choose another than the one asked.
    """

    text: str = ""
    error: str = ""
    final: bool = False
    attempts: int = 1
    latency_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
