"""Validate HTTP framing and bound slow clients, below both of uvicorn's parsers.

It takes the bytes of one request at a time, so that no parser ever sees a second request hidden in the first, and
nothing that the layer and the parser could read differently: folded headers, two lengths, chunks with a length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from foveate.serve.calls import Refused
from foveate.serve.guard import LOG, read_headers, read_length
from foveate.serve.replies import error_body, error_headers

try:
    import fcntl
    import termios

    # macOS has the modules, but its kernel does not answer this for sockets.
    _KERNEL_TELLS = sys.platform == "linux"
except ImportError:  # Windows
    _KERNEL_TELLS = False

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Parser
else:
    Parser = object

HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 1000
SEND_SECONDS = 30.0
MAX_HEAD_BYTES = 32 * 1024
_SLOW_START_SECONDS = 3.0
_MAX_REFUSED = 128
_MAX_GATHERED_BYTES = 32 * 1024
# A connection that is closed while its client still sends is reset, and the client never reads why.
_LINGER_SECONDS = 2.0
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [\x21-\x7e]+ HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*)")
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 429: "Too Many Requests", 413: "Content Too Large"}
_PHRASES |= {431: "Header Fields Too Large", 503: "Service Unavailable"}


def split_head(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Split a request's head into its first line and its headers.

    Args:
        head: without the empty line that ends it.

    Raises:
        Refused: a line that parsers may read differently, or not exactly one Host.
    """
    first, *lines = head.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(first) or first.startswith(b"CONNECT "):
        raise Refused("request line: expected METHOD PATH HTTP/1.1", code="invalid_request_line")
    headers = []
    for line in lines:
        # A line that begins with a space would continue the one before: such a value is read in two ways.
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Refused(f"header {line[:40]!r}: expected 'name: value' in one line", code="invalid_header")
        headers.append((match[1].lower(), match[2]))
    if b"host" not in read_headers(headers):
        raise Refused("host: required", code="invalid_header")
    return first, headers


def _is_readable(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a parser reads the length of a body as a number of 64 bits."""
    return all(len(value) <= 18 for name, value in headers if name == b"content-length")


class GatheringTransport:
    """A transport that reads on for a moment when it is closed while its client still sends.

    What is written in one turn of the event loop, such as a reply's head and its body, is sent together.
    """

    def __init__(self, transport: asyncio.Transport, protocol: FramingProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._parts, self._num_bytes = list[bytes](), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._protocol.loop.call_soon(self._flush)
        self._parts.append(data)
        self._num_bytes += len(data)
        # The transport tells the application to wait, once it holds so much.
        if self._num_bytes > _MAX_GATHERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts, self._num_bytes = [], 0

    def is_closing(self) -> bool:
        return self._protocol.is_ending or self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        if not self._protocol.has_rest or self._transport.is_closing():
            self._transport.close()
        elif not self._protocol.is_ending:
            self._protocol.is_ending = True
            self._transport.resume_reading()
            # A client that has gone already cannot be told.
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            self._protocol.loop.call_later(_LINGER_SECONDS, self._transport.close)


class FramingProtocol(Parser):
    """Deadlines, limits and framing before one of uvicorn's protocols, which a subclass names as its second base.

    Attributes:
        clients: open connections by client address, shared by all connections of a server.
        is_ending: the reply has been sent, and what still comes is dropped. has_rest: more is expected to come.
    """

    max_connections, max_all_connections = 128, 1024
    max_body_bytes = 2**20
    clients: Counter[str] = Counter()
    is_ending = has_rest = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if (connection := transport.get_extra_info("socket")) is not None:
            # asyncio does it only for sockets that were made with the number of TCP. Without it a piece of a stream
            # waits for the client to acknowledge the last one, up to 40 ms.
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(GatheringTransport(transport, self))  # type: ignore[arg-type]
        self._buffer, self._left, self._timer, self._send_timer = bytearray(), 0, None, None
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self.clients[self._address] += 1
        if self.clients[self._address] > self.max_connections:
            message = f"at most {self.max_connections} connections of one client; see --max-connections"
            self._refuse(Refused(message, status=429, code="too_many_connections", retry_after=1))
        elif (num_open := self.clients.total()) > self.max_all_connections + _MAX_REFUSED:
            # In a flood, connections that are being refused must not take all files of the process.
            transport.abort()
        elif num_open > self.max_all_connections:
            message = f"at most {self.max_all_connections} connections at once; see --max-all-connections"
            self._refuse(Refused(message, status=503, code="too_many_connections", retry_after=1))
        else:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        self.clients[self._address] -= 1
        if not self.clients[self._address]:
            del self.clients[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_ending:
            return
        self._buffer += data
        self._feed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_send_timer()
        self._watch_sending()

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _watch_sending(self) -> None:
        self._num_unsent, seconds = self._count_unsent(), SEND_SECONDS
        if not _KERNEL_TELLS:
            # asyncio's buffer may stand still while a client reads what the kernel holds: the client has as long as all
            # of it takes at the slowest speed that is allowed, and then must have made room.
            seconds += self._num_unsent / MIN_BYTES_PER_SECOND
        self._send_timer = self.loop.call_later(seconds, self._check_sending)

    def _check_sending(self) -> None:
        """End a connection whose client hardly reads: the reply that waits for it holds memory and a place."""
        self._send_timer = None
        if not _KERNEL_TELLS or self._num_unsent - self._count_unsent() < MIN_BYTES_PER_SECOND * SEND_SECONDS:
            self.transport.abort()
        else:
            self._watch_sending()

    def _count_unsent(self) -> int:
        """Count the bytes that wait for the client, here and in the kernel.

        The kernel holds megabytes, and takes more only when a third of its buffer is free: asyncio's own buffer stays
        as it is for a long time while a client reads steadily. Outside Linux the kernel does not tell what it holds:
        there the size of its buffer counts.
        """
        num_bytes = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError):  # a socket that was closed has no number
            connection = self.transport.get_extra_info("socket")
            if _KERNEL_TELLS:
                num_bytes += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
            else:
                num_bytes += connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return num_bytes

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._buffer:
            # Not at once: the parser is in the middle of ending this request.
            self.loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Hand the parser what belongs to the current request; the next one waits until this one is answered."""
        while self._buffer and not self.is_ending and not self.transport.is_closing():
            if self._left:
                part = bytes(self._buffer[: self._left])
                del self._buffer[: self._left]
                self._left -= len(part)
                self.has_rest = self._left > 0
                if not self._left:
                    self._stop_timer()
                super().data_received(part)
            elif self.has_rest:  # of a body that is refused
                self._buffer.clear()
            elif self.cycle is not None and not self.cycle.response_complete:
                # A client that sends on without reading replies must not fill the memory.
                if len(self._buffer) > MAX_HEAD_BYTES:
                    self.transport.close()
                return
            elif not self._read_head():
                return

    def _read_head(self) -> bool:
        """Check a request's head and hand it over; return whether it was complete."""
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            # Empty lines begin no request: the connection ends as one that is not used.
            if self._buffer:
                self._unset_keepalive_if_required()
            if len(self._buffer) >= MAX_HEAD_BYTES:
                self._refuse(Refused(f"headers: at most {MAX_HEAD_BYTES:,} bytes", status=431, code="too_large"))
            elif self._buffer and self._timer is None:
                self._timer = self.loop.call_later(HEAD_SECONDS, self._expire)
            return False
        self._stop_timer()
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        try:
            first, headers = split_head(head)
            self._left = self._read_length(headers)
        except Refused as refusal:
            self._refuse(refusal)
            return False
        if self._left > len(self._buffer):
            self.has_rest, self._start = True, time.monotonic()
            self._length, self._timer = self._left, self.loop.call_later(_SLOW_START_SECONDS, self._check_speed)
        # No other protocol is spoken here, and httptools would stop to read.
        lines = [name + b": " + value for name, value in headers if name != b"upgrade"]
        super().data_received(b"\r\n".join([first, *lines, b"", b""]))
        return True

    def _read_length(self, headers: list[tuple[bytes, bytes]]) -> int:
        try:
            return read_length(dict(headers), max_bytes=self.max_body_bytes, is_required=False)
        except Refused as refusal:
            if refusal.status not in (411, 413) or not _is_readable(headers):
                raise
            # The application refuses it, in its order of checks; nothing of the body reaches the parser, and no coding
            # that it would stumble over itself.
            plain = {b"transfer-encoding": b"chunked"}
            headers[:] = [(name, plain.get(name, value)) for name, value in headers]
            self.has_rest = True
            return 0

    def _check_speed(self) -> None:
        seconds, received = time.monotonic() - self._start, self._length - self._left
        if seconds >= BODY_SECONDS or received < MIN_BYTES_PER_SECOND * (seconds - _SLOW_START_SECONDS / 2):
            self._expire()
        else:
            self._timer = self.loop.call_later(1.0, self._check_speed)

    def _expire(self) -> None:
        self._timer = None
        self._refuse(Refused("the request came too slowly", status=408, code="too_slow"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refused) -> None:
        """Answer without the application, and end the connection."""
        self._stop_timer()
        LOG.info(json.dumps({"status": refusal.status, "code": refusal.code}))
        body = json.dumps(error_body(refusal)).encode()
        lines = [f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in error_headers(refusal).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.has_rest = True
        if self.cycle is not None and not self.cycle.response_complete:
            # The application waits for a body that does not come.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
