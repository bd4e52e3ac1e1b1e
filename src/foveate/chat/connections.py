"""A pool of HTTP clients, one for each request in flight.

One client for all would look through all of its connections at the start and at the end of every request: at 64 in
flight that is a fifth of the time that a request costs, at thousands nearly all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

# Of the connection alone: an absent server is noticed long before a slow response would be.
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
        self._ssl_context = self._ssl_context or httpx2.create_ssl_context(verify=self._secure)
        client = httpx2.AsyncClient(
            verify=self._ssl_context,
            headers=self._headers,
            # Without this, credentials of ~/.netrc would be sent to a server that the user gave no key for.
            auth=lambda request: request,
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
        )
        self.clients.append(client)
        return client

    async def close(self) -> None:
        """Close all connections."""
        clients, self.clients, self._free = self.clients, [], []
        for client in clients:
            await client.aclose()
