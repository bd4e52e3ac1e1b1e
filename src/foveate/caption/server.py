"""The captioner as a small OpenAI-compatible server: GET /v1/models, POST /v1/chat/completions, GET /health.

Written on asyncio alone. It listens on 127.0.0.1 by default, reads a bounded request, fetches nothing, and
unpacks images with the limits of `foveate.records.images`. Requests that are in flight together share a batch.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import signal
import time
import uuid
from collections.abc import Callable
from typing import Any

from foveate.caption.captioner import Captioner
from foveate.caption.captioner_settings import ServerSettings
from foveate.caption.chat_requests import Refused, read_request
from foveate.core.errors import UserError
from foveate.core.progress import say

MAX_BODY_BYTES = 24 * 2**20  # of a request's body
_HEADER_BYTES = 32 * 1024
_PATIENCE_SECONDS = 30.0
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError)
_FAILURES += (TypeError, ValueError)
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {408: "Request Timeout", 411: "Length Required", 413: "Content Too Large", 500: "Internal Server Error"}
_REASONS |= {431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class CaptionServer:
    """Answer requests about one captioner.

    Args:
        model: the name that requests give. key: what clients must send as bearer token; "" for none.
        max_waiting: requests beyond which new ones get 503.
    """

    def __init__(self, captioner: Captioner, *, model: str, key: str = "", max_waiting: int = 1024) -> None:
        self.captioner, self.model, self.key, self.max_waiting = captioner, model, key, max_waiting
        self._started = int(time.time())
        self._waiting = 0
        self._closing = False
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Start to listen; return the port.

        Raises:
            UserError: the address cannot be listened on.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_HEADER_BYTES)
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror or error})") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, wait for captions in flight, and end the connections."""
        # Open connections may go on to send requests, which a captioner that closes takes no more.
        self._closing = True
        if self._server is not None:
            self._server.close()
        await self.captioner.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            keep = True
            while keep:
                keep = await self._handle_request(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _handle_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE_SECONDS)
        except asyncio.LimitOverrunError:
            return await _answer(writer, Refused("the header is too long", status=431), keep=False)
        except (TimeoutError, asyncio.IncompleteReadError):
            return False
        try:
            method, path, headers = _head(head)
        except ValueError:
            return await _answer(writer, Refused("this is no HTTP/1.1 request"), keep=False)
        keep = headers.get("connection", "").lower() != "close"
        try:
            # The key before the body: a stranger does not make the server read 24 MB.
            handler = self._find_handler(method, path, headers)
        except Refused as refusal:
            has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            return await _answer(writer, refusal, keep=keep and not has_body)
        try:
            body = await _body(reader, headers)
        except Refused as refusal:  # the rest of the body is not read: the connection ends
            return await _answer(writer, refusal, keep=False)
        except TimeoutError:
            return await _answer(writer, Refused("the body did not arrive", status=408), keep=False)
        try:
            return await _answer(writer, await handler(body), keep=keep)
        except Refused as refusal:
            return await _answer(writer, refusal, keep=keep)
        except _FAILURES as error:
            # Whatever a captioner raises: the client waits for an answer, and other clients for theirs.
            say(f"a request failed: {type(error).__name__}: {error}")
            return await _answer(writer, Refused("the captioner failed on this request", status=500), keep=keep)

    def _find_handler(self, method: str, path: str, headers: dict[str, str]) -> Callable[[bytes], Any]:
        """Return what answers a request; raise Refused for an unknown path, another method, or a wrong key."""
        path = path.partition("?")[0]
        known: dict[str, tuple[str, Callable[[bytes], Any]]] = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
        }
        if path not in known:
            raise Refused(f"nothing is served at this path: allowed are {', '.join(known)}", status=404)
        expected, handler = known[path]
        if method != expected:
            raise Refused(f"{path} takes {expected}", status=405)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and path != "/health" and not hmac.compare_digest(token.encode(), self.key.encode()):
            raise Refused("the API key is missing or wrong", status=401, code="invalid_api_key")
        return handler

    async def _health(self, body: bytes) -> dict[str, Any]:
        return {"status": "ok", "model": self.model, "revision": self.captioner.revision, "waiting": self._waiting}

    async def _models(self, body: bytes) -> dict[str, Any]:
        entry = {"id": self.model, "object": "model", "created": self._started, "owned_by": "foveate"}
        return {"object": "list", "data": [entry]}

    async def _chat(self, body: bytes) -> dict[str, Any]:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON") from None
        request = read_request(content, model=self.model)
        if self._closing:
            raise Refused("the server is stopping", status=503)
        if self._waiting >= self.max_waiting:
            raise Refused(f"{self._waiting} requests are waiting already; try again later", status=503)
        self._waiting += 1
        try:
            response = await self.captioner.caption(request)
        finally:
            self._waiting -= 1
        if response.error.startswith("bad_image"):
            raise Refused(f"the image cannot be read ({response.error})", param="messages", code="invalid_image")
        if response.error:
            say(f"a request failed: {response.error} {response.text}".rstrip())
            raise Refused("the captioner failed on this request", status=500)
        usage = {"prompt_tokens": response.tokens_in, "completion_tokens": response.tokens_out}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": response.text, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop" if response.finished else "length",
        }
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.captioner.revision,
            "choices": [choice],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }


def _head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, version = first.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        headers[name.strip().lower()] = value.strip()
    return method, path, headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "transfer-encoding" in headers:
        raise Refused("send a Content-Length: chunked bodies are not read", status=411)
    content_length = headers.get("content-length", "0")
    if not content_length.isdecimal():
        raise Refused("Content-Length must be a number")
    # Python refuses to convert thousands of digits.
    if len(content_length) > 18 or int(content_length) > MAX_BODY_BYTES:
        raise Refused(f"the body has {content_length[:18]} bytes, allowed are {MAX_BODY_BYTES}", status=413)
    length = int(content_length)
    return await asyncio.wait_for(reader.readexactly(length), _PATIENCE_SECONDS) if length else b""


async def _answer(writer: asyncio.StreamWriter, answer: dict[str, Any] | Refused, *, keep: bool) -> bool:
    status, content = (answer.status, answer.body()) if isinstance(answer, Refused) else (200, answer)
    # In ASCII: a message may quote a client's lone surrogate, which UTF-8 cannot hold.
    body = json.dumps(content).encode()
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep else 'close'}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
    return keep


def serve(
    captioner: Captioner,
    settings: ServerSettings,
    *,
    key: str = "",
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve a captioner until SIGINT or SIGTERM.

    Args:
        key: what clients must send as bearer token; "" for none.
        ready: called with the port once the server listens; the port file is written before.
    """

    async def run() -> None:
        server = CaptionServer(captioner, model=settings.name, key=key)
        bound_port = await server.start(settings.host, settings.port)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        if settings.port_file is not None:
            settings.port_file.write_text(f"{bound_port}\n", encoding="utf-8")
        if ready is not None:
            ready(bound_port)
        await stop.wait()
        await server.close()

    asyncio.run(run())
