"""Captions from an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a vendor): chat completions with an image.

The server lives outside of this environment. A JSON schema of the answer is sent to servers that take one and left out
for those that do not; the answer is read in the same way either way.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import random
import time
from collections.abc import Mapping
from typing import Any, Literal

import httpx2
from pydantic import Field, field_validator

from foveate.caption.backends._clients import Clients
from foveate.caption.backends._endpoints import Endpoint, Endpoints
from foveate.caption.backends._replies import Reply, read_reply
from foveate.caption.captioner import Backend, CaptionAnswer, CaptionRequest
from foveate.caption.prompts import response_schema
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.core.recipes import Settings
from foveate.records.collection import Collection

_MOST_BYTES = 2**20
_TIMEOUTS = 2  # a request that timed out this often is given up: longer waiting rarely helps, and blocks a place
_AWAY = (httpx2.ConnectError, httpx2.ConnectTimeout)


class HttpSettings(Settings):
    """Where and how to ask."""

    endpoint: tuple[str, ...] = Field(
        ("http://127.0.0.1:8000/v1",), min_length=1, description="Addresses that serve the model, up to /v1."
    )
    model: str = Field(min_length=1, description="The name under which the server has the model.")
    revision: str = Field("", description="Version of its weights, for the provenance.")
    concurrency: int = Field(64, ge=1, le=4096, description="Most requests in flight at each endpoint.")
    timeout_seconds: float = Field(120.0, gt=0)
    attempts: int = Field(5, ge=1, description="Tries of one request.")
    backoff_seconds: float = Field(1.0, gt=0, description="Longest wait before the second try; doubles with each.")
    patience_seconds: float = Field(120.0, ge=0, description="How long an absent server is waited for.")
    structured: Literal["auto", "never"] = Field("auto", description="Whether a JSON schema is sent.")
    api_key_env: str = Field("", description="Name of the environment variable that holds the key.")
    extra_body: dict[str, Any] = Field({}, description="Further fields of the request, as the server names them.")

    @field_validator("endpoint", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class HttpCaptioner:
    """See `foveate.caption.captioner.Captioner`."""

    name = "http"

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.model, self.revision = settings.model, settings.revision
        self.endpoints = Endpoints([chat_url(one) for one in settings.endpoint], most=settings.concurrency)
        # Endpoints hold the limit; some calls more wait with their request ready, so that a place is taken at once.
        spare = max(1, settings.concurrency // 8)
        self.concurrency = (settings.concurrency + spare) * len(self.endpoints.all)
        self._key = _key(settings.api_key_env)
        self._random = random.Random()
        secure = any(one.url.startswith("https:") for one in self.endpoints.all)
        self._clients = Clients(timeout_seconds=settings.timeout_seconds, key=self._key, secure=secure)
        self._told_away = False

    async def caption(self, request: CaptionRequest) -> CaptionAnswer:
        """Ask until there is an answer, an error that stays, or no patience left.

        Raises:
            UserError: when the server refuses the key or does not know the model or the address, or cannot be reached
                for `patience_seconds`: then no request of the run can succeed.
        """
        body = self._body(request)
        attempts = tries = timeouts = 0
        away_since = math.inf
        while True:
            endpoint = await self.endpoints.take()
            attempts += 1
            sent = time.monotonic()
            try:
                reply = await self._try(endpoint, body, request)
            finally:
                self.endpoints.give_back(endpoint)
            seconds = time.monotonic() - sent
            self._note(endpoint, reply, seconds)
            if not reply.error or not reply.retry:
                return CaptionAnswer(
                    text=reply.text,
                    error=reply.error,
                    final=bool(reply.error),
                    attempts=attempts,
                    latency_ms=1000 * seconds,
                    tokens_in=reply.tokens_in,
                    tokens_out=reply.tokens_out,
                )
            away_since = min(away_since, sent) if reply.away else math.inf
            # Nobody was answered since then: the server is away, which is not this request's fault.
            if reply.away and self.endpoints.last_success < away_since:
                self._check_patience(endpoint, reply)
            else:
                away_since = time.monotonic()  # what was answered before is held against it once
                tries += 1
                timeouts += reply.error == "timeout"
            if tries >= self.settings.attempts or timeouts >= _TIMEOUTS:
                return CaptionAnswer(text=reply.text, error=reply.error, attempts=attempts, latency_ms=1000 * seconds)
            # Full jitter, so that those who were refused together do not come back together.
            longest = min(self.settings.backoff_seconds * 2 ** min(max(tries, 1) - 1, 10), 60.0)
            await asyncio.sleep(reply.wait + self._random.uniform(0, longest))

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    def _note(self, endpoint: Endpoint, reply: Reply, seconds: float) -> None:
        """What one try says about the endpoint."""
        if reply.hopeless:
            raise UserError(
                f"{endpoint.url} answers {reply.error.replace('http_', 'HTTP ')} for the model '{self.model}': check "
                f"--endpoint, --model and the key (option api_key_env); it says: {self._shown(reply.text)}"
            )
        if not reply.error:
            self.endpoints.succeeded()
            endpoint.answered(seconds)
            self._told_away = False
            return
        if reply.overload or reply.error == "timeout":
            endpoint.overloaded()
        if reply.wait:
            endpoint.close_for(reply.wait)
        elif reply.away:
            endpoint.away(min(1.0, self.settings.backoff_seconds))
        elif not reply.retry:
            self.endpoints.succeeded()  # it answered, though not with a caption

    def _check_patience(self, endpoint: Endpoint, reply: Reply) -> None:
        silent, patience = self.endpoints.silent_seconds(), self.settings.patience_seconds
        if silent >= patience:
            raise UserError(
                f"{endpoint.url} cannot be reached for {silent:.0f} s ({reply.error}); start the server or give "
                "another --endpoint, then the same command goes on"
            )
        if not self._told_away:
            self._told_away = True
            say(f"{endpoint.url} cannot be reached ({reply.error}); waiting for up to {patience:g} s")

    def _shown(self, text: str) -> str:
        text = " ".join(text.split())[:300]
        return text.replace(self._key, "***") if self._key else text

    def _body(self, request: CaptionRequest) -> dict[str, Any]:
        image = base64.b64encode(request.image).decode("ascii")
        shown = [{"type": "image_url", "image_url": {"url": f"data:{request.media_type};base64,{image}"}}]
        content = [*(shown if image else []), {"type": "text", "text": request.prompt}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            **self.settings.extra_body,
        }

    async def _try(self, endpoint: Endpoint, body: Mapping[str, Any], request: CaptionRequest) -> Reply:
        """One try; a second one at once where the server may not take the schema."""
        if self.settings.structured == "never" or endpoint.schema is False:
            return await self._post(endpoint, body)
        kind = request.prompt_id.rpartition("-")[0]
        schema = {"name": kind, "schema": response_schema(kind), "strict": True}
        reply = await self._post(endpoint, {**body, "response_format": {"type": "json_schema", "json_schema": schema}})
        if not reply.error:
            endpoint.schema = True
        elif reply.schema and endpoint.schema is None:
            reply = await self._post(endpoint, body)
            if not reply.error:
                endpoint.schema = False
        return reply

    async def _post(self, endpoint: Endpoint, body: Mapping[str, Any]) -> Reply:
        content = json.dumps(body).encode()
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                with self._clients.one() as client:
                    async with client.stream("POST", endpoint.url, content=content) as response:
                        return await _read(response)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout):
            return Reply(error="timeout", retry=True)
        except _AWAY:
            return Reply(error="connection", retry=True, away=True)
        except httpx2.TransportError:
            return Reply(error="connection_lost", retry=True)
        except httpx2.DecodingError:
            return Reply(error="bad_response", retry=True)


async def _read(response: httpx2.Response) -> Reply:
    """The reply in a response, of which no more than a megabyte is read."""
    parts, length = list[bytes](), 0
    async for part in response.aiter_bytes():
        parts.append(part)
        length += len(part)
        if length > _MOST_BYTES:
            return Reply(error="response_too_large")
    return read_reply(response.status_code, response.headers, b"".join(parts))


def chat_url(endpoint: str) -> str:
    """The address of chat completions: `http://host:8000`, with `/v1`, or in full."""
    try:
        url = httpx2.URL(endpoint)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UserError(f"--endpoint '{endpoint}': no address ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"--endpoint '{endpoint}': allowed are addresses such as http://127.0.0.1:8000/v1")
    if url.userinfo or url.query:
        raise UserError(
            "--endpoint: no user, password or query in the address; a key belongs in an environment variable"
        )
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return str(url.copy_with(path=path))


def _key(variable: str) -> str:
    """The key in an environment variable; "" where none is named."""
    if not variable:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"option api_key_env: the environment variable {variable} is empty or not set")
    return value


def open_http(settings: HttpSettings, collection: Collection) -> HttpCaptioner:
    """The captioner; nothing is asked yet."""
    return HttpCaptioner(settings)


BACKEND = Backend(HttpSettings, open_http, note="an OpenAI-compatible server: vLLM, SGLang, llama.cpp or a vendor")
