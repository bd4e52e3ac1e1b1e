"""Every check of a request before its body is read, as pure ASGI: it holds behind any server.

A web page of a stranger must reach no model: `Host` must be a name of this server (a DNS name may lead to 127.0.0.1),
`Origin` absent or allowed, and the content type one that a page cannot send without asking first.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from foveate.serve.calls import Refused
from foveate.serve.replies import error_body, error_headers
from foveate.serve.settings import ServeSettings

LOG = logging.getLogger("foveate.serve")
OPEN_PATHS = ("/", "/health")
PAGE_PATH = "/page/"
_SINGLE = frozenset((b"host", b"origin", b"authorization", b"content-length", b"content-type", b"content-encoding"))
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# Bodies of several requests at once: a limit of each alone would not bound the memory.
_BODIES_AT_ONCE = 8
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: "
    b"data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]
# The last two are about documents with scripts and links.
_PAGE_HEADERS = [
    *_HEADERS[:2],
    (b"content-security-policy", _PAGE_POLICY),
    (b"cache-control", b"no-cache"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]

Headers = Sequence[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def read_headers(headers: Headers) -> dict[bytes, bytes]:
    """Return the values of headers by their names in lower case; of repeated ones the last.

    Raises:
        Refused: one that this server goes by comes twice.
    """
    values: dict[bytes, bytes] = {}
    for key, value in headers:
        name = key.lower()
        if name in values and name in _SINGLE:
            raise Refused(f"{name.decode()}: expected one such header", code="invalid_header")
        values[name] = value.strip()
    return values


def read_length(headers: Mapping[bytes, bytes], *, max_bytes: int, is_required: bool) -> int:
    """Return the length of a request's body.

    Args:
        headers: of `read_headers`.

    Raises:
        Refused: there is no Content-Length, or it is too large; nothing of the body is read then.
    """
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        # With both, a proxy and this server may disagree where the request ends.
        if length is not None:
            raise Refused("content-length: not together with transfer-encoding", code="invalid_header")
        raise Refused("content-length: required; chunked bodies are not read", status=411, code="length_required")
    if length is None:
        if is_required:
            raise Refused("content-length: required", status=411, code="length_required")
        return 0
    # `int` also takes "+5", "1_0" and digits of other scripts.
    if not length.isdigit():
        raise Refused(f"content-length: expected digits (got {length[:20]!r})", code="invalid_header")
    if len(length) > 18 or int(length) > max_bytes:
        size = f"{int(length):,}" if len(length) <= 18 else f"a number of {len(length)} digits"
        raise Refused(
            f"content-length: too large (got {size}); expected at most {max_bytes:,} bytes",
            status=413,
            code="too_large",
        )
    return int(length)


def split_host(value: str) -> str:
    """Return the name or address in a Host header, without its port."""
    name = value.rpartition(":")[0] if not value.endswith("]") and ":" in value else value
    # A name may end in the dot of the root zone, and is the same.
    return name.strip("[]").rstrip(".").lower()


class Guard:
    """Refuse what must not reach the application, add headers to replies, and write one line of log a request.

    Args:
        key: what clients must send as bearer token; "" for none.
        finished: called with a request's record once its reply has ended.
    """

    def __init__(
        self, app: App, settings: ServeSettings, *, key: str, finished: Callable[[dict[str, Any]], None]
    ) -> None:
        self.app, self.settings, self.key, self.finished = app, settings, key.encode(), finished
        self.hosts = {*_LOCAL_NAMES, settings.host.lower(), *(name.lower() for name in settings.allow_host)}
        # An address that means "all" is no name of this machine.
        self.hosts -= {"0.0.0.0", "::"}
        self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record: dict[str, Any] = {
            "id": os.urandom(16).hex(),
            "method": scope["method"],
            "path": scope["path"],
            "status": 0,
        }
        start, length = time.perf_counter(), 0
        record["start"] = start
        scope["foveate"] = record
        extra = self._reply_headers(scope, record["id"])

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal length
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
                # A whole reply no longer needs the request, and a client may take long to read it.
                if any(name == b"content-length" for name, _ in message["headers"]):
                    self._num_bytes -= length
                    length = 0
            await send(message)

        try:
            if self._is_preflight(scope):
                return await _send(send_with_headers, 204, b"")
            length = self._check(scope)
            self._num_bytes += length
            await self.app(scope, receive, send_with_headers)
        except Refused as refusal:
            has_body = any(key.lower() in (b"content-length", b"transfer-encoding") for key, _ in scope["headers"])
            await send_refusal(send_with_headers, refusal, close=has_body)
        finally:
            self._num_bytes -= length
            record["seconds"] = time.perf_counter() - start
            self.finished(record)
            _log(record)

    def _check(self, scope: Scope) -> int:
        """Check a request's head; return the length of its body."""
        headers, path, method = read_headers(scope["headers"]), scope["path"], scope["method"]
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if host is None:
            raise Refused("host: required", code="invalid_header")
        name = split_host(host.decode("latin-1"))
        # The address that the client connected to is one of this machine's, whatever it listens on.
        if name not in self.hosts and name != (scope.get("server") or ("",))[0]:
            raise Refused(f"host: '{name[:80]}' is not served here; see --allow-host", status=421, code="wrong_host")
        if origin is not None and not self._is_own(origin, host) and not self._is_allowed(origin):
            page = origin[:80].decode("latin-1")
            raise Refused(
                f"origin: pages of '{page}' may not use this server; see --allow-origin",
                status=403,
                code="wrong_origin",
            )
        if self.key and path not in OPEN_PATHS and not path.startswith(PAGE_PATH):
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            # Compared in any case: the time of an answer must not tell whether the scheme was right.
            is_right = hmac.compare_digest(token.strip(), self.key)
            if not is_right or scheme.lower() != b"bearer":
                raise Refused("authorization: the key is missing or wrong", status=401, code="invalid_api_key")
        length = read_length(headers, max_bytes=self.settings.max_body_bytes, is_required=method == "POST")
        if method != "POST":
            if length:
                raise Refused(f"content-length: {method} takes no body", code="invalid_header")
            return 0
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        encoding = headers.get(b"content-encoding", b"identity")
        if content_type != b"application/json" or encoding.lower() != b"identity":
            raise Refused("content-type: expected application/json, not compressed", status=415, code="wrong_type")
        if self._num_bytes + length > _BODIES_AT_ONCE * self.settings.max_body_bytes:
            raise Refused("too many large requests at once; try again", status=503, code="busy", retry_after=1)
        return length

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        # Both schemes, because behind a proxy that terminates TLS the page is https and this server http.
        return origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())

    def _is_allowed(self, origin: bytes) -> bool:
        # Latin-1 decodes any bytes, so a malformed origin is just not allowed instead of raising an error.
        return origin.decode("latin-1") in self.settings.allow_origin

    def _is_preflight(self, scope: Scope) -> bool:
        """Whether a browser asks if a page may use the server; it sends no key with that."""
        if scope["method"] != "OPTIONS":
            return False
        headers = {key.lower(): value for key, value in scope["headers"]}
        return b"access-control-request-method" in headers and self._is_allowed(headers.get(b"origin", b""))

    def _reply_headers(self, scope: Scope, request_id: str) -> list[tuple[bytes, bytes]]:
        path = scope["path"]
        is_page = path == "/" or path.startswith(PAGE_PATH)
        headers = [*(_PAGE_HEADERS if is_page else _HEADERS), (b"x-request-id", request_id.encode())]
        if not self.settings.allow_origin:
            return headers
        origin = dict(scope["headers"]).get(b"origin", b"")
        if self._is_allowed(origin):
            # One origin, never "*", which would let any page read replies; Vary stops caches from mixing up origins.
            headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-headers", b"authorization, content-type"),
                (b"access-control-allow-methods", b"GET, POST"),
                (b"vary", b"origin"),
            ]
        return headers


async def send_refusal(send: Send, refusal: Refused, *, close: bool = False) -> None:
    """Send OpenAI's error object. close: the body is not read, so the connection cannot go on."""
    headers = [(name.encode(), value.encode()) for name, value in error_headers(refusal).items()]
    headers += [(b"connection", b"close")] * close
    await _send(send, refusal.status, json.dumps(error_body(refusal)).encode(), headers)


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    lengths = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())] if body else []
    await send({"type": "http.response.start", "status": status, "headers": [*lengths, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def _log(record: dict[str, Any]) -> None:
    if not LOG.isEnabledFor(logging.INFO):
        return
    fields = {name: value for name, value in record.items() if name != "start"}
    line = json.dumps(fields | {"path": record["path"][:200], "seconds": round(record["seconds"], 4)})
    # `LOG.info` would look for its caller in the stack, which costs more than all the rest.
    LOG.handle(LOG.makeRecord(LOG.name, logging.INFO, __file__, 0, line, (), None))
