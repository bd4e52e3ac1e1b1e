"""`Transport` over Flower's Grid: clients are found by their partition number, each round is one push and one pull."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.clients import title
from foveate.federated.flower.translate import from_records, to_records
from foveate.federated.messages import Message, MessageRule
from foveate.federated.rounds import FAULTS, Check, Log, Requests, Round, TooFewClientsError, enough, judged
from foveate.federated.store import AnswerStore

HELLO = "query.hello"
HELLO_RULE = MessageRule(HELLO, {}, {"client": int, "name": str})
_POLL_SECONDS = 0.5


class GridTransport:
    """Carries messages over Flower.

    Node numbers of Flower are random; a client is who says so in its answer to `query.hello`. A client that is not there is
    left out of every round, with the reason.

    Args:
        grid: Flower's Grid. clients: how many there are; their numbers are 0 to that less 1.
        wait: seconds to wait for them at the start. timeout: seconds that a round may take.
        keep: folder of answers (`AnswerStore`), so that a killed server goes on with its round.

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
        keep: Path | None = None,
        log: Log | None = None,
    ) -> None:
        self._grid, self._timeout = grid, timeout
        self._kept = AnswerStore(keep) if keep is not None else None
        self.log = Log() if log is None else log
        self._nodes: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._wanted = clients
        self._absent = self._meet(clients, wait)

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending, those that did not say hello among them."""
        return range(self._wanted)

    def name(self, client: int) -> str:
        """How a client is called."""
        return title(client, self._names.get(client, ""))

    def _meet(self, wanted: int, wait: float) -> str:
        """Waits until the clients are there, and learns their numbers; returns why the others are missing."""
        until = time.monotonic() + wait
        nodes: list[int] = []
        say(f"waiting for {wanted} clients, {wait:g} s at most")
        while len(nodes) < wanted and time.monotonic() < until:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) < wanted:
                time.sleep(_POLL_SECONDS)
        if not nodes:
            raise TooFewClientsError(f"no client within {wait:g} s; start them with `flower-supernode`")
        found = self._send(dict.fromkeys(nodes, Message(HELLO)))
        strange: list[str] = []
        for node, (answer, reason) in found.items():
            reason = reason if answer is None else judged(node, answer, Message(HELLO), HELLO_RULE, None)
            client = int(answer.number("client")) if answer is not None and not reason else -1
            if not reason and not 0 <= client < wanted:
                reason = f"its partition-id is {client}; allowed are 0 to {wanted - 1}"
            if answer is None or reason:
                strange.append(reason)
                say(f"node {node} did not say which client it is: {reason}")
                continue
            if client in self._nodes:
                raise UserError(f"two clients say that they are number {client}; give each its own partition-id")
            self._nodes[client], self._names[client] = node, str(answer.values["name"])
        nobody = ""
        if strange:
            nobody = f"; {len(strange)} of {len(nodes)} nodes did not say which client they are ({strange[0]})"
        if not self._nodes:
            raise TooFewClientsError(f"no client within {wait:g} s{nobody}")
        absent = f"did not connect within {wait:g} s{nobody}"
        for client in self.clients:
            if client not in self._nodes:
                say(f"{self.name(client)} {absent}")
        return absent

    def _send(self, requests: dict[int, Message]) -> dict[int, tuple[Message | None, str]]:
        """Asks nodes all at once; by node its answer, or the reason why there is none."""
        sent = [
            FlowerMessage(
                content=to_records(request),
                dst_node_id=node,
                message_type=request.kind,
                group_id=str(request.round),
            )
            for node, request in requests.items()
        ]
        limit = "" if self._timeout is None else f" within {self._timeout:g} s"
        found: dict[int, tuple[Message | None, str]] = dict.fromkeys(requests, (None, f"no answer{limit}"))
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if node not in requests:
                say(f"node {node} answered and was not asked")
                continue
            if reply.has_error():
                found[node] = (None, f"error {reply.error.code}: {reply.error.reason}")
                continue
            try:
                found[node] = (from_records(reply.content), "")
            except UserError as problem:
                found[node] = (None, str(problem))
            except FAULTS as problem:
                found[node] = (None, f"not readable as a message ({type(problem).__name__}: {problem})")
        return found

    def ask(self, requests: Requests, rule: MessageRule, *, at_least: int = 1, check: Check | None = None) -> Round:
        """One round, see `foveate.federated.rounds.Transport.ask`."""
        asked = {client: requests for client in self.clients} if isinstance(requests, Message) else dict(requests)
        kept = {client: self._kept.read(request, client) for client, request in asked.items()} if self._kept else {}
        missing = {client: request for client, request in asked.items() if kept.get(client) is None}
        started = time.monotonic()
        there = {self._nodes[client]: request for client, request in missing.items() if client in self._nodes}
        replies = self._send(there) if there else {}
        seconds = time.monotonic() - started
        answers: dict[int, Message] = {}
        excluded: dict[int, str] = {}
        for client in sorted(asked):
            request = asked[client]
            if client not in self._nodes and client in missing:
                excluded[client] = self._absent
                self.log.failed(client, request, self._absent, 0.0)
                continue
            self.log.add(client, request, up=False)
            answer, reason = (kept[client], "") if client not in missing else replies[self._nodes[client]]
            if answer is None:
                self.log.failed(client, request, reason, seconds)
            else:
                # A client reports its own failure as a message of one word, so that no round hangs on it.
                failure = str(answer.values.get("failure", ""))
                reason = failure or judged(client, answer, request, rule, check)
                self.log.add(client, answer, up=True, seconds=seconds, reason=reason)
            if answer is None or reason:
                excluded[client] = reason
                say(f"{self.name(client)} is left out of '{request.kind}': {reason}")
            else:
                answers[client] = answer
                if self._kept is not None:
                    self._kept.write(request, client, answer)
        return enough(Round(answers, excluded), at_least, self.name)

    def forget(self, *, before: int | None = None) -> None:
        """Deletes kept answers of the rounds before that number, or all."""
        if self._kept is not None:
            self._kept.forget(before=before)
