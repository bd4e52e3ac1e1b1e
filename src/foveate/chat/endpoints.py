"""Endpoints that serve one model, and how many requests each may have in flight.

Additive increase, multiplicative decrease: a response raises an endpoint's limit by one per limit's worth of responses,
up to what the user allows, and a sign of overload (429, a timeout) halves it, at most once per round trip. An endpoint
that says when to come back (`Retry-After`), or that cannot be reached, gets nothing until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field

_NEVER = -1e9  # a time before every reading of the monotonic clock
_MAX_PAUSE_SECONDS = 30.0
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
        if self.paused_until <= time.monotonic():
            self.pause(min(seconds * 2**self.failures, _MAX_PAUSE_SECONDS))
            self.failures += self.failures < _MAX_DOUBLINGS

    def pause(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
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
