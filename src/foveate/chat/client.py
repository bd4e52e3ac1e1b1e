"""Client of OpenAI-compatible servers: endpoints, retries, limits.

The server lives outside of this environment. A JSON schema of the response is sent to servers that take one and left
out for those that do not; whoever reads the response reads it in the same way either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import os
import random
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from pydantic import Field, field_validator

from foveate.chat.protocol import ChatRequest, ChatResponse
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.core.recipes import Settings

# Parse one HTTP response: a text, a reason to try again, or a final error.


# What a gateway says while the server behind it is away.
UNAVAILABLE = (502, 503, 504)
# Timeouts, conflicts, rate limits and server errors pass; some vendors answer 529 when they are overloaded.
_RETRIED = (408, 409, 425, 429, 500, 529, *UNAVAILABLE)
# A wrong key, model or address: no request of the run can succeed.
_FATAL = (401, 403, 404)
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|guided|structured|grammar", re.IGNORECASE)
_MAX_WAIT_SECONDS = 600.0
_MAX_ERROR_BYTES = 2000
_MAX_NAME_LETTERS = 200
_MAX_TOKEN_COUNT = 2**40  # larger counts are nonsense, and would not fit the sums that are reported


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one try.

    `error` is "" where `text` is the response. `retry`: a later try may help. `overload`: the server has too much to
    do. `unreachable`: no server answers. `fatal`: no request can succeed. `schema`: the server may not take the JSON
    schema. `wait`: seconds after which the server asked to be tried again. `model`: who answered, as the server says.
    """

    text: str = ""
    error: str = ""
    retry: bool = False
    overload: bool = False
    unreachable: bool = False
    fatal: bool = False
    schema: bool = False
    wait: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""


def parse_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Parse an HTTP response; anything that is no chat completion is an error."""
    if status != 200:
        message = _decode(body)
        # Servers without structured output refuse the schema with a client error; some crash on it instead (500), and
        # then only the message tells.
        about_schema = status == 500 and bool(_SCHEMA_WORDS.search(message))
        return Reply(
            text=message,
            error=f"http_{status}",
            retry=status in _RETRIED,
            overload=status in (429, 529, 503),
            unreachable=status in UNAVAILABLE,
            fatal=status in _FATAL,
            schema=status in (400, 415, 422, 501) or about_schema,
            wait=parse_retry_after(headers.get("retry-after", "")),
        )
    try:
        content = json.loads(body)
        # Gateways (OpenRouter) have sent status 200 by the time the server behind them fails.
        if code := _find_error_code(content):
            return parse_reply(code, headers, body)
        choice = content["choices"][0]
        message = choice["message"]
        usage = content.get("usage") or {}
        spent = {
            "tokens_in": _token_count(usage, "prompt_tokens"),
            "tokens_out": _token_count(usage, "completion_tokens"),
            "model": _clean_name(content.get("model")),
        }
        text = message.get("content")
        refusal = message.get("refusal")
        reason = choice.get("finish_reason")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        # Cut off on its way, or no chat completion at all.
        return Reply(text=_decode(body), error="bad_response", retry=True)
    if isinstance(text, list):  # content parts instead of a string
        parts = [part.get("text") or "" for part in text if isinstance(part, dict)]
        if not all(isinstance(part, str) for part in parts):
            return Reply(text=_decode(body), error="bad_response", retry=True)
        text = "".join(parts)
    # A refusal is not retried: the same request would be refused again.
    if (isinstance(refusal, str) and refusal) or reason == "content_filter":
        return Reply(text=str(refusal or text or ""), error="refused", **spent)
    return Reply(text=text if isinstance(text, str) else "", **spent)


def _clean_name(value: Any) -> str:
    # A lone surrogate, which JSON can write, is no text that a table stores.
    return value[:_MAX_NAME_LETTERS].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _find_error_code(content: Any) -> int:
    """Return the HTTP status of an error inside a response, or inside its first choice; 0 for none."""
    if not isinstance(content, dict):
        return 0
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    for error in (content.get("error"), choice.get("error")):
        code = error.get("code") if isinstance(error, dict) else None
        # Vendors also write names ("rate_limit_exceeded"); such a response has no choices, and so is tried again.
        if isinstance(code, (int, str)) and re.fullmatch(r"[45][0-9]{2}", str(code)):
            return int(code)
    return 0


def _decode(body: bytes) -> str:
    return body[:_MAX_ERROR_BYTES].decode("utf-8", "replace")


def _token_count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKEN_COUNT else 0


def parse_retry_after(value: str) -> float:
    """Parse a Retry-After header (a number or a date) to seconds, at most ten minutes; 0 for none."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return min(float(value), _MAX_WAIT_SECONDS)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(when - time.time(), 0.0), _MAX_WAIT_SECONDS)


# A pool of HTTP clients, one for each request in flight.
#
# One client for all would look through all of its connections at the start and at the end of every request: at 64 in
# flight that is a fifth of the time that a request costs, at thousands nearly all of it.


# Limit the connection alone: an absent server is noticed long before a slow response would be.
CONNECT_SECONDS = 10.0


class ClientPool:
    """HTTP clients of one event loop that keep their connections for the next request.

    Args:
        timeout_seconds: of one response.
        key: sent as bearer token; "" for none.
        secure: whether any address is HTTPS. Reading all certificates takes a while, and plain HTTP needs none.
    """

    def __init__(self, *, timeout_seconds: float, key: str, secure: bool) -> None:
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._timeout = httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
        self._secure = secure
        self._ssl_context = None
        self._free: list[httpx2.AsyncClient] = []
        self.clients: list[httpx2.AsyncClient] = []

    @contextmanager
    def acquire(self) -> Iterator[httpx2.AsyncClient]:
        """Lend a client that nobody else uses."""
        # The last one used comes first, so that connections that are not needed stay idle and expire.
        client = self._free.pop() if self._free else self._create_client()
        try:
            yield client
        finally:
            self._free.append(client)

    def _create_client(self) -> httpx2.AsyncClient:
        # Clients share one context, so that the certificates are read once.
        self._ssl_context = self._ssl_context or httpx2.create_ssl_context(verify=self._secure)
        client = httpx2.AsyncClient(
            verify=self._ssl_context,
            headers=self._headers,
            # Without this, credentials of ~/.netrc would be sent to a server that the user gave no key for.
            auth=lambda request: request,
            timeout=self._timeout,
            # No limit here: `Endpoints` bounds the requests in flight.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
        )
        self.clients.append(client)
        return client

    async def close(self) -> None:
        """Close all connections."""
        clients, self.clients, self._free = self.clients, [], []
        for client in clients:
            await client.aclose()


# Endpoints that serve one model, and how many requests each may have in flight.
#
# Additive increase, multiplicative decrease: a response raises an endpoint's limit by one per limit's worth of
# responses, up to what the user allows, and a sign of overload (429, a timeout) halves it, at most once per round trip.
# An endpoint that says when to come back (`Retry-After`), or that cannot be reached, gets nothing until then.


_NEVER = -1e9  # a time before every reading of the monotonic clock
_MAX_PAUSE_SECONDS = 30.0
# Bounds the exponent: in an outage of hours, 2**n would overflow a float.
_MAX_DOUBLINGS = 10


@dataclass(slots=True)
class Endpoint:
    """One address and its load.

    `takes_schema` says whether it takes a JSON schema: None until it is known.
    """

    url: str
    max_requests: int
    takes_schema: bool | None = None
    limit: float = 0.0
    in_flight: int = 0
    paused_until: float = 0.0
    round_trip: float = 0.0
    halved_at: float = field(default=_NEVER)
    failures: int = 0

    def __post_init__(self) -> None:
        self.limit = float(self.max_requests)

    def record_response(self, seconds: float) -> None:
        """Raise the limit after a response that took `seconds`."""
        # A moving average: one slow response does not stretch the interval between two halvings.
        self.round_trip = seconds if not self.round_trip else 0.9 * self.round_trip + 0.1 * seconds
        # Adds one per `limit` responses: additive increase; the halving below is the multiplicative decrease.
        self.limit = min(float(self.max_requests), self.limit + 1 / self.limit)
        self.failures = 0

    def record_overload(self) -> None:
        """Halve the limit: the endpoint is overloaded, or was silent for too long."""
        now = time.monotonic()
        # Requests that were in flight together fail together; they are one sign of overload, not many.
        if now - self.halved_at > max(self.round_trip, 0.1):
            self.halved_at = now
            self.limit = max(1.0, self.limit / 2)

    def record_unreachable(self, seconds: float) -> None:
        """Pause for `seconds`, doubled with each failure in a row, at most half a minute."""
        # Requests that were in flight together fail together: only the first of them lengthens the pause.
        if self.paused_until <= time.monotonic():
            self.pause(min(seconds * 2**self.failures, _MAX_PAUSE_SECONDS))
            self.failures += self.failures < _MAX_DOUBLINGS

    def pause(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
        # A short pause must not end a longer one, such as that of a Retry-After.
        self.paused_until = max(self.paused_until, time.monotonic() + seconds)


class Endpoints:
    """Slots at several endpoints: the least busy one first, waiting requests in order."""

    def __init__(self, urls: list[str], *, max_requests: int) -> None:
        self.endpoints = [Endpoint(url, max_requests) for url in urls]
        self.last_success = _NEVER
        self.unreachable_since: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> Endpoint:
        """Take a slot; wait until there is one."""
        while True:
            now = time.monotonic()
            free = [
                endpoint
                for endpoint in self.endpoints
                if endpoint.paused_until <= now and endpoint.in_flight < int(endpoint.limit)
            ]
            if free:
                # Relative to the limit, so that an endpoint whose limit was halved gets half as many.
                selected = min(free, key=lambda endpoint: endpoint.in_flight / endpoint.limit)
                selected.in_flight += 1
                return selected
            pauses = [endpoint.paused_until - now for endpoint in self.endpoints if endpoint.paused_until > now]
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                # Nobody wakes a waiter at the end of a pause, so it looks again by itself; a moment later, because the
                # clock may stand just before the end.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiter, min(pauses) + 0.001 if pauses else None)
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def release(self, endpoint: Endpoint) -> None:
        """Free a slot and wake those who wait for it."""
        endpoint.in_flight -= 1
        # More than one may fit: the limit rises with responses, not only with freed slots.
        for _ in range(max(1, int(endpoint.limit) - endpoint.in_flight)):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)

    def record_success(self) -> None:
        """Note that some endpoint responded."""
        self.last_success = time.monotonic()
        self.unreachable_since = None

    def unreachable_seconds(self) -> float:
        """Return the seconds for which no endpoint could be reached; call it when one could not."""
        self.unreachable_since = self.unreachable_since or time.monotonic()
        return time.monotonic() - self.unreachable_since


_MAX_BYTES = 2**20  # no caption is so long: a server that goes on and on does not fill the memory
_MAX_TIMEOUTS = 2  # a request that timed out this often is given up: longer waiting rarely helps, and blocks a slot
_UNREACHABLE = (httpx2.ConnectError, httpx2.ConnectTimeout)
# Waits before another try: doubled at most ten times, and never longer than a minute.
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
                    model=reply.model,
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
        text = " ".join(text.split())
        # Before the cut, which may fall into a key and leave a part of it that is no longer found.
        return (text.replace(self._key, "***") if self._key else text)[:300]

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
