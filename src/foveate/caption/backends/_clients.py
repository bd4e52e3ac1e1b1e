"""HTTP clients, one for each request in flight, used again and again.

One client for all would look through all of its connections at the start and at the end of every request: at 64 in
flight that is a fifth of the time that a request costs, at thousands nearly all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

CONNECT_SECONDS = 10.0


class Clients:
    """Clients that keep their connections open for the next request. All of one event loop.

    Args:
        key: sent as bearer token; "" for none. secure: whether any address is HTTPS; reading all certificates takes a
            while, and plain HTTP needs none.
    """

    def __init__(self, *, timeout_seconds: float, key: str, secure: bool) -> None:
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._timeout = httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
        self._secure = secure
        self._verified = None
        self._free: list[httpx2.AsyncClient] = []
        self.all: list[httpx2.AsyncClient] = []

    @contextmanager
    def one(self) -> Iterator[httpx2.AsyncClient]:
        """A client that nobody else uses; the one that was used last, so that idle connections may end."""
        client = self._free.pop() if self._free else self._made()
        try:
            yield client
        finally:
            self._free.append(client)

    def _made(self) -> httpx2.AsyncClient:
        self._verified = self._verified or httpx2.create_ssl_context(verify=self._secure)
        client = httpx2.AsyncClient(
            verify=self._verified,
            headers=self._headers,
            auth=lambda request: request,  # none from .netrc
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
        )
        self.all.append(client)
        return client

    async def close(self) -> None:
        """Close all connections."""
        clients, self.all, self._free = self.all, [], []
        for client in clients:
            await client.aclose()
