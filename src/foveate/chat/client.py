"""Client of OpenAI-compatible servers: endpoints, retries, limits.

The server lives outside of this environment. A JSON schema of the response is sent to servers that take one and left
out for those that do not; whoever reads the response reads it in the same way either way.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Mapping
from typing import Any, Literal

import httpx2
from pydantic import Field, field_validator

from foveate.chat.connections import ClientPool
from foveate.chat.endpoints import Endpoint, Endpoints
from foveate.chat.protocol import ChatRequest, ChatResponse
from foveate.chat.replies import Reply, parse_reply
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.core.recipes import Settings

_MAX_BYTES = 2**20  # no caption is so long: a server that goes on and on does not fill the memory
_MAX_TIMEOUTS = 2  # a request that timed out this often is given up: longer waiting rarely helps, and blocks a slot
_UNREACHABLE = (httpx2.ConnectError, httpx2.ConnectTimeout)
# Waits before another try: doubled at most ten times, and never longer than a minute.
_MAX_DOUBLINGS = 10
_MAX_BACKOFF_SECONDS = 60.0


class ChatSettings(Settings):
    """Endpoints of a model, and limits of its requests."""

    endpoint: tuple[str, ...] = Field(
        ("http://127.0.0.1:8000/v1",), min_length=1, description="Addresses that serve the model, up to /v1."
    )
    model: str = Field(min_length=1, description="The name under which the server has the model.")
    revision: str = Field("", description="Version of its weights, for the provenance.")
    concurrency: int = Field(64, ge=1, le=4096, description="Requests in flight at each endpoint, at most.")
    timeout_seconds: float = Field(120.0, gt=0, description="Seconds of one try.")
    attempts: int = Field(5, ge=1, description="Tries of one request.")
    backoff_seconds: float = Field(
        1.0, gt=0, description="Longest wait before the second try, in seconds; doubles with each."
    )
    patience_seconds: float = Field(120.0, ge=0, description="Seconds to wait for a server that cannot be reached.")
    structured: Literal["auto", "never"] = Field(
        "auto", description="Send a JSON schema to servers that take one, or never."
    )
    api_key_env: str = Field("", description="Name of the environment variable that holds the key.")
    extra_body: dict[str, Any] = Field({}, description="Further fields of the request, as the server names them.")

    @field_validator("endpoint", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ChatClient:
    """Send requests to the endpoints of one model, many at once.

    All calls belong to one event loop; `close` ends their connections.

    Attributes:
        concurrency: calls at once that keep all endpoints busy.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        urls = [chat_url(address) for address in settings.endpoint]
        self.endpoints = Endpoints(urls, max_requests=settings.concurrency)
        # Endpoints hold the limit; some calls more wait with their request ready, so that a slot is taken at once.
        spare = max(1, settings.concurrency // 8)
        self.concurrency = (settings.concurrency + spare) * len(urls)
        self._key = _read_key(settings.api_key_env)
        self._random = random.Random()
        secure = any(url.startswith("https:") for url in urls)
        self.pool = ClientPool(timeout_seconds=settings.timeout_seconds, key=self._key, secure=secure)
        self._outage_reported = False

    async def complete(self, request: ChatRequest) -> ChatResponse:
        """Try until there is a response, an error that stays, or no patience left.

        Raises:
            UserError: the server refuses the key or does not know the model or the address, or cannot be reached for
                `patience_seconds`: then no request of the run can succeed.
        """
        body = {**request.body(self.settings.model), **self.settings.extra_body}
        attempts = tries = timeouts = 0
        unreachable_since = math.inf
        while True:
            endpoint = await self.endpoints.acquire()
            attempts += 1
            sent = time.monotonic()
            try:
                reply = await self._try(endpoint, body, request)
            finally:
                self.endpoints.release(endpoint)
            seconds = time.monotonic() - sent
            self._update(endpoint, reply, seconds)
            if not reply.error or not reply.retry:
                return ChatResponse(
                    text=reply.text,
                    error=reply.error,
                    final=bool(reply.error),
                    attempts=attempts,
                    latency_ms=1000 * seconds,
                    tokens_in=reply.tokens_in,
                    tokens_out=reply.tokens_out,
                )
            unreachable_since = min(unreachable_since, sent) if reply.unreachable else math.inf
            # Nobody got a response since then: the server is away, which is not this request's fault.
            if reply.unreachable and self.endpoints.last_success < unreachable_since:
                self._check_patience(endpoint, reply)
            else:
                # Another request got a response meanwhile; that is held against this one once, not at every later try.
                unreachable_since = time.monotonic()
                tries += 1
                timeouts += reply.error == "timeout"
            if tries >= self.settings.attempts or timeouts >= _MAX_TIMEOUTS:
                return ChatResponse(text=reply.text, error=reply.error, attempts=attempts, latency_ms=1000 * seconds)
            # Full jitter, so that those who were refused together do not come back together.
            doublings = min(max(tries, 1) - 1, _MAX_DOUBLINGS)
            max_wait = min(self.settings.backoff_seconds * 2**doublings, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(reply.wait + self._random.uniform(0, max_wait))

    async def close(self) -> None:
        """Close all connections."""
        await self.pool.close()

    def _update(self, endpoint: Endpoint, reply: Reply, seconds: float) -> None:
        """Update the endpoint's limit and pauses from one try."""
        if reply.fatal:
            raise UserError(
                f"{endpoint.url} answers {reply.error.replace('http_', 'HTTP ')} for the model "
                f"'{self.settings.model}': check --endpoint, --model and the key (option api_key_env); the server "
                f"says: {self._redact(reply.text)}"
            )
        if not reply.error:
            self.endpoints.record_success()
            endpoint.record_response(seconds)
            self._outage_reported = False
            return
        if reply.overload or reply.error == "timeout":
            endpoint.record_overload()
        if reply.wait:
            endpoint.pause(reply.wait)
        elif reply.unreachable:
            endpoint.record_unreachable(min(1.0, self.settings.backoff_seconds))
        elif not reply.retry:
            self.endpoints.record_success()  # it is there, although it refused this request

    def _check_patience(self, endpoint: Endpoint, reply: Reply) -> None:
        silent, patience = self.endpoints.unreachable_seconds(), self.settings.patience_seconds
        if silent >= patience:
            raise UserError(
                f"{endpoint.url} cannot be reached for {silent:.0f} s ({reply.error}); start the server or give "
                "another --endpoint, then run the same command to resume"
            )
        if not self._outage_reported:
            self._outage_reported = True
            say(f"{endpoint.url} cannot be reached ({reply.error}); waiting for up to {patience:g} s")

    def _redact(self, text: str) -> str:
        """Shorten a server's message and remove the key, which some servers repeat."""
        text = " ".join(text.split())[:300]
        return text.replace(self._key, "***") if self._key else text

    async def _try(self, endpoint: Endpoint, body: Mapping[str, Any], request: ChatRequest) -> Reply:
        """Try once; a second time at once where the server may not take the schema."""
        if request.schema is None or self.settings.structured == "never" or endpoint.takes_schema is False:
            return await self._post(endpoint, body)
        reply = await self._post(endpoint, {**body, "response_format": request.schema.content()})
        if not reply.error:
            endpoint.takes_schema = True
        elif reply.schema and endpoint.takes_schema is None:
            reply = await self._post(endpoint, body)
            # Only a response without the schema proves that the schema was to blame, and not the request.
            if not reply.error:
                endpoint.takes_schema = False
        return reply

    async def _post(self, endpoint: Endpoint, body: Mapping[str, Any]) -> Reply:
        content = json.dumps(body).encode()
        try:
            # httpx's timeouts are of single reads: a server that sends a byte now and then would never exceed them.
            async with asyncio.timeout(self.settings.timeout_seconds):
                with self.pool.acquire() as client:
                    async with client.stream("POST", endpoint.url, content=content) as response:
                        return await _read(response)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout):
            return Reply(error="timeout", retry=True)
        except _UNREACHABLE:
            return Reply(error="connection", retry=True, unreachable=True)
        except httpx2.TransportError:
            return Reply(error="connection_lost", retry=True)
        except httpx2.DecodingError:
            return Reply(error="bad_response", retry=True)


async def _read(response: httpx2.Response) -> Reply:
    """Read at most `_MAX_BYTES` of a response and parse it."""
    parts, length = list[bytes](), 0
    async for part in response.aiter_bytes():
        parts.append(part)
        length += len(part)
        if length > _MAX_BYTES:
            return Reply(error="response_too_large")
    return parse_reply(response.status_code, response.headers, b"".join(parts))


def chat_url(endpoint: str) -> str:
    """Complete an address (`http://host:8000`, with or without `/v1`) to chat completions."""
    try:
        url = httpx2.URL(endpoint)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UserError(f"--endpoint '{endpoint}' is not an address ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"--endpoint '{endpoint}' is not an address; expected one such as http://127.0.0.1:8000/v1")
    if url.userinfo or url.query:
        # The address is shown in errors, reports and run folders: a secret in it would be, too. Not repeated here.
        raise UserError(
            "--endpoint contains a user, password or query; give a key by the name of an environment variable "
            "(option api_key_env)"
        )
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return str(url.copy_with(path=path))


def _read_key(variable: str) -> str:
    """Read the key from an environment variable; "" where none is named."""
    if not variable:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"option api_key_env: the environment variable {variable} is empty or not set")
    return value
