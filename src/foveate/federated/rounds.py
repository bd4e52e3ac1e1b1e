"""Clients, and rounds of requests to them: validate their answers, record who was left out and why.

A client's data stay inside; answers are messages. `Transport` is all that an algorithm sees of a network. `InProcess`
calls clients one after another; another transport implements the same `ask`. The log records what was exchanged: never
the content, always names, shapes and bytes.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.messages import ArrayNote, Message, MessageError, MessageRule
from foveate.federated.secure_sums import MIN_CLIENTS, Digits, Shapes, SumFormat, SumRound
from foveate.federated.store import AnswerStore, digest

Handler = Callable[[Any, Message, int], Message]
"""(the client's data, request, the client's number) -> answer. Pure: the same request has the same answer."""


def stream(seed: int, *, round: int, client: int, purpose: str) -> np.random.Generator:
    """Generator of one client in one round for one purpose, the same in a process and over a network.

    A client is named by its partition number, never by a node's or a process's id, which change from run to run. The
    server is client -1.
    """
    return seeds.generator("federated", purpose, seed, round, client)


@dataclass(frozen=True)
class Client:
    """One participant, in this process.

    Attributes:
        number: its partition number, from 0; answers are always taken in this order.
        data: what its handlers read.
        handlers: by the kind of request that they answer.
        name: for reports; "client NUMBER" where empty.
        about: text for what its handlers depend on besides data and request; stored answers belong to it, too.
    """

    number: int
    data: Any = field(repr=False)
    handlers: Mapping[str, Handler] = field(repr=False)
    name: str = ""
    about: str = ""

    def answer(self, request: Message) -> Message:
        """Run the handler of the request's kind.

        Raises:
            MessageError: the client has no such handler.
            Exception: whatever the handler raises; the transport notes it and leaves the client out.
        """
        if request.kind not in self.handlers:
            known = ", ".join(sorted(self.handlers)) or "nothing"
            raise MessageError(f"cannot answer '{request.kind}'; it answers {known}")
        return self.handlers[request.kind](self.data, request, self.number)


def title(number: int, name: str = "") -> str:
    """Display name of a client."""
    return name or f"client {number}"


FAULTS = (Exception,)
"""Everything a broken client may raise, short of what ends the process."""

Requests = Message | Mapping[int, Message]
Check = Callable[[int, Message], None]


class TooFewClientsError(UserError):
    """Too few clients answered; the message names those left out and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Log line of one message, down or up; of a refused one with its `reason`."""

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
    """Result of one `ask`: answers by client number, ascending, and the reasons of those left out."""

    answers: dict[int, Message]
    excluded: dict[int, str]

    @property
    def clients(self) -> list[int]:
        """Numbers of the clients that answered, ascending."""
        return list(self.answers)


@dataclass
class Log:
    """All messages of a run as `Entry`s; with `record` also the messages themselves, for tests."""

    entries: list[Entry] = field(default_factory=list)
    record: bool = False
    messages: list[tuple[int, bool, Message]] = field(default_factory=list)

    def add(self, client: int, message: Message, *, up: bool, seconds: float = 0.0, reason: str = "") -> None:
        """Record one message."""
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

    def add_failure(self, client: int, request: Message, reason: str, seconds: float) -> None:
        """Record that no usable answer came."""
        self.entries.append(Entry(request.round, request.kind, client, True, (), (), 0, seconds, reason))

    def bytes(self, *, up: bool) -> int:
        """Bytes sent up or down, refused messages included: they were sent."""
        return sum(entry.size for entry in self.entries if entry.up == up)

    def sent(self, start: int = 0) -> dict[int, int]:
        """Bytes that each client sent, refused messages included, from entry `start` on."""
        totals: dict[int, int] = {}
        for entry in self.entries[start:]:
            if entry.up:
                totals[entry.client] = totals.get(entry.client, 0) + entry.size
        return totals

    def failures(self) -> dict[int, str]:
        """Reasons by client whose last question has no valid answer."""
        last = {entry.client: entry.reason for entry in self.entries if entry.up}
        return {client: reason for client, reason in last.items() if reason}

    def table(self) -> list[dict[str, Any]]:
        """Traffic of the whole log, see `tabulate`."""
        return tabulate(self.entries)


def tabulate(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Traffic table, one row per (kind, direction, array or values): number of messages, shapes, bytes."""
    rows: dict[tuple[str, bool, str], dict[str, Any]] = {}
    for entry in entries:
        values = ", ".join(entry.values)
        parts = [(note.name, note.dtype, list(note.shape), note.size) for note in entry.arrays]
        # Single values are logged by name only; their size is what the arrays do not account for.
        rest = entry.size - sum(note.size for note in entry.arrays)
        parts += [(values, "values", [], rest)] if values else []
        for name, dtype, shape, size in parts:
            key = (entry.kind, entry.up, name)
            empty = {"kind": entry.kind, "up": entry.up, "name": name, "dtype": dtype}
            row = rows.setdefault(key, empty | {"messages": 0, "bytes": 0, "smallest": shape, "largest": shape})
            row["messages"] += 1
            row["bytes"] += size
            row["smallest"], row["largest"] = min(row["smallest"], shape), max(row["largest"], shape)
    return list(rows.values())


def merge_tables(*tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum of several traffic tables."""
    rows: dict[tuple[str, bool, str], dict[str, Any]] = {}
    for row in (row for table in tables for row in table):
        total = rows.setdefault((row["kind"], row["up"], row["name"]), {**row, "messages": 0, "bytes": 0})
        total["messages"] += row["messages"]
        total["bytes"] += row["bytes"]
        total["smallest"] = min(total["smallest"], row["smallest"])
        total["largest"] = max(total["largest"], row["largest"])
    return list(rows.values())


def sum_bytes(table: Sequence[Mapping[str, Any]], *, up: bool) -> int:
    """Bytes of a traffic table in one direction."""
    return sum(row["bytes"] for row in table if row["up"] == up)


class Transport(Protocol):
    """Carries messages between a server and its clients."""

    log: Log

    @property
    def is_secure(self) -> bool:
        """Whether the run is under secure aggregation: what is only added up is asked for with `ask_sum`."""
        ...

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending."""
        ...

    def name(self, client: int) -> str:
        """Display name of a client."""
        ...

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round: every client gets its request and answers, or is left out with a reason.

        Args:
            requests: one message for all clients, or one per client number; a client without one is not asked.
            rule: what an answer must hold.
            min_clients: number of answers needed.
            check: raises UserError (or any of `FAULTS`) for what the rule cannot express; its text becomes the reason.

        Raises:
            TooFewClientsError: fewer answered.
        """
        ...

    def ask_sum(
        self, requests: Mapping[int, Message], format: SumFormat, shapes: Shapes, *, min_clients: int = 1
    ) -> SumRound:
        """Run one round of which the server sees only the sum over the clients that answer.

        Args:
            requests: one message per client number, all of one kind and round.
            format: how answers become vectors that can be added up. shapes: of the arrays in the sum.
            min_clients: clients needed in the sum; never fewer than three.

        Raises:
            TooFewClientsError: fewer answered.
            MessageError: the sum is none of these vectors; nothing shows whose answer is wrong.
        """
        ...

    def forget(self, *, before: int | None = None) -> None:
        """Delete stored answers of the rounds before that number, or all."""
        ...


class AnsweredTransport(ABC):
    """What every transport does with the answers of a round: log, validate and store them, or say why there is none.

    Attributes:
        log: records the messages.
        is_secure: whether sums are asked for under secure aggregation.
    """

    def __init__(self, answers_folder: Path | None, log: Log | None, *, is_secure: bool = False) -> None:
        self.is_secure = is_secure
        self._store = AnswerStore(answers_folder) if answers_folder is not None else None
        self.log = Log() if log is None else log

    @abstractmethod
    def name(self, client: int) -> str:
        """Display name of a client."""

    def forget(self, *, before: int | None = None) -> None:
        """Delete stored answers of the rounds before that number, or all."""
        if self._store is not None:
            self._store.forget(before=before)

    def _take(
        self,
        result: Round,
        number: int,
        request: Message,
        answer: Message | None,
        reason: str,
        seconds: float,
        rule: MessageRule,
        check: Check | None,
        data: str = "",
    ) -> None:
        """Add a client's answer to the round, or why it is left out.

        Args:
            reason: why there is no answer, or why it is none of use; "" where only the rule decides.
            data: digest of the client's data, where they are known.
        """
        if answer is None:
            self.log.add_failure(number, request, reason, seconds)
        else:
            # An invalid answer is logged with its size all the same: it was sent.
            reason = reason or find_fault(number, answer, request, rule, check)
            self.log.add(number, answer, up=True, seconds=seconds, reason=reason)
        if answer is None or reason:
            result.excluded[number] = reason
            say(f"{self.name(number)} is left out of '{request.kind}': {reason}")
            return
        result.answers[number] = answer
        # Stored only once it is validated: a bad answer must be asked for again after a restart.
        if self._store is not None:
            self._store.write(request, number, answer, data)

    def _leave_out(self, excluded: dict[int, str], number: int, request: Message, reason: str, seconds: float) -> None:
        """Note why a client is not in a sum."""
        excluded[number] = reason
        self.log.add_failure(number, request, reason, seconds)
        say(f"{self.name(number)} is left out of '{request.kind}': {reason}")


class InProcess(AnsweredTransport):
    """Calls the clients of this process one after another, in the order of their numbers.

    Args:
        clients: of this process.
        timeout: seconds after which a client is left out as slow; in a process it cannot be stopped, only left behind.
            None waits for ever and starts no thread.
        answers_folder: folder that stores the answers of each round (`AnswerStore`), so that a killed server continues
            within its round; answers of other data are not used.
        log: records the messages.
        is_secure: ask for sums as under secure aggregation, in the same fixed point, without masks: in one process
            nothing hides from anything.

    >>> import numpy as np
    >>> from foveate.federated.messages import ArrayRule
    >>> def mean(data, request, number):
    ...     return request.answer(arrays={"mean": data.mean(0)}, points=len(data))
    >>> clients = [Client(number, np.full((2, 3), float(number)), {"query.mean": mean}) for number in range(2)]
    >>> rule = MessageRule("query.mean", {"mean": ArrayRule("float64", (3,))}, {"points": int})
    >>> result = InProcess(clients).ask(Message("query.mean"), rule)
    >>> result.answers[1].array("mean").tolist(), result.excluded
    ([1.0, 1.0, 1.0], {})
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        timeout: float | None = None,
        answers_folder: Path | None = None,
        log: Log | None = None,
        is_secure: bool = False,
    ) -> None:
        self._clients = {client.number: client for client in sorted(clients, key=lambda client: client.number)}
        # The dictionary keeps only the last of two clients with the same number; the other would be lost silently.
        if len(self._clients) != len(clients):
            listed = [client.number for client in clients]
            twice = next(number for number in listed if listed.count(number) > 1)
            raise UserError(f"two clients have the number {twice}; each needs its own")
        super().__init__(answers_folder, log, is_secure=is_secure)
        self._timeout = timeout
        # Hashing the data costs a pass over it, so it is done only where answers are stored.
        self._data = (
            {} if answers_folder is None else {client.number: digest(client.about, client.data) for client in clients}
        )

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending."""
        return list(self._clients)

    def name(self, client: int) -> str:
        """Display name of a client."""
        return title(client, self._clients[client].name)

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round, see `Transport.ask`."""
        by_client = dict.fromkeys(self._clients, requests) if isinstance(requests, Message) else dict(requests)
        result = Round({}, {})
        # Ascending numbers: sums of floating-point answers, and so results, do not depend on who answers first.
        for number in sorted(by_client):
            request = by_client[number]
            self.log.add(number, request, up=False)
            started = time.monotonic()
            answer, reason = self._answer(number, request)
            seconds = time.monotonic() - started
            self._take(result, number, request, answer, reason, seconds, rule, check, self._data.get(number, ""))
        return require_clients(result, min_clients, self.name)

    def ask_sum(
        self, requests: Mapping[int, Message], format: SumFormat, shapes: Shapes, *, min_clients: int = 1
    ) -> SumRound:
        """Run one round of which only the sum is used, see `Transport.ask_sum`."""
        vectors: dict[int, Digits] = {}
        excluded: dict[int, str] = {}
        for number, request in sorted(requests.items()):
            self.log.add(number, request, up=False)
            started = time.monotonic()
            answer, reason = self._answer(number, request)
            if answer is not None:
                try:
                    vectors[number] = format.encode(answer, _count_points(self._clients[number].data))
                    self.log.add(number, request.answer(arrays={"vector": vectors[number]}), up=True)
                    continue
                except UserError as problem:
                    reason = str(problem)
            self._leave_out(excluded, number, request, reason, time.monotonic() - started)
        return add_up(vectors, excluded, format, shapes, min_clients=min_clients, name=self.name)

    def _answer(self, number: int, request: Message) -> tuple[Message | None, str]:
        """A client's answer, or the reason why there is none."""
        stored = self._store.read(request, number, self._data[number]) if self._store is not None else None
        if stored is not None:
            return stored, ""
        client = self._clients[number]
        if self._timeout is None:
            return attempt(client, request)
        outcomes: list[tuple[Message | None, str]] = []
        # A daemon thread, because a client that never returns must not keep the process alive at its end.
        worker = threading.Thread(target=lambda: outcomes.append(attempt(client, request)), daemon=True)
        worker.start()
        worker.join(self._timeout)
        return outcomes[0] if outcomes else (None, f"no answer within {self._timeout:g} s")


def _count_points(data: Any) -> int:
    """Number of a client's points; those of a map are wrapped with what was computed from them."""
    return len(getattr(data, "points_ND", data))


def keep_usual_lengths(lengths: Mapping[int, int]) -> dict[int, str]:
    """Why clients do not fit whose vectors have another length than those of most."""
    if not lengths:
        return {}
    usual = Counter(lengths.values()).most_common(1)[0][0]
    return {
        client: f"its vector has {length:,} digits; those of most clients have {usual:,}"
        for client, length in lengths.items()
        if length != usual
    }


def need_sum(clients: int, excluded: Mapping[int, str], min_clients: int, name: Callable[[int], str]) -> None:
    """Raise TooFewClientsError for a sum over fewer than three clients, or than `min_clients`."""
    if clients >= max(min_clients, MIN_CLIENTS):
        return
    listed = "; ".join(f"{name(number)}: {reason}" for number, reason in list(excluded.items())[:5])
    reasons = f" ({listed})" if listed else ""
    raise TooFewClientsError(
        f"secure aggregation: {clients} of {clients + len(excluded)} clients are in the sum; "
        f"{max(min_clients, MIN_CLIENTS)} are needed{reasons}"
    )


def add_up(
    vectors: Mapping[int, Digits],
    excluded: dict[int, str],
    format: SumFormat,
    shapes: Shapes,
    *,
    min_clients: int,
    name: Callable[[int], str],
) -> SumRound:
    """Add the vectors of several clients in this process."""
    others = keep_usual_lengths({client: len(vector) for client, vector in vectors.items()})
    excluded |= others
    clients = [client for client in sorted(vectors) if client not in others]
    need_sum(len(clients), excluded, min_clients, name)
    total_L = np.sum([vectors[client] for client in clients], axis=0)
    return SumRound(*format.decode(total_L, shapes, len(clients)), clients, excluded)


def attempt(client: Client, request: Message) -> tuple[Message | None, str]:
    """Ask one client; a fault of any kind becomes a reason."""
    try:
        answer = client.answer(request)
    except UserError as problem:
        return None, str(problem)
    except FAULTS as problem:
        return None, f"{type(problem).__name__}: {problem}"
    if not isinstance(answer, Message):
        return None, f"answered with a {type(answer).__name__}, not a message"
    return answer, ""


def find_fault(number: int, answer: Message, request: Message, rule: MessageRule, check: Check | None) -> str:
    """Reason to refuse an answer; "" if it is valid."""
    try:
        # The rule comes first: `check` may rely on names, types and shapes.
        rule.check(answer)
        # An answer of an earlier round is well formed, and would pass everything else.
        if answer.round != request.round:
            raise MessageError(f"is an answer to round {answer.round}, not {request.round}")
        if check is not None:
            check(number, answer)
    except UserError as problem:
        return str(problem)
    except FAULTS as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""


def require_clients(result: Round, min_clients: int, name: Callable[[int], str]) -> Round:
    """Return the round; raise TooFewClientsError if it has fewer than `min_clients` answers."""
    if len(result.answers) >= min_clients:
        return result
    # Five reasons at most: with hundreds of clients the error would be unreadable.
    reasons = "; ".join(f"{name(number)}: {reason}" for number, reason in list(result.excluded.items())[:5])
    more = f" and {len(result.excluded) - 5} more" if len(result.excluded) > 5 else ""
    total = len(result.answers) + len(result.excluded)
    listed = f" ({reasons}{more})" if reasons else ""
    raise TooFewClientsError(f"{len(result.answers)} of {total} clients answered; {min_clients} are needed{listed}")


class ChangedTransport:
    """Transport whose requests are changed before they are sent, and go to some clients only.

    Args:
        change: adds to a request what clients elsewhere need, such as the options or the common scale.
        clients: those who are asked; by default all.
    """

    def __init__(
        self, transport: Transport, change: Callable[[Message], Message], clients: Sequence[int] | None = None
    ) -> None:
        self._transport, self._change = transport, change
        self.clients, self.log = transport.clients if clients is None else clients, transport.log
        self.is_secure = transport.is_secure

    def name(self, client: int) -> str:
        """Display name of a client."""
        return self._transport.name(client)

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round, see `Transport.ask`."""
        by_client = dict.fromkeys(self.clients, requests) if isinstance(requests, Message) else requests
        return self._transport.ask(self._complete(by_client), rule, min_clients=min_clients, check=check)

    def ask_sum(
        self, requests: Mapping[int, Message], format: SumFormat, shapes: Shapes, *, min_clients: int = 1
    ) -> SumRound:
        """Run one round of which only the sum is used, see `Transport.ask_sum`."""
        return self._transport.ask_sum(self._complete(requests), format, shapes, min_clients=min_clients)

    def _complete(self, by_client: Mapping[int, Message]) -> dict[int, Message]:
        # One request for all clients is changed once: the change copies its arrays.
        distinct = {id(request): request for request in by_client.values()}
        changed = {key: self._change(request) for key, request in distinct.items()}
        return {client: changed[id(request)] for client, request in by_client.items()}

    def forget(self, *, before: int | None = None) -> None:
        """Delete stored answers, see `Transport.forget`."""
        self._transport.forget(before=before)


def find_other_widths(widths: Mapping[int, int]) -> tuple[int, int, dict[int, str]]:
    """Return the number of features that most clients have, how many have it, and for the others why they do not fit.

    Clients do not know each other; the width of most is taken for right.
    """
    usual, votes = Counter(widths.values()).most_common(1)[0]
    others = {
        client: f"its data have {width} features; those of most clients have {usual}"
        for client, width in widths.items()
        if width != usual
    }
    return usual, votes, others


@dataclass(frozen=True)
class ClientSizes:
    """Sizes of clients' data as the clients report them.

    Attributes:
        features: number of features that most clients have.
        points: number of points by client, of these clients.
        others: by client why its data do not fit.
    """

    features: int
    points: dict[int, int]
    others: dict[int, str]


def compare_sizes(transport: Transport, answers: Mapping[int, Message], *, min_clients: int = 1) -> ClientSizes:
    """Compare answers that hold the numbers `points` and `features`.

    Raises:
        UserError: no number of features that most clients have.
        TooFewClientsError: fewer than `min_clients` clients have as many features as most.
    """
    widths = {client: int(answer.number("features")) for client, answer in answers.items()}
    features, votes, others = find_other_widths(widths)
    # Without a majority there is no telling which clients are wrong.
    if 2 * votes <= len(widths) and len(widths) > 1:
        listed = ", ".join(f"{transport.name(client)}: {width}" for client, width in widths.items())
        raise UserError(f"the clients' points have different numbers of features ({listed:.300})")
    points = {client: int(answer.number("points")) for client, answer in answers.items() if client not in others}
    if len(points) < min_clients:
        raise TooFewClientsError(f"{len(points)} clients have {features} features; {min_clients} are needed")
    return ClientSizes(features, points, others)
