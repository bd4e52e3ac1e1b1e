"""Rounds: ask all clients, take what can be believed, say who was left out and why.

`Transport` is all that an algorithm sees of a transport. `InProcess` calls clients one after another; another transport
implements the same `ask`. The log keeps what was exchanged: never the content, always what it was and how large.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.clients import Client, title
from foveate.federated.messages import ArrayNote, Message, MessageError, MessageRule
from foveate.federated.store import AnswerStore, digest

FAULTS = (Exception,)
"""All that a broken client may raise, short of what ends the process."""

Requests = Message | Mapping[int, Message]
Check = Callable[[int, Message], None]


class TooFewClientsError(UserError):
    """Too few clients answered; the sentence names them and their reasons."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: a message that went down or came up, or one that was refused (`reason`)."""

    round: int
    kind: str
    client: int
    up: bool
    arrays: tuple[ArrayNote, ...]
    values: tuple[str, ...]
    size: int
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Round:
    """What one call of `ask` brought: answers by client number, in order, and the reasons of those left out."""

    answers: dict[int, Message]
    excluded: dict[int, str]

    @property
    def clients(self) -> list[int]:
        """Numbers of the clients that answered, ascending."""
        return list(self.answers)


@dataclass
class Log:
    """All messages of a run, as `Entry`s; with `record` the messages themselves, for tests."""

    entries: list[Entry] = field(default_factory=list)
    record: bool = False
    messages: list[tuple[int, bool, Message]] = field(default_factory=list)

    def add(self, client: int, message: Message, *, up: bool, seconds: float = 0.0, reason: str = "") -> None:
        """Notes one message."""
        if self.record:
            self.messages.append((client, up, message))
        self.entries.append(
            Entry(
                message.round,
                message.kind,
                client,
                up,
                tuple(message.notes()),
                tuple(sorted(message.values)),
                message.size,
                seconds,
                reason,
            )
        )

    def failed(self, client: int, request: Message, reason: str, seconds: float) -> None:
        """Notes that nothing usable came."""
        self.entries.append(Entry(request.round, request.kind, client, True, (), (), 0, seconds, reason))

    def bytes(self, *, up: bool) -> int:
        """Bytes sent up or down, refused messages included: they were sent."""
        return sum(entry.size for entry in self.entries if entry.up == up)

    def table(self) -> list[dict[str, Any]]:
        """What was exchanged, one row for each (kind, direction, array or values): clients, shapes, bytes."""
        rows: dict[tuple[str, bool, str], dict[str, Any]] = {}
        for entry in self.entries:
            values = ", ".join(entry.values)
            parts = [(one.name, one.dtype, list(one.shape), one.size) for one in entry.arrays]
            rest = entry.size - sum(one.size for one in entry.arrays)
            parts += [(values, "values", [], rest)] if values else []
            for name, dtype, shape, size in parts:
                key = (entry.kind, entry.up, name)
                empty = {"kind": entry.kind, "up": entry.up, "what": name, "dtype": dtype}
                row = rows.setdefault(key, empty | {"messages": 0, "bytes": 0, "smallest": shape, "largest": shape})
                row["messages"] += 1
                row["bytes"] += size
                row["smallest"], row["largest"] = min(row["smallest"], shape), max(row["largest"], shape)
        return list(rows.values())


class Transport(Protocol):
    """What carries messages."""

    log: Log

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending."""
        ...

    def name(self, client: int) -> str:
        """How a client is called."""
        ...

    def ask(self, requests: Requests, rule: MessageRule, *, at_least: int = 1, check: Check | None = None) -> Round:
        """One round: every client gets its request and answers, or is left out with a reason.

        Args:
            requests: the same message for all clients, or one by client number; a client without one is not asked.
            rule: what an answer must be. check: whatever the rule cannot say; raises UserError or another error of
                `FAULTS`, whose words become the reason.
            at_least: how many answers are needed.

        Raises:
            TooFewClientsError: fewer answered.
        """
        ...

    def forget(self, *, before: int | None = None) -> None:
        """Deletes kept answers of the rounds before that number, or all."""
        ...


class InProcess:
    """The plain loop: clients are called one after another in the order of their numbers.

    Args:
        clients: those of this process.
        timeout: seconds after which a client is left out as slow; it cannot be stopped in process, only left behind.
            None waits for ever and starts no thread.
        keep: folder that keeps the answers of each round (`AnswerStore`), so that a killed server goes on with its round;
            answers of other data are not used.
        log: where messages are noted.

    >>> import numpy as np
    >>> from foveate.federated.messages import ArrayRule
    >>> def mean(data, request, number):
    ...     return request.answer(arrays={"mean": data.mean(0)}, points=len(data))
    >>> clients = [Client(number, np.full((2, 3), float(number)), {"query.mean": mean}) for number in range(2)]
    >>> rule = MessageRule("query.mean", {"mean": ArrayRule("float64", (3,))}, {"points": int})
    >>> found = InProcess(clients).ask(Message("query.mean"), rule)
    >>> found.answers[1].array("mean").tolist(), found.excluded
    ([1.0, 1.0, 1.0], {})
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        timeout: float | None = None,
        keep: Path | None = None,
        log: Log | None = None,
    ) -> None:
        self._clients = {client.number: client for client in sorted(clients, key=lambda client: client.number)}
        if len(self._clients) != len(clients):
            numbers = [client.number for client in clients]
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise UserError(f"two clients have the number {twice}; every client needs its own")
        self._timeout = timeout
        self._kept = AnswerStore(keep) if keep is not None else None
        self._data = {} if keep is None else {client.number: digest(client.about, client.data) for client in clients}
        self.log = Log() if log is None else log

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending."""
        return list(self._clients)

    def name(self, client: int) -> str:
        """How a client is called."""
        return title(client, self._clients[client].name)

    def ask(self, requests: Requests, rule: MessageRule, *, at_least: int = 1, check: Check | None = None) -> Round:
        """One round, see `Transport.ask`."""
        asked = {number: requests for number in self._clients} if isinstance(requests, Message) else dict(requests)
        answers: dict[int, Message] = {}
        excluded: dict[int, str] = {}
        for number in sorted(asked):
            request = asked[number]
            self.log.add(number, request, up=False)
            started = time.monotonic()
            answer, reason = self._one(number, request)
            seconds = time.monotonic() - started
            if answer is None:
                self.log.failed(number, request, reason, seconds)
            else:
                reason = judged(number, answer, request, rule, check)
                self.log.add(number, answer, up=True, seconds=seconds, reason=reason)
            if answer is None or reason:
                excluded[number] = reason
                say(f"{self.name(number)} is left out of '{request.kind}': {reason}")
            else:
                answers[number] = answer
                if self._kept is not None:
                    self._kept.write(request, number, answer, self._data[number])
        return enough(Round(answers, excluded), at_least, self.name)

    def forget(self, *, before: int | None = None) -> None:
        """Deletes kept answers of the rounds before that number, or all."""
        if self._kept is not None:
            self._kept.forget(before=before)

    def _one(self, number: int, request: Message) -> tuple[Message | None, str]:
        """The client's answer, or the reason why there is none."""
        kept = self._kept.read(request, number, self._data[number]) if self._kept is not None else None
        if kept is not None:
            return kept, ""
        client = self._clients[number]
        if self._timeout is None:
            return attempt(client, request)
        found: list[tuple[Message | None, str]] = []
        worker = threading.Thread(target=lambda: found.append(attempt(client, request)), daemon=True)
        worker.start()
        worker.join(self._timeout)
        return found[0] if found else (None, f"no answer within {self._timeout:g} s")


def attempt(client: Client, request: Message) -> tuple[Message | None, str]:
    """Asks one client; a fault of any kind becomes its reason."""
    try:
        answer = client.answer(request)
    except UserError as problem:
        return None, str(problem)
    except FAULTS as problem:
        return None, f"{type(problem).__name__}: {problem}"
    if not isinstance(answer, Message):
        return None, f"answered with a {type(answer).__name__}, not a message"
    return answer, ""


def judged(number: int, answer: Message, request: Message, rule: MessageRule, check: Check | None) -> str:
    """Why an answer is not believed; "" where it is."""
    try:
        rule.check(answer)
        if answer.round != request.round:
            raise MessageError(f"is an answer to round {answer.round}, not {request.round}")
        if check is not None:
            check(number, answer)
    except UserError as problem:
        return str(problem)
    except FAULTS as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""


def enough(found: Round, at_least: int, name: Callable[[int], str]) -> Round:
    """The round itself.

    Raises:
        TooFewClientsError: fewer than `at_least` answers.
    """
    if len(found.answers) >= at_least:
        return found
    reasons = "; ".join(f"{name(number)}: {reason}" for number, reason in list(found.excluded.items())[:5])
    more = f" and {len(found.excluded) - 5} more" if len(found.excluded) > 5 else ""
    asked = len(found.answers) + len(found.excluded)
    listed = f" ({reasons}{more})" if reasons else ""
    raise TooFewClientsError(f"{len(found.answers)} of {asked} clients answered; {at_least} are needed{listed}")


@dataclass(frozen=True)
class Sizes:
    """What clients said.

    Attributes:
        features: of most clients' points. points: by client of these, how many there are. others: by client why its data do
            not fit.
    """

    features: int
    points: dict[int, int]
    others: dict[int, str]


def sizes_of(exchange: Transport, answers: Mapping[int, Message], *, at_least: int = 1) -> Sizes:
    """Compares answers with the numbers `points` and `features`.

    Raises:
        UserError: no number of features that most clients have.
        TooFewClientsError: fewer than `at_least` clients have as many features as most.
    """
    widths = {client: int(answer.number("features")) for client, answer in answers.items()}
    features, most = Counter(widths.values()).most_common(1)[0]
    if 2 * most <= len(widths) and len(widths) > 1:
        listed = ", ".join(f"{exchange.name(client)}: {width}" for client, width in widths.items())
        raise UserError(f"the clients' points have different numbers of features ({listed:.300})")
    others = {
        client: f"its data have {width} features; those of most clients have {features}"
        for client, width in widths.items()
        if width != features
    }
    points = {client: int(answer.number("points")) for client, answer in answers.items() if client not in others}
    if len(points) < at_least:
        raise TooFewClientsError(f"{len(points)} clients have {features} features; {at_least} are needed")
    return Sizes(features, points, others)
