"""Endpoints of one model, and how many requests each may have in flight.

Additive increase, multiplicative decrease: an answer raises an endpoint's limit by one per limit's worth of answers,
up to what the user allows, and a sign of overload (429, a timeout) halves it, at most once per round trip. An endpoint
that says when to come back (`Retry-After`), or that cannot be reached, gets nothing until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Endpoint:
    """One address. `schema` says whether it takes a JSON schema: None until it is known."""

    url: str
    most: int
    schema: bool | None = None
    limit: float = 0.0
    in_flight: int = 0
    closed_until: float = 0.0
    round_trip: float = 0.0
    cut_at: float = field(default=-1e9)
    absences: int = 0

    def __post_init__(self) -> None:
        self.limit = float(self.most)

    def answered(self, seconds: float) -> None:
        """An answer came after so many seconds."""
        self.round_trip = seconds if not self.round_trip else 0.9 * self.round_trip + 0.1 * seconds
        self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self.absences = 0

    def overloaded(self) -> None:
        """It said that it has too much to do, or was silent for too long."""
        now = time.monotonic()
        if now - self.cut_at > max(self.round_trip, 0.1):
            self.cut_at = now
            self.limit = max(1.0, self.limit / 2)

    def away(self, seconds: float) -> None:
        """It cannot be reached: nothing goes there for `seconds`, twice as long each time, at most half a minute."""
        if self.closed_until <= time.monotonic():
            self.close_for(min(seconds * 2**self.absences, 30.0))
            self.absences += self.absences < 10

    def close_for(self, seconds: float) -> None:
        """Nothing goes there for so many seconds."""
        self.closed_until = max(self.closed_until, time.monotonic() + seconds)


class Endpoints:
    """Places at endpoints, given out to the one that is least busy; those who wait are served in order."""

    def __init__(self, urls: list[str], *, most: int) -> None:
        self.all = [Endpoint(url, most) for url in urls]
        self.last_success = -1e9
        self.away_since: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> Endpoint:
        """A place; waits until there is one."""
        while True:
            now = time.monotonic()
            free = [one for one in self.all if one.closed_until <= now and one.in_flight < int(one.limit)]
            if free:
                chosen = min(free, key=lambda one: one.in_flight / one.limit)
                chosen.in_flight += 1
                return chosen
            closed = [one.closed_until - now for one in self.all if one.closed_until > now]
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiter, min(closed) + 0.001 if closed else None)
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def give_back(self, endpoint: Endpoint) -> None:
        """Free a place."""
        endpoint.in_flight -= 1
        for _ in range(max(1, int(endpoint.limit) - endpoint.in_flight)):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)

    def succeeded(self) -> None:
        """Somebody answered."""
        self.last_success = time.monotonic()
        self.away_since = None

    def silent_seconds(self) -> float:
        """For how long nobody could be reached; called when somebody could not."""
        self.away_since = self.away_since or time.monotonic()
        return time.monotonic() - self.away_since
