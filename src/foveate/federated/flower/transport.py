"""`Transport` over Flower's Grid: clients are found by their partition number; each round is one push and one pull."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from flwr.app import RecordDict  # pyrefly: ignore[missing-import]

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.flower.records import from_records, to_records
from foveate.federated.messages import Message, MessageRule
from foveate.federated.node import HELLO, NOISE, PARTITIONS
from foveate.federated.points import ColumnDigests, find_mismatches
from foveate.federated.reasons import MAX_PARTITIONS, read_failure
from foveate.federated.rounds import (
    FAULTS,
    AnsweredTransport,
    Check,
    Log,
    Requests,
    Round,
    TooFewClientsError,
    find_fault,
    need_sum,
    require_clients,
    title,
)
from foveate.federated.secure_sums import Shapes, SumFormat, SumRound
from foveate.federated.store import digest

HELLO_RULE = MessageRule(
    HELLO,
    {},
    {"client": int, "name": str, "columns": str, "columns.unordered": str, PARTITIONS: int, NOISE: float},
    optional=frozenset({PARTITIONS, NOISE}),
)
_POLL_SECONDS = 0.5
# The node id by which Flower's SuperLink signs its own replies (flwr.common.constant.SUPERLINK_NODE_ID).
_SUPERLINK = 1
_SERVER = -1
"""Number under which sums are stored, which belong to no client."""


class GridTransport(AnsweredTransport):
    """Carries messages over Flower.

    Flower numbers nodes at random, so each node says in its answer to `query.hello` which client it is. A client that
    is not there is left out of every round, with the reason.

    Args:
        grid: Flower's Grid.
        clients: number of clients, numbered from 0.
        wait: seconds to wait for them at the start.
        timeout: seconds that a round may take.
        answers_folder: stores answers (`AnswerStore`), so that a killed server continues within its round.
        is_secure: ask for sums under Flower's SecAgg+.

    Raises:
        TooFewClientsError: no client within `wait`. UserError: two clients of one number.
    """

    def __init__(
        self,
        grid: Any,
        *,
        clients: int,
        wait: float = 120.0,
        timeout: float | None = None,
        answers_folder: Path | None = None,
        log: Log | None = None,
        is_secure: bool = False,
    ) -> None:
        super().__init__(answers_folder, log, is_secure=is_secure)
        self._grid, self._timeout = grid, timeout
        self._nodes: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._partitions: dict[int, int] = {}
        self._noise: dict[int, float] = {}
        self._expected = clients
        self._absent = self._meet(clients, wait)

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending, those that did not say hello among them."""
        return range(self._expected)

    def name(self, client: int) -> str:
        """Display name of a client."""
        return title(client, self._names.get(client, ""))

    def _meet(self, expected: int, wait: float) -> str:
        """Wait for the clients and learn their numbers; return the reason of those that are missing."""
        until = time.monotonic() + wait
        nodes: list[int] = []
        say(f"waiting for {expected} clients, {wait:g} s at most")
        # All clients are waited for, because a client that comes later takes part in no round.
        while len(nodes) < expected and time.monotonic() < until:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) < expected:
                time.sleep(_POLL_SECONDS)
        if not nodes:
            raise TooFewClientsError(f"no client within {wait:g} s; start them with `flower-supernode`")
        outcomes = self._send(dict.fromkeys(nodes, Message(HELLO)))
        strange: list[str] = []
        columns: dict[int, ColumnDigests] = {}
        for node, (answer, reason) in outcomes.items():
            if answer is not None:
                reason = read_failure(answer) or find_fault(node, answer, Message(HELLO), HELLO_RULE, None)
            client = int(answer.number("client")) if answer is not None and not reason else -1
            if not reason and not 0 <= client < expected:
                reason = f"its partition-id is {client}; allowed are 0 to {expected - 1}"
            if answer is None or reason:
                strange.append(reason)
                say(f"node {node} did not say which client it is: {reason}")
                continue
            # Refuse both clients: nothing shows which of the two is the real one.
            if client in self._nodes:
                raise UserError(f"two clients say that they are number {client}; give each its own partition-id")
            self._nodes[client], self._names[client] = node, str(answer.values["name"])
            if PARTITIONS in answer.values:
                self._partitions[client] = int(answer.number(PARTITIONS))
            if NOISE in answer.values:
                self._noise[client] = answer.number(NOISE)
            columns[client] = ColumnDigests(str(answer.values["columns"]), str(answer.values["columns.unordered"]))
        # Arrays are matched by position, so columns in another order would be mixed up silently.
        self._refused = find_mismatches(columns)
        for client, reason in self._refused.items():
            say(f"{self.name(client)} is left out: {reason}")
            del self._nodes[client]
        nobody = ""
        if strange:
            nobody = f"; {len(strange)} of {len(nodes)} nodes did not say which client they are ({strange[0]})"
        if not self._nodes:
            raise TooFewClientsError(f"no client within {wait:g} s{nobody}")
        absent = f"did not connect within {wait:g} s{nobody}"
        for client in self.clients:
            if client not in self._nodes and client not in self._refused:
                say(f"{self.name(client)} {absent}")
        return absent

    def need_partitions(self, needed: int, what: str, *, min_clients: int = 1, noisy: bool = False) -> None:
        """Leave out the clients that answer about fewer partitions than a run asks for, before it asks anything.

        A run that is refused in its middle has used up what its clients allow, and has no result.

        Args:
            needed: partitions of each client's data.
            what: their names, for the reason.
            noisy: clients with noise of their own count no partitions of this job.

        Raises:
            TooFewClientsError: fewer than `min_clients` are left.
        """
        for client, allowed in self._partitions.items():
            if noisy and self._noise.get(client, 0.0) > 0:
                continue
            if client in self._nodes and allowed < needed:
                reason = (
                    f"{MAX_PARTITIONS}: its own max-partitions {allowed} is less than the {needed} partitions of its "
                    f"data that this run asks for ({what}): leave some of them out"
                )
                self._refused[client] = reason
                self.log.add_failure(client, Message(HELLO), reason, 0.0)
                say(f"{self.name(client)} is left out: {reason}")
                del self._nodes[client]
        if len(self._nodes) < min_clients:
            raise TooFewClientsError(
                f"{len(self._nodes)} of {len(self.clients)} clients allow the {needed} partitions of their data that "
                f"this run asks for ({what}); {min_clients} are needed"
            )

    def _send(self, requests: dict[int, Message]) -> dict[int, tuple[Message | None, str]]:
        """Ask all nodes at once; return by node its answer, or the reason why there is none."""
        records = {node: to_records(request) for node, request in requests.items()}
        kinds = {node: request.kind for node, request in requests.items()}
        round = next(iter(requests.values())).round if requests else 0
        outcomes: dict[int, tuple[Message | None, str]] = {}
        for node, (content, reason) in self._exchange(records, kinds, round).items():
            outcomes[node] = (None, reason)
            if content is None:
                continue
            try:
                outcomes[node] = (from_records(content), "")
            except UserError as problem:
                outcomes[node] = (None, str(problem))
            except FAULTS as problem:
                outcomes[node] = (None, f"not readable as a message ({type(problem).__name__}: {problem})")
        return outcomes

    def _exchange(
        self, records: Mapping[int, RecordDict], kinds: Mapping[int, str], round: int
    ) -> dict[int, tuple[RecordDict | None, str]]:
        """Send records to all nodes at once; return by node those that came back, or the reason why there are none."""
        sent = [
            FlowerMessage(content=content, dst_node_id=node, message_type=kinds[node], group_id=str(round))
            for node, content in records.items()
        ]
        limit = "" if self._timeout is None else f" within {self._timeout:g} s"
        outcomes: dict[int, tuple[RecordDict | None, str]] = dict.fromkeys(records, (None, f"no answer{limit}"))
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if node == _SUPERLINK and reply.has_error():
                # Flower's server itself answers for a node that stopped; only the request's id shows which node that
                # is.
                ids = {request.metadata.message_id: request.metadata.dst_node_id for request in sent}
                node = ids.get(reply.metadata.reply_to_message_id, node)
            if node not in records:
                say(f"ignored a reply of node {node}, which got no request")
                continue
            if reply.has_error():
                outcomes[node] = (None, f"error {reply.error.code}: {reply.error.reason}")
                continue
            outcomes[node] = (reply.content, "")
        return outcomes

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round, see `foveate.federated.rounds.Transport.ask`."""
        by_client = dict.fromkeys(self.clients, requests) if isinstance(requests, Message) else dict(requests)
        stored = (
            {client: self._store.read(request, client) for client, request in by_client.items()} if self._store else {}
        )
        # Only clients without a stored answer are asked.
        missing = {client: request for client, request in by_client.items() if stored.get(client) is None}
        started = time.monotonic()
        there = {self._nodes[client]: request for client, request in missing.items() if client in self._nodes}
        replies = self._send(there) if there else {}
        seconds = time.monotonic() - started
        result = Round({}, {})
        for client in sorted(by_client):
            request = by_client[client]
            # A stored answer of a client that is away now still counts: its round had been finished with it.
            if client not in self._nodes and client in missing:
                result.excluded[client] = self._refused.get(client, self._absent)
                self.log.add_failure(client, request, result.excluded[client], 0.0)
                continue
            self.log.add(client, request, up=False)
            answer, reason = (stored[client], "") if client not in missing else replies[self._nodes[client]]
            if answer is not None:
                # A client reports its own failure as a message with a code, so that no round hangs on it.
                reason = read_failure(answer)
            self._take(result, client, request, answer, reason, seconds, rule, check)
        return require_clients(result, min_clients, self.name)

    def ask_sum(
        self, requests: Mapping[int, Message], format: SumFormat, shapes: Shapes, *, min_clients: int = 1
    ) -> SumRound:
        """Run one round under SecAgg+, see `foveate.federated.rounds.Transport.ask_sum`."""
        # Imported here, because other runs need none of Flower's cryptography.
        from foveate.federated.flower.secure_server import MaskedSum

        round = next(iter(requests.values())).round if requests else 0
        asked = digest(*(request.digest() for request in requests.values()))
        key = Message("secagg.sum", round, values={"requests": asked})
        stored = None if self._store is None else self._store.read(key, _SERVER)
        if stored is not None:
            # A sum that is known is not asked for again: over other clients it would differ by single ones of them.
            clients = stored.array("clients").tolist()
            excluded = {client: "was left out before the server was stopped" for client in set(requests) - set(clients)}
            return SumRound(*format.decode(stored.array("total"), shapes, len(clients)), clients, excluded)
        excluded = {client: self._refused.get(client, self._absent) for client in requests if client not in self._nodes}
        names = {self._nodes[client]: client for client in requests if client not in excluded}

        def need(left: int, minimum: int) -> None:
            lost = excluded | {names[node]: reason for node, reason in masked.excluded.items()}
            need_sum(left, lost, max(min_clients, minimum), self.name)

        masked = MaskedSum(
            # Flower's modifier acts on this type only.
            exchange=lambda records: self._exchange(records, dict.fromkeys(records, "train"), round),
            note=lambda node, message, up: self.log.add(names[node], message, up=up),
            need=need,
        )
        total_L = masked.run({node: requests[client] for node, client in names.items()})
        excluded |= {names[node]: reason for node, reason in masked.excluded.items()}
        for client, reason in sorted(excluded.items()):
            self._leave_out({}, client, requests[client], reason, 0.0)
        clients = sorted(names[node] for node in masked.nodes)
        result = SumRound(*format.decode(total_L, shapes, len(clients)), clients, excluded)
        if self._store is not None:
            self._store.write(key, _SERVER, key.answer(arrays={"total": total_L, "clients": clients}))
        return result
