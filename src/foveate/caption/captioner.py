"""The protocol of captioners, images prepared for them, and backends by name.

Backend `x` is the module `foveate.caption.backends.x`.

A captioner turns one request (one image, one format) into raw text. Parsing the response, checking it, asking again and
storing it are the pipeline's work, so that all backends are treated alike. A new backend is one new module with a
`BACKEND`; nothing here changes.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from pydantic import Field

from foveate.chat.batching import DynamicBatcher, run_in_halves
from foveate.core.plugins import load_plugin, module_names
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.images import decode, read_image_info

BACKENDS = "foveate.caption.backends"
# Formats and pixel types that every server reads in the same way; all others are encoded again.
JPEG = "image/jpeg"
# WebP is missing because llama.cpp's server refuses it.
_MEDIA_TYPES = {"JPEG": JPEG, "PNG": "image/png"}
_PLAIN_MODES = ("L", "RGB")
_QUALITY = 92


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One image, one format.

    Attributes:
        key: of the image in its collection.
        kind: one of `foveate.caption.prompts.CAPTION_KINDS`.
        prompt_id: the template that `prompt` was filled from.
        image: bytes that any reader of `media_type` opens.
        alt: the alt-text where the format uses it (afc), else "".
        temperature: 0 is greedy.
        seed: for backends that sample.
        length: class of `foveate.caption.chat_requests.EDGES`, for captioners that know it; None = the format's usual.
    """

    key: str
    kind: str
    prompt_id: str
    prompt: str
    image: bytes
    media_type: str
    alt: str
    max_tokens: int
    temperature: float
    seed: int
    length: int | None = None


@dataclass(frozen=True, slots=True)
class CaptionResponse:
    """The raw text as the model gave it, or an error.

    Attributes:
        error: "" when all is well, else a short code: "timeout", "http_429", "connection", ...
        final: no later attempt can help.
        attempts: tries that this response took.
        latency_ms: of the last try.
        tokens_in, tokens_out: 0 where the backend does not count.
        model: who answered, where a server says so; a gateway may choose another model than the one asked.
        score: the backend's own confidence.
        finished: False where the backend knows that the text was cut at `max_tokens`.
        flags: of the backend's own, stored with the caption.
    """

    text: str = ""
    error: str = ""
    final: bool = False
    attempts: int = 1
    latency_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
    score: float | None = None
    finished: bool = True
    flags: tuple[str, ...] = ()


class CaptionRunSettings(Settings):
    """The captioner of a run and its number of processes; `CaptionSettings` has the requests."""

    backend: str = Field(
        "http",
        description="backend that writes the captions: http, transformers, foveate or scene_oracle; see the docs",
    )
    model: str | None = Field(None, description="the model's name at the server, its hub id, or its folder")
    endpoint: tuple[str, ...] = Field((), description="address of the server")
    concurrency: int | None = Field(
        None, ge=1, description="maximum number of requests in flight at each endpoint; the backend's by default"
    )
    options: tuple[str, ...] = Field((), description="a setting of the backend")
    tokenizer: Path | None = Field(None, description="also count tokens with this tokenizer.json, besides CLIP's")
    executor: str = Field("local", description="executor of the requests: local, or ray (extra)")
    processes: int = Field(2, ge=1, description="worker processes of ray")


class Captioner(Protocol):
    """Answers requests, many at once; no call raises for one bad request.

    Attributes:
        name: of the backend.
        model: what answered.
        revision: version or hash of its weights, "" where unknown.
        concurrency: calls at once that keep it busy. A backend that works in batches gathers the calls itself.
    """

    name: str
    model: str
    revision: str
    concurrency: int

    async def caption(self, request: CaptionRequest) -> CaptionResponse: ...

    async def close(self) -> None: ...


class BatchingCaptioner(ABC):
    """Base of captioners with a model in this process: calls in flight together share a batch.

    Attributes:
        batch: captions that are written together, at most.
        wait_seconds: how long a batch that is not full waits for more.
        failures: errors at which a batch is halved, so that a request that fails alone fails no other.
    """

    wait_seconds: float = 0.01
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, IndexError)

    def __init__(self, batch: int) -> None:
        self.batch = batch
        # Enough calls in flight that the next batches fill while one is written.
        self.concurrency = 4 * batch
        self._batcher: DynamicBatcher[CaptionRequest, CaptionResponse] | None = None

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        """Return the model's response, from the next batch."""
        if self._batcher is None:
            # Create the batcher in the first call, to whose event loop it belongs.
            self._batcher = DynamicBatcher(
                self.caption_batch, max_batch=self.batch, group_by=self.group_of, max_wait_seconds=self.wait_seconds
            )
        return await self._batcher.submit(request)

    async def close(self) -> None:
        """Wait for the last batch and end the thread that writes."""
        if self._batcher is not None:
            await self._batcher.close()
            self._batcher = None

    def caption_batch(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Caption a batch; a request that the model cannot take fails only itself."""
        return [
            self.describe_failure(result) if isinstance(result, Exception) else result
            for result in run_in_halves(self.respond, requests, errors=self.failures)
        ]

    def group_of(self, request: CaptionRequest) -> Hashable:
        """Return what requests of one batch have in common."""
        return None

    @abstractmethod
    def respond(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Answer a batch."""

    @abstractmethod
    def describe_failure(self, error: Exception) -> CaptionResponse:
        """Return the response to a request that the model failed on."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A kind of captioner: its settings model, and how it is opened for a collection.

    Attributes:
        only_scenes: it answers from the truth of generated scenes: never a default, refused for real images, and named
            in every table that used it.
        note: one line for lists and docs.
    """

    settings: type[Settings]
    open: Callable[[Any, Collection], Captioner]
    only_scenes: bool = False
    note: str = ""


def backend_names() -> list[str]:
    """List all backends, without importing them."""
    return module_names(BACKENDS)


def find_backend(name: str) -> Backend:
    """Import a backend by name.

    Raises:
        UserError: there is no such backend; the error lists all and the nearest match.
    """
    return load_plugin(BACKENDS, name, "BACKEND", label="captioner backend")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """The bytes of an image, their media type, and its width and height in pixels."""

    data: bytes
    media_type: str
    width: int
    height: int


def prepare_image(data: bytes, *, longest_side: int) -> PreparedImage:
    """Make an image readable for every captioner: upright, one frame, opaque, not too large.

    The bytes stay as they are where they are a JPEG or PNG of one frame, upright, without transparency or
    palette, and at most `longest_side` pixels a side. Else the image is decoded, shrunk (never enlarged) and written as
    a JPEG.

    Raises:
        BadImage: it cannot be decoded.
    """
    # Read only the header first: most images need no change, and encoding again costs time and quality.
    info, upright = read_image_info(data)
    usable = info.format in _MEDIA_TYPES and info.mode in _PLAIN_MODES and info.frames == 1 and upright
    if usable and max(info.width, info.height) <= longest_side:
        return PreparedImage(data, _MEDIA_TYPES[info.format], info.width, info.height)
    image = decode(data, longest_side=longest_side)
    return PreparedImage(_save_jpeg(image), JPEG, image.width, image.height)


def encode_jpeg(data: bytes) -> bytes:
    """Write an image that `prepare_image` made as a JPEG."""
    return _save_jpeg(decode(data))


def _save_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
