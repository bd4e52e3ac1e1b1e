"""What a captioner is, and captioners by name: backend `x` is the module `foveate.caption.backends.x`.

A captioner turns one request (one image, one format) into raw text. Reading the answer, checking it, asking again
and storing it are the pipeline's work, so that all backends are treated alike. A new backend is one new module with a
`BACKEND`; nothing here changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import foveate.caption.backends
from foveate.core.errors import choose
from foveate.core.recipes import Settings
from foveate.records.collection import Collection


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One image, one format.

    `key` is the key of the image in its collection; `kind` one of `foveate.caption.prompts.CAPTION_KINDS`;
    `prompt_id` names the template that `prompt` was rendered from. `image` are the bytes of an image that any reader
    of `media_type` opens. `alt` is the alt-text where the format uses it (afc), else "". `temperature` 0 is greedy;
    `seed` is passed on to backends that draw.
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


@dataclass(frozen=True, slots=True)
class CaptionResponse:
    """The raw text as the model gave it, or an error.

    `error` is "" when all is well, else a short code: "timeout", "http_429", "connection", ... `final` says that no
    later attempt can mend it. `attempts` are the tries that this answer took, `latency_ms` the time of the last one.
    `tokens_in` and `tokens_out` are 0 where the backend does not count; `score` is the backend's own confidence.
    """

    text: str = ""
    error: str = ""
    final: bool = False
    attempts: int = 1
    latency_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    score: float | None = None


class Captioner(Protocol):
    """Answers requests; many `caption` calls may be in flight at once, and none raises for one bad request.

    `name` is the backend, `model` what answered, `revision` the version or hash of its weights ("" where unknown),
    `concurrency` the most calls at once that it wants. A backend that works in batches gathers the calls itself.
    """

    name: str
    model: str
    revision: str
    concurrency: int

    async def caption(self, request: CaptionRequest) -> CaptionResponse: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A kind of captioner: its settings model, and how it is opened for a collection.

    `only_scenes` marks one that answers from the truth of generated scenes: never a default, refused for real
    images, and named in every table that used it. `note` is one line for lists and docs.
    """

    settings: type[Settings]
    open: Callable[[Any, Collection], Captioner]
    only_scenes: bool = False
    note: str = ""


def backend_names() -> list[str]:
    """Names of all backends, without importing them."""
    names = (module.name for module in pkgutil.iter_modules(foveate.caption.backends.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def find_backend(name: str) -> Backend:
    """The backend `name`.

    Raises:
        UserError: for an unknown one, with the nearest match.
    """
    choose(name, backend_names(), "captioner backend")
    return importlib.import_module(f"foveate.caption.backends.{name}").BACKEND
